"""What gradients take from all elements that share statistics or a parameter: sum(g), sum(g * xhat), sum(xhat).

g is dz, or dz * weight where that differs within a unit.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, types

from . import sharing
from .elementwise import backward_terms
from .geometry import RULE, Lines, indexing
from .launching import (
    BIAS,
    OTHER,
    ROUNDING,
    WEIGHT,
    WEIGHTED,
    is_there,
    launch,
    number_of,
    pointers,
    variants,
    width_of,
)
from .lowlevel import LOADS, rounded
from .reductions import summing

QUANTITIES = 3


def products_of(
    view: Lines,
    over: Lines,
    dy: Any,
    x: Any,
    residual: Any,
    coefficients: Any,
    weight: Any,
    bias: Any,
    activation: int,
    weighted: bool,
    rounding: bool,
) -> tuple[Any, sharing.Shares]:
    """The parts of every unit of `over`, with the statistics and parameters that `view` says."""
    width = width_of(view.length, dy, x, residual)
    shares = sharing.across(over, width) if over.samples else sharing.along(over, width)
    parts, threads = shares.parts(x, QUANTITIES), math.prod(shares.block)
    kernel = (products_across if over.samples else products_along)(
        dy.dtype, x.dtype, number_of(x.dtype), width, threads, *view.kind, activation
    )
    present = WEIGHT * is_there(weight) | BIAS * is_there(bias) | OTHER * is_there(residual)
    present |= WEIGHTED * weighted | ROUNDING * rounding
    args = dy, x, residual, coefficients, view.units, weight, bias, present, view.rule
    launch(kernel, shares.grid, shares.block, x.place, *args, *shares.arguments, parts, shares.total)
    return parts, shares


def _reading(number: types.Type, width: int, kind: tuple[types.Type, int, bool], activation: int) -> Any:
    load_vector, (begin, place), terms = LOADS[width], indexing(*kind), backward_terms(number, activation)

    @cuda.jit(device=True)
    def read(arrays, line, m, rule, units, present, grads, values, more):
        """grads = g and values = xhat of some elements"""
        dy, x, residual, coefficients, weight, bias = arrays
        begun = begin(line, rule)
        load_vector(x, line * rule[1] + m, values, 0)
        load_vector(dy, line * rule[1] + m, grads, 0)
        for j in range(width):
            more[j] = number(0)
        if present & OTHER:
            load_vector(residual, line * rule[1] + m, more, 0)
        for j in range(width):
            u, w = place(begun, m + j, rule)
            args = u, w, coefficients, units, weight, bias, present
            g, xhat, _, scale = terms(grads[j], values[j], more[j], *args)
            grads[j] = g * scale if present & WEIGHTED else g
            values[j] = number(rounded(dy, xhat)) if present & ROUNDING else xhat

    return read


@variants
def products_along(given, data, number, width, threads, index, varying, along, activation):
    """A block for each part."""
    team_sums, read = summing(threads, number), _reading(number, width, (index, varying, along), activation)

    def kernel(
        dy,
        x,
        residual,
        coefficients,
        units,
        weight,
        bias,
        present,
        rule,
        length,
        every,
        spacing,
        members,
        step,
        parts,
        total,
    ):
        line, last, begin, part = sharing.part_along(every, spacing, members, step)
        line += cuda.threadIdx.y * spacing
        stop, arrays = min(begin + step, length), (dy, x, residual, coefficients, weight, bias)
        grads = cuda.local.array(width, number)
        values = cuda.local.array(width, number)
        more = cuda.local.array(width, number)
        sum_g, sum_gt, sum_t = number(0), number(0), number(0)
        while line < last:
            m = begin + cuda.threadIdx.x * width
            while m < stop:
                read(arrays, line, m, rule, units, present, grads, values, more)
                for j in range(width):
                    sum_g += grads[j]
                    sum_gt += grads[j] * values[j]
                    sum_t += values[j]
                m += cuda.blockDim.x * width
            line += cuda.blockDim.y * spacing
        sum_g, sum_gt, sum_t = team_sums(sum_g, sum_gt, sum_t)
        if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
            parts[part], parts[total + part], parts[2 * total + part] = sum_g, sum_gt, sum_t

    return kernel, (*_inputs(given, data, number), *(types.int64,) * 5, types.CPointer(number), types.int64), threads


def _inputs(given: Any, data: Any, number: types.Type) -> tuple[types.Type, ...]:
    vector = types.CPointer(number)
    return *pointers(given, data, data), vector, types.int64, vector, vector, types.int64, RULE


@variants
def products_across(given, data, number, width, threads, index, varying, along, activation):
    """A part for each column of a tile; the rows of threads take every so many lines, and are added in order."""
    read, size = _reading(number, width, (index, varying, along), activation), 3 * width
    rows, columns = threads // sharing.TILE, sharing.TILE * width

    @cuda.jit(device=True)
    def add_rows(sums, parts, total, part):
        """What the first row of threads writes"""
        shared = cuda.shared.array((rows, columns), number)
        x, y = cuda.threadIdx.x * width, cuda.threadIdx.y
        for k in range(3):
            cuda.syncthreads()
            for j in range(width):
                shared[y, x + j] = sums[k * width + j]
            cuda.syncthreads()
            if y == 0 and part >= 0:
                for j in range(width):
                    value = number(0)
                    for row in range(rows):
                        value += shared[row, x + j]
                    parts[k * total + part + j] = value

    def kernel(dy, x, residual, coefficients, units, weight, bias, present, rule, length, lines, tiles, parts, total):
        line, last, column, part = sharing.part_across(length, lines, tiles, width)
        line += cuda.threadIdx.y
        arrays = dy, x, residual, coefficients, weight, bias
        grads = cuda.local.array(width, number)
        values = cuda.local.array(width, number)
        more = cuda.local.array(width, number)
        sums = cuda.local.array(size, number)
        for j in range(size):
            sums[j] = number(0)
        while line < last:
            if column < length:
                read(arrays, line, column, rule, units, present, grads, values, more)
                for j in range(width):
                    sums[j] += grads[j]
                    sums[width + j] += grads[j] * values[j]
                    sums[2 * width + j] += values[j]
            line += rows
        add_rows(sums, parts, total, part if column < length else -1)

    return kernel, (*_inputs(given, data, number), *(types.int64,) * 3, types.CPointer(number), types.int64), threads
