"""Arrays of numba.cuda, and of libraries that have no module here: these get numba's arrays back.

The latter are adopted by `__cuda_array_interface__`, or by DLPack where they have only that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .array import DeviceArray, Place, Shape, c_strides

IMMUTABLE = None

_CUDA = 2  # kDLCUDA


def on_device(value: Any) -> bool:
    if hasattr(value, "__cuda_array_interface__"):
        return True
    try:
        return int(value.__dlpack_device__()[0]) == _CUDA
    except (AttributeError, TypeError, RuntimeError, BufferError):
        return False


def device_of(value: Any) -> int:
    interface = getattr(value, "__cuda_array_interface__", None)
    return int(value.__dlpack_device__()[1]) if interface is None else _owning_device(interface["data"][0])


def _owning_device(address: int) -> int:
    """The device of an address; the current one for that of an empty array."""
    from cuda.bindings import driver
    from numba import cuda

    if address:
        attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        error, device = driver.cuPointerGetAttribute(attribute, address)
        if error == driver.CUresult.CUDA_SUCCESS:
            return int(device)
    return int(cuda.get_current_device().id)


def place_of(value: Any) -> NumbaPlace:
    interface = getattr(value, "__cuda_array_interface__", {})
    known = type(value).__module__.partition(".")[0] in ("numba", "numba_cuda")
    bound = getattr(value, "stream", None) if known else None  # what others call so may be anything
    return NumbaPlace(device_of(value), _handle(interface.get("stream")), bound, not known)


def _handle(stream: int | None) -> int:
    """A stream of the interface, in which 1 is the default one, as the driver has it."""
    return 0 if stream is None or stream == 1 else stream


def adopt(value: Any, place: Place, name: str) -> DeviceArray:
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return _by_dlpack(value, place)
    if interface.get("mask") is not None:
        raise TypeError(f"{name} has a mask, which would be ignored; pass an array that is filled")
    stream = interface.get("stream")
    if stream is not None and _handle(stream) != place.stream:
        _synchronize(_handle(stream), place.device)
    # The interface has no name for bfloat16, the dtype of the array has.
    dtype = value.dtype if isinstance(getattr(value, "dtype", None), np.dtype) else np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides") or c_strides(shape, dtype.itemsize)
    address, read_only = interface["data"]
    return DeviceArray(address or 0, shape, tuple(strides), dtype, value, place, not read_only, value)


def _synchronize(stream: int, device: int) -> None:
    from numba import cuda

    with cuda.gpus[device]:  # whose default stream it may be
        (cuda.external_stream(stream) if stream else cuda.default_stream()).synchronize()


def _by_dlpack(value: Any, place: Place) -> DeviceArray:
    return strided(_memory_view(value, place.stream or 1), place, value)


def _memory_view(value: Any, stream: int) -> Any:
    """cuda.core's view of an array that is ready for a stream; 1 is the default stream, 0 has no meaning to DLPack."""
    from cuda.core.utils import StridedMemoryView

    return StridedMemoryView.from_any_interface(value, stream_ptr=stream)


def strided(view: Any, place: Place, value: Any) -> DeviceArray:
    """What a view of cuda.core's shows, which keeps the memory."""
    shape, dtype = tuple(view.shape), view.dtype
    steps = view.strides
    strides = c_strides(shape, dtype.itemsize) if steps is None else tuple(n * dtype.itemsize for n in steps)
    return DeviceArray(view.ptr, shape, strides, dtype, view, place, not view.readonly, value)


class NumbaPlace(Place):
    """A device and the stream that an array is bound to."""

    __slots__ = ("bound", "waits")

    kind = "numba"

    def __init__(self, device: int, stream: int, bound: Any, waits: bool) -> None:
        super().__init__(device, stream)
        self.bound = bound
        """numba's object for the stream, if the array had one."""
        self.waits = waits

    def finish(self) -> None:
        if self.waits:  # an unknown library could give memory to others that kernels are still to read
            _synchronize(self.stream, self.device)

    def empty(self, shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> DeviceArray:
        array = self._new(shape, strides, dtype)
        return DeviceArray(array.device_ctypes_pointer.value or 0, shape, strides, dtype, array, self, True, array)

    def export(self, array: DeviceArray) -> Any:
        if array.handle is None:
            array.handle = self._view(array)
        return array.handle

    def _new(self, shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> Any:
        from numba import cuda

        with cuda.gpus[self.device]:
            return cuda.device_array(shape, dtype, strides, stream=self._stream())

    def _view(self, array: DeviceArray) -> Any:
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        owner = array.owner
        start = array.address - (owner.device_ctypes_pointer.value or 0) if math.prod(array.shape) else 0
        memory = owner.gpu_data.view(start) if start else owner.gpu_data
        return DeviceNDArray(array.shape, array.strides, array.dtype, stream=self._stream(), gpu_data=memory)

    def _stream(self) -> Any:
        from numba import cuda

        if self.bound is not None or not self.stream:
            return self.bound or 0
        return cuda.external_stream(self.stream)
