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

from .. import BATCH, CONSTANT, GIVEN
from .compiling import array_in, array_out, variants
from .launching import run
from .lowlevel import accumulate, elementwise, fence, flat, frozen, load, must_stage, scalar, store, stream
from .spans import BLOCK, GROUP, flush, moments

FOLD = 128
"""Elements that a long row has at least."""


def columns_forward(x: Any, weight: Any, bias: Any, eps: float, training: bool, y: Any, stats: Any) -> None:
    """Write y unless it is empty, from the float64 mean, var, rstd in `stats` (3, O, G), computed first in training."""
    width = _width(x)
    totals = np.empty((x.shape[0], _blocks(x, width), 2, width if training else 0))
    run(_forward, x, (x, weight, bias, eps, np.empty((x.shape[0], 3, width), weight.dtype), totals, y, stats))


def columns_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, terms: int, count: int, dx: Any, sums: Any
) -> None:
    """Write dx unless it is empty, and sum(dy) and sum(dy * xhat) into `sums` (2, O, C). See `channels_backward`.

    mean and rstd are float64 (O, G).
    """
    width = _width(x)
    totals = np.empty((x.shape[0], _blocks(x, width), 3, width if terms != GIVEN else 0))
    vectors = np.empty((x.shape[0], 6, width), weight.dtype)
    run(_backward, x, (dy, x, mean, rstd, weight, terms, count, vectors, totals, dx, sums))


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
def _add_moments_of_four(x, start, width, pivot, partial):
    """`_add_moments` of four rows: the accumulators are read and written once for all of them"""
    first, second = partial[0], partial[1]
    for j in range(width):
        p = load(pivot, j)
        a, b = load(x, start + j) - p, load(x, start + width + j) - p
        c, d = load(x, start + 2 * width + j) - p, load(x, start + 3 * width + j) - p
        accumulate(first, j, (a + b) + (c + d), 1)
        accumulate(second, j, (a * a + b * b) + (c * c + d * d), 2)


@elementwise
def _add_products(dy, x, start, count, mean, rstd, partial):
    """partial += (dy, dy * t, t) with t = (x - mean) * rstd, for one row"""
    sum_dy, sum_dyt, sum_t = partial[0], partial[1], partial[2]
    for j in range(count):
        g = load(dy, start + j)
        t = (load(x, start + j) - load(mean, j)) * load(rstd, j)
        accumulate(sum_dy, j, g, 1)
        accumulate(sum_dyt, j, g * t, 2)
        accumulate(sum_t, j, t, 3)


@elementwise
def _add_products_of_four(dy, x, start, width, mean, rstd, partial):
    """`_add_products` of four rows"""
    sum_dy, sum_dyt, sum_t = partial[0], partial[1], partial[2]
    for j in range(width):
        m, r, k = load(mean, j), load(rstd, j), start + j
        a, e = load(dy, k), (load(x, k) - m) * r
        b, f = load(dy, k + width), (load(x, k + width) - m) * r
        c, g = load(dy, k + 2 * width), (load(x, k + 2 * width) - m) * r
        d, h = load(dy, k + 3 * width), (load(x, k + 3 * width) - m) * r
        accumulate(sum_dy, j, (a + b) + (c + d), 1)
        accumulate(sum_dyt, j, (a * e + b * f) + (c * g + d * h), 2)
        accumulate(sum_t, j, (e + f) + (g + h), 3)


@elementwise
def _write_output(x, base, first, last, vectors, y, staged):
    """y = (x - pivot) * scale + shift for the elements from first to last, which begin and end with a long row"""
    pivot, scale, shift, width = vectors[0], vectors[1], vectors[2], vectors.shape[1]
    buffer = np.empty(BLOCK if staged else 0, y.dtype)
    target, fill, at, column = buffer if staged else y, 0, first, 0
    while at < last:
        n = min(width - column, last - at, BLOCK - fill)
        start, to = base + at, fill if staged else base + at
        for j in range(n):
            t = load(x, start + j) - load(pivot, column + j)
            store(target, to + j, t * load(scale, column + j) + load(shift, column + j))
        at, fill, column = at + n, fill + n, (column + n) % width
        if fill == BLOCK or at == last:
            if staged:
                stream(y, base + at - fill, buffer, fill, x, x, base + at)
            fill = 0
    fence()


@elementwise
def _write_gradient(dy, x, base, first, last, vectors, dx, staged):
    """dx = dy * scale + t * slope + shift with t = (x - mean) * rstd, like `_write_output`"""
    mean, rstd, scale, slope, shift = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    buffer = np.empty(BLOCK if staged else 0, dx.dtype)
    target, fill, at, column, width = buffer if staged else dx, 0, first, 0, vectors.shape[1]
    while at < last:
        n = min(width - column, last - at, BLOCK - fill)
        start, to = base + at, fill if staged else base + at
        for j in range(n):
            t = (load(x, start + j) - load(mean, column + j)) * load(rstd, column + j)
            g = load(dy, start + j) * load(scale, column + j)
            store(target, to + j, g + t * load(slope, column + j) + load(shift, column + j))
        at, fill, column = at + n, fill + n, (column + n) % width
        if fill == BLOCK or at == last:
            if staged:
                stream(dx, base + at - fill, buffer, fill, dy, x, base + at)
            fill = 0
    fence()


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
    partial = np.zeros((2, width), pivot.dtype)
    for j in range(width):
        pivot[j] = load(x, base + j)
    for r in range(1, head):
        _add_moments(x, base + r * width, width, pivot, partial)
    for c in range(channels):
        total = 0.0
        for j in range(c, width, channels):
            total += pivot[j] - pivot[c] + partial[0, j] / head
        mean = pivot.dtype.type(pivot[c] + total / (width // channels))
        for j in range(c, width, channels):
            pivot[j] = mean


@scalar
def _block_moments(x, base, size, first, last, pivot, totals):
    """totals = (sum(t), sum(t^2)) over the long rows from first to last"""
    width = pivot.size
    partial = np.zeros((2, width), pivot.dtype)
    totals[:] = 0
    r = first
    while r < last:
        stop = min(r + GROUP, last)
        while r + 4 <= stop and (r + 4) * width <= size:
            _add_moments_of_four(x, base + r * width, width, pivot, partial)
            r += 4
        for k in range(r, stop):
            _add_moments(x, base + k * width, min(width, size - k * width), pivot, partial)
        r = stop
        flush(partial, totals)


@scalar
def _block_products(dy, x, base, size, first, last, vectors, totals):
    """totals = (sum(dy), sum(dy * t), sum(t)) over the long rows from first to last"""
    mean, rstd, width = vectors[0], vectors[1], vectors.shape[1]
    partial = np.zeros((3, width), vectors.dtype)
    totals[:] = 0
    r = first
    while r < last:
        stop = min(r + GROUP, last)
        while r + 4 <= stop and (r + 4) * width <= size:
            _add_products_of_four(dy, x, base + r * width, width, mean, rstd, partial)
            r += 4
        for k in range(r, stop):
            _add_products(dy, x, base + k * width, min(width, size - k * width), mean, rstd, partial)
        r = stop
        flush(partial, totals)


@scalar
def _column_moments(x, start, rows, stride, pivot, first, second, eps):
    """`moments` of a column, from its sums about the pivot, or from its elements where those are no good"""
    shift = first / rows
    var = second / rows - shift * shift
    if shift * shift <= 4 * var < math.inf:
        return pivot, shift, var, 1 / math.sqrt(var + eps)
    return moments(x, start, rows, stride, 1, eps, True, type(pivot)(0))


@scalar
def _group_moments(x, base, rows, channels, begin, end, pivots, first, second, eps):
    """shift, var, rstd of a group of columns, the mean being that of its first column's pivot plus the shift

    Sets the columns' pivots, and merges their moments as Chan, Golub and LeVeque do for samples of one size.
    """
    mean, squares, rstd = 0.0, 0.0, 0.0
    for c in range(begin, end):
        pivots[c], shift, var, rstd = _column_moments(x, base + c, rows, channels, pivots[c], first[c], second[c], eps)
        away = shift - mean if c == begin else pivots[c] - pivots[begin] + shift - mean
        mean += away / (c - begin + 1)
        squares += var + away * away * (c - begin) / (c - begin + 1)
    if end - begin == 1:  # its own rstd holds where its variance overflows
        return mean, squares, rstd
    var = squares / (end - begin)
    return mean, var, 1 / math.sqrt(var + eps)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64),
        *(array_out(A, 3), array_out(types.float64, 4), array_out(T, 3), array_out(types.float64, 3)),
    )
)
def _forward(x, weight, bias, eps, vectors, totals, y, stats):
    outer, rows, channels = x.shape
    xs, ys, groups = flat(x), flat(y), stats.shape[2]
    size, width, blocks, training = rows * channels, vectors.shape[2], totals.shape[1], totals.size > 0
    long_rows = (size + width - 1) // width
    for o in range(outer if training else 0):
        _set_pivots(xs, o * size, size // width, channels, vectors[o, 0])
    for task in prange(outer * blocks if training else 0):
        o, b = task // blocks, task % blocks
        first, last = b * long_rows // blocks, (b + 1) * long_rows // blocks
        _block_moments(xs, o * size, size, first, last, frozen(vectors[o, 0]), totals[o, b])
    for o in prange(outer if training else 0):
        _merge(totals[o], channels)
    for task in prange(outer * groups):
        o, g = task // groups, task % groups
        first, last = g * channels // groups, (g + 1) * channels // groups
        if training:
            sums = totals[o, 0]
            shift, var, r = _group_moments(
                xs, o * size, rows, channels, first, last, vectors[o, 0], sums[0], sums[1], eps
            )
            mean = vectors[o, 0, first] + shift
            stats[0, o, g], stats[1, o, g], stats[2, o, g] = mean, var, r
        else:
            for c in range(first, last):
                vectors[o, 0, c] = stats[0, o, g]
            shift = stats[0, o, g] - vectors[o, 0, first]
        pivot = vectors[o, 0, first]
        for c in range(first, last):
            scale, away = stats[2, o, g] * weight[c], shift - (vectors[o, 0, c] - pivot)
            for j in range(c, width, channels):
                vectors[o, 0, j], vectors[o, 1, j], vectors[o, 2, j] = vectors[o, 0, c], scale, bias[c] - away * scale
    staged = must_stage(y, size, x, x)
    for task in prange(outer * blocks if y.size else 0):
        o, b = task // blocks, task % blocks
        first, last = b * long_rows // blocks * width, (b + 1) * long_rows // blocks * width
        _write_output(xs, o * size, first, min(last, size), frozen(vectors[o]), ys, staged)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(types.float64, 2), array_in(types.float64, 2), array_in(A, 1)),
        *(types.intp, types.intp, array_out(A, 3), array_out(types.float64, 4), array_out(T, 3)),
        array_out(types.float64, 3),
    )
)
def _backward(dy, x, mean, rstd, weight, terms, count, vectors, totals, dx, sums):
    outer, rows, channels = x.shape
    dys, xs, dxs = flat(dy), flat(x), flat(dx)
    size, width, blocks, groups = rows * channels, vectors.shape[2], totals.shape[1], mean.shape[1]
    long_rows = (size + width - 1) // width
    for o in range(outer):
        for j in range(width):
            g = j % channels * groups // channels
            vectors[o, 0, j], vectors[o, 1, j] = mean[o, g], rstd[o, g]
    for task in prange(outer * blocks if terms != GIVEN else 0):
        o, b = task // blocks, task % blocks
        first, last = b * long_rows // blocks, (b + 1) * long_rows // blocks
        _block_products(dys, xs, o * size, size, first, last, frozen(vectors[o]), totals[o, b])
    for o in prange(outer if terms != GIVEN else 0):
        _merge(totals[o], channels)
    for task in prange(outer * groups):
        o, g = task // groups, task % groups
        first, last = g * channels // groups, (g + 1) * channels // groups
        centre = (mean[o, g] - vectors[o, 0, first]) * rstd[o, g]
        if terms == BATCH:
            centre = 0.0
            for c in range(first, last):  # what rounding the mean left in xhat
                centre += totals[o, 0, 2, c] / (rows * (last - first))
        sum_g, sum_gxhat = 0.0, 0.0
        for c in range(first, last):
            if terms != GIVEN:
                sums[0, o, c] = totals[o, 0, 0, c]
                sums[1, o, c] = totals[o, 0, 1, c] - (centre * sums[0, o, c] if centre else 0.0)
            sum_g += sums[0, o, c] * weight[c]
            sum_gxhat += sums[1, o, c] * weight[c]
        slope = -rstd[o, g] * sum_gxhat / count
        shift = -rstd[o, g] * sum_g / count - slope * centre
        for c in range(first, last):
            scale = rstd[o, g] * weight[c]
            for j in range(c, width, channels):
                if terms == CONSTANT:  # what _write_output takes: the pivot, scale and shift of dy
                    vectors[o, 3, j], vectors[o, 4, j], vectors[o, 5, j] = 0, scale, 0
                else:
                    vectors[o, 2, j], vectors[o, 3, j], vectors[o, 4, j] = scale, slope, shift
    staged = must_stage(dx, size, dy, x)
    for task in prange(outer * blocks if dx.size else 0):
        o, b = task // blocks, task % blocks
        first, last = b * long_rows // blocks * width, (b + 1) * long_rows // blocks * width
        if terms == CONSTANT:
            _write_output(dys, o * size, first, min(last, size), frozen(vectors[o, 3:]), dxs, staged)
        else:
            _write_gradient(dys, xs, o * size, first, min(last, size), frozen(vectors[o]), dxs, staged)
