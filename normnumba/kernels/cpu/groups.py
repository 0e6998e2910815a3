"""Groups: x (N, G, K, S), statistics over K and S, weight and bias (G * K). Group and instance norm, channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from .. import BATCH, RELU
from .compiling import array_in, array_out, variants
from .launching import select
from .lowlevel import fence, flat, must_stage
from .spans import (
    BLOCK,
    centre_before,
    channel_sums,
    gradient_terms,
    merge_sums,
    moments,
    room_for_upstream,
    write_gradients,
    write_span,
)


def groups_forward(x: Any, weight: Any, bias: Any, eps: float, activation: int, y: Any, mean: Any, rstd: Any) -> None:
    """Write y, and mean and rstd (N, G) of every group."""
    select(_forward, x)(x, weight, bias, eps, activation, y, mean, rstd)


def groups_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, activation: int, dx: Any, dweight: Any, dbias: Any
) -> None:
    """Write dx unless it is empty, and dweight and dbias (G * K)."""
    select(_backward, x)(dy, x, mean, rstd, weight, bias, activation, dx, dweight, dbias)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 4), array_in(A, 1), array_in(A, 1), types.float64, types.intp),
        *(array_out(T, 4), array_out(A, 2), array_out(A, 2)),
    )
)
def _forward(x, weight, bias, eps, activation, y, mean, rstd):
    samples, groups, width, inner = x.shape
    count = width * inner
    xs, ys, number = flat(x), flat(y), mean.dtype.type
    staged = must_stage(y, inner, x, x)
    units = samples * groups
    tasks = min(units, 64)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
        for unit in range(task * units // tasks, (task + 1) * units // tasks):
            pivot, shift, _, r = moments(xs, unit * count, 1, 0, count, eps, True, number(0))
            mean[unit // groups, unit % groups], rstd[unit // groups, unit % groups] = pivot + shift, r
            for k in range(width):
                c, start = unit % groups * width + k, unit * count + k * inner
                scale = r * weight[c]
                line = pivot, number(scale), number(bias[c] - shift * scale), BLOCK
                write_span(xs, xs[:0], start, 1, 0, inner, line, activation, z, ys, buffer, count)
        if staged:
            fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 4), array_in(T, 4), array_in(A, 2), array_in(A, 2), array_in(A, 1), array_in(A, 1)),
        *(types.intp, array_out(T, 4), array_out(A, 1), array_out(A, 1)),
    )
)
def _backward(dy, x, mean, rstd, weight, bias, activation, dx, dweight, dbias):
    samples, groups, width, inner = x.shape
    dys, xs, dxs, number, channels = flat(dy), flat(x), flat(dx), weight.dtype.type, groups * width
    count, staged = width * inner, must_stage(dx, inner, dy, x)
    blocks = max(1, min(samples, 64, (1 << 16) // channels))  # from the shape alone: bits never change
    partial = np.zeros((blocks, 2, channels))
    for task in prange(blocks * groups):
        b, g = task // groups, task % groups
        sums = np.empty((2, width))
        buffer = np.empty(BLOCK if staged else 0, dx.dtype)
        dz = np.empty(room_for_upstream(activation, count), weight.dtype)
        kept = dz.size >= count
        none, w, offset = xs[:0], weight[g * width : (g + 1) * width], bias[g * width : (g + 1) * width]
        for n in range(b * samples // blocks, (b + 1) * samples // blocks):
            start, m, r = (n * groups + g) * count, mean[n, g], rstd[n, g]
            centre, sum_g, sum_gt = centre_before(xs, start, 1, 0, count, m, r, number(0)), 0.0, 0.0
            for k in range(width):
                line = m, number(r * w[k]), number(offset[k] - centre * w[k]), BLOCK
                a, p = channel_sums(
                    dys,
                    xs,
                    none,
                    start + k * inner,
                    1,
                    0,
                    inner,
                    m,
                    r,
                    line,
                    activation,
                    dz[k * inner if kept else 0 :],
                    kept,
                )
                sums[0, k], sums[1, k] = a, p - centre * a
                sum_g, sum_gt = sum_g + a * w[k], sum_gt + p * w[k]
            slope, shift = gradient_terms(sum_g, sum_gt, centre, r, count)
            for k in range(width):
                partial[b, 0, g * width + k] += sums[0, k]
                partial[b, 1, g * width + k] += sums[1, k]
                line = m, number(r * w[k]), number(offset[k] - centre * w[k]), BLOCK
                curve = m, r, number(r * w[k]), number(slope), number(shift), BLOCK
                span = start + k * inner, 1 if dx.size else 0, 0, inner
                own, outputs = dz[k * inner if kept else 0 :], (dxs, dxs[:0], staged, buffer, count)
                write_gradients(dys, xs, none, *span, line, curve, BATCH, activation, own, kept, outputs)
        if staged:
            fence()
    for part in prange((channels + BLOCK - 1) // BLOCK):
        merge_sums(partial, part * BLOCK, dweight, dbias)
