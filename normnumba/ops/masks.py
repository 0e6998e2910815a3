"""Batch norm where only some positions count: blocks of x small enough that what is picked from them costs no memory.

A block is contiguous, and of one of the two geometries of channels, so that kernels take it as it is. Blocks depend on
the shape alone and are merged in order, hence the same bits on any number of threads. Kernels for devices take the mask
themselves, for only the host could tell how much would be picked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..device.array import DeviceArray, empty
from ..kernels import CONSTANT, GIVEN, NONE
from ..views import Array, Channels
from .channels import Given, Tail
from .checks import EMPTY, FLOAT64, constant

BLOCK = 1 << 17
"""Elements in a block: twice what is worth threads, and four blocks of float32, the most at any time, take 2 MiB."""


class Block(NamedTuple):
    """A part of x: where it is, the positions in it, and its channels."""

    place: tuple[slice, ...]
    positions: slice
    channels: slice


def blocks(view: Channels) -> Iterator[Block]:
    """All of x in blocks: whole rows or samples if these are small enough, or else whole channels of a sample."""
    everything = slice(None)
    if view.columns:
        _, rows, channels = view.geometry
        for some in _slices(rows, channels):
            yield Block((everything, some), some, everything)
        return
    outer, channels, inner = view.geometry
    if channels * inner <= BLOCK:
        for some in _slices(outer, channels * inner):
            yield Block((some,), slice(some.start * inner, some.stop * inner), everything)
        return
    for o in range(outer):
        for c in _slices(channels, inner):
            for i in _slices(inner, c.stop - c.start):
                yield Block((slice(o, o + 1), c, i), slice(o * inner + i.start, o * inner + i.stop), c)


def _slices(count: int, size: int) -> Iterator[slice]:
    """`count` things of `size` elements in runs of at most BLOCK elements, or of one thing."""
    step = max(1, BLOCK // max(size, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def masked_moments(kernels: Any, view: Channels, x: Array, counted: Array) -> Array:
    """Mean and biased variance (2, C) of each channel over the counted positions, 0 where nothing counts."""
    if not x.size:
        nothing = empty(x, (2, view.channels), FLOAT64)
        nothing[:] = 0
        return nothing
    if isinstance(x, DeviceArray):
        return kernels.masked_moments(view.enter(x), counted, view.columns)
    mean, squares, seen = np.zeros(view.channels), np.zeros(view.channels), np.zeros(view.channels, np.int64)
    entered = view.enter(x)
    with np.errstate(invalid="ignore", over="ignore"):  # of Inf and NaN in x
        for place, positions, channels in blocks(view):
            chosen = counted[positions]
            count = int(np.count_nonzero(chosen))
            if count:
                found = _moments(kernels, view, _pick(view, entered[place], chosen, count))
                _merge(mean[channels], squares[channels], seen[channels], found[0], found[1], count)
    return np.stack((mean, squares / np.maximum(seen, 1)))


def _moments(kernels: Any, view: Channels, picked: Array) -> Array:
    channels = picked.shape[2 if view.columns else 1]
    kernel = kernels.columns_forward if view.columns else kernels.channels_forward
    one, none, nothing = constant((channels,), view.number, 1), EMPTY[view.number, 1], EMPTY[view.storage, 3]
    stats = np.empty((2, channels))
    kernel(picked, nothing, one, one, 0.0, True, NONE, stats, nothing, none, none)
    return stats


def _merge(mean: Array, squares: Array, seen: Array, block_mean: Array, block_var: Array, count: int) -> None:
    """Add a block to mean, sum of squares about it, and count, as in Chan, Golub and LeVeque, 1983.

    An Inf in the mean stays one: its distance to the next block's mean would make it NaN.
    """
    away, share = block_mean - mean, count / (seen + count)
    squares += block_var * count + away * away * (seen * share)
    mean += np.where(np.isfinite(mean), away * share, block_mean)
    seen += count


def differentiate_masked(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    given: Given,
    tail: Tail,
    count: int,
    dx: Array,
    dresidual: Array | None,
    sums: Array,
    counted: Array,
) -> None:
    """Fill dx, and dresidual unless it is None, from given sums; without them at positions that do not count.

    dx may be one of the inputs: what is needed of a block is picked before it is written.
    """
    if not x.size:
        return
    none = EMPTY[view.storage, 3]
    kernel = kernels.columns_backward if view.columns else kernels.channels_backward
    residual = tail.residual if tail.activation else None
    inputs = [none if a is None else view.enter(a) for a in (dy, x, residual)]
    results = [none if a is None else view.result(a) for a in (dx, dresidual)]
    if isinstance(x, DeviceArray):
        vectors = given.stats, tail.kernel_weight, tail.kernel_bias, count, tail.activation
        kernels.differentiate_masked(*inputs, *vectors, *results, sums, counted, view.columns)
    else:
        _differentiate_blocks(kernel, view, inputs, given, tail, count, results, sums, counted)
    for result, a in zip(results, (dx, dresidual), strict=True):
        if a is not None:
            view.leave(result, a)


def _differentiate_blocks(
    kernel: Any,
    view: Channels,
    inputs: list[Array],
    given: Given,
    tail: Tail,
    count: int,
    results: list[Array],
    sums: Array,
    counted: Array,
) -> None:
    none = EMPTY[view.storage, 3]
    for place, positions, channels in blocks(view):
        parts, targets = ([a[place] if a.size else none for a in arrays] for arrays in (inputs, results))
        values = given.stats[:, channels].copy(), tail.kernel_weight[channels], tail.kernel_bias[channels]
        block_sums, alone = sums[:, channels].copy(), ~counted[positions]
        _differentiate(kernel, view, parts, values, count, tail.activation, targets, block_sums, alone)


def _differentiate(
    kernel: Any,
    view: Channels,
    inputs: list[Array],
    values: tuple[Array, Array, Array],
    count: int,
    activation: int,
    results: list[Array],
    sums: Array,
    alone: Array,
) -> None:
    """Fill the results of a block, those of the positions `alone` without sums."""
    channel = *values, 0.0, False
    number, none = int(np.count_nonzero(alone)), EMPTY[view.storage, 3]
    if number in (0, alone.size):
        kernel(*inputs, *channel, CONSTANT if number else GIVEN, count, activation, *results, sums)
        return
    picked = [_pick(view, a, alone, number) if a.size else none for a in inputs]
    gradients = np.empty_like(picked[0])
    kernel(*picked, *channel, CONSTANT, 1, activation, gradients, none, np.empty_like(sums))
    kernel(*inputs, *channel, GIVEN, count, activation, *results, sums)
    _put(view, results[0], alone, gradients)


def _pick(view: Channels, part: Array, chosen: Array, count: int) -> Array:
    """The chosen positions of every channel of a block, in a geometry of the same kind."""
    if count == chosen.size:
        return part
    if view.columns:
        return np.compress(chosen, part, 1)
    if part.shape[0] == 1:
        return np.compress(chosen, part, 2)
    picked = part.transpose(1, 0, 2)[:, chosen.reshape(part.shape[0], -1)]
    return np.ascontiguousarray(picked)[np.newaxis]


def _put(view: Channels, part: Array, chosen: Array, values: Array) -> None:
    """Set the chosen positions of every channel of a block to what `_pick` would give."""
    if view.columns:
        part[:, chosen] = values
    else:
        part.transpose(1, 0, 2)[:, chosen.reshape(part.shape[0], -1)] = values[0]
