"""How an array of any rank and memory layout becomes one of the kernels' geometries, without a copy where possible.

A view is worked out from shape, strides and dtype alone and remembered, so a call on arrays that were seen before costs
a dictionary lookup.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .device.array import DeviceArray, assign, empty, may_share_memory

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_FLOAT16, _FLOAT32, _FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

NUMBERS: dict[np.dtype[Any], np.dtype[Any]] = {
    _FLOAT32: _FLOAT32,
    _FLOAT64: _FLOAT64,
    _FLOAT16: _FLOAT32,
    _BFLOAT16: _FLOAT32,
}
"""The dtypes of x, and the one that each is computed in, statistics and parameters included."""

STORAGE: dict[np.dtype[Any], np.dtype[Any]] = {
    _FLOAT32: _FLOAT32,
    _FLOAT64: _FLOAT64,
    _FLOAT16: np.dtype(np.uint16),
    _BFLOAT16: np.dtype(np.int16),
}
"""How kernels see arrays of each dtype: numba has no half types for CPUs."""


_EXACT = (np.ndarray, DeviceArray)
"""The types that kernels take; subclasses of ndarray may mean something else by an operator."""

_NO_X = "x must be an ndarray, got None"

SMALL = 1 << 16
"""Elements below which the time that Python takes is worth a shortcut."""

STRIP_FROM = 16
"""Elements behind the normalized axes from which a strip fills vectors; below, rows are copied together."""


@dataclass(frozen=True, slots=True)
class View:
    """The kernels' view of arrays that have one shape: their axes in `order`, then merged into `geometry`."""

    shape: Shape
    order: Shape
    geometry: Shape
    number: np.dtype[Any]
    ordered: bool
    """Whether `order` is that of the axes."""
    packed: bool
    """Whether arrays in C order need neither a transpose nor a reshape."""
    storage: np.dtype[Any]
    """The dtype under which kernels see the arrays."""
    plain_shape: Shape | None
    """The shape in which `kernels.cpu.plain` takes the array that this was worked out from: `shape` itself, or
    one to which it can be reshaped. None unless that array is small, in C order, and of a dtype that kernels see as it
    is."""

    def enter(self, array: Array) -> Array:
        """`array` in the kernels' geometry; copied unless it lies in memory in that order."""
        if self.ordered and array.dtype is self.storage and type(array) is np.ndarray and array.flags.carray:
            return array if self.packed else array.reshape(self.geometry)  # what is below does that too, in longer
        if type(array) not in _EXACT:
            array = array.view(np.ndarray)
        if not self.ordered:
            array = array.transpose(self.order)
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            array = array.copy(order="C")
        return self._merge(array)

    def result(self, out: Array) -> Array:
        """Where a kernel writes so that `leave` can put it into `out`: that array itself if its layout allows."""
        if self.ordered and out.dtype is self.storage and type(out) is np.ndarray and out.flags.carray:
            return out if self.packed else out.reshape(self.geometry)
        array = out if self.ordered else out.transpose(self.order)
        flags = array.flags
        if flags.c_contiguous and flags.aligned and type(array) in _EXACT:
            return self._merge(array)
        return empty(out, self.geometry, self.storage)

    def _merge(self, array: Array) -> Array:
        if array.dtype is not self.storage:
            array = array.view(self.storage)
        return array if self.packed else array.reshape(self.geometry)

    def leave(self, result: Array, out: Array) -> None:
        """Copy a kernel's result to `out` unless the kernel wrote there itself."""
        if result is out or result.base is out:
            return
        if not may_share_memory(result, out):
            ordered = result.view(out.dtype).reshape([self.shape[a] for a in self.order])
            assign(out.transpose(self.order), ordered)


@dataclass(frozen=True, slots=True)
class Rows(View):
    """(R, C): the normalized axes last and merged; or strips (O, C, I), with other axes on both sides of them.

    Statistics have the shape of the other axes.
    """

    rows: int
    cols: int
    strips: bool

    kept: Shape
    kept_order: Shape
    normalized: Shape
    normalized_order: Shape

    def vector(self, array: Array) -> Array:
        """An array over the normalized axes as (C,), in the order in which they lie in x."""
        return array.transpose(self.normalized_order).reshape(self.cols) if array.ndim > 1 else array

    def row_values(self, array: Array) -> Array:
        """An array over the other axes as (R,), in the order in which they lie in x."""
        return array.transpose(self.kept_order).reshape(self.rows) if array.ndim != 1 else array

    def statistics(self, values: Array) -> Array:
        """(R,) as an array over the other axes."""
        return values if len(self.kept) == 1 else _unmerge(values, self.kept, self.kept_order)

    def parameter(self, values: Array) -> Array:
        """(C,) as an array over the normalized axes."""
        return values if len(self.normalized) == 1 else _unmerge(values, self.normalized, self.normalized_order)


@dataclass(frozen=True, slots=True)
class Channels(View):
    """(O, C, I), or where I is 1 columns (1, S, C). Statistics are (C,)."""

    channel_axis: int
    channels: int
    count: int
    """Values in a channel."""
    columns: bool

    def positions(self, mask: Array) -> Array:
        """A mask over all axes but the channels', checked, as one of the values of a channel in memory order.

        On a device as uint8: the memory of the mask itself if it lies in that order.
        """
        kept = tuple(n for a, n in enumerate(self.shape) if a != self.channel_axis)
        if mask.dtype != bool:
            raise TypeError(f"mask must be of dtype bool, True where a position counts, got {mask.dtype}")
        try:
            full = mask.broadcast_to(kept) if isinstance(mask, DeviceArray) else np.broadcast_to(mask, kept)
        except ValueError:
            raise ValueError(
                f"mask must broadcast to x without its channel axis {self.channel_axis}, that is to {kept}, "
                f"got shape {mask.shape}"
            ) from None
        order = _ranks([a for a in self.order if a != self.channel_axis])
        counted = full.transpose(order).reshape(-1)
        return counted.view(np.uint8) if isinstance(counted, DeviceArray) else counted


@dataclass(frozen=True, slots=True)
class Groups(View):
    """(N, G, K, S), or with the channels last in memory columns (N, S, C). Statistics are (N, G)."""

    channels: int
    groups: int
    columns: bool


def retyped(view: Rows, dtype: np.dtype[Any], name: str) -> Rows:
    """The view of arrays of the same shape and another dtype, that of the argument `name`."""
    return view if STORAGE.get(dtype) is view.storage else _retyped(view, dtype, name)


@functools.lru_cache(4096)
def _retyped(view: Rows, dtype: np.dtype[Any], name: str) -> Rows:
    dtype = supported(dtype, name)
    return replace(view, number=NUMBERS[dtype], storage=STORAGE[dtype], plain_shape=None)


def as_rows(x: Array, axis: int | Sequence[int], strips: bool = True) -> Rows:
    """View x as rows to be normalized over `axis`, or as strips if the caller has kernels for them.

    Nothing is copied where these axes are the innermost in memory, or with `strips` where they are neighbours and
    STRIP_FROM elements or more lie behind them. Otherwise entering the view costs a copy of x, and leaving it another.
    """
    if x is None:
        raise TypeError(_NO_X)
    axes = axis if isinstance(axis, int) else _int_tuple("axis", axis)
    return _as_rows(x.shape, x.strides, x.dtype, axes, strips)


def as_channels(x: Array, channel_axis: int) -> Channels:
    """View x as channels. Nothing is copied where x is contiguous in some order of its axes."""
    if x is None:
        raise TypeError(_NO_X)
    axis = channel_axis if type(channel_axis) is int else integer("channel_axis", channel_axis)
    return _as_channels(x.shape, x.strides, x.dtype, axis)


def as_groups(x: Array, channel_axis: int, num_groups: int | None) -> Groups:
    """View x as groups of channels of each sample on axis 0, or without a number as a group for each channel.

    Nothing is copied where the samples are outermost in memory and the channels follow them or are innermost.
    """
    if x is None:
        raise TypeError(_NO_X)
    axis = channel_axis if type(channel_axis) is int else integer("channel_axis", channel_axis)
    groups = num_groups if num_groups is None or type(num_groups) is int else integer("num_groups", num_groups)
    return _as_groups(x.shape, x.strides, x.dtype, axis, groups)


@functools.lru_cache(4096)
def _as_rows(shape: Shape, strides: Shape, dtype: np.dtype[Any], axis: int | Shape, strips: bool) -> Rows:
    dtype, rank = supported(dtype), len(shape)
    axes = sorted(axis_of("axis", a, shape) for a in ((axis,) if isinstance(axis, int) else axis))
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"axis must name at least one axis and none twice, got {axis} for an array of shape {shape}")
    by_memory = _memory_order(shape, strides)
    kept = [a for a in by_memory if a not in axes]
    normalized = [a for a in by_memory if a in axes]
    places = [place for place, a in enumerate(by_memory) if a in axes]
    behind = math.prod(shape[a] for a in by_memory[places[-1] + 1 :])
    strips = strips and behind >= STRIP_FROM and places[-1] - places[0] + 1 == len(places)
    order = by_memory if strips else tuple(kept + normalized)
    kept_shape = tuple(shape[a] for a in range(rank) if a not in axes)
    normalized_shape = tuple(shape[a] for a in axes)
    rows, cols = math.prod(kept_shape), math.prod(normalized_shape)
    geometry = (rows // behind, cols, behind) if strips else (rows, cols)
    ordered = order == tuple(range(rank))
    return Rows(
        shape=shape,
        order=order,
        geometry=geometry,
        number=NUMBERS[dtype],
        storage=STORAGE[dtype],
        ordered=ordered,
        packed=ordered and geometry == shape,
        plain_shape=_plain_shape(shape, strides, dtype, geometry)
        if ordered and not strips and len(axes) == 1
        else None,
        rows=rows,
        cols=cols,
        strips=strips,
        kept=kept_shape,
        kept_order=_ranks(kept),
        normalized=normalized_shape,
        normalized_order=_ranks(normalized),
    )


@functools.lru_cache(4096)
def _as_channels(shape: Shape, strides: Shape, dtype: np.dtype[Any], channel_axis: int) -> Channels:
    dtype, channel = supported(dtype), axis_of("channel_axis", channel_axis, shape)
    order = _memory_order(shape, strides)
    place = order.index(channel)
    outer = math.prod(shape[a] for a in order[:place])
    inner = math.prod(shape[a] for a in order[place + 1 :])
    channels = shape[channel]
    geometry = (1, outer, channels) if inner == 1 else (outer, channels, inner)
    ordered = order == tuple(range(len(shape)))
    return Channels(
        shape=shape,
        order=order,
        geometry=geometry,
        number=NUMBERS[dtype],
        storage=STORAGE[dtype],
        ordered=ordered,
        packed=ordered and geometry == shape,
        plain_shape=_plain_shape(shape, strides, dtype, geometry[1:] if inner == 1 else (*geometry, 1))
        if ordered
        else None,
        channel_axis=channel,
        channels=channels,
        count=outer * inner,
        columns=inner == 1,
    )


@functools.lru_cache(4096)
def _as_groups(shape: Shape, strides: Shape, dtype: np.dtype[Any], channel_axis: int, num_groups: int | None) -> Groups:
    dtype = supported(dtype)
    if len(shape) < 2:
        raise ValueError(f"x must have samples on axis 0 and channels on another axis, got shape {shape}")
    channel = axis_of("channel_axis", channel_axis, shape)
    if channel == 0:
        raise ValueError(
            f"channel_axis={channel_axis} is that of the samples for x of shape {shape}; it must be another"
        )
    channels = shape[channel]
    groups = channels if num_groups is None else num_groups
    if channels and (groups < 1 or channels % groups):
        raise ValueError(f"num_groups must divide the {channels} channels of x of shape {shape}, got {num_groups}")
    order = _memory_order(shape, strides)
    inner = tuple(a for a in order if a not in (0, channel))
    columns = order[0] == 0 and order[-1] == channel and bool(inner)
    order = (0, *inner, channel) if columns else (0, channel, *inner)
    size = math.prod(shape[a] for a in inner)
    width = channels // groups if groups else 0
    geometry = (shape[0], size, channels) if columns else (shape[0], groups, width, size)
    ordered = order == tuple(range(len(shape)))
    return Groups(
        shape=shape,
        order=order,
        geometry=geometry,
        number=NUMBERS[dtype],
        storage=STORAGE[dtype],
        ordered=ordered,
        packed=ordered and geometry == shape,
        plain_shape=None
        if columns or not ordered
        else _plain_shape(shape, strides, dtype, (shape[0], channels, size, 1)),
        channels=channels,
        groups=groups,
        columns=columns,
    )


def _memory_order(shape: Shape, strides: Shape) -> Shape:
    """The axes from the outermost in memory to the innermost, as they stand where that is not clear."""
    strided = [a for a in range(len(shape)) if shape[a] > 1]
    by_stride = iter(sorted(strided, key=lambda a: -abs(strides[a]) if strides[a] else -math.inf))
    return tuple(next(by_stride) if shape[a] > 1 else a for a in range(len(shape)))


def _plain_shape(shape: Shape, strides: Shape, dtype: np.dtype[Any], wanted: Shape) -> Shape | None:
    """`wanted`, or `shape` itself where its rank and its first two axes are the same, which saves a reshape.

    Kernels take NCHW, and an array of another rank with one of the two last axes; None where they take none of these.
    """
    sizes = tuple(dtype.itemsize * math.prod(shape[a + 1 :]) for a in range(len(shape)))
    if strides != sizes or STORAGE[dtype] != dtype or not 0 < math.prod(shape) < SMALL:
        return None
    return shape if len(shape) == len(wanted) and shape[:2] == wanted[:2] else wanted


def _ranks(axes: Sequence[int]) -> Shape:
    """The same order, of axes numbered from 0 without gaps."""
    numbering = sorted(axes)
    return tuple(numbering.index(a) for a in axes)


def _unmerge(values: Array, shape: Shape, order: Shape) -> Array:
    """Undo a transpose by `order` and a merging of all axes."""
    ordered = values.reshape([shape[a] for a in order])
    turned = ordered.transpose(np.argsort(order))
    return turned if turned.flags.c_contiguous else turned.copy()


def supported(dtype: np.dtype[Any], name: str = "x") -> np.dtype[Any]:
    """The dtype, if x may have it."""
    if dtype not in NUMBERS:
        raise TypeError(_wrong_dtype(dtype, name))
    return dtype


def _wrong_dtype(dtype: np.dtype[Any], name: str) -> str:
    every = ", ".join(d.name for d in NUMBERS)
    if not dtype.isnative and dtype.newbyteorder("=") in NUMBERS:
        return f"{name} has dtype {dtype.str} in the other byte order; convert it: {name}.astype({dtype.name!r})"
    return f"{name} must have one of the dtypes {every}, got {dtype}; convert it, for example {name}.astype('float32')"


def axis_of(name: str, axis: int, shape: Shape) -> int:
    """An axis of an array of this shape, counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name}={axis} is not an axis of an array of shape {shape}")
    return axis % len(shape)


def integer(name: str, value: Any) -> int:
    """`value` as an int, such as an axis."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _int_tuple(name: str, axes: Any) -> Shape:
    try:
        return tuple(operator.index(a) for a in (axes if np.iterable(axes) else (axes,)))
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of ints, got {axes!r}") from None
