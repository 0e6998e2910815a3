"""Channels: x (O, C, I), statistics over O and I, weight and bias (C). BatchNorm, channels first.

A core takes one channel at a time: what its statistics have read is still in its cache when it is normalized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from .. import BATCH, CONSTANT, GIVEN
from .compiling import array_in, array_out, variants
from .launching import run
from .lowlevel import fence, flat, must_stage, stream
from .spans import BLOCK, channel_gradient, channel_sums, moments, scale_shift


def channels_forward(x: Any, weight: Any, bias: Any, eps: float, training: bool, y: Any, stats: Any) -> None:
    """Write y unless it is empty, from the float64 mean, var and rstd in `stats` (3, C), computed first in training."""
    run(_forward, x, (x, weight, bias, eps, training, y, stats))


def channels_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, terms: int, count: int, dx: Any, sums: Any
) -> None:
    """Write dx unless it is empty, and sum(dy) and sum(dy * xhat) into `sums` (2, C). Everything of size C is float64.

    `terms` says what dx takes from the sums: BATCH that mean and rstd are x's own, CONSTANT that they do not depend on
    x, GIVEN that `sums` holds those of a larger batch of `count` values a channel.
    """
    run(_backward, x, (dy, x, mean, rstd, weight, terms, count, dx, sums))


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64, types.boolean),
        *(array_out(T, 3), array_out(types.float64, 2)),
    )
)
def _forward(x, weight, bias, eps, training, y, stats):
    outer, channels, inner = x.shape
    xs, ys, number = flat(x), flat(y), weight.dtype.type
    staged = must_stage(y, inner, x, x)
    for c in prange(channels):
        if training:
            pivot, shift, var, r = moments(xs, c * inner, outer, channels * inner, inner, eps, True, number(0))
            stats[0, c], stats[1, c], stats[2, c] = pivot + shift, var, r
        else:
            pivot = number(stats[0, c])
            shift = stats[0, c] - pivot
        scale = stats[2, c] * weight[c]
        offset = number(bias[c] - shift * scale)
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        for o in range(outer if y.size else 0):
            start = (o * channels + c) * inner
            for i in range(0, inner, BLOCK):
                n = min(BLOCK, inner - i)
                target, at = (buffer, 0) if staged else (ys, start + i)
                scale_shift(xs, start + i, n, pivot, number(scale), offset, target, at)
                if staged:
                    stream(ys, start + i, buffer, n, xs, xs, start + i + inner)
        fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 3), array_in(T, 3), array_in(types.float64, 1), array_in(types.float64, 1), array_in(A, 1)),
        *(types.intp, types.intp, array_out(T, 3), array_out(types.float64, 2)),
    )
)
def _backward(dy, x, mean, rstd, weight, terms, count, dx, sums):
    outer, channels, inner = x.shape
    dys, xs, dxs, number = flat(dy), flat(x), flat(dx), weight.dtype.type
    staged = must_stage(dx, inner, dy, x)
    for c in prange(channels):
        m, r = number(mean[c]), number(rstd[c])
        centre = (mean[c] - m) * rstd[c]
        if terms != GIVEN:
            sum_dy, sum_dyt, sum_t = channel_sums(dys, xs, c * inner, outer, channels * inner, inner, m, r, number(0))
            if terms == BATCH:
                centre = sum_t / (outer * inner)  # what rounding the mean left in xhat
            sums[0, c], sums[1, c] = sum_dy, sum_dyt - (centre * sum_dy if centre else 0.0)
        scale = rstd[c] * weight[c]
        slope = -scale * sums[1, c] / count
        shift = number(-scale * sums[0, c] / count - slope * centre)
        buffer = np.empty(BLOCK if staged else 0, dx.dtype)
        for o in range(outer if dx.size else 0):
            start = (o * channels + c) * inner
            for i in range(0, inner, BLOCK):
                n = min(BLOCK, inner - i)
                target, at = (buffer, 0) if staged else (dxs, start + i)
                if terms == CONSTANT:
                    scale_shift(dys, start + i, n, number(0), number(scale), number(0), target, at)
                else:
                    channel_gradient(dys, xs, start + i, n, m, r, number(scale), number(slope), shift, target, at)
                if staged:
                    stream(dxs, start + i, buffer, n, dys, xs, start + i + inner)
        fence()
