"""Groups: x (N, G, K, S), statistics over K and S, weight and bias (G * K). Group and instance norm, channels first.

What goes past the caches is written while the next group is added up, as in `channels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .. import BATCH, RELU
from .compiling import array_in, array_out, variants
from .launching import call
from .lowlevel import (
    BLOCK,
    STREAM_RUN,
    bounds,
    fence,
    flat,
    inlined,
    tasks_in_turn,
    tasks_of,
    work,
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
from .tasks import launch


def groups_forward(x: Any, weight: Any, bias: Any, eps: float, activation: int, y: Any, mean: Any, rstd: Any) -> None:
    """Write y, and mean and rstd (N, G) of every group."""
    call(_forward, x, x, weight, bias, eps, activation, y, mean, rstd)


def groups_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, activation: int, dx: Any, dweight: Any, dbias: Any
) -> None:
    """Write dx unless it is empty, and dweight and dbias (G * K)."""
    call(_backward, x, dy, x, mean, rstd, weight, bias, activation, dx, dweight, dbias)


@work
def _normalize_some(task, tasks, x, shape, weight, bias, eps, activation, y, past, staged, mean, rstd):
    """y, mean and rstd of some groups of samples"""
    samples, groups, width, inner = shape
    count, number, none = width * inner, mean.dtype.type, x[:0]
    # not for `past`: a sample has the same bits, and so the same order of sums, alone and in a large batch
    outer, stride, run = (width, inner, inner) if inner >= STREAM_RUN else (1, 0, count)
    buffer = np.empty(BLOCK if staged else 0, y.dtype)
    z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
    first, last = bounds(task, tasks, samples * groups)
    about, sums = number(0), NO_SUMS
    for unit in range(first, last):
        whole = unit * count, outer, stride, run
        if past and unit > first:
            pivot, shift, _, r = moments_of_sums(x, *whole, about, sums, eps, True)
        else:
            pivot, shift, _, r = moments(x, *whole, eps, True, number(0))
        chained = past and unit + 1 < last
        if chained:
            about, sums = pivot_of(x, (unit + 1) * count, run, True, number(0)), NO_SUMS
        mean[unit // groups, unit % groups], rstd[unit // groups, unit % groups] = pivot + shift, r
        for k in range(width):
            c, start = unit % groups * width + k, unit * count + k * inner
            scale = r * weight[c]
            line = pivot, number(scale), number(bias[c] - shift * scale), BLOCK
            if chained:
                sums = write_and_sum(x, none, start, 1, 0, inner, line, activation, y, start + count, about, sums)
            else:
                write_span(x, none, start, 1, 0, inner, line, activation, z, y, past, buffer, count)
    if staged or past:
        fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 4), array_in(A, 1), array_in(A, 1), types.float64, types.intp),
        *(array_out(T, 4), array_out(A, 2), array_out(A, 2)),
    )
)
def _forward(launcher, x, weight, bias, eps, activation, y, mean, rstd):
    past, staged = ways_of_writing(y, x.shape[3], x, activation)
    tasks = tasks_in_turn(mean.size, x.size, past)
    args = flat(x), x.shape, weight, bias, eps, activation, flat(y), past, staged, mean, rstd
    launch(launcher, _normalize_some, tasks, args)


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


@work
def _differentiate_some(task, tasks, dy, x, shape, mean, rstd, weight, bias, activation, dx, past, staged, partial):
    """dx of some groups in a block of samples, and their sums"""
    samples, groups, width, inner = shape
    blocks, count = partial.shape[0], width * inner
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
                dy, x, unit, m, r, weight, bias, activation, dz, dx, (width, inner), (past, staged), buffer, own
            )
    if staged or past:
        fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 4), array_in(T, 4), array_in(A, 2), array_in(A, 2), array_in(A, 1), array_in(A, 1)),
        *(types.intp, array_out(T, 4), array_out(A, 1), array_out(A, 1)),
    )
)
def _backward(launcher, dy, x, mean, rstd, weight, bias, activation, dx, dweight, dbias):
    samples, groups, width, inner = x.shape
    none, channels = flat(x)[:0], groups * width
    past, staged = ways_of_differentiating(dx, inner, dy, x, activation, none, none)
    blocks = max(1, min(samples, 64, (1 << 16) // channels))  # from the shape alone: bits never change
    partial = np.zeros((blocks, 2, channels))
    args = flat(dy), flat(x), x.shape, mean, rstd, weight, bias, activation, flat(dx), past, staged, partial
    launch(launcher, _differentiate_some, tasks_of(blocks * groups, x.size), args)
    merge_sums(launcher, partial, dweight, dbias)
