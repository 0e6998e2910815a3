"""Mean and variance of spans of elements (see `spans`), without loss where the mean is far from zero.

Sums are about a pivot near the mean. They run in the type that a span is computed in over BLOCK elements, and in
float64 beyond. Most of a block is added up in vectors, in an order that the code states: a span that is added up alone
or beside the writing of another has the same bits.
"""

from __future__ import annotations

import math

from .lowlevel import (
    BLOCK,
    in_pair,
    inlined,
    inlined_elementwise,
    lane_sum,
    load,
    muladd,
    pair_of,
    plus,
    scalar,
    whole_pairs,
    zero_pair,
)

HEAD = 32
"""Elements whose mean is the first pivot: enough to be within two standard deviations of the mean nearly always."""

NO_SUMS = 0.0, 0.0, 0.0, 0.0
"""Two sums before anything is added, each with what rounding has lost of it."""


@inlined_elementwise
def sum_about(x, start, count, pivot, zero):
    """sum(x - pivot)"""
    total = zero
    for i in range(start, start + count):
        total = plus(total, load(x, i) - pivot)
    return total


@inlined_elementwise
def _sums_about(x, start, count, scale, pivot, zero):
    """sum(t), sum(t^2) with t = x * scale - pivot"""
    first, second = zero, zero
    for i in range(start, start + count):
        t = load(x, i) * scale - pivot
        first = plus(first, t)
        second = plus(second, t * t)
    return first, second


@scalar
def _two_sum(total, rest, value):
    """total + value, and rest plus what that rounding lost (Knuth's two-sum): runs of any number add up without loss"""
    new = total + value
    part = new - total
    lost = (total - (new - part)) + (value - part)
    return new, rest + lost if math.isfinite(new) else 0.0


@inlined_elementwise
def pair_sums(x, start, count, pivot, first, second):
    """first + t and second + t^2 with t = x - pivot, of whole pairs"""
    for i in range(0, count, in_pair(x)):
        t = load(x, pair_of(x, start + i)) - pivot
        first, second = first + t, muladd(t, t, second)
    return first, second


@inlined
def ended_sums(x, start, whole, count, pivot, first, second):
    """sum(t), sum(t^2) of a block from those of its `whole` pairs"""
    a, b = _sums_about(x, start + whole, count - whole, type(pivot)(1), pivot, type(pivot)(0))
    return a + lane_sum(first), b + lane_sum(second)


@inlined
def sums_of_block(x, start, count, pivot):
    """sum(t), sum(t^2) of a block with t = x - pivot"""
    whole = whole_pairs(x, count)
    if whole == 0:  # no vectors to add up in the end
        return _sums_about(x, start, count, type(pivot)(1), pivot, type(pivot)(0))
    first, second = pair_sums(x, start, whole, pivot, zero_pair(x), zero_pair(x))
    return ended_sums(x, start, whole, count, pivot, first, second)


@inlined
def joined(sums, first, second):
    """The sums of spans so far, each in two parts, and those of another block"""
    return *_two_sum(sums[0], sums[1], first), *_two_sum(sums[2], sums[3], second)


@scalar
def span_sums(x, start, outer, stride, inner, pivot):
    """sum(t), sum(t^2) of a span with t = x - pivot"""
    sums = NO_SUMS
    for o in range(outer):
        for i in range(0, inner, BLOCK):
            sums = joined(sums, *sums_of_block(x, start + o * stride + i, min(BLOCK, inner - i), pivot))
    return sums


@scalar
def _scaled_sums(x, start, outer, stride, inner, scale, pivot):
    """`span_sums` with t = x * scale - pivot"""
    sums, zero = NO_SUMS, type(pivot)(0)
    for o in range(outer):
        for i in range(0, inner, BLOCK):
            n, at = min(BLOCK, inner - i), start + o * stride + i
            sums = joined(sums, *_sums_about(x, at, n, scale, pivot, zero))
    return sums


@inlined
def _moments_about(sums, count, center):
    """mean(t), var(t) from sums of `count` elements; without `center` 0 and the mean square"""
    share = 1.0 / count
    shift = (sums[0] + sums[1]) * share if center else 0.0
    return shift, (sums[2] + sums[3]) * share - shift * shift


@scalar
def _peak(x, start, outer, stride, inner, center):
    """max(|x|), sum(x), or without `center` sum(|x|), and whether all of the span is finite"""
    peak, total, finite = 0.0, 0.0, True
    for o in range(outer):
        for i in range(start + o * stride, start + o * stride + inner):
            value = float(load(x, i))
            finite = finite and math.isfinite(value)
            peak = max(peak, abs(value))
            total += value if center else abs(value)
    return peak, total, finite


@inlined
def moments(x, start, outer, stride, inner, eps, center, zero):
    """pivot, shift, var, rstd: the mean is pivot + shift, var is biased, rstd = 1 / sqrt(var + eps).

    All but the pivot are float64. The pivot is near the mean, so that (x - pivot) - shift keeps the digits that a
    rounded mean would lose. Without `center` the mean is pinned to 0, and var is the mean square.

    A single block whose sums are good at once, which is nearly every row, has no call: a row of 768 then took 134 ns to
    normalize instead of 178.
    """
    pivot = pivot_of(x, start, inner, center, zero)
    if outer == 1 and inner <= BLOCK:
        first, second = sums_of_block(x, start, inner, pivot)
        sums = float(first), 0.0, float(second), 0.0
    else:
        sums = span_sums(x, start, outer, stride, inner, pivot)
    return moments_of_sums(x, start, outer, stride, inner, pivot, sums, eps, center)


@inlined
def moments_of_sums(x, start, outer, stride, inner, pivot, sums, eps, center):
    """`moments` from sums about the pivot, where these are good"""
    shift, var = _moments_about(sums, outer * inner, center)
    if shift * shift <= 4 * var < math.inf:
        return pivot, shift, var, 1.0 / math.sqrt(var + eps)
    return any_moments(x, start, outer, stride, inner, eps, center, type(pivot)(0))


@inlined
def moments_of_several(x, start, count, inner, eps, center, zero, statistics):
    """`moments` of `count` blocks, one behind the other: pivots, shifts and rstds into the rows of `statistics`

    Step by step, so that sums, roots and divisions of one overlap those of the others. In between the rows hold the two
    sums, and then NaN for an rstd whose sums were no good.
    """
    following = pivot_of(x, start, inner, center, zero)
    for k in range(count):
        pivot, following = following, pivot_of(x, start + min(k + 1, count - 1) * inner, inner, center, zero)
        statistics[0, k] = pivot
        statistics[1, k], statistics[2, k] = sums_of_block(x, start + k * inner, inner, pivot)
    for k in range(count):
        shift, var = _moments_about((statistics[1, k], 0.0, statistics[2, k], 0.0), inner, center)
        statistics[1, k] = shift
        statistics[2, k] = 1.0 / math.sqrt(var + eps) if shift * shift <= 4 * var < math.inf else math.nan
    for k in range(count):
        if math.isnan(statistics[2, k]):
            pivot, shift, _, r = any_moments(x, start + k * inner, 1, 0, inner, eps, center, zero)
            statistics[0, k], statistics[1, k], statistics[2, k] = pivot, shift, r


@inlined
def pivot_of(x, start, inner, center, zero):
    """The mean of the head, or 0 without `center`"""
    if not center:
        return zero
    head, first = min(inner, HEAD), load(x, start)
    return first + sum_about(x, start, head, first, zero) / type(zero)(head)


@scalar
def any_moments(x, start, outer, stride, inner, eps, center, zero):
    """`moments` of spans of any length and any values"""
    number = type(zero)
    pivot, scale, total = pivot_of(x, start, inner, center, zero), 1.0, outer * inner
    shift, var = 0.0, 0.0
    for _ in range(4):
        if scale == 1.0:
            sums = span_sums(x, start, outer, stride, inner, pivot)
        else:
            sums = _scaled_sums(x, start, outer, stride, inner, number(scale), pivot)
        shift, var = _moments_about(sums, total, center)
        if not math.isfinite(var) and scale == 1.0:  # the squares overflowed, or an Inf or NaN is among them
            peak, plain, finite = _peak(x, start, outer, stride, inner, center)
            if not finite and center:
                return number(plain / total), 0.0, math.nan, math.nan
            if not finite:
                return zero, 0.0, plain, 1.0 / math.sqrt(plain)
            scale = math.ldexp(1.0, 32 - math.frexp(peak)[1])
            pivot = number(load(x, start) * scale) if center else zero
        elif shift * shift > 4 * var:  # the head was no sample of the rest: about the mean itself nothing cancels
            pivot += number(shift)
        else:
            break
    var = max(var, 0.0)  # squares below the smallest number are lost
    if scale == 1.0:  # without the five divisions below
        return pivot, shift, var, 1.0 / math.sqrt(var + eps)
    return number(pivot / scale), shift / scale, var / scale / scale, scale / math.sqrt(var + eps * scale * scale)
