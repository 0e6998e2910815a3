"""Tensors of torch, their memory from torch's caching allocator, on torch's current stream."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import torch

from .array import DeviceArray, Place, Shape

IMMUTABLE = None

_NAMES = (
    *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "complex64", "complex128"),
)

_DTYPES = {getattr(torch, name): np.dtype(name) for name in _NAMES if hasattr(torch, name)}
_DTYPES[torch.bfloat16] = np.dtype(ml_dtypes.bfloat16)

_TORCH_DTYPES = {ours: theirs for theirs, ours in _DTYPES.items()}


def on_device(tensor: Any) -> bool:
    return tensor.is_cuda


def device_of(tensor: Any) -> int:
    return tensor.get_device()


def place_of(tensor: Any) -> TorchPlace:
    index = tensor.get_device()
    return TorchPlace(index, _stream(index), tensor.device)


def _stream(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


def adopt(tensor: Any, place: Place, name: str) -> DeviceArray:
    """Its memory. A tensor of which autograd would want a gradient is refused: it could not follow the call.

    Where gradients are off (torch.no_grad, the methods of an autograd.Function) such a tensor is like any other.
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name} requires a gradient, and autograd does not see into this function; pass {name}.detach(), or call "
            "it under torch.no_grad()"
        )
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided or tensor.is_neg():
        what = f"{tensor.dtype}, {tensor.layout}" + (", negated lazily" if tensor.is_neg() else "")
        raise TypeError(f"{name} must be a strided tensor of a dtype that NumPy has, or bfloat16, got {what}")
    itemsize = dtype.itemsize
    strides = tuple([n * itemsize for n in tensor.stride()])
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), strides, dtype, tensor, place, True, tensor)


class TorchPlace(Place):
    """A device and a stream of torch's."""

    __slots__ = ("where",)

    kind = "torch"

    def __init__(self, device: int, stream: int, where: Any) -> None:
        super().__init__(device, stream)
        self.where = where

    def empty(self, shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> DeviceArray:
        steps = [n // dtype.itemsize for n in strides]
        tensor = torch.empty_strided(shape, steps, dtype=_TORCH_DTYPES[dtype], device=self.where)
        return DeviceArray(tensor.data_ptr(), shape, strides, dtype, tensor, self, True, tensor)

    def export(self, array: DeviceArray) -> Any:
        if array.handle is None:
            dtype, itemsize = _TORCH_DTYPES[array.dtype], array.dtype.itemsize
            owner = array.owner if array.owner.dtype == dtype else array.owner.view(dtype)
            start = (array.address - owner.data_ptr()) // itemsize if math.prod(array.shape) else 0
            steps = [n // itemsize for n in array.strides]
            array.handle = owner.as_strided(array.shape, steps, owner.storage_offset() + start)
        return array.handle

    def wrote(self, array: DeviceArray) -> None:
        """Let autograd notice that a tensor it may have saved is another now."""
        torch.autograd.graph.increment_version(array.handle)
