"""Arrays of JAX, by DLPack in both directions, on the legacy default stream.

JAX has streams of its own and no way to work on them. Its arrays are waited for in stream order, by DLPack's handshake.
The end of a call waits for the device: JAX would give an array's memory to others as soon as nobody refers to it, and
would not know of the kernels that are still to read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import DeviceArray, Place, Shape, c_strides
from .numba import _memory_view, _synchronize, strided
from .numba import on_device as on_cuda

IMMUTABLE = "arrays of JAX are immutable"

_LEGACY = 1
"""The default stream in DLPack's numbering."""


def on_device(array: Any) -> bool:
    return on_cuda(array)


def device_of(array: Any) -> int:
    return int(array.__dlpack_device__()[1])


def place_of(array: Any) -> JaxPlace:
    return JaxPlace(device_of(array), 0)


def adopt(array: Any, place: Place, name: str) -> DeviceArray:
    adopted = strided(_memory_view(array, _LEGACY), place, array)
    adopted.writeable = False
    return adopted


class JaxPlace(Place):
    """A device; new arrays are in numba's memory."""

    __slots__ = ()

    kind = "jax"

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        from numba import cuda

        with cuda.gpus[self.device]:
            memory = cuda.device_array(max(nbytes, 1), np.uint8)
        return memory.device_ctypes_pointer.value, memory

    def empty(self, shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> DeviceArray:
        return super().empty(shape, c_strides(shape, dtype.itemsize), dtype)  # XLA has no other order

    def export(self, array: DeviceArray) -> Any:
        if array.handle is None:
            import jax

            if not array.size:
                array.handle = jax.numpy.empty(array.shape, array.dtype)
            else:
                array.handle = jax.dlpack.from_dlpack(_exported(array))
        return array.handle

    def finish(self) -> None:
        _synchronize(self.stream, self.device)


def _exported(array: DeviceArray) -> Any:
    """An object of cuda.core's that hands the memory on by DLPack and keeps it."""
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    buffer = Buffer.from_handle(array.address, array.nbytes, owner=array.owner)
    return StridedMemoryView.from_buffer(buffer, array.shape, dtype=array.dtype)
