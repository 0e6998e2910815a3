"""The formulas, once: loops over spans of elements, from which the kernels are put together.

A span is x[start + o * stride + i] for o < outer, i < inner. A row is one (outer = 1); a channel of NCHW data is one,
with `inner` contiguous elements in each of its `outer` samples. Kernels work on many spans at the same time.

`zero` carries the type that a span is computed in. Sums run in that type over BLOCK elements and in float64 beyond.

`line` is what makes z of x, (pivot, scale, shift, width) with z = (x - pivot) * scale + shift. `curve` is what makes dx
of dy and x, (mean, rstd, scale, slope, shift, width) with dx = dy * scale + t * slope + shift, t = (x - mean) * rstd.
They are numbers for a channel, and `width` is BLOCK; or vectors for rows of `width` columns, taken in turn. `ahead` is
how far behind a block the memory lies that is read next.
"""

from __future__ import annotations

import math

import numpy as np

from .. import CONSTANT, RELU
from .activations import activate, differentiate
from .lowlevel import (
    accumulate,
    barrier,
    elementwise,
    frozen,
    inlined,
    inlined_elementwise,
    load,
    muladd,
    plus,
    rounded,
    scalar,
    store,
    stream,
)

BLOCK = 4096
"""Elements that one loop takes: 16 KiB of float32, half of an L1 cache, and few enough roundings to ignore."""

GROUP = 64
"""Rows that are added up in the accumulator's type before they join a float64 total."""

HEAD = 64
"""Elements whose mean is the first pivot: enough to be within two standard deviations of the mean nearly always."""


@inlined_elementwise
def _sum_about(x, start, count, pivot, zero):
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


@scalar
def _moments_about(x, start, outer, stride, inner, scale, pivot, zero):
    """mean(t), var(t) with t = x * scale - pivot"""
    first, second, rest, rest2 = 0.0, 0.0, 0.0, 0.0
    for o in range(outer):
        for i in range(0, inner, BLOCK):
            a, b = _sums_about(x, start + o * stride + i, min(BLOCK, inner - i), scale, pivot, zero)
            first, rest = _two_sum(first, rest, a)
            second, rest2 = _two_sum(second, rest2, b)
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


@inlined
def moments(x, start, outer, stride, inner, eps, center, zero):
    """pivot, shift, var, rstd: the mean is pivot + shift, var is biased, rstd = 1 / sqrt(var + eps).

    All but the pivot are float64. The pivot is near the mean, so that (x - pivot) - shift keeps the digits that a
    rounded mean would lose. Without `center` the mean is pinned to 0, and var is the mean square.

    A single block whose sums are good at once, which is nearly every row, has no loop and no call: a row of 128 then
    took 38 ns to normalize instead of 76, one of 768 134 instead of 178.
    """
    if outer == 1 and inner <= BLOCK:
        pivot = _pivot(x, start, inner, zero) if center else zero
        first, second = _sums_about(x, start, inner, type(zero)(1), pivot, zero)
        share = 1.0 / inner
        shift = first * share if center else 0.0
        var = second * share - shift * shift
        if shift * shift <= 4 * var < math.inf:
            return pivot, shift, var, 1.0 / math.sqrt(var + eps)
    return any_moments(x, start, outer, stride, inner, eps, center, zero)


@inlined
def _pivot(x, start, inner, zero):
    """The mean of the head"""
    head, first = min(inner, HEAD), load(x, start)
    return first + _sum_about(x, start, head, first, zero) / type(zero)(head)


@scalar
def any_moments(x, start, outer, stride, inner, eps, center, zero):
    """`moments` of spans of any length and any values"""
    number = type(zero)
    pivot, scale, total = zero, 1.0, outer * inner
    if center:
        pivot = _pivot(x, start, inner, zero)
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
    if scale == 1.0:  # without the five divisions below
        return pivot, shift, var, 1.0 / math.sqrt(var + eps)
    return number(pivot / scale), shift / scale, var / scale / scale, scale / math.sqrt(var + eps * scale * scale)


@elementwise
def add(x, start, other, first, count, total, at):
    """total = x + other"""
    for i in range(count):
        store(total, at + i, load(x, start + i) + load(other, first + i))


def _normalizing(rounding):
    @elementwise
    def normalize(x, start, count, pivot, rstd, shift, weight, bias, column, y, at):
        for i in range(count):
            xhat = (load(x, start + i) - load(pivot, column + i)) * load(rstd, column + i) + load(shift, column + i)
            if rounding:
                xhat = rounded(y, xhat)
            store(y, at + i, xhat * load(weight, column + i) + load(bias, column + i))

    return normalize


_normalize, _normalize_rounding = _normalizing(False), _normalizing(True)


@inlined
def normalize(rounding, x, start, count, pivot, rstd, shift, weight, bias, column, y, at):
    """y = xhat * weight + bias with xhat = (x - pivot) * rstd + shift, those that are vectors from `column` on

    With `rounding`, xhat is rounded to y's dtype before the weight multiplies it.
    """
    if rounding:
        _normalize_rounding(x, start, count, pivot, rstd, shift, weight, bias, column, y, at)
    else:
        _normalize(x, start, count, pivot, rstd, shift, weight, bias, column, y, at)


def _scaling(adding):
    @inlined_elementwise
    def scale_shift(x, residual, start, count, pivot, scale, shift, column, floor, y, at):
        """y = max((x - pivot) * scale + shift + residual, floor), the vectors from `column` on"""
        for i in range(count):
            t = load(x, start + i) - load(pivot, column + i)
            value = t * load(scale, column + i) + load(shift, column + i)
            if adding:
                value += load(residual, start + i)
            store(y, at + i, floor if value < floor else value)

    return scale_shift


_scale_shift, _scale_shift_add = _scaling(False), _scaling(True)


@inlined
def _affine(x, residual, start, count, column, line, floor, y, at):
    """(x - pivot) * scale + shift + residual for elements from `start` on, whose first is in `column`; the next column

    `line` is pivot, scale, shift and how many columns those have: BLOCK where they are numbers.
    """
    pivot, scale, shift, width = line
    done = 0
    while done < count:
        n = min(width - column, count - done)
        if residual.size:
            _scale_shift_add(x, residual, start + done, n, pivot, scale, shift, column, floor, y, at + done)
        else:
            _scale_shift(x, residual, start + done, n, pivot, scale, shift, column, floor, y, at + done)
        done += n
        column = column + n if column + n < width else 0
    return column


def _writing(smooth):
    @(scalar if smooth else inlined)
    def write(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead):
        number = z.dtype.type
        floor = number(0 if activation == RELU else -math.inf)
        second = residual if residual.size else x  # an address that is nobody's would cost a walk of the page table
        for o in range(outer):
            first, column = start + o * stride, 0
            for i in range(first, first + inner, BLOCK):
                n = min(BLOCK, first + inner - i)
                target, at = (buffer, 0) if buffer.size else (y, i)
                if smooth:
                    column = _affine(x, residual, i, n, column, line, floor, z, 0)
                    activate(activation, z, n, target, at)
                else:
                    column = _affine(x, residual, i, n, column, line, floor, target, at)
                if buffer.size:
                    stream(y, i, buffer, n, x, second, i + ahead)

    return write


_write, _write_smooth = _writing(False), _writing(True)


@inlined
def write_span(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead):
    """y = activation((x - pivot) * scale + shift + residual) over a span; see `_affine`

    Blocks pass through `z` for an activation that is more than a floor, and `buffer` unless that is empty. Here, and
    below, one loop without the activation, inlined, and one with it, called: a call in a loop, taken or not, made the
    time of short spans twice as long.
    """
    if activation > RELU:
        _write_smooth(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead)
    else:
        _write(x, residual, start, outer, stride, inner, line, activation, z, y, buffer, ahead)


@scalar
def set_upstream(activation, dy, x, residual, start, count, column, line, dz):
    """Set dz = dy * activation'(z) in a block, from x, since the forward keeps nothing, and return it to be read"""
    barrier()
    _affine(x, residual, start, count, column, line, dz.dtype.type(-math.inf), dz, 0)
    differentiate(activation, dy, start, count, dz)
    barrier()
    return frozen(dz)


@inlined
def gradient_terms(sum_g, sum_gt, centre, rstd, count):
    """slope, shift of what shares a mean: dx = dy * weight * rstd + t * slope + shift, where xhat = t - centre

    From sums of g = dy * weight and g * t over `count` elements, and what rounding the mean left in xhat.
    """
    share = 1.0 / count
    slope = -rstd * (sum_gt - centre * sum_g) * share
    return slope, -rstd * sum_g * share - slope * centre


@inlined_elementwise
def _plain_sums(dy, at, x, start, count, mean, rstd, zero):
    """sum(dy), sum(dy * t) with t = (x - mean) * rstd"""
    sum_dy, sum_dyt = zero, zero
    for i in range(count):
        g = load(dy, at + i)
        sum_dy = plus(sum_dy, g)
        sum_dyt = plus(sum_dyt, g * ((load(x, start + i) - mean) * rstd))
    return sum_dy, sum_dyt


def _summing(active):
    @(scalar if active else inlined)
    def sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz):
        sum_dy, sum_dyt, rest, rest2 = 0.0, 0.0, 0.0, 0.0
        zero = dz.dtype.type(0)
        for o in range(outer):
            first = start + o * stride
            for i in range(first, first + inner, BLOCK):
                n = min(BLOCK, first + inner - i)
                if active:
                    upstream = set_upstream(activation, dy, x, residual, i, n, 0, line, dz)
                    a, b = _plain_sums(upstream, 0, x, i, n, mean, rstd, zero)
                else:
                    a, b = _plain_sums(dy, i, x, i, n, mean, rstd, zero)
                sum_dy, rest = _two_sum(sum_dy, rest, a)
                sum_dyt, rest2 = _two_sum(sum_dyt, rest2, b)
        return sum_dy + rest, sum_dyt + rest2

    return sums


_sums, _active_sums = _summing(False), _summing(True)


@inlined
def channel_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz):
    """sum(dz), sum(dz * t) over a span, in float64, with dz = dy * activation' and t = (x - mean) * rstd"""
    if activation:
        return _active_sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz)
    return _sums(dy, x, residual, start, outer, stride, inner, mean, rstd, line, activation, dz)


@inlined
def is_far(mean, rstd):
    """Whether rounding the mean did harm: up to four standard deviations, that is no more than half an eps of xhat's"""
    return abs(mean) * rstd > 4


@scalar
def centre_before(x, start, outer, stride, inner, mean, rstd, zero):
    """mean(t), which is what rounding the mean left in xhat, and 0 where that does not matter.

    Summing t along with the other sums costs every call a fifth of its additions, and comes too late for an activation.
    """
    total = 0.0
    if not is_far(mean, rstd):
        return total
    for o in range(outer):
        for i in range(start + o * stride, start + o * stride + inner, BLOCK):
            total += _sum_about(x, i, min(BLOCK, start + o * stride + inner - i), mean, zero)
    return total * rstd / (outer * inner)


@inlined_elementwise
def _curve(dy, first, x, start, count, mean, rstd, scale, slope, shift, column, dx, at):
    """dx = dy * scale + t * slope + shift with t = (x - mean) * rstd, the vectors from `column` on"""
    for i in range(count):
        t = (load(x, start + i) - load(mean, column + i)) * load(rstd, column + i)
        rest = muladd(t, load(slope, column + i), load(shift, column + i))
        store(dx, at + i, muladd(load(dy, first + i), load(scale, column + i), rest))


@inlined_elementwise
def _scaled(dy, first, count, scale, column, dx, at):
    """dx = dy * scale"""
    for i in range(count):
        store(dx, at + i, load(dy, first + i) * load(scale, column + i))


@elementwise
def copy(z, count, y, at):
    """y = z, rounded"""
    for i in range(count):
        store(y, at + i, load(z, i))


@inlined
def _gradient(dy, at_dy, x, start, count, column, curve, terms, dx, at):
    """`_curve` or for constant statistics `_scaled`, of elements whose first is in `column`; the next column"""
    mean, rstd, scale, slope, shift, width = curve
    done = 0
    while done < count:
        n = min(width - column, count - done)
        if terms == CONSTANT:
            _scaled(dy, at_dy + done, n, scale, column, dx, at + done)
        else:
            _curve(dy, at_dy + done, x, start + done, n, mean, rstd, scale, slope, shift, column, dx, at + done)
        done += n
        column = column + n if column + n < width else 0
    return column


def _writing_gradients(active):
    @(scalar if active else inlined)
    def write(
        dy, x, residual, start, outer, stride, inner, line, curve, terms, activation, dz, dx, dresidual, buffer, ahead
    ):
        for o in range(outer):
            first, column = start + o * stride, 0
            for i in range(first, first + inner, BLOCK):
                n, before = min(BLOCK, first + inner - i), column
                target, at = (buffer, 0) if buffer.size or not dx.size else (dx, i)
                if active:
                    upstream = set_upstream(activation, dy, x, residual, i, n, before, line, dz)
                    column = _gradient(upstream, 0, x, i, n, before, curve, terms, target, at)
                    if dresidual.size:
                        copy(upstream, n, dresidual, i)
                else:
                    column = _gradient(dy, i, x, i, n, before, curve, terms, target, at)
                if buffer.size and dx.size:
                    stream(dx, i, buffer, n, dy, x, i + ahead)

    return write


_write_gradient, _write_active_gradient = _writing_gradients(False), _writing_gradients(True)


@inlined
def write_gradients(
    dy, x, residual, start, outer, stride, inner, line, curve, terms, activation, dz, dx, dresidual, buffer, ahead
):
    """dx over a span, and with an activation dresidual = dz, each unless it is empty; without dx, `buffer` takes it"""
    tail = activation, dz, dx, dresidual, buffer, ahead
    if activation:
        _write_active_gradient(dy, x, residual, start, outer, stride, inner, line, curve, terms, *tail)
    else:
        _write_gradient(dy, x, residual, start, outer, stride, inner, line, curve, terms, *tail)


@elementwise
def flush(partial, totals):
    """totals += partial; partial = 0"""
    for k in range(partial.shape[0]):
        for j in range(partial.shape[1]):
            totals[k, j] += partial[k, j]
            partial[k, j] = 0


@scalar
def start_sums(blocks, rows, dweight, dbias):
    """float64 sums (blocks, 2, C), set to 0; or none where so few rows are one block that dweight and dbias hold them.

    Those are then 0.
    """
    few = blocks == 1 and rows <= GROUP
    if few:
        dweight[:] = 0
        dbias[:] = 0
    return np.zeros((blocks, 2, 0 if few else dweight.size))


@elementwise
def _add_line(totals, source, first, count):
    """totals[first : first + count] += source"""
    for j in range(first, first + count):
        accumulate(totals, j, load(source, j), 1)


@scalar
def merge_sums(partial, first, dweight, dbias):
    """dbias and dweight = the sums over all blocks, of BLOCK columns from `first` on"""
    count = min(BLOCK, dweight.size - first)
    for b in range(1, partial.shape[0]):
        for k in range(2):
            _add_line(partial[0, k], partial[b, k], first, count)
    for j in range(first, first + count):
        dbias[j], dweight[j] = partial[0, 0, j], partial[0, 1, j]
