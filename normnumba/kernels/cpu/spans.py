"""The formulas, once: loops over spans of elements, from which the kernels of rows and channels are put together.

A span is x[start + o * stride + i] for o < outer, i < inner. A row is one (outer = 1); a channel of NCHW data is one,
with `inner` contiguous elements in each of its `outer` samples. Kernels work on many spans at the same time.

`zero` carries the type that a span is computed in. Sums run in that type over BLOCK elements and in float64 beyond.
"""

from __future__ import annotations

import math

from .lowlevel import accumulate, elementwise, load, plus, rounded, scalar, store

BLOCK = 4096
"""Elements that one loop takes: 16 KiB of float32, half of an L1 cache, and few enough roundings to ignore."""

GROUP = 64
"""Rows that are added up in the accumulator's type before they join a float64 total."""

HEAD = 64
"""Elements whose mean is the first pivot: enough to be within two standard deviations of the mean nearly always."""


@elementwise
def _sum_about(x, start, count, pivot, zero):
    """sum(x - pivot)"""
    total = zero
    for i in range(start, start + count):
        total = plus(total, load(x, i) - pivot)
    return total


@elementwise
def _sums_about(x, start, count, scale, pivot, zero):
    """sum(t), sum(t^2) with t = x * scale - pivot"""
    first, second = zero, zero
    for i in range(start, start + count):
        t = load(x, i) * scale - pivot
        first = plus(first, t)
        second = plus(second, t * t)
    return first, second


@scalar
def _add(total, rest, value):
    """total + value, and rest plus what that rounding lost (Knuth's two-sum): runs of any number add up without loss"""
    new = total + value
    part = new - total
    lost = (total - (new - part)) + (value - part)
    return new, rest + lost if math.isfinite(new) else 0.0


@scalar
def _moments_about(x, start, outer, stride, inner, scale, pivot, zero):
    """mean(t), var(t) with t = x * scale - pivot"""
    first, second, rest, rest2 = 0.0, 0.0, 0.0, 0.0
    for o in range(outer):
        for i in range(0, inner, BLOCK):
            a, b = _sums_about(x, start + o * stride + i, min(BLOCK, inner - i), scale, pivot, zero)
            first, rest = _add(first, rest, a)
            second, rest2 = _add(second, rest2, b)
    share = 1.0 / (outer * inner)
    shift = (first + rest) * share
    return shift, (second + rest2) * share - shift * shift


@scalar
def _peak(x, start, outer, stride, inner):
    """max(|x|), sum(x) and whether all of the span is finite"""
    peak, total, finite = 0.0, 0.0, True
    for o in range(outer):
        for i in range(start + o * stride, start + o * stride + inner):
            value = float(load(x, i))
            finite = finite and math.isfinite(value)
            peak = max(peak, abs(value))
            total += value
    return peak, total, finite


@scalar
def moments(x, start, outer, stride, inner, eps, center, zero):
    """pivot, shift, var, rstd: the mean is pivot + shift, var is biased, rstd = 1 / sqrt(var + eps).

    All but the pivot are float64. The pivot is near the mean, so that (x - pivot) - shift keeps the digits that a
    rounded mean would lose. Without `center` the mean is pinned to 0, and var is the mean square.
    """
    number = type(zero)
    pivot, scale, total = zero, 1.0, outer * inner
    if center:
        head = min(inner, HEAD)
        pivot = load(x, start)
        pivot += _sum_about(x, start, head, pivot, zero) / number(head)
    shift, var = 0.0, 0.0
    for _ in range(4):
        shift, var = _moments_about(x, start, outer, stride, inner, number(scale), pivot, zero)
        if not center:
            shift, var = 0.0, var + shift * shift
        if not math.isfinite(var) and scale == 1.0:  # the squares overflowed, or an Inf or NaN is among them
            peak, plain, finite = _peak(x, start, outer, stride, inner)
            if not finite:
                return number(plain / total) if center else zero, 0.0, math.nan, math.nan
            scale = math.ldexp(1.0, 32 - math.frexp(peak)[1])
            pivot = number(load(x, start) * scale) if center else zero
        elif shift * shift > 4 * var:  # the head was no sample of the rest: about the mean itself nothing cancels
            pivot += number(shift)
        else:
            break
    var = max(var, 0.0)  # squares below the smallest number are lost
    if scale == 1.0:  # without the five divisions below, a fifth of a row of 768
        return pivot, shift, var, 1.0 / math.sqrt(var + eps)
    return number(pivot / scale), shift / scale, var / scale / scale, scale / math.sqrt(var + eps * scale * scale)


def _normalizing(rounding):
    @elementwise
    def normalize(x, start, count, pivot, rstd, shift, weight, bias, column, y, at):
        """y = ((x - pivot) * rstd + shift) * weight + bias, weight and bias from `column` on"""
        for i in range(count):
            xhat = (load(x, start + i) - pivot) * rstd + shift
            if rounding:
                xhat = rounded(x, xhat)
            store(y, at + i, xhat * load(weight, column + i) + load(bias, column + i))

    return normalize


normalize = _normalizing(False)

normalize_rounding = _normalizing(True)
"""`normalize` with xhat rounded to x's dtype before the weight multiplies it"""


@elementwise
def scale_shift(x, start, count, pivot, scale, shift, y, at):
    """y = (x - pivot) * scale + shift"""
    for i in range(count):
        store(y, at + i, (load(x, start + i) - pivot) * scale + shift)


@elementwise
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
def row_sums(dy, x, start, count, mean, rstd, weight, zero):
    """`_weighted_sums` of a row of any length, in float64"""
    sum_g, sum_gt, sum_t = 0.0, 0.0, 0.0
    for i in range(0, count, BLOCK):
        a, b, c = _weighted_sums(dy, x, start + i, min(BLOCK, count - i), mean, rstd, weight, i, zero)
        sum_g += a
        sum_gt += b
        sum_t += c
    return sum_g, sum_gt, sum_t


@elementwise
def row_gradient(dy, x, start, count, mean, rstd, slope, shift, weight, column, dx, at):
    """dx = dy * weight * rstd + t * slope + shift with t = (x - mean) * rstd"""
    for i in range(count):
        t = (load(x, start + i) - mean) * rstd
        store(dx, at + i, load(dy, start + i) * load(weight, column + i) * rstd + t * slope + shift)


def _differentiating(rounding):
    @elementwise
    def row_gradients(dy, x, start, count, mean, rstd, slope, shift, centre, weight, column, dx, at, dbias, dweight):
        """`row_gradient`, and dweight += dy * (t - centre), dbias += dy: one loop gained 5 to 20 percent over two"""
        for i in range(count):
            g = load(dy, start + i)
            t = (load(x, start + i) - mean) * rstd
            xhat = rounded(x, t - centre) if rounding else t - centre
            accumulate(dweight, column + i, g * xhat, 1)
            accumulate(dbias, column + i, g, 2)
            store(dx, at + i, g * load(weight, column + i) * rstd + t * slope + shift)

    return row_gradients


row_gradients = _differentiating(False)

row_gradients_rounding = _differentiating(True)
"""`row_gradients` with the xhat that `normalize_rounding` had"""


@elementwise
def _plain_sums(dy, x, start, count, mean, rstd, zero):
    """sum(dy), sum(dy * t), sum(t) with t = (x - mean) * rstd"""
    sum_dy, sum_dyt, sum_t = zero, zero, zero
    for i in range(start, start + count):
        t = (load(x, i) - mean) * rstd
        sum_dy = plus(sum_dy, load(dy, i))
        sum_dyt = plus(sum_dyt, load(dy, i) * t)
        sum_t = plus(sum_t, t)
    return sum_dy, sum_dyt, sum_t


@scalar
def channel_sums(dy, x, start, outer, stride, inner, mean, rstd, zero):
    """`_plain_sums` of a whole span, in float64"""
    sum_dy, sum_dyt, sum_t, rest, rest2 = 0.0, 0.0, 0.0, 0.0, 0.0
    for o in range(outer):
        for i in range(0, inner, BLOCK):
            a, b, c = _plain_sums(dy, x, start + o * stride + i, min(BLOCK, inner - i), mean, rstd, zero)
            sum_dy, rest = _add(sum_dy, rest, a)
            sum_dyt, rest2 = _add(sum_dyt, rest2, b)
            sum_t += c
    return sum_dy + rest, sum_dyt + rest2, sum_t


@elementwise
def channel_gradient(dy, x, start, count, mean, rstd, scale, slope, shift, dx, at):
    """dx = dy * scale + t * slope + shift with t = (x - mean) * rstd"""
    for i in range(count):
        t = (load(x, start + i) - mean) * rstd
        store(dx, at + i, load(dy, start + i) * scale + t * slope + shift)


@elementwise
def flush(partial, totals):
    """totals += partial; partial = 0"""
    for k in range(partial.shape[0]):
        for j in range(partial.shape[1]):
            totals[k, j] += partial[k, j]
            partial[k, j] = 0
