"""Arrays of CuPy, their memory from CuPy's pool, on CuPy's current stream."""

from __future__ import annotations

from typing import Any

import cupy

from .array import DeviceArray, Place

IMMUTABLE = None


def on_device(array: Any) -> bool:
    return True


def device_of(array: Any) -> int:
    return array.device.id


def place_of(array: Any) -> CupyPlace:
    device = array.device.id
    with cupy.cuda.Device(device):
        return CupyPlace(device, cupy.cuda.get_current_stream().ptr)


def adopt(array: Any, place: Place, name: str) -> DeviceArray:
    return DeviceArray(array.data.ptr, array.shape, array.strides, array.dtype, array.data, place, True, array)


class CupyPlace(Place):
    """A device and a stream of CuPy's."""

    __slots__ = ()

    kind = "cupy"

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        with cupy.cuda.Device(self.device):
            memory = cupy.cuda.alloc(nbytes)
        return memory.ptr, memory

    def export(self, array: DeviceArray) -> Any:
        if array.handle is None:
            memory = array.owner + (array.address - array.owner.ptr)
            with cupy.cuda.Device(self.device):
                array.handle = cupy.ndarray(array.shape, array.dtype, memory, array.strides)
        return array.handle
