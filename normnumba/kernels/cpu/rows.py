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
from .lowlevel import fence, flat, must_stage, stream
from .spans import (
    BLOCK,
    GROUP,
    flush,
    moments,
    normalize,
    normalize_rounding,
    row_gradient,
    row_gradients,
    row_gradients_rounding,
    row_sums,
)


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


def _blocks(rows: int, cols: int) -> int:
    """How many blocks of rows have parameter gradients of their own.

    It depends on the shape alone, so that their sums have the same bits on any number of threads, and keeps the partial
    sums at 2 MiB.
    """
    return max(1, min(rows // 16, 64, (1 << 17) // max(cols, 1)))


@variants(
    lambda T, A: types.void(
        *(array_in(T, 2), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(x, weight, bias, eps, center, rounding, y, mean, rstd):
    rows, cols = x.shape
    xs, ys, number = flat(x), flat(y), mean.dtype.type
    staged = must_stage(y, cols, x, x)
    tasks = min(rows, 256)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        for row in range(task * rows // tasks, (task + 1) * rows // tasks):
            start = row * cols
            pivot, shift, _, r = moments(xs, start, 1, 0, cols, eps, center, number(0))
            mean[row] = pivot + shift
            rstd[row] = r
            for c in range(0, cols, BLOCK):
                n = min(BLOCK, cols - c)
                target, at = (buffer, 0) if staged else (ys, start + c)
                a, b = number(r), number(-shift * r)
                if rounding:
                    normalize_rounding(xs, start + c, n, pivot, a, b, weight, bias, c, target, at)
                else:
                    normalize(xs, start + c, n, pivot, a, b, weight, bias, c, target, at)
                if staged:
                    stream(ys, start + c, buffer, n, xs, xs, start + c + cols)
        fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 2), array_in(T, 2), array_in(A, 1), array_in(A, 1), array_in(A, 1), types.boolean, types.boolean),
        *(array_out(T, 2), array_out(types.float64, 3)),
    )
)
def _backward(dy, x, mean, rstd, weight, center, rounding, dx, partial):
    rows, cols = x.shape
    dys, xs, dxs, number = flat(dy), flat(x), flat(dx), mean.dtype.type
    blocks = partial.shape[1]
    staged = must_stage(dx, cols, dy, x)
    for block in prange(blocks):
        buffer = np.empty(BLOCK if staged or not dx.size else 0, dx.dtype)
        sums = np.zeros((2, partial.shape[2]), mean.dtype)
        dbias, dweight = sums[0], sums[1]
        last = (block + 1) * rows // blocks
        for row in range(block * rows // blocks, last):
            start, m, r = row * cols, mean[row], rstd[row]
            sum_g, sum_gt, sum_t = row_sums(dys, xs, start, cols, m, r, weight, number(0))
            if not center:
                sum_g, sum_t = 0.0, 0.0
            centre = sum_t / cols  # what rounding the mean left in xhat
            slope = -r * (sum_gt - centre * sum_g) / cols
            shift = -r * sum_g / cols - slope * centre
            for c in range(0, cols, BLOCK):
                n = min(BLOCK, cols - c)
                target, at = (buffer, 0) if staged or not dx.size else (dxs, start + c)
                a, b, d = number(slope), number(shift), number(centre)
                if partial.size and rounding:
                    row_gradients_rounding(dys, xs, start + c, n, m, r, a, b, d, weight, c, target, at, dbias, dweight)
                elif partial.size:
                    row_gradients(dys, xs, start + c, n, m, r, a, b, d, weight, c, target, at, dbias, dweight)
                else:
                    row_gradient(dys, xs, start + c, n, m, r, a, b, weight, c, target, at)
                if staged:
                    stream(dxs, start + c, buffer, n, dys, xs, start + c + cols)
            if partial.size and (row + 1 == last or row % GROUP == 0):
                flush(sums, partial[:, block])
        fence()
