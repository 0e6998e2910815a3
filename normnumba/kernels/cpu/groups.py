"""Groups: x (N, G, K, S), statistics over K and S, weight and bias (G * K). Group and instance norm, channels first.

What goes past the caches is written while the next group is added up, as in `channels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from .. import BATCH, RELU
from .compiling import array_in, array_out, variants
from .launching import select
from .lowlevel import (
    BLOCK,
    STREAM_RUN,
    bounds,
    fence,
    flat,
    inlined,
    tasks_in_turn,
    tasks_of,
)
from .moments import NO_SUMS, moments, moments_of_sums, pivot_of
from .spans import (
    centre_before,
    channel_sums,
    gradient_terms,
    merge_sums,
    room_for_upstream,
    ways_of_differentiating,
    ways_of_writing,
    write_and_sum,
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
    xs, ys, number, units = flat(x), flat(y), mean.dtype.type, samples * groups
    none, (past, staged) = xs[:0], ways_of_writing(y, inner, x, activation)
    tasks = tasks_in_turn(units, x.size, past)
    # not for `past`: a sample has the same bits, and so the same order of sums, alone and in a large batch
    outer, stride, run = (width, inner, inner) if inner >= STREAM_RUN else (1, 0, count)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
        first, last = bounds(task, tasks, units)
        about, sums = number(0), NO_SUMS
        for unit in range(first, last):
            whole = unit * count, outer, stride, run
            if past and unit > first:
                pivot, shift, _, r = moments_of_sums(xs, *whole, about, sums, eps, True)
            else:
                pivot, shift, _, r = moments(xs, *whole, eps, True, number(0))
            chained = past and unit + 1 < last
            if chained:
                about, sums = pivot_of(xs, (unit + 1) * count, run, True, number(0)), NO_SUMS
            mean[unit // groups, unit % groups], rstd[unit // groups, unit % groups] = pivot + shift, r
            for k in range(width):
                c, start = unit % groups * width + k, unit * count + k * inner
                scale = r * weight[c]
                line = pivot, number(scale), number(bias[c] - shift * scale), BLOCK
                if chained:
                    sums = write_and_sum(xs, none, start, 1, 0, inner, line, activation, ys, start + count, about, sums)
                else:
                    write_span(xs, none, start, 1, 0, inner, line, activation, z, ys, past, buffer, count)
        if staged or past:
            fence()


@inlined
def _differentiate(dy, x, unit, mean, rstd, weight, bias, activation, dz, dx, shape, ways, buffer, partial):
    """dx of a group of a sample unless it is empty; its sums of dz and dz * xhat are added to `partial` (2, G * K)"""
    (width, inner), number = shape, weight.dtype.type
    count = width * inner
    start, c, none, kept = unit * count, unit * width % weight.size, x[:0], dz.size >= count
    centre, sum_g, sum_gt = centre_before(x, start, 1, 0, count, mean, rstd, number(0)), 0.0, 0.0
    for k in range(width):
        w, own = weight[c + k], dz[k * inner if kept else 0 :]
        line = mean, number(rstd * w), number(bias[c + k] - centre * w), BLOCK
        a, p = channel_sums(dy, x, none, start + k * inner, 1, 0, inner, mean, rstd, line, activation, own, kept)
        partial[0, c + k] += a
        partial[1, c + k] += p - centre * a
        sum_g, sum_gt = sum_g + a * w, sum_gt + p * w
    slope, shift = gradient_terms(sum_g, sum_gt, centre, rstd, count)
    outputs = dx, dx[:0], *ways, buffer, count
    for k in range(width if dx.size else 0):
        w, own = weight[c + k], dz[k * inner if kept else 0 :]
        line = mean, number(rstd * w), number(bias[c + k] - centre * w), BLOCK
        curve = mean, rstd, number(rstd * w), number(slope), number(shift), BLOCK
        span = start + k * inner, 1, 0, inner
        write_gradients(dy, x, none, *span, line, curve, BATCH, activation, own, kept, outputs)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 4), array_in(T, 4), array_in(A, 2), array_in(A, 2), array_in(A, 1), array_in(A, 1)),
        *(types.intp, array_out(T, 4), array_out(A, 1), array_out(A, 1)),
    )
)
def _backward(dy, x, mean, rstd, weight, bias, activation, dx, dweight, dbias):
    samples, groups, width, inner = x.shape
    dys, xs, dxs, channels = flat(dy), flat(x), flat(dx), groups * width
    none = xs[:0]
    count, (past, staged) = width * inner, ways_of_differentiating(dx, inner, dy, x, activation, none, none)
    blocks = max(1, min(samples, 64, (1 << 16) // channels))  # from the shape alone: bits never change
    partial = np.zeros((blocks, 2, channels))
    tasks = tasks_of(blocks * groups, x.size)
    for task in prange(tasks):
        buffer = np.empty(BLOCK if staged else 0, dx.dtype)
        dz = np.empty(room_for_upstream(activation, count, weight.itemsize), weight.dtype)
        first, last = bounds(task, tasks, blocks * groups)
        for part in range(first, last):
            b, g = part // groups, part % groups
            low, high = bounds(b, blocks, samples)
            own = partial[b]
            for n in range(low, high):
                unit, m, r = n * groups + g, mean[n, g], rstd[n, g]
                _differentiate(
                    dys, xs, unit, m, r, weight, bias, activation, dz, dxs, (width, inner), (past, staged), buffer, own
                )
        if staged or past:
            fence()
    parts = (channels + BLOCK - 1) // BLOCK
    if parts == 1:
        merge_sums(partial, 0, dweight, dbias)
    else:
        for part in prange(parts):
            merge_sums(partial, part * BLOCK, dweight, dbias)
