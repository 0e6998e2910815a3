"""Mean and variance of units that many blocks share: parts of them, each about a value of its own.

A part is (count, first, mean, squares, scale): the mean of (x - first) * scale, and the sum of squares about it. So
nothing cancels where the mean is large, and a merge in float64 is as good as if the sums had been.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, types

from . import sharing
from .geometry import MASK_RULE, Lines, counts
from .launching import is_there, launch, number_of, pointers, variants, width_of
from .lowlevel import LOADS, load
from .reductions import TINY, combining, merging_block, not_negative, summing

QUANTITIES = 5


def moments_of(view: Lines, x: Any, mask: Any) -> tuple[Any, sharing.Shares]:
    """The parts of every unit, of the elements that count; with an empty mask all do."""
    width, masked = width_of(view.length, x), is_there(mask)
    shares = sharing.across(view, width) if view.samples else sharing.along(view, width)
    parts, threads = shares.parts(x, QUANTITIES), math.prod(shares.block)
    kernel = (moments_across if view.samples else moments_along)(x.dtype, number_of(x.dtype), width, threads, masked)
    launch(kernel, shares.grid, shares.block, x.place, x, mask, view.mask_rule, *shares.arguments, parts, shares.total)
    return parts, shares


@variants
def moments_along(data, number, width, threads, masked):
    """A block for each part."""
    load_vector, merge, tiny = LOADS[width], merging_block(threads, number), TINY[number]

    @cuda.jit(device=True)
    def collect(x, mask, mask_rule, length, spacing, line, last, begin, stop, first, scale):
        """count, mean and squares of what a thread reads, about the first of it"""
        values = cuda.local.array(width, number)
        count, about, shift, square = number(0), number(0), number(0), number(0)
        while line < last:
            m = begin + cuda.threadIdx.x * width
            while m < stop:
                load_vector(x, line * length + m, values, 0)
                for j in range(width):
                    if not masked or counts(mask, line, m + j, mask_rule):
                        t = values[j] * scale - first * scale
                        about = about if count > number(0) or not abs(t) < number(math.inf) else t
                        t -= about
                        shift += t
                        square += t * t
                        count += number(1)
                m += cuda.blockDim.x * width
            line += cuda.blockDim.y * spacing
        share = number(1) / count if count > number(0) else number(0)
        return count, about + shift * share, not_negative(square - shift * shift * share)

    def kernel(x, mask, mask_rule, length, every, spacing, members, step, parts, total):
        line, last, begin, part = sharing.part_along(every, spacing, members, step)
        own, stop = line + cuda.threadIdx.y * spacing, min(begin + step, length)
        first, scale = number(0) if masked else number(load(x, line * length + begin)), number(1)
        count, mean, squares = number(0), number(0), number(math.inf)
        for attempt in range(0 if masked else 1, 4):
            if not squares < number(math.inf):
                scale = number(tiny) if attempt == 2 else number(1)  # the squares overflowed
                first = number(0) if attempt == 3 else first  # there is an Inf or a NaN: the mean alone has a meaning
                args = length, spacing, own, last, begin, stop, first, scale
                count, mean, squares = merge(*collect(x, mask, mask_rule, *args))
            if attempt == 0:  # the first element may not count: the mean is what to begin with
                first, squares = mean if abs(mean) < number(math.inf) else number(0), number(math.inf)
        if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
            write_part(parts, total, part, count, first, mean, squares, scale)

    integers = (types.int64,) * 5
    return kernel, (*_inputs(data), *integers, types.CPointer(number), types.int64), threads


@cuda.jit(device=True)
def write_part(parts, total, part, count, first, mean, squares, scale):
    """Nothing but the mean of what has an Inf or a NaN; where nothing counts, no value of what is there"""
    parts[part], parts[total + part], parts[2 * total + part] = count, first if count > 0 else count, mean
    parts[3 * total + part] = squares if squares < math.inf else math.nan
    parts[4 * total + part] = scale


def _inputs(data: Any) -> tuple[types.Type, ...]:
    return *pointers(data), types.CPointer(types.uint8), MASK_RULE


def _collecting_across(number: types.Type, width: int, rows: int, masked: bool) -> Any:
    load_vector = LOADS[width]

    @cuda.jit(device=True)
    def collect(x, mask, mask_rule, length, line, last, column, first, scale, mean, squares):
        """count, and mean and squares of the columns of a thread, about the first that it reads"""
        values, about = cuda.local.array(width, number), cuda.local.array(width, number)
        count = number(0)
        for j in range(width):
            mean[j], squares[j], about[j] = number(0), number(0), number(0)
        while line < last:
            if column < length and (not masked or counts(mask, line, 0, mask_rule)):
                load_vector(x, line * length + column, values, 0)
                for j in range(width):
                    t = values[j] * scale[j] - first[j] * scale[j]
                    about[j] = about[j] if count > number(0) or not abs(t) < number(math.inf) else t
                    t -= about[j]
                    mean[j] += t
                    squares[j] += t * t
                count += number(1)
            line += rows
        share = number(1) / count if count > number(0) else number(0)
        for j in range(width):
            squares[j] = not_negative(squares[j] - mean[j] * mean[j] * share)
            mean[j] = about[j] + mean[j] * share
        return count

    return collect


def _merging_across(number: types.Type, width: int, rows: int) -> Any:
    combine, columns = combining(number), sharing.TILE * width
    warp_sums = summing(sharing.TILE, types.int32, 2)

    @cuda.jit(device=True)
    def merge(count, mean, squares):
        """Count, mean and squares of all rows of threads, on each; whether the squares are finite in all of the tile"""
        counted, finite = cuda.shared.array(rows, number), cuda.shared.array(1, types.int32)
        parts, merged = cuda.shared.array((2, rows, columns), number), cuda.shared.array((2, columns), number)
        x, y = cuda.threadIdx.x * width, cuda.threadIdx.y
        if x == 0:
            counted[y] = count
        for j in range(width):
            parts[0, y, x + j], parts[1, y, x + j] = mean[j], squares[j]
        cuda.syncthreads()
        if y == 0:
            wrong = types.int32(0)
            count = counted[0]
            for k in range(1, rows):
                for j in range(width):
                    args = counted[k], parts[0, k, x + j], parts[1, k, x + j]
                    _, mean[j], squares[j] = combine(count, mean[j], squares[j], *args)
                count += counted[k]
            for j in range(width):
                merged[0, x + j], merged[1, x + j] = mean[j], squares[j]
                wrong += types.int32(0 if squares[j] < number(math.inf) else 1)
            wrong, _, _ = warp_sums(wrong, types.int32(0), types.int32(0))
            if x == 0:
                finite[0] = wrong == 0
        cuda.syncthreads()
        for j in range(width):
            mean[j], squares[j] = merged[0, x + j], merged[1, x + j]
        return finite[0], count

    return merge


@variants
def moments_across(data, number, width, threads, masked):
    """A part for each column of a tile; the rows of threads take every so many lines, and are merged in order."""
    load_vector, tiny, rows = LOADS[width], TINY[number], threads // sharing.TILE
    collect, merge = _collecting_across(number, width, rows, masked), _merging_across(number, width, rows)

    @cuda.jit(device=True)
    def set_terms(attempt, squares, first, scale):
        """Other terms for the columns whose squares are not finite; the others get what they had once more"""
        for j in range(width):
            if not squares[j] < number(math.inf):
                scale[j] = number(tiny) if attempt == 2 else number(1)  # the squares overflowed
                first[j] = number(0) if attempt == 3 else first[j]  # there is an Inf or a NaN

    def kernel(x, mask, mask_rule, length, lines, tiles, parts, total):
        begin, last, column, part = sharing.part_across(length, lines, tiles, width)
        first = cuda.local.array(width, number)
        scale = cuda.local.array(width, number)
        mean = cuda.local.array(width, number)
        squares = cuda.local.array(width, number)
        for j in range(width):
            first[j], squares[j] = number(0), number(math.inf)
        if column < length and not masked:
            load_vector(x, begin * length + column, first, 0)
        finite, count = 0, number(0)
        for attempt in range(0 if masked else 1, 4):
            if not finite:
                set_terms(attempt, squares, first, scale)
                line = begin + cuda.threadIdx.y
                count = collect(x, mask, mask_rule, length, line, last, column, first, scale, mean, squares)
                finite, count = merge(count, mean, squares)
            if attempt == 0:  # the first line may not count: the means are what to begin with
                finite = 0
                for j in range(width):
                    first[j] = mean[j] if abs(mean[j]) < number(math.inf) else number(0)
                    squares[j] = number(math.inf)
        if cuda.threadIdx.y == 0 and column < length:
            for j in range(width):
                write_part(parts, total, part + j, count, first[j], mean[j], squares[j], scale[j])

    return kernel, (*_inputs(data), *(types.int64,) * 3, types.CPointer(number), types.int64), threads
