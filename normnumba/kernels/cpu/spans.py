"""The formulas, once: loops over spans of elements, from which the kernels are put together. For means see `moments`.

A span is x[start + o * stride + i] for o < outer, i < inner. A row is one (outer = 1); a channel of NCHW data is one,
with `inner` contiguous elements in each of its `outer` samples. Kernels work on many spans at the same time.

`zero` carries the type that a span is computed in. Sums run in that type over BLOCK elements and in float64 beyond.

`line` is what makes z of x, (pivot, scale, shift, width) with z = (x - pivot) * scale + shift. `curve` is what makes dx
of dy and x, (mean, rstd, scale, slope, shift, width) with dx = dy * scale + t * slope + shift, t = (x - mean) * rstd.
They are numbers for a channel, and `width` is BLOCK; or vectors for rows of `width` columns, taken in turn. `ahead` is
how far behind a block the memory lies that is read next; `other` is where the next unit begins, and `about` its pivot.
"""

from __future__ import annotations

import math

import numpy as np

from .. import CONSTANT, NONE, RELU
from .activations import SPARE, activate, differentiate
from .lowlevel import (
    BLOCK,
    LINE,
    accumulate,
    allocating,
    at_least,
    barrier,
    elementwise,
    frozen,
    in_pair,
    inlined,
    inlined_elementwise,
    lanes_of,
    line_of,
    load,
    muladd,
    must_stream,
    parted,
    plus,
    prefetch,
    rounded,
    scalar,
    shares_memory,
    store,
    stream,
    where_positive,
    whole_lines,
    whole_pairs,
    work,
    zero_pair,
)
from .moments import (
    NO_SUMS,
    ended_sums,
    joined,
    moments,
    moments_of_sums,
    pair_sums,
    pivot_of,
    sum_about,
    sums_of_block,
)
from .tasks import launch

GROUP = 64
"""Rows that are added up in the accumulator's type before they join a float64 total."""

KEPT = 1 << 19
"""Bytes of a unit's dz up to which it is kept from the sums for the gradient, in each core's cache: groups of 92160
float32 took 0.75 of the time. And of a row's sum up to which it is kept from adding to writing: rows of 131072 took
0.92 to 1.0 of the time, of 262144 as long as without."""

PAGE = 4096
"""Bytes after which addresses end in the same twelve bits, by which a load looks for stores that it has to wait for."""

LEAD = 4
"""Lines by which a sum in cache is further in its page than the place where it is written: see `_place_of_sum`."""

SPARE_LINES = 4
"""Lines of a row's sum in cache before its first, for what the row before has left: up to 31 halves of y, which as
float64 sums fill four."""

RUN = 256
"""Elements of each, y and the sum, that are written in turn, whole lines of any dtype. With one line of each in turn
rows took 1.2 to 1.7 times as long, with whole rows up to 1.15."""

NEAR = 1000
"""Elements of short rows that are asked for ahead: rows of 257 to 400 took 0.86 to 0.96 of the time that they took with
one row. For 512 and more one row was as good as three quarters of a page more (0.92 to 1.23)."""

SOON = 560
"""Elements ahead of those being added up that are asked for while another channel is written: less than a page, since
the processor itself asks for nothing beyond the page that it reads. Instance norm of planes of 128x128 took 0.74 to
0.94 of the time, batch norm with relu of 56x56 0.88 to 0.92, group norm of 96x96 0.83 to 0.95; 304 to 1072 elements
were no better."""

OPEN, FLOORED, SUMMED, SMOOTH = range(4)
"""What dy passes: nothing, a relu of the norm, a relu of it and a residual, or an activation with loops of its own."""


@elementwise
def add(x, start, other, first, count, total, at):
    """total = x + other"""
    for i in range(count):
        store(total, at + i, load(x, start + i) + load(other, first + i))


@elementwise
def copy(z, start, count, y, at):
    """y = z, rounded"""
    for i in range(count):
        store(y, at + i, load(z, start + i))


@inlined_elementwise
def copy_lines(z, i, first, end, y, at, following, ahead):
    """`copy` of whole lines of y, past the caches"""
    for c in range(first, end, lanes_of(y)):
        store(y, line_of(y, at + c), load(z, line_of(y, i + c)))
        prefetch(following, line_of(y, at + c + ahead))


@inlined
def _set_line(row, pivot, shift, r, mean, rstd):
    """pivot, rstd and shift of a row, as `normalize` takes them; sets its mean and rstd"""
    if mean.size:
        mean[row] = pivot + shift
    rstd[row] = r
    number = type(pivot)
    return pivot, number(r), number(-shift * r)


@inlined
def _line_of_sums(x, row, cols, pivot, sums, eps, center, mean, rstd):
    """`_set_line` of a row of no more than a block, from its two sums"""
    sums = float(sums[0]), 0.0, float(sums[1]), 0.0
    pivot, shift, _, r = moments_of_sums(x, row * cols, 1, 0, cols, pivot, sums, eps, center)
    return _set_line(row, pivot, shift, r, mean, rstd)


@inlined
def _line_of_row(x, at, row, cols, eps, center, zero, mean, rstd):
    """`_set_line` of a row, which begins x[at:]"""
    pivot, shift, _, r = moments(x, at, 1, 0, cols, eps, center, zero)
    return _set_line(row, pivot, shift, r, mean, rstd)


@inlined
def _ahead_of_rows(cols):
    """How far ahead of what is written by the line is asked for: as many rows as NEAR elements hold"""
    return max(1, NEAR // cols) * cols


@inlined
def room_for_sum(summed, cols):
    """Elements of `total` for `normalize_sums_past_caches`, or 0 for sums that are too long to be kept in cache"""
    lanes = lanes_of(summed)
    return cols + (PAGE // LINE + SPARE_LINES) * lanes if cols // lanes * LINE <= KEPT else 0


@inlined
def _place_of_sum(total, summed, at):
    """Where in `total` the sum of a row is kept whose own place is summed[at:]

    A load waits for the stores past the caches before it that ended up to eight lines further in their pages. So the
    sum is LEAD lines further than its own place, and than y's, which is mostly as far in its page. Elsewhere rows took
    up to 1.2 times as long, and with one line of each in turn, where they wait for both, 20 times.
    """
    lanes = lanes_of(summed)
    page, spare, itemsize = PAGE // LINE * lanes, SPARE_LINES * lanes, LINE // lanes
    away = summed.ctypes.data // itemsize + at + LEAD * lanes - total.ctypes.data // itemsize
    return spare + (away - spare) % page


def _normalizing(rounding):
    @inlined_elementwise
    def element(x, i, pivot, rstd, shift, weight, bias, c, y, at):
        xhat = (load(x, i) - load(pivot, c)) * load(rstd, c) + load(shift, c)
        if rounding:
            xhat = rounded(y, xhat)
        store(y, at, xhat * load(weight, c) + load(bias, c))

    @elementwise
    def normalize(x, start, count, pivot, rstd, shift, weight, bias, column, y, at):
        for i in range(count):
            element(x, start + i, pivot, rstd, shift, weight, bias, column + i, y, at + i)

    @inlined_elementwise
    def shared_line(x, i, n, line, line2, seam, y, at):
        """A line with the last `n` elements of a row, and the first of the next"""
        (pivot, rstd, shift), (pivot2, rstd2, shift2), c = line, line2, line_of(y, lanes_of(y) - n)
        pivot, rstd, shift = parted(y, n, pivot, pivot2), parted(y, n, rstd, rstd2), parted(y, n, shift, shift2)
        element(x, line_of(y, i), pivot, rstd, shift, seam[0], seam[1], c, y, line_of(y, at))

    @inlined_elementwise
    def begin(x, i, c, before, line, weight, bias, seam, y, at):
        """Write what a row has before its first whole line, c elements or with -c of the row before; where it begins"""
        if c > 0:  # of the first row
            normalize(x, i, c, *line, weight, bias, 0, y, at)
        elif c < 0:
            shared_line(x, i + c, -c, before, line, seam, y, at + c)
            c += lanes_of(y)
        return c

    @inlined_elementwise
    def normalize_lines(x, i, first, end, line, weight, bias, y, at, following, ahead):
        for c in range(first, end, lanes_of(y)):
            element(x, line_of(y, i + c), *line, weight, bias, line_of(y, c), y, line_of(y, at + c))
            prefetch(following, line_of(y, at + c + ahead))

    @elementwise
    def normalize_wide(x, first, last, eps, center, weight, bias, seam, y, mean, rstd):
        """Rows one behind the other by the line: what does not fill one waits for the next row"""
        lanes, cols, zero = lanes_of(y), weight.size, weight.dtype.type(0)
        line = zero, zero, zero
        c = whole_lines(y, first * cols, cols)[0]
        for row in range(first, last):
            i, before = row * cols, line
            line = _line_of_row(x, i, row, cols, eps, center, zero, mean, rstd)
            c = begin(x, i, c, before, line, weight, bias, seam, y, i)
            end = c + (cols - c) // lanes * lanes
            normalize_lines(x, i, c, end, line, weight, bias, y, i, x, _ahead_of_rows(cols))
            c = end - cols
        i = last * cols
        normalize(x, i + c, -c, *line, weight, bias, cols + c, y, i + c)

    @elementwise
    def normalize_sums(x, residual, first, last, eps, center, total, summed, weight, bias, seam, y, mean, rstd):
        """Sums of rows and what they are normalized to, one row behind the other by the line

        c and d are the columns where the next lines of y and of summed begin; below 0, as many elements before the row
        wait for it.
        """
        lanes, lanes2, cols, zero = lanes_of(y), lanes_of(summed), weight.size, weight.dtype.type(0)
        line, source, ahead = (zero, zero, zero), frozen(total), _ahead_of_rows(cols)
        c, d = whole_lines(y, first * cols, cols)[0], whole_lines(summed, first * cols, cols)[0]
        for row in range(first, last):
            i, before, waiting = row * cols, line, min(c, d, 0)
            o = _place_of_sum(total, summed, i)
            add(x, i + waiting, residual, i + waiting, cols - waiting, total, o + waiting)
            barrier()
            line = _line_of_row(source, o, row, cols, eps, center, zero, mean, rstd)
            c = begin(source, o, c, before, line, weight, bias, seam, y, i)
            if d > 0:
                copy(source, o, d, summed, i)
            end, end2 = c + (cols - c) // lanes * lanes, d + (cols - d) // lanes2 * lanes2
            for q in range(0, max(end - c, end2 - d), RUN):
                normalize_lines(source, o, c + q, min(c + q + RUN, end), line, weight, bias, y, i, x, ahead)
                copy_lines(source, o, d + q, min(d + q + RUN, end2), summed, i, residual, ahead)
            c, d = end - cols, end2 - cols
        i, o = i + cols, o + cols
        normalize(source, o + c, -c, *line, weight, bias, cols + c, y, i + c)
        copy(source, o + d, -d, summed, i + d)

    @elementwise
    def normalize_narrow(x, first, last, eps, center, weight, bias, seam, y, mean, rstd):
        """Rows one behind the other by the line; one line may have the end of a row and the beginning of the next"""
        lanes, cols, zero, final = lanes_of(y), weight.size, weight.dtype.type(0), last - 1
        following, ahead = min(first + 1, final), BLOCK + 48 * lanes  # and three quarters of a page
        about = pivot_of(x, first * cols, cols, center, zero)
        sums = sums_of_block(x, first * cols, cols, about)
        line = _line_of_sums(x, first, cols, about, sums, eps, center, mean, rstd)
        about = pivot_of(x, following * cols, cols, center, zero)
        sums = sums_of_block(x, following * cols, cols, about)
        about2 = pivot_of(x, min(first + 2, final) * cols, cols, center, zero)
        c = whole_lines(y, first * cols, cols)[0]
        normalize(x, first * cols, c, *line, weight, bias, 0, y, first * cols)
        for row in range(first, last):
            i, own = row * cols, line
            about3 = pivot_of(x, min(row + 3, final) * cols, cols, center, zero)
            sums2 = sums_of_block(x, min(row + 2, final) * cols, cols, about2)
            line = _line_of_sums(x, min(row + 1, final), cols, about, sums, eps, center, mean, rstd)
            about, about2, sums = about2, about3, sums2
            while c + lanes <= cols:
                element(x, line_of(y, i + c), *own, weight, bias, line_of(y, c), y, line_of(y, i + c))
                prefetch(x, i + c + ahead)
                c += lanes
            if row == final:
                normalize(x, i + c, cols - c, *own, weight, bias, c, y, i + c)
            elif c < cols:
                shared_line(x, i + c, cols - c, own, line, seam, y, i + c)
                c += lanes
            c -= cols

    return normalize, normalize_narrow, normalize_wide, normalize_sums


_normalize, _normalize_narrow, _normalize_wide, _normalize_sums = _normalizing(False)
_normalize_rounding, _normalize_narrow_rounding, _normalize_wide_rounding, _normalize_sums_rounding = _normalizing(True)


@inlined
def normalize(rounding, x, start, count, pivot, rstd, shift, weight, bias, column, y, at):
    """y = xhat * weight + bias with xhat = (x - pivot) * rstd + shift, those that are vectors from `column` on

    With `rounding`, xhat is rounded to y's dtype before the weight multiplies it.
    """
    if rounding:
        _normalize_rounding(x, start, count, pivot, rstd, shift, weight, bias, column, y, at)
    else:
        _normalize(x, start, count, pivot, rstd, shift, weight, bias, column, y, at)


@allocating
def seam_of(weight, bias, lanes):
    """The last columns of weight and bias and behind them the first, as many as a line has `lanes`"""
    seam = np.empty((2, 2 * lanes), weight.dtype)
    for k in range(lanes):
        # whole arrays would bring in the text of an error, a second of compiling
        seam[0, k], seam[0, lanes + k] = weight[weight.size - lanes + k], weight[k]
        seam[1, k], seam[1, lanes + k] = bias[weight.size - lanes + k], bias[k]
    return frozen(seam)


@inlined
def normalize_narrow_past_caches(rounding, x, first, last, eps, center, weight, bias, seam, y, mean, rstd):
    """y, mean and rstd of rows no shorter than a line, past the caches; `seam` is `seam_of` weight and bias

    While a row is written, the statistics of the next are finished, the one behind it is added up, and the pivot of the
    third is taken: none of the four waits for another, and memory reads and writes all the time. Against sums of 4 to
    16 rows, then their statistics, then the writing: rows of 20 and 64 took 0.91 to 1.07 of the time, of 128 0.74 to
    0.90, of 256 0.76 to 0.91. With a row's pivot, sums and statistics in one, rows of 20 took 1.24. What is asked for
    lies no whole pages ahead, or its address ends in the bits of what has just been stored: that took 1.1 to 1.15.
    """
    if rounding:
        _normalize_narrow_rounding(x, first, last, eps, center, weight, bias, seam, y, mean, rstd)
    else:
        _normalize_narrow(x, first, last, eps, center, weight, bias, seam, y, mean, rstd)


@inlined
def normalize_wide_past_caches(rounding, x, first, last, eps, center, weight, bias, seam, y, mean, rstd):
    """y, mean and rstd of longer rows past the caches, each added up once the one before is written

    What does not fill a line goes into the first line of the next row: an ordinary store to a line that is not in cache
    holds up the stores behind it. Rows of 300 to 4096 took 0.87 to 1.0 of the time that they take with a line of their
    own at each end.
    """
    if rounding:
        _normalize_wide_rounding(x, first, last, eps, center, weight, bias, seam, y, mean, rstd)
    else:
        _normalize_wide(x, first, last, eps, center, weight, bias, seam, y, mean, rstd)


@inlined
def normalize_sums_past_caches(
    rounding, x, residual, first, last, eps, center, total, summed, weight, bias, seam, y, mean, rstd
):
    """summed = x + residual of some rows, and their y, mean and rstd, all past the caches; `total` is `room_for_sum`

    A row took 0.67 (256 elements) to 0.92 (4096) of the time that it takes with the sum in ordinary stores, which read
    what they overwrite.
    """
    if rounding:
        _normalize_sums_rounding(
            x, residual, first, last, eps, center, total, summed, weight, bias, seam, y, mean, rstd
        )
    else:
        _normalize_sums(x, residual, first, last, eps, center, total, summed, weight, bias, seam, y, mean, rstd)


def _scaling(adding):
    @inlined_elementwise
    def element(x, residual, i, pivot, scale, shift, c, floor, y, at):
        value = (load(x, i) - load(pivot, c)) * load(scale, c) + load(shift, c)
        if adding:
            value = value + load(residual, i)
        store(y, at, at_least(value, floor))

    @inlined_elementwise
    def scale_shift(x, residual, start, count, pivot, scale, shift, column, floor, y, at):
        """y = max((x - pivot) * scale + shift + residual, floor), the vectors from `column` on"""
        for i in range(count):
            element(x, residual, start + i, pivot, scale, shift, column + i, floor, y, at + i)

    @elementwise
    def scale_shift_lines(x, residual, start, count, pivot, scale, shift, column, floor, y, ahead):
        for i in range(0, count, lanes_of(y)):
            at, c = line_of(y, start + i), line_of(y, column + i)
            element(x, residual, at, pivot, scale, shift, c, floor, y, at)
            prefetch(x, line_of(y, start + i + ahead))
            if adding:
                prefetch(residual, line_of(y, start + i + ahead))

    @inlined_elementwise
    def scale_shift_summing(x, residual, start, count, pivot, scale, shift, floor, y, other, about):
        """Of whole pairs, while as many from `other` on are added up"""
        first, second = zero_pair(x), zero_pair(x)
        for i in range(0, count, in_pair(x)):
            for k in range(0, in_pair(x), lanes_of(y)):
                at = line_of(y, start + i + k)
                element(x, residual, at, pivot, scale, shift, at, floor, y, at)
                prefetch(x, other + i + k + SOON)
            first, second = pair_sums(x, other + i, in_pair(x), about, first, second)
        return first, second

    return scale_shift, scale_shift_lines, scale_shift_summing


_scale_shift, _scale_shift_lines, _scale_shift_summing = _scaling(False)
_scale_shift_add, _scale_shift_add_lines, _scale_shift_add_summing = _scaling(True)


@inlined
def _affine(x, residual, start, count, column, line, floor, y, at):
    """(x - pivot) * scale + shift + residual for elements from `start` on, whose first is in `column`; the next column

    `line` is pivot, scale, shift and how many columns those have: BLOCK where they are numbers.
    """
    pivot, scale, shift, width = line
    done = 0
    while done < count:
        n = min(width - column, count - done)
        if residual.size:
            _scale_shift_add(x, residual, start + done, n, pivot, scale, shift, column, floor, y, at + done)
        else:
            _scale_shift(x, residual, start + done, n, pivot, scale, shift, column, floor, y, at + done)
        done += n
        column = column + n if column + n < width else 0
    return column


@scalar
def _affine_past_caches(x, residual, start, count, line, floor, y, ahead):
    """`_affine` from the first column on, written past the caches; vectors go on with their first columns for a line"""
    pivot, scale, shift, width = line
    lanes, (head, lines) = lanes_of(y), whole_lines(y, start, count)
    column, done = _affine(x, residual, start, head, 0, line, floor, y, start), head
    while done < head + lines:
        n = min((width - column + lanes - 1) // lanes * lanes, head + lines - done)
        if residual.size:
            _scale_shift_add_lines(x, residual, start + done, n, pivot, scale, shift, column, floor, y, ahead)
        else:
            _scale_shift_lines(x, residual, start + done, n, pivot, scale, shift, column, floor, y, ahead)
        done += n
        column = column + n if column + n < width else column + n - width
    _affine(x, residual, start + done, count - done, column, line, floor, y, start + done)


@scalar
def _affine_and_sums(x, residual, start, count, line, floor, y, other, n, about):
    """`_affine_past_caches` of part of a channel, from a line's beginning on, and `sums_of_block` of n of another's"""
    pivot, scale, shift, _ = line
    whole, both = whole_pairs(x, n), whole_pairs(x, min(count, n))
    args = x, residual, start, both, pivot, scale, shift, floor, y, other, about
    first, second = _scale_shift_add_summing(*args) if residual.size else _scale_shift_summing(*args)
    _affine_past_caches(x, residual, start + both, count - both, line, floor, y, 0)
    first, second = pair_sums(x, other + both, whole - both, about, first, second)
    return ended_sums(x, other, whole, n, about, first, second)


@inlined
def _floor(activation, zero):
    """What no result is below"""
    return type(zero)(0 if activation == RELU else -math.inf)


def _writing(smooth):
    @(scalar if smooth else inlined)
    def write(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead):
        floor = _floor(activation, z.dtype.type(0))
        second = residual if residual.size else x  # an address that is nobody's would cost a walk of the page table
        for o in range(outer):
            first, column = start + o * stride, 0
            for i in range(first, first + inner, BLOCK):
                n = min(BLOCK, first + inner - i)
                target, at = (buffer, 0) if buffer.size else (y, i)
                if smooth:
                    column = _affine(x, residual, i, n, column, line, floor, z, 0)
                    activate(activation, z, n, target, at)
                else:
                    column = _affine(x, residual, i, n, column, line, floor, target, at)
                if buffer.size:
                    stream(y, i, buffer, n, x, second, i + ahead)

    return write


_write, _write_smooth = _writing(False), _writing(True)


@scalar
def _write_past_caches(x, residual, start, outer, stride, inner, line, activation, z, y, ahead):
    floor = _floor(activation, z.dtype.type(0))
    for o in range(outer):
        _affine_past_caches(x, residual, start + o * stride, inner, line, floor, y, ahead)


@scalar
def write_and_sum(x, residual, start, outer, stride, inner, line, activation, y, other, about, sums):
    """`write_span` of a channel past the caches, while that from `other` on joins `sums` about its pivot

    Memory reads and writes at the same time, but a core that first adds up a channel and then writes it does either.
    """
    floor = _floor(activation, about)
    for o in range(outer):
        first = start + o * stride
        head = whole_lines(y, first, inner)[0]
        _affine(x, residual, first, head, 0, line, floor, y, first)
        for i in range(0, inner, BLOCK):
            n, at = min(BLOCK, inner - i), min(i + head, inner)  # or blocks would meet in lines of two ordinary stores
            args = x, residual, first + at, min(BLOCK, inner - at), line, floor, y, other + o * stride + i, n, about
            sums = joined(sums, *_affine_and_sums(*args))
    return sums


@inlined
def ways_of_writing(y, contiguous, x, activation):
    """Whether `write_span` goes past the caches by the line, and whether it takes a buffer of BLOCK elements"""
    staged, past = shares_memory(y, x, x), must_stream(y, contiguous)
    if staged or activation > RELU:
        return False, staged or past
    return past, False


@inlined
def ways_of_differentiating(dx, contiguous, dy, x, activation, residual, dresidual):
    """Whether `write_gradients` goes past the caches by the line, and whether through a buffer

    By the line batch norm's gradients took 0.9 of the time, channels last 0.76, instance norm's 0.86.
    """
    staged, past = shares_memory(dx, dy, x), must_stream(dx, contiguous)
    aligned = dresidual.size and (dresidual.ctypes.data - dx.ctypes.data) % LINE == 0
    if staged or (gate_of(activation, residual) == SUMMED and not aligned):
        return False, staged or past
    return past, False


@inlined
def write_span(x, residual, start, outer, stride, inner, line, activation, z, y, past, buffer, ahead):
    """y = activation((x - pivot) * scale + shift + residual) over a span; see `_affine`

    `past` the caches, and without the activation, each line is computed and stored at once: inference took 0.8 of the
    time that it takes through a buffer. Otherwise blocks pass through `z` for an activation that is more than a floor,
    and `buffer` unless that is empty. Here, and below, one loop without the activation, inlined, and one with it,
    called: a call in a loop, taken or not, made the time of short spans twice as long.
    """
    if past:
        _write_past_caches(x, residual, start, outer, stride, inner, line, activation, z, y, ahead)
    elif activation > RELU:
        _write_smooth(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead)
    else:
        _write(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead)


@inlined
def gate_of(activation, residual):
    """Which of the loops below an activation takes"""
    if activation > RELU:
        return SMOOTH
    if activation == NONE:
        return OPEN
    return SUMMED if residual.size else FLOORED


@inlined_elementwise
def passed(gate, g, away, scale, shift, residual, i):
    """dz of an element from its dy and x - mean: dy, or with a floor 0 where z is not positive

    In the loop that reads dz: with a block of it between two loops, as `set_upstream` has, a batch norm with relu took
    1.8 times as long.
    """
    if gate != OPEN:
        z = away * scale + shift
        if gate == SUMMED:
            z = z + load(residual, i)
        g = where_positive(z, g)
    return g


@scalar
def set_upstream(activation, dy, x, residual, start, count, column, line, dz, at):
    """Set dz[at:] = dy * activation'(z) in a block, from x, since the forward keeps nothing"""
    barrier()
    _affine(x, residual, start, count, column, line, dz.dtype.type(-math.inf), dz, at)
    differentiate(activation, dy, start, count, dz, at)
    barrier()


@inlined
def room_for_upstream(activation, count, itemsize):
    """Elements of `dz` that a unit of `count` needs: none, a block, or all of it, to be kept for the gradient"""
    if activation <= RELU:
        return 0
    return max(count if count * itemsize <= KEPT else 0, BLOCK) + SPARE


@inlined
def room_for_gradients(activation, residual, staged, dx):
    """Elements of `buffer` that `write_gradients` needs"""
    if gate_of(activation, residual) == SUMMED:
        return 2 * BLOCK
    return BLOCK if staged or not dx.size else 0


@inlined
def gradient_terms(sum_g, sum_gt, centre, rstd, count):
    """slope, shift of what shares a mean: dx = dy * weight * rstd + t * slope + shift, where xhat = t - centre

    From sums of g = dy * weight and g * t over `count` elements, and what rounding the mean left in xhat.
    """
    share = 1.0 / count
    slope = -rstd * (sum_gt - centre * sum_g) * share
    return slope, -rstd * sum_g * share - slope * centre


@inlined_elementwise
def _block_sums(gate, dy, at, x, residual, start, count, mean, rstd, scale, shift, zero):
    """sum(dz), sum(dz * t) with t = (x - mean) * rstd"""
    sum_dz, sum_dzt = zero, zero
    for i in range(count):
        away = load(x, start + i) - mean
        g = passed(gate, load(dy, at + i), away, scale, shift, residual, start + i)
        sum_dz = plus(sum_dz, g)
        sum_dzt = plus(sum_dzt, g * (away * rstd))
    return sum_dz, sum_dzt


def _summing(gate):
    @inlined
    def sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz, keep):
        totals, (_, scale, shift, _) = NO_SUMS, line
        zero = type(mean)(0)
        for o in range(outer):
            first = start + o * stride
            for i in range(first, first + inner, BLOCK):
                n = min(BLOCK, first + inner - i)
                if gate == SMOOTH:
                    at = o * inner + i - first if keep else 0
                    set_upstream(activation, dy, x, residual, i, n, 0, line, dz, at)
                    a, b = _block_sums(OPEN, frozen(dz), at, x, residual, i, n, mean, rstd, scale, shift, zero)
                else:
                    a, b = _block_sums(gate, dy, i, x, residual, i, n, mean, rstd, scale, shift, zero)
                totals = joined(totals, a, b)
        return totals[0] + totals[1], totals[2] + totals[3]

    return sums


_open_sums, _floored_sums, _summed_sums, _smooth_sums = map(_summing, (OPEN, FLOORED, SUMMED, SMOOTH))


@inlined
def channel_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz, keep):
    """sum(dz), sum(dz * t) over a span, in float64, with dz = dy * activation' and t = (x - mean) * rstd

    With `keep`, a smooth activation's dz stay in `dz` for `write_gradients`, as many as the span has.
    """
    gate, tail = gate_of(activation, residual), (line, activation, dz, keep)
    if gate == OPEN:
        return _open_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, *tail)
    if gate == FLOORED:
        return _floored_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, *tail)
    if gate == SUMMED:
        return _summed_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, *tail)
    return _smooth_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, *tail)


@inlined
def is_far(mean, rstd):
    """Whether rounding the mean did harm: up to four standard deviations, that is no more than half an eps of xhat's"""
    return abs(mean) * rstd > 4


@scalar
def centre_before(x, start, outer, stride, inner, mean, rstd, zero):
    """mean(t), which is what rounding the mean left in xhat, and 0 where that does not matter.

    Summing t along with the other sums costs every call a fifth of its additions, and comes too late for an activation.
    """
    total = 0.0
    if not is_far(mean, rstd):
        return total
    for o in range(outer):
        for i in range(start + o * stride, start + o * stride + inner, BLOCK):
            total += sum_about(x, i, min(BLOCK, start + o * stride + inner - i), mean, zero)
    return total * rstd / (outer * inner)


def _differentiating(constant):
    @inlined_elementwise
    def element(gate, dy, first, x, residual, i, offset, curve, c, second, at2, dx, at):
        mean, rstd, scale, slope, shift, _ = curve
        g = load(dy, first)
        if gate != OPEN or not constant:
            away = load(x, i) - load(mean, c)
            g = passed(gate, g, away, load(scale, c), load(offset, c), residual, i)
        if gate == SUMMED:
            store(second, at2, g)
        if constant:
            store(dx, at, g * load(scale, c))
        else:
            store(dx, at, muladd(g, load(scale, c), muladd(away * load(rstd, c), load(slope, c), load(shift, c))))

    @inlined_elementwise
    def gradients(gate, dy, first, x, residual, start, count, offset, curve, column, second, at2, dx, at):
        """dx = dz * scale + t * slope + shift with t = (x - mean) * rstd, the vectors from `column` on

        Where SUMMED, dz goes to `second`. For `constant` statistics dx = dz * scale.
        """
        for i in range(count):
            own = column + i, second, at2 + i, dx, at + i
            element(gate, dy, first + i, x, residual, start + i, offset, curve, *own)

    @inlined_elementwise
    def gradient_lines(gate, dy, first, x, residual, start, count, offset, curve, column, dresidual, dx, ahead):
        for i in range(0, count, lanes_of(dx)):
            at, own = line_of(dx, start + i), line_of(dx, first + i)
            element(gate, dy, own, x, residual, at, offset, curve, line_of(dx, column + i), dresidual, at, dx, at)
            prefetch(dy, line_of(dx, first + i + ahead))
            if gate != OPEN or not constant:
                prefetch(x, line_of(dx, start + i + ahead))
            if gate == SUMMED:
                prefetch(residual, line_of(dx, start + i + ahead))

    return gradients, gradient_lines


_curve, _curve_lines = _differentiating(False)
_scaled, _scaled_lines = _differentiating(True)


@inlined
def _gradient(gate, dy, at_dy, x, residual, start, count, column, offset, curve, terms, second, at2, dx, at):
    """`_curve` or for constant statistics `_scaled`, of elements whose first is in `column`; the next column"""
    width, done = curve[5], 0
    while done < count:
        n = min(width - column, count - done)
        head = dy, at_dy + done, x, residual, start + done, n, offset, curve, column
        if terms == CONSTANT:
            _scaled(gate, *head, second, at2 + done, dx, at + done)
        else:
            _curve(gate, *head, second, at2 + done, dx, at + done)
        done += n
        column = column + n if column + n < width else 0
    return column


@inlined
def _gradient_past_caches(
    gate, dy, at_dy, x, residual, start, count, column, offset, curve, terms, dresidual, dx, ahead
):
    """`_gradient`, written past the caches; vectors go on with their first columns for a line"""
    width, lanes, (head, lines) = curve[5], lanes_of(dx), whole_lines(dx, start, count)
    tail = offset, curve, terms, dresidual
    column = _gradient(gate, dy, at_dy, x, residual, start, head, column, *tail, start, dx, start)
    done = head
    while done < head + lines:
        n = min((width - column + lanes - 1) // lanes * lanes, head + lines - done)
        args = dy, at_dy + done, x, residual, start + done, n, offset, curve, column, dresidual, dx, ahead
        if terms == CONSTANT:
            _scaled_lines(gate, *args)
        else:
            _curve_lines(gate, *args)
        done += n
        column = column + n if column + n < width else column + n - width
    at = start + done
    return _gradient(gate, dy, at_dy + done, x, residual, at, count - done, column, *tail, at, dx, at)


def _writing_gradients(gate):
    @(inlined if gate == OPEN else scalar)
    def write(dy, x, residual, start, outer, stride, inner, line, curve, terms, activation, dz, kept, outputs):
        dx, dresidual, past, staged, buffer, ahead = outputs
        tail = line[2], curve, terms
        for o in range(outer):
            first, column = start + o * stride, 0
            if past and gate != SMOOTH:
                _gradient_past_caches(gate, dy, first, x, residual, first, inner, 0, *tail, dresidual, dx, ahead)
                continue
            for i in range(first, first + inner, BLOCK):
                n, before = min(BLOCK, first + inner - i), column
                target, at = (buffer, 0) if staged or not dx.size else (dx, i)
                if gate == SMOOTH:
                    at_dz = o * inner + i - first if kept else 0
                    if not kept:
                        set_upstream(activation, dy, x, residual, i, n, before, line, dz, 0)
                    if past:
                        column = _gradient_past_caches(
                            OPEN, frozen(dz), at_dz, x, residual, i, n, before, *tail, dx, dx, 0
                        )
                    else:
                        column = _gradient(OPEN, frozen(dz), at_dz, x, residual, i, n, before, *tail, dx, 0, target, at)
                    if dresidual.size:
                        copy(frozen(dz), at_dz, n, dresidual, i)
                else:
                    second, at2 = (dresidual, i) if dresidual.size and not staged else (buffer, BLOCK)
                    column = _gradient(gate, dy, i, x, residual, i, n, before, *tail, second, at2, target, at)
                if staged and dx.size:
                    stream(dx, i, buffer, n, dy, x, i + ahead)
                if staged and dresidual.size and gate == SUMMED:
                    stream(dresidual, i, buffer[BLOCK:], n, residual, residual, i + ahead)

    return write


_gradients_open, _gradients_floored, _gradients_summed, _gradients_smooth = map(
    _writing_gradients, (OPEN, FLOORED, SUMMED, SMOOTH)
)


@inlined
def write_gradients(dy, x, residual, start, outer, stride, inner, line, curve, terms, activation, dz, kept, outputs):
    """dx over a span, and behind an activation dresidual = dz, each unless it is empty

    `outputs` is dx, dresidual, the two of `ways_of_differentiating`, a buffer, and `ahead`. With `kept`, `dz` holds
    what the sums made of a smooth activation.
    """
    gate, tail = gate_of(activation, residual), (line, curve, terms, activation, dz, kept, outputs)
    if gate == OPEN:
        _gradients_open(dy, x, residual, start, outer, stride, inner, *tail)
    elif gate == FLOORED:
        _gradients_floored(dy, x, residual, start, outer, stride, inner, *tail)
    elif gate == SUMMED:
        _gradients_summed(dy, x, residual, start, outer, stride, inner, *tail)
    else:
        _gradients_smooth(dy, x, residual, start, outer, stride, inner, *tail)


@elementwise
def _flush_line(partial, total):
    for j in range(partial.size):
        total[j] += partial[j]
        partial[j] = 0


@scalar
def flush(partial, totals):
    """totals += partial; partial = 0"""
    for k in range(partial.shape[0]):
        _flush_line(partial[k], totals[k])


@scalar
def flush_both(first, second, totals):
    """totals += (first, second), which are then 0"""
    _flush_line(first, totals[0])
    _flush_line(second, totals[1])


@allocating
def start_sums(blocks, rows, dweight, dbias):
    """float64 sums (blocks, 2, C), set to 0; or none where so few rows are one block that dweight and dbias hold them.

    Those are then 0.
    """
    few = blocks == 1 and rows <= GROUP
    if few:
        dweight[:] = 0
        dbias[:] = 0
    return np.zeros((blocks, 2, 0 if few else dweight.size))


@elementwise
def _add_line(totals, source, first, count):
    """totals[first : first + count] += source"""
    for j in range(first, first + count):
        accumulate(totals, j, load(source, j), 1)


@work
def _merge_part(task, tasks, partial, dweight, dbias):
    """dbias and dweight of BLOCK columns"""
    first = task * BLOCK
    count = min(BLOCK, dweight.size - first)
    for b in range(1, partial.shape[0]):
        for k in range(2):
            _add_line(partial[0, k], partial[b, k], first, count)
    for j in range(first, first + count):
        dbias[j], dweight[j] = partial[0, 0, j], partial[0, 1, j]


@scalar
def merge_sums(launcher, partial, dweight, dbias):
    """dbias and dweight = the sums over all blocks, unless `partial` has no columns"""
    launch(launcher, _merge_part, (partial.shape[2] + BLOCK - 1) // BLOCK, (partial, dweight, dbias))
