"""Sums over the threads that share a row, a channel or a column, the same on all of them, in an order that is fixed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from numba import cuda, types

from .launching import WARP

TINY = {types.float32: 2.0**-80, types.float64: 2.0**-600}
"""What brings numbers whose squares overflow into the middle of the range."""


@cuda.jit(device=True)
def not_negative(value):
    """0 where rounding took a sum of squares below it; max would also take NaN for 0"""
    return type(value)(0) if value < 0 else value


@functools.cache
def summing(threads: int, number: types.Type, count: int = 3) -> Callable[..., object]:
    """A device function: `count` sums over a team of `threads`, a power of two; the third is 0 where `count` is 2.

    Up to a warp, teams are neighbouring lanes of one. A larger one is a whole block.
    """
    lanes, warps = min(threads, WARP), threads // WARP
    members = (1 << lanes) - 1

    @cuda.jit(device=True)
    def in_warp(a, b, c):
        linear = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
        mask = members << ((linear & (WARP - 1)) & ~(lanes - 1))
        offset = lanes >> 1
        while offset:
            a += cuda.shfl_xor_sync(mask, a, offset)
            b += cuda.shfl_xor_sync(mask, b, offset)
            if count == 3:
                c += cuda.shfl_xor_sync(mask, c, offset)
            offset >>= 1
        return a, b, c

    if threads <= WARP:
        return in_warp

    @cuda.jit(device=True)
    def in_block(a, b, c):
        parts = cuda.shared.array((3, warps), number)
        linear = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
        a, b, c = in_warp(a, b, c)
        cuda.syncthreads()  # the sums before these may still be read
        if linear & (WARP - 1) == 0:
            parts[0, linear >> 5], parts[1, linear >> 5], parts[2, linear >> 5] = a, b, c
        cuda.syncthreads()
        a, b, c = number(0), number(0), number(0)
        for warp in range(warps):
            a += parts[0, warp]
            b += parts[1, warp]
            c += parts[2, warp]
        return a, b, c

    return in_block


@functools.cache
def combining(number: types.Type) -> Callable[..., object]:
    """A device function: count, mean and sum of squares about it, of two sets (Chan, Golub and LeVeque, 1983)."""

    @cuda.jit(device=True)
    def combine(count, mean, squares, other_count, other_mean, other_squares):
        total, away = count + other_count, other_mean - mean
        share = other_count / total if total > number(0) else number(0)
        squares += other_squares + away * away * count * share
        if abs(mean) < number(math.inf):
            return total, mean + (away * share if share > number(0) else number(0)), squares
        return total, mean + other_mean, squares  # an Inf stays one: its distance to the other mean would make it NaN

    return combine


@functools.cache
def merging_lanes(lanes: int, number: types.Type) -> Callable[..., object]:
    """A device function: count, mean and squares of the first lanes of a warp, right in the first one.

    The others have merged in orders of their own, and may differ in the last bit.
    """
    combine, members = combining(number), (1 << lanes) - 1

    @cuda.jit(device=True)
    def in_warp(count, mean, squares):
        offset = lanes >> 1
        while offset:
            other_count = cuda.shfl_xor_sync(members, count, offset)
            other_mean = cuda.shfl_xor_sync(members, mean, offset)
            other_squares = cuda.shfl_xor_sync(members, squares, offset)
            count, mean, squares = combine(count, mean, squares, other_count, other_mean, other_squares)
            offset >>= 1
        return count, mean, squares

    return in_warp


@functools.cache
def merging_block(threads: int, number: types.Type) -> Callable[..., object]:
    """A device function: count, mean and squares of what all threads of a block have, the same on all of them."""
    combine, warps = combining(number), max(threads // WARP, 1)
    in_warp = merging_lanes(min(threads, WARP), number)

    @cuda.jit(device=True)
    def merge(count, mean, squares):
        parts = cuda.shared.array((3, warps), number)
        linear = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
        count, mean, squares = in_warp(count, mean, squares)
        cuda.syncthreads()  # the parts of an earlier merge may still be read
        if linear & (WARP - 1) == 0:
            parts[0, linear >> 5], parts[1, linear >> 5], parts[2, linear >> 5] = count, mean, squares
        cuda.syncthreads()
        count, mean, squares = parts[0, 0], parts[1, 0], parts[2, 0]
        for k in range(1, warps):
            count, mean, squares = combine(count, mean, squares, parts[0, k], parts[1, k], parts[2, k])
        return count, mean, squares

    return merge
