"""Copies between arrays of any strides and real dtypes, and values for all elements of an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, types

from .launching import NOTHING, launch, pointers, variants
from .lowlevel import load, store

RANK = 6
"""Axes that a kernel walks, after those that lie together are merged."""

THREADS = 256

AXES = types.UniTuple(types.int64, RANK)


def convert(source: Any, target: Any) -> None:
    """target[...] = source"""
    _walk(source, source.strides, source.dtype, 0.0, target)


def fill(target: Any, value: float) -> None:
    """target[...] = value"""
    _walk(NOTHING, target.strides, target.dtype, value, target)


def _walk(source: Any, strides: tuple[int, ...], dtype: np.dtype, value: float, target: Any) -> None:
    if not target.size:
        return
    axes = _merged(target, strides, dtype.itemsize)
    blocks = min(-(-target.size // THREADS), 1 << 20)
    args = source, float(value), target.size, *axes, target
    launch(walk(dtype, target.dtype, source is NOTHING), (blocks,), (THREADS,), target.place, *args)


def _merged(target: Any, strides: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], ...]:
    """Shape, and strides of target and source in elements: without axes of one element, and neighbours merged."""
    axes: list[tuple[int, int, int]] = []
    for n, to, of in zip(target.shape, target.strides, strides, strict=True):
        if to % target.dtype.itemsize or of % itemsize:
            raise ValueError(
                f"strides {strides} are no multiples of elements of {itemsize} bytes: copy the array first"
            )
        if axes and axes[-1][1:] == (n * to, n * of):
            axes[-1] = axes[-1][0] * n, to, of
        elif n != 1:
            axes.append((n, to, of))
    if len(axes) > RANK:
        raise ValueError(
            f"an array with {len(axes)} axes that do not lie together in memory cannot be copied: {RANK} can"
        )
    axes = [(1, 0, 0)] * (RANK - len(axes)) + axes
    shape, to_strides, of_strides = zip(*axes, strict=True)
    return shape, tuple(s // target.dtype.itemsize for s in to_strides), tuple(s // itemsize for s in of_strides)


@variants
def walk(data, result, constant):
    """Copy or fill, in the order of the target's axes."""
    half, to_half = data.name in ("float16", "bfloat16"), result.name in ("float16", "bfloat16")
    kind = pointers(result)[0].dtype
    to_bool = result == np.bool_

    @cuda.jit(device=True)
    def write(target, at, value):
        if to_half:
            store(target, at, types.float32(value))
        elif to_bool:
            target[at] = kind(value != 0)
        else:
            target[at] = kind(value)

    def kernel(source, value, size, shape, strides, others, target):
        i = types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while i < size:
            rest, at, other = i, types.int64(0), types.int64(0)
            for k in range(RANK):
                axis = RANK - 1 - k
                index = rest % shape[axis]
                rest //= shape[axis]
                at += index * strides[axis]
                other += index * others[axis]
            if constant:
                write(target, at, value)
            elif half:
                write(target, at, load(source, other))
            else:
                write(target, at, source[other])
            i += types.int64(cuda.gridDim.x) * cuda.blockDim.x

    return kernel, (*pointers(data), types.float64, types.int64, AXES, AXES, AXES, *pointers(result)), THREADS
