"""Kernels that take one element after the other, with statistics and sums that others have made."""

from __future__ import annotations

import functools
from typing import Any

from numba import cuda, types

from .. import RELU
from .activations import activating
from .geometry import MASK_RULE, RULE, Lines, counts, indexing
from .launching import (
    BIAS,
    DRESIDUAL,
    DX,
    LARGEST_GRID,
    OTHER,
    ROUNDING,
    SUMS,
    WEIGHT,
    WEIGHTED,
    is_there,
    launch,
    number_of,
    pointers,
    power_of_two,
    variants,
    width_of,
)
from .lowlevel import LOADS, STORES, rounded

THREADS = 128
"""Threads of a block."""


def normalize_lines(
    view: Lines,
    x: Any,
    residual: Any,
    coefficients: Any,
    weight: Any,
    bias: Any,
    rounding: bool,
    activation: int,
    y: Any,
) -> None:
    """y = activation(xhat * weight + bias + residual) with xhat = (x - pivot) * rstd - centre."""
    width = width_of(view.length, x, residual, y)
    kernel = normalize(x.dtype, y.dtype, number_of(x.dtype), width, *view.kind, activation)
    present = WEIGHT * is_there(weight) | BIAS * is_there(bias) | OTHER * is_there(residual) | ROUNDING * rounding
    args = x, residual, coefficients, view.units, weight, bias, present, view.rule, y
    launch(kernel, *_shape(view, width), x.place, *args)


def _shape(view: Lines, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block: a row of threads for each line, and as many lines in a block as fit."""
    steps = -(-view.length // width)
    across = min(power_of_two(steps), THREADS)
    lines = THREADS // across
    return (-(-view.lines // lines), min(-(-steps // across), LARGEST_GRID)), (across, lines)


@variants
def normalize(data, result, number, width, index, varying, along, activation):
    """`normalize_lines`"""
    load_vector, store_vector = LOADS[width], STORES[width]
    begin, place = indexing(index, varying, along)
    activate, z_of = activating(activation, number)[0] if activation else None, affine(number)

    def kernel(x, residual, coefficients, units, weight, bias, present, rule, y):
        line = types.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y
        if line >= rule[0]:
            return
        values, more = cuda.local.array(width, number), cuda.local.array(width, number)
        begun, length = begin(line, rule), rule[1]
        m = (types.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x) * width
        while m < length:
            load_vector(x, line * length + m, values, 0)
            if present & OTHER:
                load_vector(residual, line * length + m, more, 0)
            for j in range(width):
                u, w = place(begun, m + j, rule)
                xhat = xhat_of(values[j], u, coefficients, units)
                if present & ROUNDING:
                    xhat = number(rounded(y, xhat))
                z = z_of(xhat, w, weight, bias, present)
                if present & OTHER:
                    z += more[j]
                values[j] = activate(z) if activation else z
            store_vector(y, line * length + m, values, 0)
            m += types.int64(cuda.gridDim.y) * cuda.blockDim.x * width

    vector = types.CPointer(number)
    inputs = (*pointers(data, data), vector, types.int64, vector, vector, types.int64, RULE)
    return kernel, (*inputs, *pointers(result)), THREADS


def differentiate_lines(
    view: Lines,
    dy: Any,
    x: Any,
    other: Any,
    coefficients: Any,
    sums: Any,
    weighted: bool,
    count: int,
    weight: Any,
    bias: Any,
    mask: Any,
    activation: int,
    summed: bool,
    dx: Any,
    dresidual: Any,
) -> None:
    """dx = rstd * (g - (sums[0] + xhat * sums[1]) / count) with g = dz * weight, and dresidual = dz.

    Without `weighted` the sums (2, units) are those of dz and dz * xhat, and the weight multiplies them as well; empty
    sums are zero, and so they are where a mask says that nothing counts. `other` is the residual that an activation
    had; or with `summed` another gradient of x, which is added to dx, and dresidual is dx in x's type.
    """
    width = width_of(view.length, dy, x, other, dx, dresidual)
    types_of = (dy.dtype, x.dtype, number_of(x.dtype))
    kernel = differentiate(*types_of, width, *view.kind, activation, is_there(mask), summed)
    present = WEIGHT * is_there(weight) | BIAS * is_there(bias) | OTHER * is_there(other) | WEIGHTED * weighted
    present |= DX * is_there(dx) | DRESIDUAL * is_there(dresidual) | SUMS * is_there(sums)
    args = dy, x, other, coefficients, view.units, sums, 1 / count, weight, bias, present
    launch(kernel, *_shape(view, width), x.place, *args, mask, view.mask_rule, view.rule, dx, dresidual)


@cuda.jit(device=True)
def xhat_of(value, u, coefficients, units):
    """The normalized value of an element of unit u, from halves: the difference could overflow"""
    half, rstd = type(value)(0.5), coefficients[units + u]
    return (value * half - coefficients[u] * half) * (rstd + rstd) - coefficients[2 * units + u]


@functools.cache
def affine(number: types.Type) -> Any:
    """A device function: z = xhat * weight + bias."""

    @cuda.jit(device=True)
    def z_of(xhat, w, weight, bias, present):
        scale = weight[w] if present & WEIGHT else number(1)
        return xhat * scale + (bias[w] if present & BIAS else number(0))

    return z_of


@functools.cache
def backward_terms(number: types.Type, activation: int) -> Any:
    """A device function: dz, xhat, rstd and weight of an element."""
    derivative, z_of = activating(activation, number)[1] if activation else None, affine(number)

    @cuda.jit(device=True)
    def terms(g, value, more, u, w, coefficients, units, weight, bias, present):
        xhat = xhat_of(value, u, coefficients, units)
        if activation == RELU:
            g = number(0) if z_of(xhat, w, weight, bias, present) + more <= number(0) else g  # a NaN times 0 is no 0
        elif activation:
            g *= derivative(z_of(xhat, w, weight, bias, present) + more)
        return g, xhat, coefficients[units + u], weight[w] if present & WEIGHT else number(1)

    return terms


@variants
def differentiate(given, data, number, width, index, varying, along, activation, masked, summed):
    """`differentiate_lines`"""
    load_vector, store_vector = LOADS[width], STORES[width]
    begin, place = indexing(index, varying, along)
    terms = backward_terms(number, activation)

    def kernel(
        dy, x, other, coefficients, units, sums, share, weight, bias, present, mask, mask_rule, rule, dx, dresidual
    ):
        line = types.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y
        if line >= rule[0]:
            return
        values = cuda.local.array(width, number)
        grads = cuda.local.array(width, number)
        more = cuda.local.array(width, number)
        begun, length = begin(line, rule), rule[1]
        m = (types.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x) * width
        while m < length:
            load_vector(x, line * length + m, values, 0)
            load_vector(dy, line * length + m, grads, 0)
            for j in range(width):
                more[j] = number(0)
            if present & OTHER:
                load_vector(other, line * length + m, more, 0)
            for j in range(width):
                u, w = place(begun, m + j, rule)
                args = u, w, coefficients, units, weight, bias, present
                dz, xhat, rstd, scale = terms(grads[j], values[j], more[j], *args)
                shift = number(0)
                if present & SUMS and not (masked and not counts(mask, line, m + j, mask_rule)):
                    shift = (number(sums[u]) + xhat * number(sums[units + u])) * share
                result = rstd * (dz * scale - shift if present & WEIGHTED else scale * (dz - shift))
                values[j] = result + more[j] if summed else result
                grads[j] = values[j] if summed else dz
            if present & DX:
                store_vector(dx, line * length + m, values, 0)
            if present & DRESIDUAL:
                store_vector(dresidual, line * length + m, grads, 0)
            m += types.int64(cuda.gridDim.y) * cuda.blockDim.x * width

    vector, sums = types.CPointer(number), types.CPointer(types.float64)
    inputs = (*pointers(given, data, data), vector, types.int64, sums, number, vector, vector, types.int64)
    return kernel, (*inputs, types.CPointer(types.uint8), MASK_RULE, RULE, *pointers(given, data)), THREADS


def add_lines(x: Any, residual: Any, summed: Any) -> None:
    """summed = x + residual"""
    width = width_of(x.size, x, residual, summed)
    kernel = add(x.dtype, residual.dtype, summed.dtype, number_of(summed.dtype), width)
    blocks = -(-x.size // (THREADS * width))
    launch(kernel, (min(blocks, 1 << 20),), (THREADS,), x.place, x, residual, x.size, summed)


@variants
def add(data, other, total, number, width):
    """`add_lines`"""
    load_vector, store_vector = LOADS[width], STORES[width]

    def kernel(x, residual, size, summed):
        values, more = cuda.local.array(width, number), cuda.local.array(width, number)
        i = (types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) * width
        while i < size:
            load_vector(x, i, values, 0)
            load_vector(residual, i, more, 0)
            for j in range(width):
                values[j] += more[j]
            store_vector(summed, i, values, 0)
            i += types.int64(cuda.gridDim.x) * cuda.blockDim.x * width

    return kernel, (*pointers(data, other), types.int64, *pointers(total)), THREADS
