"""An array in a device's memory as ops see it: address, shape and strides, and the little of ndarray that ops need.

No library of device arrays is needed for that, and making one takes well under a microsecond. What moves data is done
by `normnumba.kernels.cuda.copying`.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

Shape = tuple[int, ...]


class Place:
    """Where an array lives, and where new ones of its kind come from; each kind of array has its own."""

    __slots__ = ("device", "stream")

    kind = ""
    """The library whose arrays these are."""

    def __init__(self, device: int, stream: int) -> None:
        self.device = device
        self.stream = stream
        """A handle of the driver's; 0 is the default stream."""

    def __repr__(self) -> str:
        return f"{self.kind} on device {self.device}"

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        """The address of new memory, aligned to 256 bytes, and what keeps it."""
        raise NotImplementedError

    def empty(self, shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> DeviceArray:
        """A new array, without gaps."""
        address, owner = self.allocate(math.prod(shape) * dtype.itemsize)
        return DeviceArray(address, shape, strides, dtype, owner, self)

    def export(self, array: DeviceArray) -> Any:
        """An array of this kind that has the memory of `array`."""
        raise NotImplementedError

    def wrote(self, array: DeviceArray) -> None:
        """What there is to do about an argument of the caller's that was written to."""

    def finish(self) -> None:
        """What there is to do at the end of a call."""


class Flags(NamedTuple):
    """What ndarray.flags has of this name."""

    c_contiguous: bool
    f_contiguous: bool
    aligned: bool
    writeable: bool
    carray: bool
    forc: bool


class DeviceArray:
    """Strided memory on a device."""

    __slots__ = ("address", "dtype", "handle", "owner", "place", "shape", "strides", "writeable")

    base = None
    """A view holds what owns the memory, not the array that it is a view of."""

    def __init__(
        self,
        address: int,
        shape: Shape,
        strides: Shape,
        dtype: np.dtype[Any],
        owner: Any,
        place: Place,
        writeable: bool = True,
        handle: Any = None,
    ) -> None:
        self.address = address
        self.shape = shape
        self.strides = strides
        """In bytes."""
        self.dtype = dtype
        self.owner = owner
        """What keeps the memory."""
        self.place = place
        self.writeable = writeable
        self.handle = handle
        """The array of the caller's kind that this one is, if there is one."""

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype}, {self.place})"

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def flags(self) -> Flags:
        """What NumPy would say of this memory."""
        itemsize = self.dtype.itemsize
        return _flags(self.shape, self.strides, itemsize, self.address % itemsize == 0, self.writeable)

    def transpose(self, order: Sequence[int]) -> DeviceArray:
        """A view with the axes in this order."""
        shape, strides = self.shape, self.strides
        return self._seen_as(tuple(shape[a] for a in order), tuple(strides[a] for a in order))

    def reshape(self, *shape: int | Sequence[int]) -> DeviceArray:
        """The same elements in C order: a copy unless they lie in that order."""
        wanted = _as_shape(shape[0] if len(shape) == 1 else shape)
        if -1 in wanted:
            known = -math.prod(wanted)
            wanted = tuple(self.size // max(known, 1) if n == -1 else n for n in wanted)
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} to {wanted}")
        array = self if self.flags.c_contiguous else self.copy()
        return array if wanted == array.shape else array._seen_as(wanted, c_strides(wanted, self.dtype.itemsize))

    def broadcast_to(self, shape: Shape) -> DeviceArray:
        """A view of this shape, in which elements are repeated."""
        if np.broadcast_shapes(self.shape, shape) != shape:
            raise ValueError(f"cannot broadcast an array of shape {self.shape} to {shape}")
        lead = len(shape) - len(self.shape)
        pairs = zip(self.shape, shape[lead:], self.strides, strict=True)
        return self._seen_as(shape, (0,) * lead + tuple(0 if n == 1 != m else stride for n, m, stride in pairs))

    def view(self, dtype: DTypeLike) -> DeviceArray:
        """The same bytes as another dtype of the same size."""
        kind = np.dtype(dtype)
        if kind.itemsize != self.dtype.itemsize:
            raise ValueError(f"cannot view {self.dtype} as {kind}, which has another size")
        return DeviceArray(self.address, self.shape, self.strides, kind, self.owner, self.place, self.writeable)

    def astype(self, dtype: DTypeLike, order: str = "K", subok: bool = False, copy: bool = True) -> DeviceArray:
        """As of an ndarray, with order "C" or "K"."""
        kind = np.dtype(dtype)
        if not copy and kind == self.dtype and (order == "K" or self.flags.c_contiguous):
            return self
        result = self.empty_like(kind) if order == "K" else self.new(self.shape, kind)
        result[...] = self
        return result

    def copy(self, order: str = "C") -> DeviceArray:
        """The same elements in new memory."""
        return self.astype(self.dtype, order)

    def new(self, shape: int | Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """A new array in C order in the same place, whose values do not matter."""
        wanted, kind = _as_shape(shape), np.dtype(dtype)
        return self.place.empty(wanted, c_strides(wanted, kind.itemsize), kind)

    def empty_like(self, dtype: DTypeLike | None = None) -> DeviceArray:
        """A new array whose axes lie in memory in the order of this one's."""
        kind = self.dtype if dtype is None else np.dtype(dtype)
        return self.place.empty(self.shape, _strides_like(self.shape, self.strides, kind.itemsize), kind)

    def __getitem__(self, key: Any) -> DeviceArray:
        """`a[...]`, `a[i]` or `a[i:j]`, of the first axis."""
        if key is Ellipsis:
            return self
        length, stride = self.shape[0], self.strides[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(length)
            if step != 1:
                raise IndexError("device arrays have no steps")
            shape, strides = (max(stop - start, 0), *self.shape[1:]), self.strides
        else:
            if not -length <= key < length:
                raise IndexError(f"no element {key} in an array of shape {self.shape}")
            start, shape, strides = key % length, self.shape[1:], self.strides[1:]
        return self._seen_as(shape, strides, self.address + start * stride)

    def __setitem__(self, key: Any, value: Any) -> None:
        copying = importlib.import_module("normnumba.kernels.cuda.copying")
        target = self[key]
        if not target.size:
            return
        if isinstance(value, DeviceArray):
            copying.convert(value if value.shape == target.shape else value.broadcast_to(target.shape), target)
        else:
            copying.fill(target, float(value))

    def _seen_as(self, shape: Shape, strides: Shape, address: int | None = None) -> DeviceArray:
        start = self.address if address is None else address
        return DeviceArray(start, shape, strides, self.dtype, self.owner, self.place, self.writeable)


def empty(like: Any, shape: int | Sequence[int], dtype: DTypeLike) -> Any:
    """A new array in C order where `like` is, whose values do not matter."""
    return like.new(shape, dtype) if type(like) is DeviceArray else np.empty(shape, dtype)


def empty_like(like: Any, dtype: DTypeLike | None = None) -> Any:
    """A new array where `like` is, in its layout, whose values do not matter."""
    return like.empty_like(dtype) if type(like) is DeviceArray else np.empty_like(like, dtype, subok=False)


def assign(target: Any, source: Any) -> None:
    """Copy an array to another in the same place, broadcasting and converting it."""
    if type(target) is DeviceArray:
        target[...] = source
    else:
        np.copyto(target, source, casting="unsafe")


def may_share_memory(a: Any, b: Any) -> bool:
    """Whether the bounds of two arrays overlap, wherever they are."""
    if type(a) is not DeviceArray:
        return type(b) is not DeviceArray and np.may_share_memory(a, b)
    return type(b) is DeviceArray and bool(a.size and b.size) and np.may_share_memory(_ghost(a), _ghost(b))


def shares_memory(a: Any, b: Any) -> bool:
    """Whether two arrays have an element in common, wherever they are."""
    if type(a) is not DeviceArray:
        return type(b) is not DeviceArray and np.shares_memory(a, b)
    return may_share_memory(a, b) and np.shares_memory(_ghost(a), _ghost(b))


def same_memory(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape and dtype are the same elements."""
    if a is b:
        return True
    if type(a) is DeviceArray:
        return a.strides == b.strides and a.address == b.address
    return a.strides == b.strides and a.__array_interface__["data"] == b.__array_interface__["data"]


class _Ghost:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _ghost(array: DeviceArray) -> Any:
    """What NumPy takes for an array at the same address, for questions about bounds alone: nothing may be read."""
    return _Ghost(
        {
            "version": 3,
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.dtype.itemsize}",
            "data": (array.address, True),
        }
    )


def _as_shape(shape: Any) -> Shape:
    return (shape,) if isinstance(shape, int) else tuple(shape)


@functools.lru_cache(4096)
def c_strides(shape: Shape, itemsize: int) -> Shape:
    """The strides of an array in C order."""
    strides = []
    for n in reversed(shape):
        strides.append(itemsize)
        itemsize *= max(n, 1)
    return tuple(reversed(strides))


@functools.lru_cache(4096)
def _strides_like(shape: Shape, strides: Shape, itemsize: int) -> Shape:
    order = sorted(range(len(shape)), key=lambda a: -abs(strides[a]))
    packed = c_strides(tuple(shape[a] for a in order), itemsize)
    return tuple(packed[order.index(a)] for a in range(len(shape)))


@functools.lru_cache(4096)
def _flags(shape: Shape, strides: Shape, itemsize: int, aligned: bool, writeable: bool) -> Flags:
    c, f = _packed(shape, strides, itemsize), _packed(shape[::-1], strides[::-1], itemsize)
    aligned = aligned and all(stride % itemsize == 0 for stride in strides)
    return Flags(c, f, aligned, writeable, c and aligned and writeable, c or f)


def _packed(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Whether the elements follow one another in C order; axes of one element may have any stride."""
    dense = c_strides(shape, itemsize)
    return not math.prod(shape) or all(n == 1 or a == b for n, a, b in zip(shape, strides, dense, strict=True))
