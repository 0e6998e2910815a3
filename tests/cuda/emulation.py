"""Kernels for CUDA devices on arrays in host memory: what they launch is emulated, and what they lack a host has too."""

import ctypes
import math

import ml_dtypes
import numpy as np
from numba import types
from scipy import special

from normnumba.device import availability
from normnumba.kernels.cuda import launching, lowlevel
from tests.cuda import emulator
from tests.pretend import seen

HALVES = {np.dtype(np.uint16): np.dtype(np.float16), np.dtype(np.int16): np.dtype(ml_dtypes.bfloat16)}


def _load(pointer, index):
    value = pointer[index]
    half = HALVES.get(value.dtype)
    return np.float32(value.view(half)) if half else value


def _narrowed(dtype, value):
    half = HALVES.get(dtype)
    if half is None:
        return dtype.type(value)
    with np.errstate(over="ignore"):
        return np.float32(value).astype(half).view(dtype)


def _store(pointer, index, value):
    pointer[index] = _narrowed(pointer.values.dtype, value)


def _rounded(pointer, value):
    stored = _narrowed(pointer.values.dtype, value)
    half = HALVES.get(stored.dtype)
    return np.float32(stored.view(half)) if half else stored


def _check_alignment(pointer, index, width):
    size = width * pointer.values.dtype.itemsize
    if (pointer.values.ctypes.data + index * pointer.values.dtype.itemsize) % size:
        raise ValueError(f"{pointer.name}[{index}] is no address for an access of {size} bytes")


def _loading(width):
    def load_vector(pointer, index, registers, at):
        _check_alignment(pointer, index, width)
        for k in range(width):
            registers[at + k] = _load(pointer, index + k)

    return load_vector


def _storing(width):
    def store_vector(pointer, index, registers, at):
        _check_alignment(pointer, index, width)
        for k in range(width):
            _store(pointer, index + k, registers[at + k])

    return store_vector


REPLACEMENTS = {
    lowlevel.load: _load,
    lowlevel.store: _store,
    lowlevel.rounded: _rounded,
    **{intrinsic: _loading(width) for width, intrinsic in lowlevel.LOADS.items()},
    **{intrinsic: _storing(width) for width, intrinsic in lowlevel.STORES.items()},
    math.sqrt: np.sqrt,
    math.exp: np.exp,
    math.erfc: special.erfc,
}
"""Of what only a device has, and of what Python does in float64 or raises on."""


def _argument(kind, value):
    if isinstance(kind, types.CPointer):
        return _pointer(value)
    if isinstance(kind, types.Float):
        return np.dtype(kind.name).type(value)
    assert type(value) in (int, tuple), f"{value!r} for {kind}: a launch would read bytes that are not there"
    return value


def _pointer(array):
    """The elements of an array and nothing else, so that no other is ever touched."""
    if not launching.is_there(array):
        return emulator.Pointer(None)
    if array.flags.c_contiguous:
        return emulator.Pointer(seen(array).reshape(-1))
    reach = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    assert min(array.strides) >= 0
    memory = (ctypes.c_char * (reach + array.dtype.itemsize)).from_address(array.address)
    return emulator.Pointer(np.frombuffer(memory, array.dtype))


class Emulation:
    """A CUDA that can be used, although there is none; `launches` says what ran."""

    def __init__(self, monkeypatch, order="forward"):
        self.launches, self.order, self.execute = [], order, True
        monkeypatch.setattr(availability, "why_not", lambda: None)
        monkeypatch.setattr(launching, "run", self._run)
        monkeypatch.setattr(launching, "fetch", lambda array: seen(array).copy())

    def _run(self, kernel, grid, block, place, args):
        self.launches.append((kernel, grid, block))
        given = [_argument(kind, value) for kind, value in zip(kernel.signature, args, strict=True)]
        emulator.launch(kernel.function, grid, block, given, replacements=REPLACEMENTS, order=self.order)
