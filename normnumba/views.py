"""How an array of any rank and memory layout becomes one of the kernels' geometries, without a copy where possible.

A view is worked out from shape, strides and dtype alone and remembered, so a call on arrays that were seen before costs
a dictionary lookup.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

NUMBERS: dict[np.dtype[Any], np.dtype[Any]] = {_FLOAT32: _FLOAT32, _FLOAT64: _FLOAT64}
"""The dtypes of x, and the one that each is computed in, statistics and parameters included."""


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

    def enter(self, array: Array) -> Array:
        """`array` in the kernels' geometry; copied unless it lies in memory in that order."""
        if type(array) is not np.ndarray:
            array = array.view(np.ndarray)
        if not self.ordered:
            array = array.transpose(self.order)
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            array = array.copy(order="C")
        return array if self.packed else array.reshape(self.geometry)

    def result(self, out: Array) -> Array:
        """Where a kernel writes so that `leave` can put it into `out`: that array itself if its layout allows."""
        array = out if self.ordered else out.transpose(self.order)
        flags = array.flags
        if flags.c_contiguous and flags.aligned and type(array) is np.ndarray:
            return array if self.packed else array.reshape(self.geometry)
        return np.empty(self.geometry, out.dtype)

    def leave(self, result: Array, out: Array) -> None:
        """Copy a kernel's result to `out` unless the kernel wrote there itself."""
        if result is not out and not np.may_share_memory(result, out):
            np.copyto(out.transpose(self.order), result.reshape([self.shape[a] for a in self.order]))


@dataclass(frozen=True, slots=True)
class Rows(View):
    """(R, C): the normalized axes last and merged. Statistics have the shape of the other axes."""

    kept: Shape
    kept_order: Shape
    normalized: Shape
    normalized_order: Shape

    def vector(self, array: Array) -> Array:
        """An array over the normalized axes as (C,), in the order in which they lie in x."""
        return array.transpose(self.normalized_order).reshape(self.geometry[1]) if array.ndim > 1 else array

    def row_values(self, array: Array) -> Array:
        """An array over the other axes as (R,)."""
        return array.transpose(self.kept_order).reshape(self.geometry[0]) if array.ndim != 1 else array

    def statistics(self, values: Array) -> Array:
        """(R,) as an array over the other axes."""
        return values if len(self.kept) == 1 else _unmerge(values, self.kept, self.kept_order)

    def parameter(self, values: Array) -> Array:
        """(C,) as an array over the normalized axes."""
        return values if len(self.normalized) == 1 else _unmerge(values, self.normalized, self.normalized_order)


@dataclass(frozen=True, slots=True)
class Channels(View):
    """(O, C, I), or where I is 1 columns (1, S, C). Statistics are (C,)."""

    channels: int
    count: int
    """Values in a channel."""
    columns: bool

    @property
    def vector_shape(self) -> Shape:
        """The shape of a statistic for the kernels."""
        return (1, self.channels) if self.columns else (self.channels,)


def as_rows(x: Array, axis: int | Sequence[int]) -> Rows:
    """View x as rows to be normalized over `axis`.

    Nothing is copied where these axes are the innermost in memory: trailing axes of C-ordered arrays, leading axes of
    Fortran-ordered ones. Otherwise entering the view costs a copy of x, and leaving it another.
    """
    if x is None:
        raise TypeError("x must be an ndarray, got None")
    return _as_rows(x.shape, x.strides, _number(x), axis if isinstance(axis, int) else _int_tuple("axis", axis))


def as_channels(x: Array, channel_axis: int) -> Channels:
    """View x as channels. Nothing is copied where x is contiguous in some order of its axes."""
    if x is None:
        raise TypeError("x must be an ndarray, got None")
    return _as_channels(x.shape, x.strides, _number(x), _integer("channel_axis", channel_axis))


@functools.lru_cache(4096)
def _as_rows(shape: Shape, strides: Shape, number: np.dtype[Any], axis: int | Shape) -> Rows:
    rank = len(shape)
    axes = sorted(_axis("axis", a, shape) for a in ((axis,) if isinstance(axis, int) else axis))
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"axis must name at least one axis and none twice, got {axis} for an array of shape {shape}")
    by_memory = _memory_order(shape, strides)
    kept = [a for a in by_memory if a not in axes]
    normalized = [a for a in by_memory if a in axes]
    order = tuple(kept + normalized)
    kept_shape = tuple(shape[a] for a in range(rank) if a not in axes)
    normalized_shape = tuple(shape[a] for a in axes)
    geometry = (math.prod(kept_shape), math.prod(normalized_shape))
    ordered = order == tuple(range(rank))
    return Rows(
        shape=shape,
        order=order,
        geometry=geometry,
        number=number,
        ordered=ordered,
        packed=ordered and geometry == shape,
        kept=kept_shape,
        kept_order=_ranks(kept),
        normalized=normalized_shape,
        normalized_order=_ranks(normalized),
    )


@functools.lru_cache(4096)
def _as_channels(shape: Shape, strides: Shape, number: np.dtype[Any], channel_axis: int) -> Channels:
    channel = _axis("channel_axis", channel_axis, shape)
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
        number=number,
        ordered=ordered,
        packed=ordered and geometry == shape,
        channels=channels,
        count=outer * inner,
        columns=inner == 1,
    )


def _memory_order(shape: Shape, strides: Shape) -> Shape:
    """The axes from the outermost in memory to the innermost, as they stand where that is not clear."""
    strided = [a for a in range(len(shape)) if shape[a] > 1]
    by_stride = iter(sorted(strided, key=lambda a: -strides[a]))
    return tuple(next(by_stride) if shape[a] > 1 else a for a in range(len(shape)))


def _ranks(axes: Sequence[int]) -> Shape:
    """The same order, of axes numbered from 0 without gaps."""
    numbering = sorted(axes)
    return tuple(numbering.index(a) for a in axes)


def _unmerge(values: Array, shape: Shape, order: Shape) -> Array:
    """Undo a transpose by `order` and a merging of all axes."""
    ordered = values.reshape([shape[a] for a in order])
    return np.ascontiguousarray(ordered.transpose(np.argsort(order))).reshape(shape)


def _number(x: Array) -> np.dtype[Any]:
    try:
        return NUMBERS[x.dtype]
    except KeyError:
        raise TypeError(_wrong_dtype(x.dtype)) from None


def _wrong_dtype(dtype: np.dtype[Any]) -> str:
    supported = ", ".join(d.name for d in NUMBERS)
    if not dtype.isnative and dtype.newbyteorder("=") in NUMBERS:
        return f"x has dtype {dtype.str} in the other byte order; convert it: x.astype({dtype.name!r})"
    return f"x must have one of the dtypes {supported}, got {dtype}; convert it, for example x.astype('float32')"


def _axis(name: str, axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name}={axis} is not an axis of an array of shape {shape}")
    return axis % len(shape)


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _int_tuple(name: str, axes: Any) -> Shape:
    try:
        return tuple(operator.index(a) for a in (axes if np.iterable(axes) else (axes,)))
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of ints, got {axes!r}") from None
