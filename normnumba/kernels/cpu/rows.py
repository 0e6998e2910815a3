"""Rows: x (R, C), statistics over C, weight and bias (C). LayerNorm and RMSNorm.

RMSNorm is LayerNorm with its mean pinned to 0 (`center` is False): the same bits as a kernel of its own, and as fast.
`rounding` rounds xhat to x's dtype before the weight multiplies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from .compiling import array_in, array_out, variants
from .launching import run
from .lowlevel import (
    accumulate,
    barrier,
    elementwise,
    fence,
    flat,
    frozen,
    inlined,
    inlined_elementwise,
    load,
    must_stage,
    plus,
    rounded,
    scalar,
    store,
    stream,
)
from .spans import BLOCK, GROUP, add, copy, flush, gradient_terms, moments, normalize


def rows_forward(
    x: Any, weight: Any, bias: Any, eps: float, center: bool, rounding: bool, y: Any, mean: Any, rstd: Any
) -> None:
    """Write y, mean and rstd (R) of every row."""
    run(_forward, x, (x, weight, bias, eps, center, rounding, y, mean, rstd))


def rows_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, center: bool, rounding: bool, dx: Any, sums: Any
) -> None:
    """Write dx unless it is empty, and unless `sums` (2, C) is empty dbias and dweight into it."""
    partial = np.zeros((2, _blocks(*x.shape), sums.shape[1]))
    run(_backward, x, (dy, x, mean, rstd, weight, center, rounding, dx, partial))
    if sums.size:
        np.sum(partial, axis=1, out=sums)


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
    run(_add_forward, summed, args, x.dtype, residual.dtype)


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
    sums: Any,
) -> None:
    """Write the gradient of the sum in dy's type to dx and in summed's to dresidual, and `sums`, unless they are empty.

    An empty dsummed is zero.
    """
    partial = np.zeros((2, _blocks(*summed.shape), sums.shape[1]))
    args = (dy, dsummed, summed, mean, rstd, weight, center, rounding, dx, dresidual, partial)
    run(_add_backward, summed, args, dy.dtype)
    if sums.size:
        np.sum(partial, axis=1, out=sums)


def _blocks(rows: int, cols: int) -> int:
    """How many blocks of rows have parameter gradients of their own.

    It depends on the shape alone, so that their sums have the same bits on any number of threads, and keeps the partial
    sums at 2 MiB.
    """
    return max(1, min(rows // 16, 64, (1 << 17) // max(cols, 1)))


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


@scalar
def _row_sums(dy, x, start, count, mean, rstd, weight, zero):
    """`_weighted_sums` of a row of any length, in float64"""
    sum_g, sum_gt, sum_t = 0.0, 0.0, 0.0
    for i in range(0, count, BLOCK):
        a, b, c = _weighted_sums(dy, x, start + i, min(BLOCK, count - i), mean, rstd, weight, i, zero)
        sum_g += a
        sum_gt += b
        sum_t += c
    return sum_g, sum_gt, sum_t


@elementwise
def _gradient(dy, x, start, count, mean, rstd, slope, shift, weight, column, dx, at):
    """dx = dy * weight * rstd + t * slope + shift with t = (x - mean) * rstd"""
    for i in range(count):
        t = (load(x, start + i) - mean) * rstd
        store(dx, at + i, load(dy, start + i) * load(weight, column + i) * rstd + t * slope + shift)


def _differentiating(rounding):
    @elementwise
    def gradients(dy, x, start, count, mean, rstd, slope, shift, centre, weight, column, dx, at, dbias, dweight):
        """`_gradient`, and dweight += dy * (t - centre), dbias += dy: one loop gained 5 to 20 percent over two"""
        for i in range(count):
            g = load(dy, start + i)
            t = (load(x, start + i) - mean) * rstd
            xhat = rounded(dy, t - centre) if rounding else t - centre
            accumulate(dweight, column + i, g * xhat, 1)
            accumulate(dbias, column + i, g, 2)
            store(dx, at + i, g * load(weight, column + i) * rstd + t * slope + shift)

    return gradients


_gradients, _gradients_rounding = _differentiating(False), _differentiating(True)


@inlined
def _normalize_row(x, start, cols, weight, bias, eps, center, rounding, y, buffer):
    """y of a row, through `buffer` unless that is empty; returns mean and rstd"""
    number = weight.dtype.type
    pivot, shift, _, r = moments(x, start, 1, 0, cols, eps, center, number(0))
    for c in range(0, cols, BLOCK):
        n = min(BLOCK, cols - c)
        target, at = (buffer, 0) if buffer.size else (y, start + c)
        normalize(rounding, x, start + c, n, pivot, number(r), number(-shift * r), weight, bias, c, target, at)
        if buffer.size:
            stream(y, start + c, buffer, n, x, x, start + c + cols)
    return pivot + shift, r


@inlined
def _row_terms(dy, x, start, cols, mean, rstd, weight, center):
    """slope, shift, centre: what dx of a row takes"""
    number = weight.dtype.type
    sum_g, sum_gt, sum_t = _row_sums(dy, x, start, cols, mean, rstd, weight, number(0))
    if not center:
        sum_g, sum_t = 0.0, 0.0
    slope, shift, centre = gradient_terms(sum_g, sum_gt, sum_t, rstd, cols)
    return number(slope), number(shift), number(centre)


@inlined
def _differentiate_row(dy, x, start, count, mean, rstd, terms, rounding, weight, column, dx, at, sums):
    """dx of a block of a row, whose first element is in `column`, and unless `sums` is empty dbias and dweight"""
    slope, shift, centre = terms
    dbias, dweight = sums[0], sums[1]
    if sums.size and rounding:
        _gradients_rounding(
            dy, x, start, count, mean, rstd, slope, shift, centre, weight, column, dx, at, dbias, dweight
        )
    elif sums.size:
        _gradients(dy, x, start, count, mean, rstd, slope, shift, centre, weight, column, dx, at, dbias, dweight)
    else:
        _gradient(dy, x, start, count, mean, rstd, slope, shift, weight, column, dx, at)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 2), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(x, weight, bias, eps, center, rounding, y, mean, rstd):
    rows, cols = x.shape
    xs, ys = flat(x), flat(y)
    staged = must_stage(y, cols, x, x)
    tasks = min(rows, 256)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        for row in range(task * rows // tasks, (task + 1) * rows // tasks):
            m, r = _normalize_row(xs, row * cols, cols, weight, bias, eps, center, rounding, ys, buffer)
            mean[row], rstd[row] = m, r
        fence()


@variants(
    lambda S, A, X, R: types.void(
        *(array_in(X, 2), array_in(R, 2), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.boolean),
        *(array_out(S, 2), array_out(X, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _add_forward(x, residual, weight, bias, eps, center, rounding, summed, y, mean, rstd):
    rows, cols = x.shape
    xs, rs, ss, ys = flat(x), flat(residual), flat(summed), flat(y)
    staged = must_stage(y, cols, x, x)
    tasks = min(rows, 256)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        for row in range(task * rows // tasks, (task + 1) * rows // tasks):
            add(xs, rs, row * cols, cols, ss, row * cols)
            barrier()
            m, r = _normalize_row(frozen(ss), row * cols, cols, weight, bias, eps, center, rounding, ys, buffer)
            mean[row], rstd[row] = m, r
        fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 2), array_in(T, 2), array_in(A, 1), array_in(A, 1), array_in(A, 1), types.boolean, types.boolean),
        *(array_out(T, 2), array_out(types.float64, 3)),
    )
)
def _backward(dy, x, mean, rstd, weight, center, rounding, dx, partial):
    rows, cols = x.shape
    dys, xs, dxs, blocks = flat(dy), flat(x), flat(dx), partial.shape[1]
    staged = must_stage(dx, cols, dy, x)
    for block in prange(blocks):
        buffer = np.empty(BLOCK if staged or not dx.size else 0, dx.dtype)
        sums = np.zeros((2, partial.shape[2]), mean.dtype)
        last = (block + 1) * rows // blocks
        for row in range(block * rows // blocks, last):
            start, m, r = row * cols, mean[row], rstd[row]
            terms = _row_terms(dys, xs, start, cols, m, r, weight, center)
            for c in range(0, cols, BLOCK):
                n, i = min(BLOCK, cols - c), start + c
                target, at = (buffer, 0) if buffer.size else (dxs, i)
                _differentiate_row(dys, xs, i, n, m, r, terms, rounding, weight, c, target, at, sums)
                if staged:
                    stream(dxs, i, buffer, n, dys, xs, i + cols)
            if partial.size and (row + 1 == last or row % GROUP == 0):
                flush(sums, partial[:, block])
        fence()


@variants(
    lambda S, A, X: types.void(
        *(array_in(X, 2), array_in(S, 2), array_in(S, 2), array_in(A, 1), array_in(A, 1), array_in(A, 1)),
        *(types.boolean, types.boolean, array_out(X, 2), array_out(S, 2), array_out(types.float64, 3)),
    )
)
def _add_backward(dy, dsummed, summed, mean, rstd, weight, center, rounding, dx, dresidual, partial):
    rows, cols = summed.shape
    dys, ds, ss, blocks = flat(dy), flat(dsummed), flat(summed), partial.shape[1]
    dxs, drs = flat(dx), flat(dresidual)
    for block in prange(blocks):
        gradient, total = np.empty(BLOCK, mean.dtype), np.empty(BLOCK, mean.dtype)
        sums = np.zeros((2, partial.shape[2]), mean.dtype)
        last = (block + 1) * rows // blocks
        for row in range(block * rows // blocks, last):
            start, m, r = row * cols, mean[row], rstd[row]
            terms = _row_terms(dys, ss, start, cols, m, r, weight, center)
            for c in range(0, cols, BLOCK):
                n, i = min(BLOCK, cols - c), start + c
                _differentiate_row(dys, ss, i, n, m, r, terms, rounding, weight, c, gradient, 0, sums)
                result = gradient
                if ds.size:
                    add(ds, gradient, i, n, total, 0)
                    result = total
                if drs.size:
                    copy(result, n, drs, i)
                if dxs.size:
                    copy(result, n, dxs, i)
            if partial.size and (row + 1 == last or row % GROUP == 0):
                flush(sums, partial[:, block])
