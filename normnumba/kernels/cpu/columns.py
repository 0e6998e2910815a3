"""Columns: x (O, S, C), statistics over S and groups of neighbouring columns, weight and bias (C). Channels-last norms.

A batch norm has O = 1 and groups of one column; a group norm has a sample for each O.

Rows are read as they lie in memory, and their elements added to one accumulator for each column. Narrow arrays are
folded: several rows are taken as one long row, which fills vectors, and its columns are put together at the end. The
last long row may be shorter than the others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange, types

from .. import BATCH, GIVEN, NONE, RELU
from .compiling import array_in, array_out, variants
from .launching import run
from .lowlevel import accumulate, elementwise, fence, flat, frozen, inlined, load, must_stage, scalar
from .spans import BLOCK, GROUP, flush, is_far, moments, set_upstream, write_gradients, write_span

FOLD = 128
"""Elements that a long row has at least."""


def columns_forward(
    x: Any, residual: Any, weight: Any, bias: Any, eps: float, training: bool, activation: int, y: Any, stats: Any
) -> None:
    """Write y unless it is empty, from the float64 mean, var, rstd in `stats` (3, O, G), computed first in training.

    An empty residual is none.
    """
    width = _width(x)
    totals = np.empty((x.shape[0], _blocks(x, width), 2, width if training else 0))
    vectors = np.empty((x.shape[0], 3, width), weight.dtype)
    run(_forward, x, (x, residual, weight, bias, eps, activation, vectors, totals, y, stats))


def columns_backward(
    dy: Any,
    x: Any,
    residual: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    bias: Any,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
) -> None:
    """Write dx, and with an activation dresidual, unless they are empty; sum(dz), sum(dz * xhat) to `sums` (2, O, C).

    See `channels_backward`. mean and rstd are float64 (O, G).
    """
    width = _width(x)
    totals = np.empty((x.shape[0], _blocks(x, width), 3, width if terms != GIVEN else 0))
    vectors = np.empty((x.shape[0], 6, width), weight.dtype)
    args = (dy, x, residual, mean, rstd, weight, bias, terms, count, activation, vectors, totals, dx, dresidual, sums)
    run(_backward, x, args)


def _width(x: np.ndarray) -> int:
    """Elements of a long row."""
    return x.shape[2] * max(1, min(FOLD // x.shape[2], x.shape[1]))


def _blocks(x: np.ndarray, width: int) -> int:
    """How many blocks of long rows have sums of their own: from the shape alone, hence the same bits on any threads."""
    rows = -(-x.shape[1] * x.shape[2] // width)
    return max(1, min(rows // 16, 64, (1 << 16) // width))


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


@elementwise
def _add_products(dy, first, x, start, count, mean, rstd, partial):
    """partial += (dy, dy * t, t) with t = (x - mean) * rstd, for one row"""
    sum_dy, sum_dyt, sum_t = partial[0], partial[1], partial[2]
    for j in range(count):
        g = load(dy, first + j)
        t = (load(x, start + j) - load(mean, j)) * load(rstd, j)
        accumulate(sum_dy, j, g, 1)
        accumulate(sum_dyt, j, g * t, 2)
        accumulate(sum_t, j, t, 3)


@elementwise
def _add_products_of_four(dy, first, x, start, width, mean, rstd, partial):
    """`_add_products` of four rows"""
    sum_dy, sum_dyt, sum_t = partial[0], partial[1], partial[2]
    for j in range(width):
        m, r, i, k = load(mean, j), load(rstd, j), first + j, start + j
        a, e = load(dy, i), (load(x, k) - m) * r
        b, f = load(dy, i + width), (load(x, k + width) - m) * r
        c, g = load(dy, i + 2 * width), (load(x, k + 2 * width) - m) * r
        d, h = load(dy, i + 3 * width), (load(x, k + 3 * width) - m) * r
        accumulate(sum_dy, j, (a + b) + (c + d), 1)
        accumulate(sum_dyt, j, (a * e + b * f) + (c * g + d * h), 2)
        accumulate(sum_t, j, (e + f) + (g + h), 3)


@inlined
def _add_rows(four, dy, first, x, start, count, mean, rstd, partial):
    """`_add_products` of one row or of four"""
    if four:
        _add_products_of_four(dy, first, x, start, mean.size, mean, rstd, partial)
    else:
        _add_products(dy, first, x, start, count, mean, rstd, partial)


@scalar
def _merge(totals, channels):
    """Add all blocks to the first, then all folds to the first, row by row: a column at a time would miss the cache"""
    blocks, quantities, width = totals.shape
    for b in range(1, blocks):
        for k in range(quantities):
            for j in range(width):
                totals[0, k, j] += totals[b, k, j]
    for k in range(quantities):
        for j in range(channels, width):
            totals[0, k, j % channels] += totals[0, k, j]


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


@scalar
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
def block_moments(x, base, stride, size, first, last, pivot, totals):
    """totals = (sum(t), sum(t^2)) over the rows from first to last, of `size` elements from `base` on"""
    width = pivot.size
    partial = np.zeros((2, width), pivot.dtype)
    totals[:] = 0
    r = first
    while r < last:
        stop = min(r + GROUP, last)
        while r + 4 <= stop and (r + 3) * stride + width <= size:
            _add_moments_of_four(x, base + r * stride, stride, pivot, partial)
            r += 4
        for k in range(r, stop):
            _add_moments(x, base + k * stride, min(width, size - k * stride), pivot, partial)
        r = stop
        flush(partial, totals)


def _multiplying(active):
    @scalar
    def block_products(dy, x, residual, base, size, first, last, vectors, activation, totals):
        mean, rstd, width = vectors[0], vectors[1], vectors.shape[1]
        line = mean, vectors[2], vectors[5], width
        partial = np.zeros((3, width), vectors.dtype)
        dz = np.empty(4 * width if active else 0, vectors.dtype)
        totals[:] = 0
        r = first
        while r < last:
            stop = min(r + GROUP, last)
            while r < stop:
                at, four = base + r * width, r + 4 <= stop and (r + 4) * width <= size
                n = 4 * width if four else min(width, size - r * width)
                if active:
                    upstream = set_upstream(activation, dy, x, residual, at, n, 0, line, dz)
                    _add_rows(four, upstream, 0, x, at, n, mean, rstd, partial)
                else:
                    _add_rows(four, dy, at, x, at, n, mean, rstd, partial)
                r += 4 if four else 1
            flush(partial, totals)

    return block_products


_products, _active_products = _multiplying(False), _multiplying(True)


@scalar
def _block_products(dy, x, residual, base, size, first, last, vectors, activation, totals):
    """totals = (sum(dz), sum(dz * t), sum(t)) with dz = dy * activation' over the long rows from first to last"""
    if activation:
        _active_products(dy, x, residual, base, size, first, last, vectors, activation, totals)
    else:
        _products(dy, x, residual, base, size, first, last, vectors, activation, totals)


@scalar
def column_moments(x, start, rows, stride, pivot, first, second, eps, center):
    """`moments` of a column, from its sums about the pivot, or from its elements where those are no good"""
    shift = first / rows if center else 0.0
    var = second / rows - shift * shift
    if shift * shift <= 4 * var < math.inf:
        return pivot, shift, var, 1 / math.sqrt(var + eps)
    return moments(x, start, rows, stride, 1, eps, center, type(pivot)(0))


@scalar
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


@scalar
def _set_scales(x, base, rows, weight, bias, eps, begin, end, sums, vectors, stats):
    """Complete the vectors of a group of columns, in every fold, and its `stats`, taken from `sums` in training"""
    channels, width = weight.size, vectors.shape[1]
    if sums.size:
        shift, var, rstd = _group_moments(x, base, rows, channels, begin, end, vectors[0], sums[0], sums[1], eps)
        stats[0], stats[1], stats[2] = vectors[0, begin] + shift, var, rstd
    else:
        vectors[0, begin:end] = stats[0]
        shift = stats[0] - vectors[0, begin]
    pivot = vectors[0, begin]
    for c in range(begin, end):
        scale, away = stats[2] * weight[c], shift - (vectors[0, c] - pivot)
        for j in range(c, width, channels):
            vectors[0, j], vectors[1, j], vectors[2, j] = vectors[0, c], scale, bias[c] - away * scale


@scalar
def _bounds(part, parts, size):
    """Where a part of `size` things begins and where it ends: a group of columns, a block of rows"""
    return part * size // parts, (part + 1) * size // parts


@scalar
def _centre(mean, rstd, totals, rows, terms, first, last, number):
    """What rounding the mean left in xhat of a group: nothing that is known before x's own sums are"""
    if terms != BATCH:
        return (mean - number(mean)) * rstd
    return totals[2, first:last].sum() / (rows * (last - first)) if totals.size else 0.0


@scalar
def _any_far(mean, rstd):
    for o in range(mean.shape[0]):
        for g in range(mean.shape[1]):
            if is_far(mean[o, g], rstd[o, g]):
                return True
    return False


@scalar
def _set_lines(vectors, totals, mean, rstd, weight, bias, rows, terms):
    """What z takes in each group of columns, in every fold: the mean and rstd, the scale, and the shift"""
    for g in range(mean.size):
        first, last = _bounds(g, mean.size, weight.size)
        centre = 0.0
        if terms != BATCH or is_far(mean[g], rstd[g]):  # its own need: no group's bits depend on the others
            centre = _centre(mean[g], rstd[g], totals, rows, terms, first, last, weight.dtype.type)
        for c in range(first, last):
            for j in range(c, vectors.shape[1], weight.size):
                vectors[0, j], vectors[1, j], vectors[2, j] = mean[g], rstd[g], rstd[g] * weight[c]
                vectors[5, j] = bias[c] - centre * weight[c]


@scalar
def _set_curves(vectors, totals, mean, rstd, weight, rows, terms, count, sums):
    """What dx takes in each group of columns, in every fold: the slope and the shift. Copies totals to sums"""
    for g in range(mean.size):
        first, last = _bounds(g, mean.size, weight.size)
        centre = _centre(mean[g], rstd[g], totals, rows, terms, first, last, weight.dtype.type)
        sum_g, sum_gxhat = 0.0, 0.0
        for c in range(first, last):
            if totals.size:
                sums[0, c] = totals[0, c]
                sums[1, c] = totals[1, c] - (centre * totals[0, c] if centre else 0.0)
            sum_g += sums[0, c] * weight[c]
            sum_gxhat += sums[1, c] * weight[c]
        slope = -rstd[g] * sum_gxhat / count
        shift = -rstd[g] * sum_g / count - slope * centre
        for c in range(first, last):
            for j in range(c, vectors.shape[1], weight.size):
                vectors[3, j], vectors[4, j] = slope, shift


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64, types.intp),
        *(array_out(A, 3), array_out(types.float64, 4), array_out(T, 3), array_out(types.float64, 3)),
    )
)
def _forward(x, residual, weight, bias, eps, activation, vectors, totals, y, stats):
    outer, rows, channels = x.shape
    xs, rs, ys, groups = flat(x), flat(residual), flat(y), stats.shape[2]
    size, width, blocks, training = rows * channels, vectors.shape[2], totals.shape[1], totals.size > 0
    long_rows = (size + width - 1) // width
    for o in range(outer if training else 0):
        _set_pivots(xs, o * size, size // width, channels, vectors[o, 0])
    for task in prange(outer * blocks if training else 0):
        o, b = task // blocks, task % blocks
        first, last = _bounds(b, blocks, long_rows)
        block_moments(xs, o * size, width, size, first, last, frozen(vectors[o, 0]), totals[o, b])
    for o in prange(outer if training else 0):
        _merge(totals[o], channels)
    for task in prange(outer * groups):
        o, g = task // groups, task % groups
        first, last = _bounds(g, groups, channels)
        _set_scales(xs, o * size, rows, weight, bias, eps, first, last, totals[o, 0], vectors[o], stats[:, o, g])
    staged = must_stage(y, size, x, x)
    for task in prange(outer * blocks if y.size else 0):
        o, b = task // blocks, task % blocks
        first, last = _bounds(b, blocks, long_rows)
        first, last = first * width, min(last * width, size)
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
        v = frozen(vectors[o])
        line = v[0], v[1], v[2], width
        write_span(xs, rs, o * size + first, 1, 0, last - first, line, activation, z, ys, buffer, BLOCK)
        fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(T, 3), array_in(types.float64, 2), array_in(types.float64, 2)),
        *(array_in(A, 1), array_in(A, 1), types.intp, types.intp, types.intp, array_out(A, 3)),
        *(array_out(types.float64, 4), array_out(T, 3), array_out(T, 3), array_out(types.float64, 3)),
    )
)
def _backward(
    dy, x, residual, mean, rstd, weight, bias, terms, count, activation, vectors, totals, dx, dresidual, sums
):
    outer, rows, channels = x.shape
    dys, xs, rs, dxs, drs = flat(dy), flat(x), flat(residual), flat(dx), flat(dresidual)
    size, width, blocks = rows * channels, vectors.shape[2], totals.shape[1]
    long_rows, none = (size + width - 1) // width, totals[0, 0, :, :0]
    for o in prange(outer):
        _set_lines(vectors[o], none, mean[o], rstd[o], weight, bias, rows, terms)
    if activation != NONE and terms == BATCH and _any_far(mean, rstd):  # see centre_before
        for task in prange(outer * blocks):
            o, b = task // blocks, task % blocks
            first, last = _bounds(b, blocks, long_rows)
            _block_products(dys, xs, rs, o * size, size, first, last, frozen(vectors[o]), NONE, totals[o, b])
        for o in prange(outer):
            _merge(totals[o], channels)
            _set_lines(vectors[o], totals[o, 0], mean[o], rstd[o], weight, bias, rows, terms)
    for task in prange(outer * blocks if terms != GIVEN else 0):
        o, b = task // blocks, task % blocks
        first, last = _bounds(b, blocks, long_rows)
        _block_products(dys, xs, rs, o * size, size, first, last, frozen(vectors[o]), activation, totals[o, b])
    for o in prange(outer):
        _merge(totals[o], channels)
        _set_curves(vectors[o], totals[o, 0], mean[o], rstd[o], weight, rows, terms, count, sums[:, o])
    staged = must_stage(dx, size, dy, x)
    for task in prange(outer * blocks if dx.size or dresidual.size else 0):
        o, b = task // blocks, task % blocks
        first, last = _bounds(b, blocks, long_rows)
        first, last = first * width, min(last * width, size)
        buffer = np.empty(BLOCK if staged or not dx.size else 0, dx.dtype)
        dz = np.empty(BLOCK if activation else 0, weight.dtype)
        v = frozen(vectors[o])
        line = v[0], v[2], v[5], width
        curve = v[0], v[1], v[2], v[3], v[4], width
        span = o * size + first, 1, 0, last - first
        write_gradients(dys, xs, rs, *span, line, curve, terms, activation, dz, dxs, drs, buffer, BLOCK)
        fence()
