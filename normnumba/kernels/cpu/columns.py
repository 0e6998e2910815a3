"""Columns: x (O, S, C), statistics over S and groups of neighbouring columns, weight and bias (C). Channels-last norms.

A batch norm has O = 1 and groups of one column; a group norm has a sample for each O.

Rows are read as they lie in memory, and their elements added to one accumulator for each column. Narrow arrays are
folded: several rows are taken as one long row, which fills vectors, and its columns are put together at the end. The
last long row may be shorter than the others.

Several samples that fit a core's own cache are taken one by each thread, by the kernel of one sample without threads,
so that nothing is read twice from further away; of others, all threads take one together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from .. import BATCH, CONSTANT, GIVEN, RELU
from .activations import SPARE
from .compiling import address, array_in, array_out, variants
from .launching import call
from .lowlevel import (
    BLOCK,
    accumulate,
    allocating,
    bounds,
    calling,
    elementwise,
    fence,
    flat,
    frozen,
    inlined,
    inlined_elementwise,
    lanes_of,
    load,
    muladd,
    scalar,
    work,
)
from .moments import any_moments
from .spans import (
    FLOORED,
    OPEN,
    SMOOTH,
    SUMMED,
    flush,
    gate_of,
    is_far,
    passed,
    room_for_gradients,
    room_for_upstream,
    set_upstream,
    ways_of_differentiating,
    ways_of_writing,
    write_gradients,
    write_span,
)
from .tasks import launch

FOLD = 512
"""Elements that a long row has at least: writing rows of 256 took 144 us where rows of 1024 took 115, but much longer
ones do not fit L1 with all that is known of their columns."""

LONG_ROWS = 8
"""Long rows that folding leaves at least: what is set up for each element of one took 195 us of a group norm of
64x8x8x8, and 61 so."""

GROUP = 128
"""Long rows that are added up, four at a time, in the accumulator's type before they join a float64 total."""

OWN = 1 << 19
"""Bytes of a sample that a core keeps to itself: with its gradient or its result, a 1 MiB L2 holds it."""


def columns_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    training: bool,
    activation: int,
    stats: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """Write y, and mean and rstd (O * G), each unless it is empty, from the statistics of x itself in training.

    The float64 mean and variance are in `stats` (2, O * G), put there in training, and else given. An empty residual is
    none.
    """
    run_samples(
        _forward_sample, _forward_own, x, (x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd)
    )


def columns_backward(
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    eps: float,
    squared: bool,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
) -> None:
    """See `channels_backward`; stats are (2, O * G) here, and sums (2, O * C)."""
    args = (dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums)
    run_samples(_backward_sample, _backward_own, x, args)


def run_samples(one: Callable[..., Any], own: Callable[..., Any], x: np.ndarray, args: tuple[Any, ...]) -> None:
    """Let each thread take samples of its own where they are small, and all threads the same sample otherwise."""
    samples = x.shape[0]
    if samples == 1:
        call(one, x, 0, *args)
    elif x.nbytes <= OWN * samples:
        call(own, x, address(one(x.dtype)), *args)
    else:
        for o in range(samples):
            call(one, x, o, *args)


@scalar
def _layout(rows, channels):
    """Elements of a long row, long rows, blocks of them that have sums of their own, and blocks that are written.

    From the shape alone, hence the same bits on any number of threads.
    """
    width = channels * max(1, min((FOLD + channels - 1) // channels, rows // LONG_ROWS))
    long_rows = (rows * channels + width - 1) // width
    blocks = max(1, min(rows * channels >> 16, 64))
    return width, long_rows, max(1, min(blocks, (1 << 16) // width)), min(blocks, long_rows)


@elementwise
def _add_moments(x, start, count, pivot, partial):
    """partial += (t, t^2) with t = x - pivot, for one row"""
    first, second = partial[0], partial[1]
    for j in range(count):
        t = load(x, start + j) - load(pivot, j)
        accumulate(first, j, t, 1)
        accumulate(second, j, t * t, 2)


@elementwise
def _add_moments_of_four(x, start, stride, pivot, partial):
    """`_add_moments` of four rows: the accumulators are read and written once for all of them"""
    first, second = partial[0], partial[1]
    for j in range(pivot.size):
        p = load(pivot, j)
        a, b = load(x, start + j) - p, load(x, start + stride + j) - p
        c, d = load(x, start + 2 * stride + j) - p, load(x, start + 3 * stride + j) - p
        accumulate(first, j, (a + b) + (c + d), 1)
        accumulate(second, j, (a * a + b * b) + (c * c + d * d), 2)


@inlined_elementwise
def _product(gate, dy, first, x, residual, start, mean, rstd, scale, shift):
    """dz and t of an element"""
    away = load(x, start) - mean
    return passed(gate, load(dy, first), away, scale, shift, residual, start), away * rstd


@inlined_elementwise
def _add_products(gate, dy, first, x, residual, start, count, vectors, partial):
    """partial += (dz, dz * t) with t = (x - mean) * rstd, for one row"""
    sum_dz, sum_dzt = partial[0], partial[1]
    mean, rstd, scale, shift = vectors[0], vectors[1], vectors[2], vectors[5]
    for j in range(count):
        known = load(mean, j), load(rstd, j), load(scale, j), load(shift, j)
        g, t = _product(gate, dy, first + j, x, residual, start + j, *known)
        accumulate(sum_dz, j, g, 1)
        accumulate(sum_dzt, j, g * t, 2)


@inlined_elementwise
def _add_products_of_four(gate, dy, first, x, residual, start, step, stride, vectors, partial):
    """`_add_products` of four rows, which lie `step` elements apart in dy and `stride` in x"""
    sum_dz, sum_dzt = partial[0], partial[1]
    mean, rstd, scale, shift = vectors[0], vectors[1], vectors[2], vectors[5]
    for j in range(mean.size):
        i, k, known = first + j, start + j, (load(mean, j), load(rstd, j), load(scale, j), load(shift, j))
        a, e = _product(gate, dy, i, x, residual, k, *known)
        b, f = _product(gate, dy, i + step, x, residual, k + stride, *known)
        c, g = _product(gate, dy, i + 2 * step, x, residual, k + 2 * stride, *known)
        d, h = _product(gate, dy, i + 3 * step, x, residual, k + 3 * stride, *known)
        accumulate(sum_dz, j, (a + b) + (c + d), 1)
        accumulate(sum_dzt, j, muladd(a, e, b * f) + muladd(c, g, d * h), 2)


@scalar
def _merge(totals, channels, begin, end):
    """Add all blocks to the first, then all folds to the first, columns from begin to end, row by row of `totals`"""
    blocks, quantities, width = totals.shape
    for fold in range(0, width, channels):
        for k in range(quantities):
            for b in range(1, blocks):
                _add_line(totals[b, k], totals[0, k], fold + begin, fold + begin, end - begin)
            if fold:
                _add_line(totals[0, k], totals[0, k], fold + begin, begin, end - begin)


@elementwise
def _add_line(source, totals, first, at, count):
    for j in range(count):
        accumulate(totals, at + j, load(source, first + j), 1)


@scalar
def _set_pivots(x, base, long_rows, channels, pivot):
    """pivot = the mean of each column over the first long rows, the same in every fold"""
    head, width = min(long_rows, 16), pivot.size
    set_means(x, base, width, head, pivot)
    for c in range(channels):
        total = 0.0
        for j in range(c, width, channels):
            total += pivot[j] - pivot[c]
        mean = pivot.dtype.type(pivot[c] + total / (width // channels))
        for j in range(c, width, channels):
            pivot[j] = mean


@allocating
def set_means(x, base, stride, rows, pivot):
    """pivot = the mean of each column over some rows"""
    partial = np.zeros((2, pivot.size), pivot.dtype)
    for j in range(pivot.size):
        pivot[j] = load(x, base + j)
    for r in range(1, rows):
        _add_moments(x, base + r * stride, pivot.size, pivot, partial)
    for j in range(pivot.size):
        pivot[j] += partial[0, j] / rows


@scalar
def _quarters(group, last, width, stride, size):
    """Where a group of rows ends, and how many there are in each of the quarters whose rows are added up four at a time

    A row of each quarter at a time makes four streams that the processor reads ahead of. Four neighbours at a time made
    none: sums of columns took twice as long in memory, and 1.7 times as long in the last-level cache.
    """
    stop = min(group + GROUP, last)
    whole = stop if (stop - 1) * stride + width <= size else stop - 1
    return stop, (whole - group) // 4


@allocating
def block_moments(x, base, stride, size, first, last, pivot, totals):
    """totals = (sum(t), sum(t^2)) over the rows from first to last, of `size` elements from `base` on"""
    width = pivot.size
    partial = np.zeros((2, width), pivot.dtype)
    totals[:] = 0
    for group in range(first, last, GROUP):
        rows, away = _quarters(group, last, width, stride, size)
        for r in range(group, group + away):
            _add_moments_of_four(x, base + r * stride, away * stride, pivot, partial)
        for r in range(group + 4 * away, rows):
            _add_moments(x, base + r * stride, min(width, size - r * stride), pivot, partial)
        flush(partial, totals)


def _multiplying(gate):
    inner = OPEN if gate == SMOOTH else gate

    @allocating
    def block_products(dy, x, residual, base, size, first, last, vectors, activation, totals):
        width = vectors.shape[1]
        line = vectors[0], vectors[2], vectors[5], width
        partial = np.zeros((2, width), vectors.dtype)
        dz = np.empty(4 * width + SPARE if gate == SMOOTH else 0, vectors.dtype)
        for group in range(first, last, GROUP):
            stop, away = _quarters(group, last, width, width, size)
            if gate == SMOOTH:  # whose arithmetic takes longer than reading: neighbours, for fewer calls
                for r in range(group, group + 4 * away, 4):
                    at = base + r * width
                    set_upstream(activation, dy, x, residual, at, 4 * width, 0, line, dz, 0)
                    _add_products_of_four(inner, frozen(dz), 0, x, residual, at, width, width, vectors, partial)
            else:
                for r in range(group, group + away):
                    at, apart = base + r * width, away * width
                    _add_products_of_four(inner, dy, at, x, residual, at, apart, apart, vectors, partial)
            for r in range(group + 4 * away, stop):
                at, n = base + r * width, min(width, size - r * width)
                if gate == SMOOTH:
                    set_upstream(activation, dy, x, residual, at, n, 0, line, dz, 0)
                source, begin = (frozen(dz), 0) if gate == SMOOTH else (dy, at)
                _add_products(inner, source, begin, x, residual, at, n, vectors, partial)
            flush(partial, totals)

    return block_products


_open_products, _floored_products, _summed_products, _smooth_products = map(
    _multiplying, (OPEN, FLOORED, SUMMED, SMOOTH)
)


@scalar
def _block_products(dy, x, residual, base, size, first, last, vectors, activation, totals):
    """totals += (sum(dz), sum(dz * t)) with dz = dy * activation' over the long rows from first to last"""
    gate, tail = gate_of(activation, residual), (vectors, activation, totals)
    if gate == OPEN:
        _open_products(dy, x, residual, base, size, first, last, *tail)
    elif gate == FLOORED:
        _floored_products(dy, x, residual, base, size, first, last, *tail)
    elif gate == SUMMED:
        _summed_products(dy, x, residual, base, size, first, last, *tail)
    else:
        _smooth_products(dy, x, residual, base, size, first, last, *tail)


@inlined
def column_moments(x, start, rows, stride, pivot, first, second, eps, center):
    """`moments` of a column, from its sums about the pivot, or from its elements where those are no good"""
    shift = first / rows if center else 0.0
    var = second / rows - shift * shift
    if shift * shift <= 4 * var < math.inf:
        return pivot, shift, var, 1 / math.sqrt(var + eps)
    return any_moments(x, start, rows, stride, 1, eps, center, type(pivot)(0))


@inlined
def _group_moments(x, base, rows, channels, begin, end, pivots, first, second, eps):
    """shift, var, rstd of a group of columns, the mean being that of its first column's pivot plus the shift

    Sets the columns' pivots, and merges their moments as Chan, Golub and LeVeque do for samples of one size.
    """
    mean, squares, rstd = 0.0, 0.0, 0.0
    for c in range(begin, end):
        pivots[c], shift, var, rstd = column_moments(
            x, base + c, rows, channels, pivots[c], first[c], second[c], eps, True
        )
        away = shift - mean if c == begin else pivots[c] - pivots[begin] + shift - mean
        mean += away / (c - begin + 1)
        squares += var + away * away * (c - begin) / (c - begin + 1)
    if end - begin == 1:  # its own rstd holds where its variance overflows
        return mean, squares, rstd
    var = squares / (end - begin)
    return mean, var, 1 / math.sqrt(var + eps)


@inlined
def _set_scales(x, base, rows, weight, bias, eps, begin, end, totals, vectors, stats):
    """Complete the vectors of a group of columns, in every fold, and in training its `stats`; the rstd"""
    channels, width = weight.size, vectors.shape[1]
    if totals.size:
        first, second = totals[0, 0], totals[0, 1]
        shift, var, rstd = _group_moments(x, base, rows, channels, begin, end, vectors[0], first, second, eps)
        stats[0], stats[1] = vectors[0, begin] + shift, var
    else:
        vectors[0, begin:end] = stats[0]
        shift, rstd = stats[0] - vectors[0, begin], 1 / math.sqrt(stats[1] + eps)
    pivot = vectors[0, begin]
    for c in range(begin, end):
        scale, away = rstd * weight[c], shift - (vectors[0, c] - pivot)
        for j in range(c, width, channels):
            vectors[0, j], vectors[1, j], vectors[2, j] = vectors[0, c], scale, bias[c] - away * scale
    return rstd


@scalar
def _parts(groups, channels):
    """How many tasks share the columns of a sample, groups whole"""
    return min(groups, (channels + 1023) // 1024)


@work
def _sum_block(task, tasks, x, base, size, long_rows, pivots, totals):
    """The sums of some long rows"""
    first, last = bounds(task, tasks, long_rows)
    block_moments(x, base, pivots.size, size, first, last, frozen(pivots), totals[task])


@work
def _finish(task, tasks, x, base, rows, weight, bias, eps, totals, vectors, stats, mean, rstd):
    """Everything that some columns take, from the sums of all blocks or from given statistics"""
    groups, channels = stats.shape[1], weight.size
    low, high = bounds(task, tasks, groups)
    if totals.size:
        _merge(totals, channels, low * channels // groups, high * channels // groups)
    for g in range(low, high):
        begin, end = bounds(g, groups, channels)
        r = _set_scales(x, base, rows, weight, bias, eps, begin, end, totals, vectors, stats[:, g])
        if mean.size:
            mean[g], rstd[g] = stats[0, g], r


@allocating
def _continued(vectors, lanes):
    """The vectors, and behind their last columns the first ones again, for as many `lanes` as a line has

    So that a line may begin at any column.
    """
    width = vectors.shape[1]
    longer = np.empty((vectors.shape[0], width + lanes), vectors.dtype)
    for k in range(longer.shape[0]):
        for j in range(width):
            longer[k, j] = vectors[k, j]
        for j in range(lanes):  # of a line that is longer than the vectors, too
            longer[k, width + j] = longer[k, j]
    return longer


@allocating
def _lines_of(vectors, y, past):
    """The vectors, read-only, and `_continued` for what goes past the caches"""
    return frozen(_continued(vectors, lanes_of(y)) if past else vectors)


@work
def _write_block(task, tasks, x, residual, base, size, long_rows, vectors, activation, past, staged, y):
    """y of some long rows"""
    width = vectors.shape[1]
    first, last = bounds(task, tasks, long_rows)
    first, last = first * width, min(last * width, size)
    buffer = np.empty(BLOCK if staged else 0, y.dtype)
    z = np.empty(BLOCK if activation > RELU else 0, vectors.dtype)
    v = _lines_of(vectors, y, past)
    line = v[0], v[1], v[2], width
    write_span(x, residual, base + first, 1, 0, last - first, line, activation, z, y, past, buffer, BLOCK)
    if staged or past:
        fence()


def _forward_signature(T, A):
    return types.void(
        *(types.intp, types.intp, array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64),
        *(types.boolean, types.intp, array_out(types.float64, 2), array_out(T, 3), array_out(A, 1), array_out(A, 1)),
    )


@variants(_forward_signature)
def _forward_sample(launcher, o, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd):
    samples, rows, channels = x.shape
    xs, rs, ys, size = flat(x), flat(residual), flat(y), rows * channels
    width, long_rows, sums, writes = _layout(rows, channels)
    groups = stats.shape[1] // samples
    base, (past, staged) = o * size, ways_of_writing(y, size, x, activation)
    sums, writes = sums if training else 0, writes if y.size else 0
    vectors, totals = np.empty((3, width), weight.dtype), np.empty((sums, 2, width))
    low, high = o * groups, (o + 1) * groups
    if training:
        _set_pivots(xs, base, size // width, channels, vectors[0])
    launch(launcher, _sum_block, sums, (xs, base, size, long_rows, vectors[0], totals))
    known = totals, vectors, stats[:, low:high], mean[low:high], rstd[low:high]
    launch(launcher, _finish, _parts(groups, channels), (xs, base, rows, weight, bias, eps, *known))
    ways = activation, past, staged
    launch(launcher, _write_block, writes, (xs, rs, base, size, long_rows, vectors, *ways, ys))


_run_forward = calling(_forward_signature)


@work
def _normalize_sample(task, tasks, kernel, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd):
    """`_forward_sample` of a sample"""
    own = residual, weight, bias, eps, training, activation, stats, y, mean, rstd
    _run_forward(kernel, (0, task, x, *own))


@variants(_forward_signature)
def _forward_own(launcher, kernel, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd):
    own = residual, weight, bias, eps, training, activation, stats, y, mean, rstd
    launch(launcher, _normalize_sample, x.shape[0], (kernel, x, *own))


@scalar
def _set_lines(vectors, stats, centres, terms, weight, bias):
    """What z takes in each group of columns, in every fold: the mean and rstd, the scale, and the shift.

    `centres` is what rounding the mean left in xhat of each group, but for that which x's own sums must tell.
    """
    number = weight.dtype.type
    for g in range(centres.size):
        first, last = bounds(g, centres.size, weight.size)
        mean, rstd = stats[0, g], stats[1, g]
        if terms != BATCH:
            centres[g] = (mean - number(mean)) * rstd
        for c in range(first, last):
            scale, shift = rstd * weight[c], bias[c] - centres[g] * weight[c]
            for j in range(c, vectors.shape[1], weight.size):
                vectors[0, j], vectors[1, j], vectors[2, j], vectors[5, j] = mean, rstd, scale, shift


@scalar
def _far(stats, terms):
    """Whether sums of x - mean are needed: see `centre_before`"""
    far = False
    for g in range(stats.shape[1] if terms == BATCH else 0):
        far = far or is_far(stats[0, g], stats[1, g])
    return far


@scalar
def _set_centres(totals, rows, stats, vectors, centres, weight, bias):
    """Complete `centres` and the shift of z from sums of x - mean"""
    _merge(totals, weight.size, 0, weight.size)
    for g in range(centres.size):
        first, last = bounds(g, centres.size, weight.size)
        if is_far(stats[0, g], stats[1, g]):  # its own need: no group's bits depend on the others
            centres[g] = totals[0, 0, first:last].sum() / (rows * (last - first)) * stats[1, g]
        for c in range(first, last):
            for j in range(c, vectors.shape[1], weight.size):
                vectors[5, j] = bias[c] - centres[g] * weight[c]


@work
def _set_curves(task, tasks, vectors, totals, stats, centres, weight, terms, count, sums):
    """What dx takes in some groups, in every fold: the slope and the shift. totals of all blocks go to sums"""
    groups, channels = centres.size, weight.size
    low, high = bounds(task, tasks, groups)
    if terms != GIVEN:
        _merge(totals, channels, low * channels // groups, high * channels // groups)
    for g in range(low, high):
        first, last = bounds(g, groups, channels)
        rstd, centre, sum_g, sum_gxhat = stats[1, g], centres[g], 0.0, 0.0
        for c in range(first, last):
            if terms != GIVEN:
                sums[0, c] = totals[0, 0, c]
                sums[1, c] = totals[0, 1, c] - (centre * totals[0, 0, c] if centre else 0.0)
            sum_g += sums[0, c] * weight[c]
            sum_gxhat += sums[1, c] * weight[c]
        slope = -rstd * sum_gxhat / count
        shift = -rstd * sum_g / count - slope * centre
        for c in range(first, last):
            for j in range(c, vectors.shape[1], channels):
                vectors[3, j], vectors[4, j] = slope, shift


@allocating
def _write_gradients(
    dy, x, residual, base, size, first, last, v, width, terms, activation, past, staged, dx, dresidual
):
    """dx and dresidual of the long rows from first to last; `v` is what `_lines_of` gives"""
    first, last = first * width, min(last * width, size)
    buffer = np.empty(room_for_gradients(activation, residual, staged, dx), dx.dtype)
    dz = np.empty(room_for_upstream(activation, 0, 0), v.dtype)
    line = v[0], v[2], v[5], width
    curve = v[0], v[1], v[2], v[3], v[4], width
    span = base + first, 1, 0, last - first
    outputs = dx, dresidual, past, staged, buffer, BLOCK
    write_gradients(dy, x, residual, *span, line, curve, terms, activation, dz, False, outputs)
    if staged or past:
        fence()


@work
def _products_of_block(task, tasks, dy, x, residual, base, size, long_rows, vectors, constant, outputs, totals):
    """The sums of some long rows, and where statistics are `constant` their gradients

    Those need no sums, hence are written while dy is still in a core's own cache: 98 MiB took 0.7 of the time. By the
    rows that sums have in common: half as many took 0.97 of the time, and sums without dx would have other bits.
    """
    (first, last), activation, width = bounds(task, tasks, long_rows), outputs[0], vectors.shape[1]
    own = totals[task]
    own[:] = 0
    v = _lines_of(vectors, outputs[3], constant and outputs[1])
    step = GROUP if constant else max(1, last - first)
    for group in range(first, last, step):
        stop = min(group + step, last)
        _block_products(dy, x, residual, base, size, group, stop, frozen(vectors), activation, own)
        if constant:
            _write_gradients(dy, x, residual, base, size, group, stop, v, width, CONSTANT, *outputs)


@work
def _gradients_of_block(task, tasks, dy, x, residual, base, size, long_rows, vectors, terms, outputs):
    """dx and dresidual of some long rows"""
    (first, last), v = bounds(task, tasks, long_rows), _lines_of(vectors, outputs[3], outputs[1])
    _write_gradients(dy, x, residual, base, size, first, last, v, vectors.shape[1], terms, *outputs)


@allocating
def _given(stats, o, groups, eps, squared):
    """mean and rstd of a sample, the latter made of the variance where that is what `stats` has"""
    given = stats[:, o * groups : (o + 1) * groups].copy()
    for g in range(given.shape[1] if squared else 0):
        given[1, g] = 1 / math.sqrt(given[1, g] + eps)
    return given


def _backward_signature(T, A):
    return types.void(
        *(types.intp, types.intp, array_in(T, 3), array_in(T, 3), array_in(T, 3), array_in(types.float64, 2)),
        *(array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.intp, types.intp, types.intp),
        *(array_out(T, 3), array_out(T, 3), array_out(types.float64, 2)),
    )


@variants(_backward_signature)
def _backward_sample(
    launcher, o, dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums
):
    samples, rows, channels = x.shape
    data, dxs, size = (flat(dy), flat(x), flat(residual)), flat(dx), rows * channels
    width, long_rows, blocks, writes = _layout(rows, channels)
    groups = stats.shape[1] // samples
    base, outputs = o * size, (activation, *ways_of_differentiating(dx, size, dy, x, activation, residual, dresidual))
    given, centres = _given(stats, o, groups, eps, squared), np.zeros(groups)
    vectors, totals = np.empty((6, width), weight.dtype), np.empty((blocks, 2, width))
    _set_lines(vectors, given, centres, terms, weight, bias)
    writes = writes if dx.size or dresidual.size else 0
    at_once = terms == CONSTANT and 0 < writes <= blocks  # of very long rows there are fewer blocks that have sums
    where, outputs = (*data, base, size, long_rows, vectors), (*outputs, dxs, flat(dresidual))
    if _far(given, terms):
        launch(launcher, _sum_block, blocks, (flat(x), base, size, long_rows, vectors[0], totals))
        _set_centres(totals, rows, given, vectors, centres, weight, bias)
    if terms != GIVEN:
        launch(launcher, _products_of_block, blocks, (*where, at_once, outputs, totals))
    own = terms, count, sums[:, o * channels : (o + 1) * channels]
    launch(launcher, _set_curves, _parts(groups, channels), (vectors, totals, given, centres, weight, *own))
    if not at_once:
        launch(launcher, _gradients_of_block, writes, (*where, terms, outputs))


_run_backward = calling(_backward_signature)


@work
def _differentiate_sample(task, tasks, kernel, dy, x, residual, stats, affine, options, dx, dresidual, sums):
    """`_backward_sample` of a sample"""
    _run_backward(kernel, (0, task, dy, x, residual, stats, *affine, *options, dx, dresidual, sums))


@variants(_backward_signature)
def _backward_own(
    launcher, kernel, dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums
):
    known = (weight, bias), (eps, squared, terms, count, activation)
    launch(launcher, _differentiate_sample, x.shape[0], (kernel, dy, x, residual, stats, *known, dx, dresidual, sums))
