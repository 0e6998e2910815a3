"""Groups: x (N, G, K, S), statistics over K and S, weight and bias (G * K). Group and instance norm, channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from .compiling import array_in, array_out, variants
from .launching import run
from .lowlevel import fence, flat, must_stage, stream
from .spans import BLOCK, channel_gradient, channel_sums, moments, scale_shift


def groups_forward(x: Any, weight: Any, bias: Any, eps: float, y: Any, mean: Any, rstd: Any) -> None:
    """Write y, and mean and rstd (N, G) of every group."""
    run(_forward, x, (x, weight, bias, eps, y, mean, rstd))


def groups_backward(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, dx: Any, sums: Any) -> None:
    """Write dx unless it is empty, and dbias and dweight into the float64 `sums` (2, G * K)."""
    partial = np.zeros((_blocks(x), *sums.shape))
    run(_backward, x, (dy, x, mean, rstd, weight, dx, partial))
    np.sum(partial, axis=0, out=sums)


def _blocks(x: np.ndarray) -> int:
    """How many blocks of samples have parameter gradients of their own: from the shape alone, so bits never change."""
    samples, groups, width, _ = x.shape
    return max(1, min(samples, 64, (1 << 16) // (groups * width)))


@variants(
    lambda T, A: types.void(
        *(array_in(T, 4), array_in(A, 1), array_in(A, 1), types.float64),
        *(array_out(T, 4), array_out(A, 2), array_out(A, 2)),
    )
)
def _forward(x, weight, bias, eps, y, mean, rstd):
    samples, groups, width, inner = x.shape
    count = width * inner
    xs, ys, number = flat(x), flat(y), mean.dtype.type
    staged = must_stage(y, inner, x, x)
    for unit in prange(samples * groups):
        g = unit % groups
        start = unit * count
        pivot, shift, _, r = moments(xs, start, 1, 0, count, eps, True, number(0))
        mean[unit // groups, g], rstd[unit // groups, g] = pivot + shift, r
        buffer = np.empty(BLOCK if staged else 0, y.dtype)
        for k in range(width):
            scale = r * weight[g * width + k]
            offset = number(bias[g * width + k] - shift * scale)
            for i in range(start + k * inner, start + (k + 1) * inner, BLOCK):
                n = min(BLOCK, start + (k + 1) * inner - i)
                target, at = (buffer, 0) if staged else (ys, i)
                scale_shift(xs, i, n, pivot, number(scale), offset, target, at)
                if staged:
                    stream(ys, i, buffer, n, xs, xs, i + count)
        fence()


@variants(
    lambda T, A: types.void(
        *(array_in(T, 4), array_in(T, 4), array_in(A, 2), array_in(A, 2), array_in(A, 1)),
        *(array_out(T, 4), array_out(types.float64, 3)),
    )
)
def _backward(dy, x, mean, rstd, weight, dx, partial):
    samples, groups, width, inner = x.shape
    dys, xs, dxs, number = flat(dy), flat(x), flat(dx), weight.dtype.type
    blocks, count = partial.shape[0], width * inner
    staged = must_stage(dx, inner, dy, x)
    for task in prange(blocks * groups):
        b, g = task // groups, task % groups
        sums = np.empty((2, width))
        buffer = np.empty(BLOCK if staged else 0, dx.dtype)
        for n in range(b * samples // blocks, (b + 1) * samples // blocks):
            start, m, r = (n * groups + g) * count, mean[n, g], rstd[n, g]
            sum_g, sum_gt, sum_t = 0.0, 0.0, 0.0
            for k in range(width):
                a, p, t = channel_sums(dys, xs, start + k * inner, 1, 0, inner, m, r, number(0))
                sums[0, k], sums[1, k] = a, p
                sum_g, sum_gt, sum_t = (
                    sum_g + a * weight[g * width + k],
                    sum_gt + p * weight[g * width + k],
                    sum_t + t,
                )
            centre = sum_t / count  # what rounding the mean left in xhat
            slope = -r * (sum_gt - centre * sum_g) / count
            shift = number(-r * sum_g / count - slope * centre)
            for k in range(width):
                c = g * width + k
                partial[b, 0, c] += sums[0, k]
                partial[b, 1, c] += sums[1, k] - centre * sums[0, k]
                for i in range(start + k * inner, start + (k + 1) * inner if dx.size else 0, BLOCK):
                    size = min(BLOCK, start + (k + 1) * inner - i)
                    target, at = (buffer, 0) if staged else (dxs, i)
                    scale = number(r * weight[c])
                    channel_gradient(dys, xs, i, size, m, r, scale, number(slope), shift, target, at)
                    if staged:
                        stream(dxs, i, buffer, size, dys, xs, i + count)
        fence()
