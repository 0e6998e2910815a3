"""Kernels for CUDA devices on arrays in host memory: launches are emulated, or only written down."""

import ctypes
import math

import ml_dtypes
import numpy as np
from numba import types
from scipy import special

import normnumba
from normnumba.device import availability
from normnumba.kernels.cuda import elementwise, launching, lowlevel, merging, rows, sharing, vectors
from tests.cuda import emulator
from tests.pretend import Interface, seen

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
    whole = value if isinstance(value, tuple) else (value,)
    assert {*map(type, whole)} == {int}, f"{value!r} for {kind}: a launch would read bytes that are not there"
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
    """A CUDA that can be used, although there is none; `launches` says what ran, or would have without `execute`."""

    def __init__(self, monkeypatch, order="forward", execute=True):
        self.launches, self.order, self.execute = [], order, execute
        monkeypatch.setattr(availability, "why_not", lambda: None)
        monkeypatch.setattr(launching, "run", self._run)
        monkeypatch.setattr(vectors, "fetch", lambda array: seen(array).copy())

    def _run(self, kernel, grid, block, place, args):
        self.launches.append((kernel, grid, block))
        given = [_argument(kind, value) for kind, value in zip(kernel.signature, args, strict=True)]
        if not self.execute:
            return
        emulator.launch(kernel.function, grid, block, given, replacements=REPLACEMENTS, order=self.order)


class Library:
    """normnumba as the tests of the host call it, with every array on a device that is emulated and back."""

    def __init__(self, monkeypatch, **options):
        self.emulation, self.kind = Emulation(monkeypatch, **options), Interface(monkeypatch)

    def __getattr__(self, name):
        function = getattr(normnumba, name)

        def call(**arguments):
            results = function(**{k: self.put(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()})
            return tuple(map(self.get, results)) if isinstance(results, tuple) else self.get(results)

        return call

    def put(self, array):
        return self.kind.put(array)

    def get(self, result):
        return self.kind.get(result) if isinstance(result, self.kind.type) else result

    @property
    def launched(self):
        """The names of the kernels that ran."""
        return {kernel.name.partition("-")[0] for kernel, _, _ in self.emulation.launches}


def shrink(monkeypatch):
    """Make blocks and shares so small that little data takes every path: several shares, tiles and teams, long rows."""
    for module, name, value in (
        (sharing, "THREADS", 64),
        (sharing, "SHARE", 96),
        (sharing, "LINES", 6),
        (elementwise, "THREADS", 32),
        (rows, "BLOCK", 32),
        (rows, "BLOCKS", 2),
        (merging, "WARPS", 2),
        (merging, "SHARING", 2),
    ):
        monkeypatch.setattr(module, name, value)


def hold(monkeypatch, elements):
    """Let registers hold rows of so few elements for each thread of the smallest teams, and no others."""
    monkeypatch.setattr(rows, "HELD", elements)
    monkeypatch.setattr(rows, "HELD_BACKWARD", elements)
    monkeypatch.setattr(rows, "HELD_OF_GROUPS", dict.fromkeys(rows.HELD_OF_GROUPS, elements))
