"""Strips: x (O, C, I), statistics over C, weight and bias (C). LayerNorm and RMSNorm over axes that are not the last.

A strip is a few hundred neighbouring columns of one (C, I), so that what its statistics have read is still in a core's
cache when it is normalized. Its rows are read as they lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .columns import block_moments, column_moments, set_means
from .compiling import array_in, array_out, variants
from .launching import call
from .lowlevel import (
    accumulate,
    allocating,
    bounds,
    elementwise,
    flat,
    frozen,
    inlined,
    inlined_elementwise,
    load,
    muladd,
    plus,
    rounded,
    scalar,
    shares_memory,
    store,
    work,
)
from .spans import (
    GROUP,
    copy,
    flush,
    gradient_terms,
    merge_sums,
    normalize,
)
from .tasks import launch


def strips_forward(
    x: Any, weight: Any, bias: Any, eps: float, center: bool, rounding: bool, y: Any, mean: Any, rstd: Any
) -> None:
    """Write y, and mean and rstd (O * I) of every column."""
    call(_forward, x, x, weight, bias, eps, center, rounding, _width(x), y, mean, rstd)


def strips_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, center: bool, rounding: bool, dx: Any, dweight: Any, dbias: Any
) -> None:
    """Write dx, dweight and dbias, each unless it is empty."""
    call(_backward, x, dy, x, mean, rstd, weight, center, rounding, _width(x), dx, dweight, dbias)


def _width(x: np.ndarray) -> int:
    """Columns of a strip: 256 KiB of float32, but no fewer than a few cache lines and no more than fit L1."""
    return min(x.shape[2], max(64, min(1024, (1 << 16) // x.shape[1] // 16 * 16)))


@scalar
def _strips(inner, width):
    return (inner + width - 1) // width


@elementwise
def _add_products(dy, x, start, mean, rstd, weight, partial):
    """partial += (g, g * t, t) with g = dy * weight, t = (x - mean) * rstd, for one row"""
    sum_g, sum_gt, sum_t = partial[0], partial[1], partial[2]
    for j in range(mean.size):
        g = load(dy, start + j) * weight
        t = (load(x, start + j) - load(mean, j)) * load(rstd, j)
        accumulate(sum_g, j, g, 1)
        accumulate(sum_gt, j, g * t, 2)
        accumulate(sum_t, j, t, 3)


def _differentiating(rounding):
    @inlined_elementwise
    def gradients(dy, x, start, mean, rstd, slope, shift, centre, weight, dx, at, zero):
        """dx = dy * weight * rstd + t * slope + shift of one row; sum(dy), sum(dy * (t - centre))"""
        sum_dy, sum_dyxhat = zero, zero
        for j in range(mean.size):
            g, r = load(dy, start + j), load(rstd, j)
            t = (load(x, start + j) - load(mean, j)) * r
            xhat = t - load(centre, j)
            sum_dy = plus(sum_dy, g)
            sum_dyxhat = plus(sum_dyxhat, g * (rounded(dy, xhat) if rounding else xhat))
            store(dx, at + j, muladd(g * weight, r, muladd(t, load(slope, j), load(shift, j))))
        return sum_dy, sum_dyxhat

    return gradients


_gradients, _gradients_rounding = _differentiating(False), _differentiating(True)


@inlined
def _differentiate(dy, x, start, vectors, weight, rounding, dx, staged, buffer, zero):
    """dx of a row, through `buffer` unless that is empty; its sums

    Not in the task, for the tuple: see `lowlevel._INNER`.
    """
    target, at = (buffer, 0) if buffer.size else (dx, start)
    mean, rstd, slope, shift, centre = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    args = dy, x, start, mean, rstd, slope, shift, centre, weight, target, at, zero
    sums = _gradients_rounding(*args) if rounding else _gradients(*args)
    if staged:
        copy(buffer, 0, mean.size, dx, start)
    return sums


@allocating
def _set_terms(dy, x, base, stride, weight, center, vectors):
    """slope, shift, centre of each column: what dx takes"""
    rows, mean, rstd = weight.size, vectors[0], vectors[1]
    partial, totals = np.zeros((3, mean.size), vectors.dtype), np.zeros((3, mean.size))
    for r in range(rows):
        _add_products(dy, x, base + r * stride, frozen(mean), frozen(rstd), weight[r], partial)
        if r % GROUP == 0 or r == rows - 1:
            flush(partial, totals)
    for j in range(mean.size):
        sum_g, sum_gt, sum_t = totals[0, j], totals[1, j], totals[2, j]
        if not center:
            sum_g, sum_t = 0.0, 0.0
        centre = sum_t / rows
        slope, shift = gradient_terms(sum_g, sum_gt, centre, rstd[j], rows)
        vectors[2, j], vectors[3, j], vectors[4, j] = slope, shift, centre


@work
def _normalize_strip(task, tasks, x, shape, weight, bias, eps, center, rounding, width, y, staged, mean, rstd):
    """y, mean and rstd of a strip"""
    _, rows, inner = shape
    strips = _strips(inner, width)
    o, first = task // strips, task % strips * width
    n = min(width, inner - first)
    base = o * rows * inner + first
    vectors, totals = np.zeros((3, n), weight.dtype), np.empty((2, n))
    buffer = np.empty(n if staged else 0, y.dtype)
    if center:
        set_means(x, base, inner, min(rows, 16), vectors[0])
    block_moments(x, base, inner, rows * inner, 0, rows, frozen(vectors[0]), totals)
    for j in range(n):
        pivot, shift, _, r = column_moments(
            x, base + j, rows, inner, vectors[0, j], totals[0, j], totals[1, j], eps, center
        )
        if center:
            mean[o * inner + first + j] = pivot + shift
        rstd[o * inner + first + j] = r
        vectors[0, j], vectors[1, j], vectors[2, j] = pivot, r, -shift * r
    v = frozen(vectors)
    for c in range(rows):
        i = base + c * inner
        target, at = (buffer, 0) if staged else (y, i)
        normalize(rounding, x, i, n, v[0], v[1], v[2], weight[c], bias[c], 0, target, at)
        if staged:
            copy(buffer, 0, n, y, i)


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.boolean),
        *(types.intp, array_out(T, 3), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(launcher, x, weight, bias, eps, center, rounding, width, y, mean, rstd):
    outer, _, inner = x.shape
    options = eps, center, rounding, width
    args = flat(x), x.shape, weight, bias, *options, flat(y), shares_memory(y, x, x), mean, rstd
    launch(launcher, _normalize_strip, outer * _strips(inner, width), args)


@work
def _differentiate_strips(task, tasks, dy, x, shape, mean, rstd, weight, center, rounding, width, dx, staged, partial):
    """dx of some strips, and their sums"""
    outer, rows, inner = shape
    strips, zero = _strips(inner, width), weight.dtype.type(0)
    buffer = np.empty(width if staged or not dx.size else 0, dx.dtype)
    begin, end = bounds(task, tasks, outer * strips)
    for strip in range(begin, end):
        o, first = strip // strips, strip % strips * width
        n, base, column = min(width, inner - first), o * rows * inner + first, o * inner + first
        vectors = np.zeros((5, n), weight.dtype)
        for j in range(n):  # see `spans.seam_of`
            vectors[0, j], vectors[1, j] = mean[column + j] if center else zero, rstd[column + j]
        _set_terms(dy, x, base, inner, weight, center, vectors)
        v = frozen(vectors)
        for c in range(rows):
            db, dw = _differentiate(dy, x, base + c * inner, v, weight[c], rounding, dx, staged, buffer, zero)
            partial[task, 0, c] += db
            partial[task, 1, c] += dw


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), array_in(A, 1), types.boolean),
        *(types.boolean, types.intp, array_out(T, 3), array_out(A, 1), array_out(A, 1)),
    )
)
def _backward(launcher, dy, x, mean, rstd, weight, center, rounding, width, dx, dweight, dbias):
    outer, rows, inner = x.shape
    blocks = max(1, min(outer * _strips(inner, width), 64, (1 << 17) // rows))
    partial = np.zeros((blocks, 2, rows))
    known = flat(dy), flat(x), x.shape, mean, rstd, weight, center, rounding, width
    launch(launcher, _differentiate_strips, blocks, (*known, flat(dx), shares_memory(dx, dy, x), partial))
    if dweight.size:
        merge_sums(launcher, partial, dweight, dbias)
