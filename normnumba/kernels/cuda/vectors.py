"""What ops do to vectors of statistics and parameters: the functions of the CPU's `vectors`, for arrays on a device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, types

from .launching import fetch, launch, number_of, pointers, variants
from .lowlevel import load, store

THREADS = 128

DOUBLES = types.CPointer(types.float64)


def _blocks(size: int) -> tuple[tuple[int], tuple[int]]:
    return (max(1, -(-size // THREADS)),), (THREADS,)


@cuda.jit(device=True)
def _own():
    """The element of a thread"""
    return types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x


def stacked(first: Any, second: Any) -> Any:
    """See the CPU's."""
    result = first.new((2, first.size), np.float64)
    result[0], result[1] = first, second
    return result


def shifted(values: Any, offset: float) -> Any:
    """See the CPU's."""
    result = values.new(values.shape, values.dtype)
    launch(shift(number_of(values.dtype)), *_blocks(values.size), values.place, values, offset, values.size, result)
    return result


@variants
def shift(number):
    """`shifted`"""

    def kernel(values, offset, size, result):
        if _own() < size:
            result[_own()] = values[_own()] + offset

    vector = types.CPointer(number)
    return kernel, (vector, number, types.int64, vector), THREADS


def sum_samples(sums: Any, samples: int) -> Any:
    """See the CPU's."""
    channels = sums.shape[1] // samples
    result = sums.new((2, channels), sums.dtype)
    launch(add_samples(), *_blocks(2 * channels), sums.place, sums, samples, channels, result)
    return result


@variants
def add_samples():
    """`sum_samples`"""

    def kernel(sums, samples, channels, result):
        if _own() < 2 * channels:
            total, begin = 0.0, _own() // channels * samples * channels + _own() % channels
            for k in range(samples):
                total += sums[begin + k * channels]
            result[_own()] = total

    return kernel, (DOUBLES, types.int64, types.int64, DOUBLES), THREADS


def count_positions(counted: Any) -> int:
    """See the CPU's; this waits for the device."""
    parts = counted.new((min(-(-counted.size // THREADS), 4096) or 1,), np.int64)
    args = counted, counted.size, parts.size, parts
    launch(count(), *_blocks(parts.size), counted.place, *args)
    return int(fetch(parts).sum())


@variants
def count():
    """A part for each thread of `count_positions`"""

    def kernel(counted, size, number, parts):
        if _own() < number:
            total, i = types.int64(0), _own()
            while i < size:
                total += types.int64(counted[i] != 0)
                i += number
            parts[_own()] = total

    return kernel, (types.CPointer(types.uint8), types.int64, types.int64, types.CPointer(types.int64)), THREADS


def copy_finite(source: Any, target: Any) -> None:
    """See the CPU's."""
    launch(finite(), *_blocks(source.size), source.place, source, source.size, target)


@variants
def finite():
    """`copy_finite`"""

    def kernel(source, size, target):
        if _own() < size and abs(source[_own()]) < math.inf:
            target[_own()] = source[_own()]

    return kernel, (DOUBLES, types.int64, DOUBLES), THREADS


def update_running(running: Any, statistic: Any, momentum: float, factor: float) -> None:
    """See the CPU's."""
    step = running.strides[0] // running.dtype.itemsize
    args = running, step, statistic, momentum, factor, running.size
    launch(average(running.dtype), *_blocks(running.size), running.place, *args)


@variants
def average(dtype):
    """`update_running`"""
    kind, half = pointers(dtype)[0].dtype, dtype.itemsize == 2

    def kernel(running, step, statistic, momentum, factor, size):
        if _own() < size:
            i = _own() * step
            old = types.float64(load(running, i))
            new = (1.0 - momentum) * old + momentum * (statistic[_own()] * factor)
            if half:
                store(running, i, types.float32(new))
            else:
                running[i] = kind(new)

    return kernel, (*pointers(dtype), types.int64, DOUBLES, types.float64, types.float64, types.int64), THREADS
