"""Rows: x (R, C), statistics over C, weight and bias (C). LayerNorm and RMSNorm.

RMSNorm is LayerNorm with its mean pinned to 0 (`center` is False): the same bits as a kernel of its own, and as fast.
`rounding` rounds xhat to x's dtype before the weight multiplies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .compiling import array_in, array_out, variants
from .launching import call
from .lowlevel import (
    BLOCK,
    STREAM_FROM,
    accumulate,
    allocating,
    barrier,
    bounds,
    elementwise,
    fence,
    flat,
    frozen,
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
    tasks_of,
    whole_lines,
    widened,
    work,
)
from .moments import moments, moments_of_several
from .spans import (
    GROUP,
    add,
    copy,
    flush_both,
    gradient_terms,
    merge_sums,
    normalize,
    normalize_narrow_past_caches,
    normalize_sums_past_caches,
    normalize_wide_past_caches,
    room_for_sum,
    seam_of,
    start_sums,
)
from .tasks import launch


def rows_forward(
    x: Any, weight: Any, bias: Any, eps: float, center: bool, rounding: bool, y: Any, mean: Any, rstd: Any
) -> None:
    """Write y, mean and rstd (R) of every row."""
    call(_forward, x, x, weight, bias, eps, center, rounding, y, mean, rstd)


def rows_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, center: bool, rounding: bool, dx: Any, dweight: Any, dbias: Any
) -> None:
    """Write dx, dweight and dbias, each unless it is empty."""
    call(_backward, x, dy, x, mean, rstd, weight, center, rounding, dx, dweight, dbias)


def add_rows_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    center: bool,
    rounding: bool,
    summed: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """Write summed = x + residual, and y, mean and rstd of its rows; y is of x's type."""
    args = (x, residual, weight, bias, eps, center, rounding, summed, y, mean, rstd)
    call(_add_forward, summed, *args, others=(x.dtype, residual.dtype))


def add_rows_backward(
    dy: Any,
    dsummed: Any,
    summed: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    center: bool,
    rounding: bool,
    dx: Any,
    dresidual: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """Write the gradient of the sum in dy's type to dx and in summed's to dresidual, dweight and dbias, unless empty.

    An empty dsummed is zero.
    """
    args = (dy, dsummed, summed, mean, rstd, weight, center, rounding, dx, dresidual, dweight, dbias)
    call(_add_backward, summed, *args, others=(dy.dtype,))


STREAMED = 512
"""Elements of a row from which gradients that go past the caches are written one row at a time. Shorter ones are
written one behind the other, by lines that two rows may share, while the terms of the next are computed: gradients of
64 and 128 took 0.72 to 0.92 of the time, of 192 0.76, of 100, 300 and 511 0.81 to 0.97, of 512 and 768 1.06 to 1.09."""

STREAMED_SUMS = 96
"""Elements of a row from which sums and their results go past the caches: rows of 96 took 0.94 of the time, of 128 0.8,
of 300 0.69, but of 64 1.1."""

AHEAD = 2048
"""Elements ahead of those being differentiated that are asked for. By half a page more, and before the line is stored,
rows of 128 took 1.03 to 1.05 of the time; results gain by no whole pages, see `spans.normalize_narrow_past_caches`."""

SHARED = 1 << 18
"""Elements from which rows too few for blocks of them are shared by strips of columns. They are read twice then: 8 rows
of 65536 took 0.7 of the time on two cores, 16 of 1048576 0.52, but 32 of 4096 1.07."""

STRIPS = 64
"""How many of them there are at most."""

STAGED = 256
"""Elements of a row below which stages of several overlap where results go past the caches: see
`spans.normalize_narrow_past_caches`. Rows of 256 took 1.07 times as long as one after the other, of 128 0.88."""

NARROW = 256
"""Elements of a row up to which several that stay in the caches are normalized step by step. Against two at a time rows
of 16 in L2 took 12 ns instead of 14, of 100 31 instead of 40, of 128 32 both ways; in stages of one row those of 64
took 1.18 of the time, of 128 1.05. Rows of 512 took 1.2 times as long as one at a time."""

SEVERAL = 16
"""How many rows those are at most, and up to 128 elements."""

TOGETHER = 2048
"""Elements that they have together at most, read twice: 16 KiB of float64, half of L1."""

PAIRED = 8192
"""Elements up to which two rows are differentiated at a time: with dy they fill an eighth of L2. Where results are
streamed, one at a time is: storing two there took 1.4 times as long."""


@scalar
def _blocks(rows, cols):
    """How many blocks of rows have parameter gradients of their own: from the shape alone, and 2 MiB of them at most"""
    return max(1, min(rows // 32, 64, (1 << 17) // max(cols, 1)))


@scalar
def _step(x, dweight):
    """How many rows are differentiated at a time"""
    paired = x.shape[1] <= PAIRED and x.size * x.itemsize < STREAM_FROM
    return 2 if dweight.size and paired else 1


@scalar
def _ways_past_caches(dx, cols, free):
    """Whether gradients go past the caches by lines that rows share, and whether row by row: only if `free` to"""
    past = free and cols >= lanes_of(dx) and must_stream(dx, dx.size)
    return past and cols < STREAMED, past and cols >= STREAMED


@inlined_elementwise
def _weighted_sums(dy, x, start, count, mean, rstd, weight, column, zero):
    """sum(g), sum(g * t), sum(t) with g = dy * weight, t = (x - mean) * rstd"""
    sum_g, sum_gt, sum_t = zero, zero, zero
    for i in range(count):
        g = load(dy, start + i) * load(weight, column + i)
        t = (load(x, start + i) - mean) * rstd
        sum_g = plus(sum_g, g)
        sum_gt = plus(sum_gt, g * t)
        sum_t = plus(sum_t, t)
    return sum_g, sum_gt, sum_t


@inlined
def _row_terms(dy, x, row, cols, mean, rstd, weight, center):
    """The line of `_gradient` for a row: mean, rstd, -centre, slope, shift. Without `center` `mean` is not read"""
    number, zero = weight.dtype.type, weight.dtype.type(0)
    start, m, r = row * cols, mean[row] if center else zero, rstd[row]
    sum_g, sum_gt, sum_t = 0.0, 0.0, 0.0
    for i in range(0, cols, BLOCK):
        a, b, c = _weighted_sums(dy, x, start + i, min(BLOCK, cols - i), m, r, weight, i, zero)
        sum_g += a
        sum_gt += b
        sum_t += c
    if not center:
        sum_g, sum_t = 0.0, 0.0
    centre = sum_t * (1.0 / cols)  # what rounding the mean left in xhat
    slope, shift = gradient_terms(sum_g, sum_gt, centre, r, cols)
    return m, r, number(-centre), number(slope), number(shift + slope * centre)


@inlined
def _gradient(dy, x, i, weight, line):
    """dx of an element, and its dy and xhat: dx = dy * weight * rstd + xhat * slope + shift"""
    mean, rstd, offset, slope, shift = line
    g = widened(load(dy, i), weight)  # dy may be narrower than a sum
    xhat = muladd(load(x, i) - mean, rstd, offset)
    return muladd(g * weight, rstd, muladd(xhat, slope, shift)), g, xhat


def _differentiating(summing, rounding, adding):
    @inlined_elementwise
    def element(dy, x, other, i, line, weight, c, dx, at, dweight, dbias):
        result, g, xhat = _gradient(dy, x, i, load(weight, c), line)
        if rounding:
            xhat = rounded(dy, xhat)
        if summing:
            accumulate(dweight, c, g * xhat, 1)
            accumulate(dbias, c, g, 2)
        if adding:
            result = result + load(other, i)
        store(dx, at, result)

    @inlined_elementwise
    def one(dy, x, other, i, count, line, weight, column, dx, at, dweight, dbias):
        for k in range(count):
            element(dy, x, other, i + k, line, weight, column + k, dx, at + k, dweight, dbias)

    @elementwise
    def lines(dy, x, other, i, count, line, weight, column, dx, dweight, dbias, ahead):
        for k in range(0, count, lanes_of(dx)):
            at, c = line_of(dx, i + k), line_of(dx, column + k)
            element(dy, x, other, at, line, weight, c, dx, at, dweight, dbias)
            prefetch(dy, line_of(dx, i + k + ahead))
            prefetch(x, line_of(dx, i + k + ahead))
            if adding:
                prefetch(other, line_of(dx, i + k + ahead))

    @inlined_elementwise
    def shared_line(dy, x, other, i, n, line, line2, weight, c, cols, dx, dweight, dbias):
        """A line with the last `n` elements of a row, which is `cols` wide, and the first of the next"""
        at, first, second = line_of(dx, i), line_of(dx, c), line_of(dx, c - cols)
        (mean, rstd, offset, slope, shift), (mean2, rstd2, offset2, slope2, shift2) = line, line2
        mean, rstd, offset = parted(dx, n, mean, mean2), parted(dx, n, rstd, rstd2), parted(dx, n, offset, offset2)
        both = mean, rstd, offset, parted(dx, n, slope, slope2), parted(dx, n, shift, shift2)
        result, g, xhat = _gradient(dy, x, at, load(weight, first), both)
        if rounding:
            xhat = rounded(dy, xhat)
        if summing:  # a product for each sum: one for both would be rounded before it is added, as it is nowhere else
            zero = weight.dtype.type(0)
            own, following = parted(dx, n, g, zero), parted(dx, n, zero, g)
            accumulate(dweight, first, own * xhat, 1)
            accumulate(dbias, first, own, 2)
            accumulate(dweight, second, following * xhat, 1)
            accumulate(dbias, second, following, 2)
        if adding:
            result = result + load(other, at)
        store(dx, at, result)

    @elementwise
    def narrow(dy, x, other, first, last, mean, rstd, weight, center, longer, dx, dweight, dbias):
        """Rows one behind the other by the line; `longer` is `_between_lines`, as wide as dweight and dbias

        What a line has of the next row is added before their first column, and what it has not behind their last: 0.
        """
        lanes, cols, final, zero = lanes_of(dx), weight.size, last - 1, weight.dtype.type(0)
        line, start = (zero, zero, zero, zero, zero), first * cols
        c = whole_lines(dx, start, cols)[0]
        for row in range(first - 1, last):  # one step more, or `_row_terms` would be inlined twice
            i, own = row * cols, line
            line = _row_terms(dy, x, min(row + 1, final), cols, mean, rstd, weight, center)
            if row < first:
                one(dy, x, other, start, c, line, longer, lanes, dx, start, dweight, dbias)
                continue
            while c + lanes <= cols:
                at = line_of(dx, i + c)
                element(dy, x, other, at, own, longer, line_of(dx, lanes + c), dx, at, dweight, dbias)
                prefetch(dy, i + c + AHEAD)
                prefetch(x, i + c + AHEAD)
                if adding:
                    prefetch(other, i + c + AHEAD)
                c += lanes
            if row == final:
                one(dy, x, other, i + c, cols - c, own, longer, lanes + c, dx, i + c, dweight, dbias)
            elif c < cols:
                shared_line(dy, x, other, i + c, cols - c, own, line, longer, lanes + c, cols, dx, dweight, dbias)
                c += lanes
            c -= cols

    return one, lines, narrow


def _differentiating_two(rounding):
    @inlined_elementwise
    def two(dy, x, i, other, count, line, line2, weight, column, dx, at, at2, dweight, dbias):
        for k in range(count):
            w = load(weight, column + k)
            result, g, xhat = _gradient(dy, x, i + k, w, line)
            result2, g2, xhat2 = _gradient(dy, x, other + k, w, line2)
            if rounding:
                xhat, xhat2 = rounded(dy, xhat), rounded(dy, xhat2)
            accumulate(dweight, column + k, muladd(g, xhat, g2 * xhat2), 1)
            accumulate(dbias, column + k, g + g2, 2)
            store(dx, at + k, result)
            store(dx, at2 + k, result2)

    return two


_two, _two_rounding = _differentiating_two(False), _differentiating_two(True)


@allocating
def _column_sums(dx, start, past, summing, spare, dweight, dbias):
    """What a block adds up its dweight and dbias in: these themselves, or where it is `summing` for totals, zeros

    With `spare`, as many columns more before and behind, for what belongs to another row.

    They begin cache lines, or `past` the caches where dx's columns from `start` on do: a sum that crosses two lines,
    stored behind streaming stores, makes that of the next row wait. Rows of 768 took 1.4 times as long, of 128 twice.
    """
    if not summing:
        return dweight, dbias
    count, lanes = dweight.size + 2 * spare, lanes_of(dweight)
    room = np.zeros(2 * (count + 2 * lanes), dweight.dtype)
    first = whole_lines(room, whole_lines(dx, start, dweight.size)[0] if past else 0, room.size)[0]
    second = first + (count + lanes - 1) // lanes * lanes
    return room[first : first + count], room[second : second + count]


@allocating
def _between_lines(weight, lanes):
    """The weight between as many zeros as a line has `lanes` and its first columns again

    So that one index serves it and the sums of `_column_sums`, which have spare columns there.
    """
    longer = np.zeros(weight.size + 2 * lanes, weight.dtype)
    for j in range(weight.size + lanes):
        longer[lanes + j] = weight[j % weight.size]
    return frozen(longer)


def _streaming(adding):
    one_alone, lines_alone, narrow_alone = _differentiating(False, False, adding)
    one_summing, lines_summing, narrow_summing = _differentiating(True, False, adding)
    one_rounding, lines_rounding, narrow_rounding = _differentiating(True, True, adding)

    @inlined
    def block(dy, x, other, i, count, line, rounding, weight, column, dx, at, dweight, dbias):
        """dx of a block of a row, whose first element is in `column`, and unless they are empty dweight and dbias

        `other` is what is added to dx, if anything is.
        """
        if dweight.size and rounding:
            one_rounding(dy, x, other, i, count, line, weight, column, dx, at, dweight, dbias)
        elif dweight.size:
            one_summing(dy, x, other, i, count, line, weight, column, dx, at, dweight, dbias)
        else:
            one_alone(dy, x, other, i, count, line, weight, column, dx, at, dweight, dbias)

    @scalar
    def past_caches(dy, x, other, start, count, line, rounding, weight, dx, dweight, dbias, ahead):
        """`block` from the first column on, written past the caches, while what is `ahead` is asked for"""
        head, lines = whole_lines(dx, start, count)
        tail = dx, dweight, dbias, ahead
        block(dy, x, other, start, head, line, rounding, weight, 0, dx, start, dweight, dbias)
        if dweight.size and rounding:
            lines_rounding(dy, x, other, start + head, lines, line, weight, head, *tail)
        elif dweight.size:
            lines_summing(dy, x, other, start + head, lines, line, weight, head, *tail)
        else:
            lines_alone(dy, x, other, start + head, lines, line, weight, head, *tail)
        c, i = head + lines, start + head + lines
        block(dy, x, other, i, count - c, line, rounding, weight, c, dx, i, dweight, dbias)

    @work
    def narrow(task, tasks, dy, x, other, mean, rstd, weight, center, rounding, dx, dweight, dbias, partial):
        """dx of some rows no shorter than a line, past the caches, and their sums"""
        cols, lanes, (first, last) = weight.size, lanes_of(dx), bounds(task, tasks, rstd.size)
        longer, summing = _between_lines(weight, lanes), partial.size > 0
        dw, db = _column_sums(dx, first * cols, True, summing, lanes, dweight, dbias)
        own_dw, own_db = dw[lanes : lanes + cols], db[lanes : lanes + cols]
        inputs, tail = (dy, x, other), (mean, rstd, weight, center, longer, dx, dw, db)
        for row in range(first, last, GROUP):
            end = min(row + GROUP, last)
            if summing and rounding:
                narrow_rounding(*inputs, row, end, *tail)
            elif summing:
                narrow_summing(*inputs, row, end, *tail)
            else:  # so many rows have totals, if dweight and dbias are wanted
                narrow_alone(*inputs, row, end, *tail)
            if summing:
                flush_both(own_db, own_dw, partial[task])
        fence()

    return block, past_caches, narrow


_differentiate_block, _differentiate_past_caches, _differentiate_narrow = _streaming(False)
_, _differentiate_and_add_past_caches, _differentiate_and_add_narrow = _streaming(True)
"""With dsummed: layer norm of sums of 8192x768 took 0.85 of the time that it took with a block of gradients in L1
between two loops, 91 % of the ceiling instead of 77, rms norm 0.74."""


@inlined
def _differentiate_blocks(dy, x, i, j, n, line, line2, rounding, weight, column, dx, at, at2, dweight, dbias):
    """`_differentiate_block` of the same columns of two rows: dweight, dbias and weight pass through L1 once for both.

    That took a row of 768 from 240 to 207 ns, one of 128 from 40 to 35.
    """
    if rounding:
        _two_rounding(dy, x, i, j, n, line, line2, weight, column, dx, at, at2, dweight, dbias)
    else:
        _two(dy, x, i, j, n, line, line2, weight, column, dx, at, at2, dweight, dbias)


@inlined
def _normalize_row(x, start, cols, weight, bias, eps, center, rounding, y, at, buffer):
    """Set y[at:] of a row, through `buffer` unless that is empty; returns mean and rstd"""
    number = weight.dtype.type
    pivot, shift, _, r = moments(x, start, 1, 0, cols, eps, center, number(0))
    line = pivot, number(r), number(-shift * r)
    for c in range(0, cols, BLOCK):
        n = min(BLOCK, cols - c)
        target, i = (buffer, 0) if buffer.size else (y, at + c)
        normalize(rounding, x, start + c, n, *line, weight, bias, c, target, i)
        if buffer.size:
            stream(y, at + c, buffer, n, x, x, start + c + cols)
    return pivot + shift, r


@allocating
def _normalize_several(x, first, last, weight, bias, eps, center, rounding, y, mean, rstd):
    """Set y, mean and rstd of the rows from first to last, several at a time"""
    number, cols, statistics = weight.dtype.type, weight.size, np.empty((3, SEVERAL))
    step = min(SEVERAL, TOGETHER // max(cols, 1))
    for row in range(first, last, step):
        count = min(step, last - row)
        moments_of_several(x, row * cols, count, cols, eps, center, number(0), statistics)
        for k in range(count):
            i, pivot, shift, r = (row + k) * cols, statistics[0, k], statistics[1, k], statistics[2, k]
            normalize(rounding, x, i, cols, number(pivot), number(r), number(-shift * r), weight, bias, 0, y, i)
            if mean.size:
                mean[row + k] = pivot + shift
            rstd[row + k] = r


@work
def _normalize_rows(task, tasks, x, weight, bias, eps, center, rounding, y, staged, mean, rstd):
    """y, mean and rstd of some rows"""
    cols, narrow, (first, last) = weight.size, not staged and weight.size <= NARROW, bounds(task, tasks, rstd.size)
    buffer = np.empty(BLOCK if staged else 0, y.dtype)
    if narrow:
        _normalize_several(x, first, last, weight, bias, eps, center, rounding, y, mean, rstd)
    for row in range(last if narrow else first, last):
        at = row * cols
        m, r = _normalize_row(x, at, cols, weight, bias, eps, center, rounding, y, at, buffer)
        if mean.size:
            mean[row] = m
        rstd[row] = r
    if staged:
        fence()


@work
def _normalize_rows_past_caches(task, tasks, x, weight, bias, eps, center, rounding, y, mean, rstd):
    """y, mean and rstd of some rows no shorter than a line"""
    first, last = bounds(task, tasks, rstd.size)
    args = x, first, last, eps, center, weight, bias, seam_of(weight, bias, lanes_of(y)), y, mean, rstd
    if weight.size < STAGED:
        normalize_narrow_past_caches(rounding, *args)
    else:
        normalize_wide_past_caches(rounding, *args)
    fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 2), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(launcher, x, weight, bias, eps, center, rounding, y, mean, rstd):
    rows, cols = x.shape
    staged = shares_memory(y, x, x)
    tasks, args = tasks_of(rows, x.size), (flat(x), weight, bias, eps, center, rounding, flat(y))
    if not staged and cols >= lanes_of(y) and must_stream(y, x.size):
        launch(launcher, _normalize_rows_past_caches, tasks, (*args, mean, rstd))
    else:
        launch(launcher, _normalize_rows, tasks, (*args, staged, mean, rstd))


@work
def _normalize_sums(task, tasks, x, residual, weight, bias, eps, center, rounding, summed, y, mean, rstd):
    """summed, y, mean and rstd of some rows; y may be x, of which a row is not read again once its sum is stored"""
    cols, none, (first, last) = weight.size, y[:0], bounds(task, tasks, rstd.size)
    for row in range(first, last):
        at = row * cols
        add(x, at, residual, at, cols, summed, at)
        barrier()
        m, r = _normalize_row(frozen(summed), at, cols, weight, bias, eps, center, rounding, y, at, none)
        if mean.size:
            mean[row] = m
        rstd[row] = r


@work
def _normalize_sums_past_caches(task, tasks, x, residual, weight, bias, eps, center, rounding, summed, y, mean, rstd):
    """summed, y, mean and rstd of some rows past the caches, but for sums of rows too long to be kept in cache"""
    cols, (first, last) = weight.size, bounds(task, tasks, rstd.size)
    tail = weight, bias, seam_of(weight, bias, lanes_of(y)), y, mean, rstd
    total = np.empty(room_for_sum(summed, cols), summed.dtype)
    if total.size:
        normalize_sums_past_caches(rounding, x, residual, first, last, eps, center, total, summed, *tail)
    else:
        for row in range(first, last):
            add(x, row * cols, residual, row * cols, cols, summed, row * cols)
            barrier()
            normalize_wide_past_caches(rounding, frozen(summed), row, row + 1, eps, center, *tail)
    fence()


@variants(
    lambda S, A, X, R: types.void(
        *(types.intp, array_in(X, 2), array_in(R, 2), array_in(A, 1), array_in(A, 1), types.float64, types.boolean),
        *(types.boolean, array_out(S, 2), array_out(X, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _add_forward(launcher, x, residual, weight, bias, eps, center, rounding, summed, y, mean, rstd):
    rows, cols = x.shape
    tasks, args = tasks_of(rows, x.size), (flat(x), flat(residual), weight, bias, eps, center, rounding, flat(summed))
    if not shares_memory(y, x, x) and cols >= STREAMED_SUMS and must_stream(y, x.size):
        launch(launcher, _normalize_sums_past_caches, tasks, (*args, flat(y), mean, rstd))
    else:
        launch(launcher, _normalize_sums, tasks, (*args, flat(y), mean, rstd))


@inlined
def _differentiate_row(dy, x, start, cols, line, past, rounding, weight, dx, staged, buffer, dweight, dbias, ahead):
    """dx of a row, `past` the caches, or through `buffer` unless that is empty; dweight and dbias grow unless empty

    Or of a part of one, whose columns alone the vectors have.
    """
    if past:
        _differentiate_past_caches(dy, x, x, start, cols, line, rounding, weight, dx, dweight, dbias, ahead)
        return
    for c in range(0, cols, BLOCK):
        n, i = min(BLOCK, cols - c), start + c
        target, at = (buffer, 0) if buffer.size else (dx, i)
        _differentiate_block(dy, x, x, i, n, line, rounding, weight, c, target, at, dweight, dbias)
        if staged:
            stream(dx, i, buffer, n, dy, x, i + ahead)


@inlined
def _differentiate_two(
    dy, x, start, start2, cols, line, line2, rounding, weight, dx, staged, buffer, dweight, dbias, ahead
):
    """`_differentiate_row` of two rows"""
    for c in range(0, cols, BLOCK):
        n, i, j = min(BLOCK, cols - c), start + c, start2 + c
        target, at, at2 = (buffer, 0, BLOCK) if buffer.size else (dx, i, j)
        _differentiate_blocks(dy, x, i, j, n, line, line2, rounding, weight, c, target, at, at2, dweight, dbias)
        if staged:
            stream(dx, i, buffer, n, dy, x, i + ahead)
            stream(dx, j, buffer[BLOCK:], n, dy, x, j + ahead)


@inlined
def _differentiate_rows(
    dy, x, row, taken, mean, rstd, weight, center, past, rounding, dx, staged, buffer, dweight, dbias
):
    """`_differentiate_row` of a row, or `_differentiate_two` where two are taken: see `lowlevel._INNER` for tuples"""
    start, cols = row * weight.size, weight.size
    line, tail = _row_terms(dy, x, row, cols, mean, rstd, weight, center), (rounding, weight, dx, staged, buffer)
    if taken == 2:
        line2 = _row_terms(dy, x, row + 1, cols, mean, rstd, weight, center)
        _differentiate_two(dy, x, start, start + cols, cols, line, line2, *tail, dweight, dbias, 2 * cols)
    else:
        _differentiate_row(dy, x, start, cols, line, past, *tail, dweight, dbias, cols)


@work
def _set_terms(task, tasks, dy, x, mean, rstd, weight, center, terms):
    """terms = the line of a row"""
    line = _row_terms(dy, x, task, weight.size, mean, rstd, weight, center)
    terms[task, 0], terms[task, 1], terms[task, 2], terms[task, 3], terms[task, 4] = line


@inlined
def _terms_of(terms, row):
    return terms[row, 0], terms[row, 1], terms[row, 2], terms[row, 3], terms[row, 4]


@work
def _differentiate_strip(task, tasks, dy, x, terms, weight, rounding, dx, past, staged, step, dweight, dbias, partial):
    """dx of some columns of all rows, whose lines are `terms`, and their sums"""
    (rows, _), cols, (first, last) = terms.shape, weight.size, bounds(task, tasks, weight.size)
    buffer, count = np.empty(2 * BLOCK if staged or not dx.size else 0, dx.dtype), last - first
    summing, own, total = partial.size > 0, weight[first:last], partial[0, :, first:last]
    dw, db = _column_sums(dx, first, past, summing, 0, dweight[first:last], dbias[first:last])
    tail = rounding, own, dx, staged, buffer, dw, db
    for row in range(0, rows, step):
        start, taken = row * cols + first, min(step, rows - row)
        line = _terms_of(terms, row)
        if taken == 2:
            _differentiate_two(dy, x, start, start + cols, count, line, _terms_of(terms, row + 1), *tail, 2 * cols)
        else:
            _differentiate_row(dy, x, start, count, line, past, *tail, cols)
        if summing and (row + step >= rows or row % GROUP >= GROUP - step):
            flush_both(db, dw, total)
    if staged or past:
        fence()


@work
def _differentiate_some(
    task, tasks, dy, x, mean, rstd, weight, center, rounding, dx, past, staged, step, dweight, dbias, partial
):
    """dx of some rows, and their sums"""
    cols, summing, (first, last) = weight.size, partial.size > 0, bounds(task, tasks, rstd.size)
    buffer = np.empty(2 * BLOCK if staged or not dx.size else 0, dx.dtype)
    dw, db = _column_sums(dx, first * cols, past, summing, 0, dweight, dbias)
    for row in range(first, last, step):
        taken = min(step, last - row)
        _differentiate_rows(dy, x, row, taken, mean, rstd, weight, center, past, rounding, dx, staged, buffer, dw, db)
        if summing and (row + step >= last or (row - first) % GROUP >= GROUP - step):
            flush_both(db, dw, partial[task])
    if staged or past:
        fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 2), array_in(T, 2), array_in(A, 1), array_in(A, 1), array_in(A, 1), types.boolean),
        *(types.boolean, array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _backward(launcher, dy, x, mean, rstd, weight, center, rounding, dx, dweight, dbias):
    rows, cols = x.shape
    dys, xs, dxs = flat(dy), flat(x), flat(dx)
    staged, blocks = shares_memory(dx, dy, x), _blocks(rows, cols)
    narrow, past = _ways_past_caches(dx, cols, not staged)
    partial, step = start_sums(blocks, rows, dweight, dbias), _step(x, dweight)
    strips = min(STRIPS, (cols + BLOCK - 1) // BLOCK) if blocks == 1 and x.size >= SHARED else 0
    tail = rounding, dxs, past, staged, step, dweight, dbias, partial
    if narrow:
        args = dys, xs, xs, mean, rstd, weight, center, rounding, dxs, dweight, dbias, partial
        launch(launcher, _differentiate_narrow, blocks, args)
    elif strips:
        terms = np.empty((rows, 5), weight.dtype)
        launch(launcher, _set_terms, rows, (dys, xs, mean, rstd, weight, center, terms))
        launch(launcher, _differentiate_strip, strips, (dys, xs, terms, weight, *tail))
    else:
        launch(launcher, _differentiate_some, blocks, (dys, xs, mean, rstd, weight, center, *tail))
    merge_sums(launcher, partial, dweight, dbias)


@inlined
def _write_sum(gradient, dsummed, i, count, total, dx, dresidual):
    """dx and dresidual = gradient + dsummed, each unless it is empty"""
    if dsummed.size and dx.size and not dresidual.size:  # without the detour of the others
        add(dsummed, i, gradient, 0, count, dx, i)
        return
    if dsummed.size:
        add(dsummed, i, gradient, 0, count, total, 0)
    else:
        copy(gradient, 0, count, total, 0)
    if dresidual.size:
        copy(total, 0, count, dresidual, i)
    if dx.size:
        copy(total, 0, count, dx, i)


@work
def _differentiate_summed(
    task, tasks, dy, dsummed, summed, mean, rstd, weight, center, rounding, dx, dresidual, past, step, dw, db, partial
):
    """dx and dresidual of some rows, or dx alone `past` the caches, and their sums"""
    cols, summing, (first, last) = weight.size, partial.size > 0, bounds(task, tasks, rstd.size)
    gradient, total = np.empty(2 * BLOCK, weight.dtype), np.empty(BLOCK, weight.dtype)
    dw, db = _column_sums(dx, first * cols, past, summing, 0, dw, db)
    for row in range(first, last, step):
        start, taken = row * cols, min(step, last - row)
        line = _row_terms(dy, summed, row, cols, mean, rstd, weight, center)
        if past:
            _differentiate_and_add_past_caches(
                dy, summed, dsummed, start, cols, line, rounding, weight, dx, dw, db, cols
            )
        line2 = _row_terms(dy, summed, row + 1, cols, mean, rstd, weight, center) if taken == 2 else line
        for c in range(0, 0 if past else cols, BLOCK):  # as two branches, `past` took 1.04 to 1.11 of the time
            n, i = min(BLOCK, cols - c), start + c
            if taken == 2:
                _differentiate_blocks(
                    dy, summed, i, i + cols, n, line, line2, rounding, weight, c, gradient, 0, BLOCK, dw, db
                )
                _write_sum(gradient[BLOCK:], dsummed, i + cols, n, total, dx, dresidual)
            else:
                _differentiate_block(dy, summed, summed, i, n, line, rounding, weight, c, gradient, 0, dw, db)
            _write_sum(gradient, dsummed, i, n, total, dx, dresidual)
        if summing and (row + step >= last or (row - first) % GROUP >= GROUP - step):
            flush_both(db, dw, partial[task])
    if past:
        fence()


@variants(
    lambda S, A, X: types.void(
        *(types.intp, array_in(X, 2), array_in(S, 2), array_in(S, 2), array_in(A, 1), array_in(A, 1), array_in(A, 1)),
        *(types.boolean, types.boolean, array_out(X, 2), array_out(S, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _add_backward(launcher, dy, dsummed, summed, mean, rstd, weight, center, rounding, dx, dresidual, dweight, dbias):
    rows, cols = summed.shape
    blocks, step = _blocks(rows, cols), _step(summed, dweight)
    partial = start_sums(blocks, rows, dweight, dbias)
    alone = dsummed.size > 0 and dresidual.size == 0
    alone = alone and not shares_memory(dx, dy, summed) and not shares_memory(dx, dsummed, dsummed)
    narrow, past = _ways_past_caches(dx, cols, alone and step == 1)
    dys, others, xs, parameters = flat(dy), flat(dsummed), flat(summed), (mean, rstd, weight, center, rounding)
    if narrow:
        args = dys, xs, others, *parameters, flat(dx), dweight, dbias, partial
        launch(launcher, _differentiate_and_add_narrow, blocks, args)
    else:
        outputs = flat(dx), flat(dresidual), past, step, dweight, dbias, partial
        launch(launcher, _differentiate_summed, blocks, (dys, others, xs, *parameters, *outputs))
    merge_sums(launcher, partial, dweight, dbias)
