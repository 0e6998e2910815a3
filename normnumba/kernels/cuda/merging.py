"""From the parts of units to their statistics and sums, and to gradients of parameters: a warp for each, in float64.

Merges are as many as there are units, not elements, so float64 costs nothing here. No sum depends on the order in which
blocks ran: there are no atomics.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from numba import cuda, types

from .launching import (
    MEAN,
    PINNED,
    RECENTRE,
    RSTD,
    SQUARED,
    STATS,
    WARP,
    WEIGHT,
    is_there,
    launch,
    number_of,
    pointers,
    variants,
)
from .reductions import combining, merging_lanes, not_negative, summing
from .sharing import Shares

WARPS = 4
"""Units of a block that takes a warp for each."""

THREADS = 128
"""Units of a block that takes a thread for each."""

SHARING = 16
"""Threads that share a column."""

PARTS = types.UniTuple(types.int64, 6)
"""The type of the rule of `Shares`."""

DOUBLES = types.CPointer(types.float64)


def _shape(units: int) -> tuple[tuple[int], tuple[int, int]]:
    return (-(-units // WARPS),), (WARP, WARPS)


@cuda.jit(device=True)
def _at(unit, rule):
    """Where the parts of a unit begin"""
    groups, sample, group, _, _, _ = rule
    return unit // groups * sample + unit % groups * group


@functools.cache
def _writing(number: types.Type) -> Any:
    @cuda.jit(device=True)
    def write_coefficients(coefficients, units, unit, base, mean, rstd):
        """xhat = (x - pivot) * rstd - centre, with the digits of base + mean that the pivot loses"""
        pivot = number(base + mean)
        coefficients[unit], coefficients[units + unit] = pivot, number(rstd)
        coefficients[2 * units + unit] = number((base - types.float64(pivot) + mean) * rstd)

    return write_coefficients


def merge_moments(
    parts: Any,
    shares: Shares,
    units: int,
    eps: float,
    pinned: bool,
    coefficients: Any,
    mean: Any,
    rstd: Any,
    stats: Any,
) -> None:
    """Mean and biased variance of each unit, in every form that is wanted of them.

    With `pinned` the mean is 0, and the variance the mean square.
    """
    present = MEAN * is_there(mean) | RSTD * is_there(rstd) | STATS * is_there(stats) | PINNED * pinned
    args = parts, shares.total, shares.shares, shares.rule, units, eps, present, coefficients, mean, rstd, stats
    launch(merge_moments_of(number_of(parts.dtype)), *_shape(units), parts.place, *args)


@variants
def merge_moments_of(number):
    """`merge_moments`"""
    combine, in_warp = combining(types.float64), merging_lanes(WARP, types.float64)
    write_coefficients, wide = _writing(number), number is types.float64

    @cuda.jit(device=True)
    def smallest_scale(parts, total, shares, rule, unit):
        """What keeps squares of all parts finite; in float64, those of float32 are"""
        scale, k = 1.0, types.int64(0)
        while k < (shares * rule[5] if wide else 0):
            part = _at(unit, rule) + k // shares * rule[3] + k % shares * rule[4]
            scale = min(scale, parts[4 * total + part])
            k += 1
        return scale

    @cuda.jit(device=True)
    def collect(parts, total, shares, rule, unit, scale):
        """A value near the mean; the mean less that, and the variance, scaled: right in a warp's first lane"""
        _, _, _, member, step, members = rule
        k = types.int64(0)
        while k < shares * members - 1 and parts[_at(unit, rule) + k // shares * member + k % shares * step] == 0:
            k += 1
        base = types.float64(parts[total + _at(unit, rule) + k // shares * member + k % shares * step])
        count, mean, squares, k = 0.0, 0.0, 0.0, types.int64(cuda.threadIdx.x)
        while k < shares * members:
            part = _at(unit, rule) + k // shares * member + k % shares * step
            ratio = scale / types.float64(parts[4 * total + part])
            about = (types.float64(parts[total + part]) - base) * scale + types.float64(parts[2 * total + part]) * ratio
            spread = types.float64(parts[3 * total + part]) * ratio * ratio
            count, mean, squares = combine(count, mean, squares, types.float64(parts[part]), about, spread)
            k += WARP
        count, mean, squares = in_warp(count, mean, squares)
        return base if count > 0 else 0.0, mean, not_negative(squares / count) if count > 0 else 0.0

    def kernel(parts, total, shares, rule, units, eps, present, coefficients, mean, rstd, stats):
        unit = types.int64(cuda.blockIdx.x) * WARPS + cuda.threadIdx.y
        if unit >= units:
            return
        scale = smallest_scale(parts, total, shares, rule, unit)
        base, average, var = collect(parts, total, shares, rule, unit, scale)
        if present & PINNED:
            var += (base * scale + average) * (base * scale + average)
            base, average = 0.0, 0.0
        if cuda.threadIdx.x == 0:
            average, r = average / scale, scale / math.sqrt(var + eps * scale * scale)
            write_coefficients(coefficients, units, unit, base, average, r)
            if present & MEAN:
                mean[unit] = number(base + average)
            if present & RSTD:
                rstd[unit] = number(r)
            if present & STATS:
                stats[unit], stats[units + unit] = base + average, var / scale / scale

    vector = types.CPointer(number)
    inputs = vector, types.int64, types.int64, PARTS, types.int64, types.float64, types.int64
    return kernel, (*inputs, vector, vector, vector, DOUBLES), WARP * WARPS


def prepare(mean: Any, second: Any, eps: float, squared: bool, coefficients: Any, means: Any, rstds: Any) -> None:
    """The coefficients of given statistics: mean and rstd, or if `squared` mean and variance."""
    number, units = number_of(coefficients.dtype), second.size
    present = SQUARED * squared | MEAN * is_there(means) | PINNED * (not is_there(mean))
    kernel = prepare_of(mean.dtype, second.dtype, number)
    args = mean, second, units, eps, present, coefficients, means, rstds
    launch(kernel, (-(-units // THREADS),), (THREADS,), second.place, *args)


@variants
def prepare_of(first, other, number):
    """`prepare`"""
    write_coefficients = _writing(number)

    def kernel(mean, second, units, eps, present, coefficients, means, rstds):
        unit = types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        if unit < units:
            m = 0.0 if present & PINNED else types.float64(mean[unit])
            r = types.float64(second[unit])
            r = 1.0 / math.sqrt(r + eps) if present & SQUARED else r
            write_coefficients(coefficients, units, unit, 0.0, m, r)
            if present & MEAN:
                means[unit], rstds[unit] = number(m), number(r)

    vector = types.CPointer(number)
    return kernel, (*pointers(first, other), types.int64, types.float64, types.int64, vector, vector, vector), THREADS


def merge_sums(
    parts: Any,
    shares: Shares,
    units: int,
    count: int,
    weight: Any,
    recentre: bool,
    pinned: bool,
    coefficients: Any,
    sums: Any,
    deltas: Any,
) -> None:
    """sum(g) and sum(g * xhat) of each unit; `recentre` takes what rounding the mean left in xhat out of them.

    That joins the centre, and goes to `deltas` for those who have parts of the same unit. With `pinned`, as in RMS
    norm, sum(g) is not of interest. A weight multiplies the sums of the members of a unit.
    """
    present = RECENTRE * recentre | PINNED * pinned | WEIGHT * is_there(weight)
    kernel = merge_sums_of(number_of(parts.dtype))
    args = (
        parts,
        shares.total,
        shares.shares,
        shares.rule,
        units,
        1 / count,
        weight,
        present,
        coefficients,
        sums,
        deltas,
    )
    launch(kernel, *_shape(units), parts.place, *args)


@variants
def merge_sums_of(number):
    """`merge_sums`"""
    warp_sums = summing(WARP, types.float64)

    def kernel(parts, total, shares, rule, units, share, weight, present, coefficients, sums, deltas):
        unit, k = types.int64(cuda.blockIdx.x) * WARPS + cuda.threadIdx.y, types.int64(cuda.threadIdx.x)
        if unit >= units:
            return
        groups, _, _, member, step, members = rule
        sum_g, sum_gt, sum_t = 0.0, 0.0, 0.0
        while k < shares * members:
            part = _at(unit, rule) + k // shares * member + k % shares * step
            w = types.float64(weight[unit % groups * members + k // shares] if present & WEIGHT else number(1))
            sum_g += types.float64(parts[part]) * w
            sum_gt += types.float64(parts[total + part]) * w
            sum_t += types.float64(parts[2 * total + part])
            k += WARP
        sum_g, sum_gt, sum_t = warp_sums(sum_g, sum_gt, sum_t)
        if cuda.threadIdx.x == 0:
            delta = sum_t * share if present & RECENTRE else 0.0
            sums[unit], sums[units + unit] = 0.0 if present & PINNED else sum_g, sum_gt - delta * sum_g
            if present & RECENTRE:
                coefficients[2 * units + unit] += number(delta)
                deltas[unit] = delta

    vector = types.CPointer(number)
    inputs = vector, types.int64, types.int64, PARTS, types.int64, types.float64, vector, types.int64
    return kernel, (*inputs, vector, DOUBLES, DOUBLES), WARP * WARPS


def merge_parameters(
    parts: Any,
    shares: Shares,
    repeats: int,
    repeat: int,
    deltas: Any,
    groups: int,
    width: int,
    dweight: Any,
    dbias: Any,
) -> None:
    """dweight and dbias from parts that lie `repeat` apart for each of some samples, with groups of `width` parameters.

    An empty `deltas` is zero.
    """
    kernel = merge_parameters_of(number_of(parts.dtype), dweight.dtype)
    args = (
        parts,
        shares.total,
        shares.shares,
        shares.rule,
        repeats,
        repeat,
        deltas,
        int(is_there(deltas)),
        groups,
        width,
    )
    launch(kernel, *_shape(dweight.size), parts.place, *args, dweight.size, dweight, dbias)


@variants
def merge_parameters_of(number, result):
    """`merge_parameters`"""
    warp_sums, kind = summing(WARP, types.float64, 2), number_of(result)

    def kernel(parts, total, shares, rule, repeats, repeat, deltas, recentre, groups, width, size, dweight, dbias):
        c, k = types.int64(cuda.blockIdx.x) * WARPS + cuda.threadIdx.y, types.int64(cuda.threadIdx.x)
        if c >= size:
            return
        sum_g, sum_gt = 0.0, 0.0
        while k < shares * repeats:
            part = _at(c, rule) + k // shares * repeat + k % shares * rule[4]
            g = types.float64(parts[part])
            delta = deltas[k // shares * groups + c // width] if recentre else 0.0
            sum_g += g
            sum_gt += types.float64(parts[total + part]) - delta * g
            k += WARP
        sum_g, sum_gt, _ = warp_sums(sum_g, sum_gt, 0.0)
        if cuda.threadIdx.x == 0:
            dweight[c], dbias[c] = kind(sum_gt), kind(sum_g)

    integers = types.int64, types.int64, PARTS, types.int64, types.int64
    outputs = pointers(result, result)
    return kernel, (types.CPointer(number), *integers, DOUBLES, *(types.int64,) * 4, *outputs), WARP * WARPS


def sum_rows(parts: Any, rows: int, cols: int, dweight: Any, dbias: Any) -> None:
    """dbias and dweight as the sums of the columns of parts (2 or 3, rows, cols)."""
    kernel, block = sum_rows_of(number_of(parts.dtype), SHARING), (WARP, SHARING)
    launch(kernel, (-(-cols // WARP),), block, parts.place, parts, rows, cols, dweight, dbias)


@variants
def sum_rows_of(number, threads):
    """`sum_rows`"""

    def kernel(parts, rows, cols, dweight, dbias):
        shared = cuda.shared.array((2, threads, WARP), types.float64)
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        column, row = types.int64(cuda.blockIdx.x) * WARP + x, types.int64(y)
        sum_g, sum_gt = 0.0, 0.0
        while row < rows and column < cols:
            sum_g += types.float64(parts[row * cols + column])
            sum_gt += types.float64(parts[(rows + row) * cols + column])
            row += threads
        shared[0, y, x], shared[1, y, x] = sum_g, sum_gt
        cuda.syncthreads()
        if y == 0 and column < cols:
            for k in range(1, threads):
                sum_g += shared[0, k, x]
                sum_gt += shared[1, k, x]
            dweight[column], dbias[column] = number(sum_gt), number(sum_g)

    vector = types.CPointer(number)
    return kernel, (vector, types.int64, types.int64, vector, vector), WARP * threads
