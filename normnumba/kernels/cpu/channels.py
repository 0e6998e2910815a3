"""Channels: x (O, C, I), statistics over O and I, weight and bias (C). BatchNorm, channels first.

A core takes one channel at a time: what its statistics have read is still in its cache when it is normalized.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange, types

from .. import BATCH, GIVEN, RELU
from .compiling import array_in, array_out, variants
from .launching import select
from .lowlevel import fence, flat, must_stage
from .spans import BLOCK, centre_before, channel_sums, moments, write_gradients, write_span


def channels_forward(
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
    """Write y, and mean and rstd (C), each unless it is empty, from the statistics of x itself in training.

    The float64 mean and variance are in `stats` (2, C), put there in training, and else given. An empty residual is
    none.
    """
    select(_forward, x)(x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd)


def channels_backward(
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
    """Write dx, and with an activation dresidual, unless they are empty; sum(dz) and sum(dz * xhat) into `sums` (2, C).

    dz = dy * activation'. The float64 `stats` (2, C) are mean and rstd, or where they are `squared` mean and variance,
    to which eps is added. `terms` says what dx takes from the float64 sums: BATCH that mean and rstd are x's own,
    CONSTANT that they do not depend on x, GIVEN that `sums` holds those of a larger batch of `count` values a channel.
    """
    args = (dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums)
    select(_backward, x)(*args)


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64, types.boolean, types.intp),
        *(array_out(types.float64, 2), array_out(T, 3), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd):
    outer, channels, inner = x.shape
    xs, rs, ys, number = flat(x), flat(residual), flat(y), weight.dtype.type
    staged, stride, rounds = must_stage(y, inner, x, x), channels * inner, outer if y.size else 0
    for c in prange(channels):
        if training:
            pivot, shift, var, r = moments(xs, c * inner, outer, stride, inner, eps, True, number(0))
            stats[0, c], stats[1, c] = pivot + shift, var
        else:
            pivot = number(stats[0, c])
            shift, r = stats[0, c] - pivot, 1 / math.sqrt(stats[1, c] + eps)
        if mean.size:
            mean[c], rstd[c] = stats[0, c], r
        scale = r * weight[c]
        line = pivot, number(scale), number(bias[c] - shift * scale), BLOCK
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
        write_span(xs, rs, c * inner, rounds, stride, inner, line, activation, z, ys, buffer, inner)
        if staged:
            fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(T, 3), array_in(types.float64, 2), array_in(A, 1), array_in(A, 1)),
        *(types.float64, types.boolean, types.intp, types.intp, types.intp, array_out(T, 3), array_out(T, 3)),
        array_out(types.float64, 2),
    )
)
def _backward(dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums):
    outer, channels, inner = x.shape
    dys, xs, rs, number = flat(dy), flat(x), flat(residual), weight.dtype.type
    dxs, drs, stride = flat(dx), flat(dresidual), channels * inner
    staged, rounds = must_stage(dx, inner, dy, x), outer if dx.size or dresidual.size else 0
    for c in prange(channels):
        start, mean, rstd = c * inner, stats[0, c], 1 / math.sqrt(stats[1, c] + eps) if squared else stats[1, c]
        m, r, scale = number(mean), number(rstd), rstd * weight[c]
        dz = np.empty(BLOCK if activation else 0, weight.dtype)
        centre = (mean - m) * rstd
        if terms == BATCH:
            centre = centre_before(xs, start, outer, stride, inner, m, r, number(0))
        line = m, number(scale), number(bias[c] - centre * weight[c]), BLOCK
        if terms != GIVEN:
            sum_dy, sum_dyt = channel_sums(dys, xs, rs, start, outer, stride, inner, m, r, line, activation, dz)
            sums[0, c], sums[1, c] = sum_dy, sum_dyt - (centre * sum_dy if centre else 0.0)
        slope = -scale * sums[1, c] / count
        shift = number(-scale * sums[0, c] / count - slope * centre)
        curve = m, r, number(scale), number(slope), shift, BLOCK
        buffer = np.empty(BLOCK if staged or not dx.size else 0, dx.dtype)
        span = start, rounds, stride, inner
        write_gradients(dys, xs, rs, *span, line, curve, terms, activation, dz, dxs, drs, buffer, inner)
        if staged:
            fence()
