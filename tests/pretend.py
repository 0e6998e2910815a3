"""Devices to pretend: arrays in host memory that normnumba takes for those of a device, and kernels that run on them.

The kernels are those for the CPU, so that what a call on a device returns is to the bit what the host returns. All
between the public functions and the kernels is the library's own, except the few lines that need a driver.
"""

import contextlib
import ctypes
import sys
import types

import ml_dtypes
import numpy as np

from normnumba.device import availability
from normnumba.device.array import DeviceArray
from normnumba.kernels import cpu
from normnumba.ops import masks
from normnumba.ops.channels import Given, Tail
from normnumba.views import as_channels

HALVES = {np.dtype(np.uint16): np.dtype(np.float16), np.dtype(np.int16): np.dtype(ml_dtypes.bfloat16)}


def seen(array):
    """The memory of a device array as NumPy sees it; host arrays must be constants or absent."""
    if isinstance(array, np.ndarray):
        assert not array.size or array.dtype.kind == "f"
        assert (array == array.flat[0]).all() if array.size else True, "kernels for devices would not see this array"
        return array
    if not isinstance(array, DeviceArray):
        return array
    if not array.size:
        return np.empty(array.shape, array.dtype)
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    first, last = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
    memory = (ctypes.c_char * (last - first + array.dtype.itemsize)).from_address(array.address + first)
    return np.ndarray(array.shape, array.dtype, memory, -first, array.strides)


def _on_device(name):
    def kernel(*args):
        like = next((a for a in args if isinstance(a, DeviceArray)), None)
        result = getattr(cpu, name)(*map(seen, args))
        if not isinstance(result, np.ndarray):
            return result
        placed = like.new(result.shape, result.dtype)
        seen(placed)[...] = result
        return placed

    return kernel


def _masked(x, counted, columns):
    """What a kernel with a mask is given, as the functions for the host take it."""
    assert counted.dtype == np.uint8
    assert x.flags.c_contiguous
    data = seen(x).view(HALVES.get(x.dtype, x.dtype))
    view = as_channels(data, 2 if columns else 1)
    assert view.geometry == x.shape
    assert view.columns == columns
    return view, data, seen(counted).astype(bool)


def masked_moments(x, counted, columns):
    view, data, chosen = _masked(x, counted, columns)
    stats = x.new((2, view.channels), np.float64)
    seen(stats)[...] = masks.masked_moments(cpu, view, data, chosen)
    return stats


def differentiate_masked(
    dy, x, residual, stats, weight, bias, count, activation, dx, dresidual, sums, counted, columns
):
    view, data, chosen = _masked(x, counted, columns)
    added = None if not residual.size else seen(residual).view(data.dtype)
    tail = Tail(None, None, added, seen(weight), seen(bias), activation)
    results = seen(dx).view(data.dtype), seen(dresidual).view(data.dtype) if dresidual.size else None
    given = seen(dy).view(data.dtype), data, Given(seen(stats))
    masks.differentiate_masked(cpu, view, *given, tail, count, *results, seen(sums), chosen)


def convert(source, target):
    assert source.shape == target.shape
    with np.errstate(over="ignore"):
        np.copyto(seen(target), seen(source), casting="unsafe")


def fill(target, value):
    seen(target)[...] = value


def install(monkeypatch):
    """Let the kernels here be those of a CUDA that can be used."""
    kernels, copying = types.ModuleType("normnumba.kernels.cuda"), types.ModuleType("normnumba.kernels.cuda.copying")
    for name in cpu.__all__:
        setattr(kernels, name, _on_device(name))
    kernels.masked_moments, kernels.differentiate_masked = masked_moments, differentiate_masked
    copying.convert, copying.fill = convert, fill
    kernels.copying = copying
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setitem(sys.modules, copying.__name__, copying)
    monkeypatch.setattr(availability, "why_not", lambda: None)
    monkeypatch.setattr(availability, "kernels", lambda: kernels)


# --- kinds -----------------------------------------------------------------------------------------------------------


class Torch:
    """CPU tensors."""

    def __init__(self, monkeypatch):
        import torch

        from normnumba.device import torch as kind

        self.torch, self.type = torch, torch.Tensor
        monkeypatch.setattr(kind, "on_device", lambda tensor: True)
        monkeypatch.setattr(kind, "_stream", lambda index: 0)

    def put(self, array):
        if array.dtype == ml_dtypes.bfloat16:
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def get(self, tensor):
        if tensor.dtype == self.torch.bfloat16:
            return tensor.view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


class Interface:
    """Any library with the CUDA array interface, and numba as what it gets back."""

    def __init__(self, monkeypatch):
        from normnumba.device import numba as kind

        self.type = OnDevice
        monkeypatch.setattr(kind, "_owning_device", lambda address: 0)
        monkeypatch.setattr(kind, "_synchronize", lambda stream, device: None)
        monkeypatch.setattr(kind.NumbaPlace, "_new", _new)
        monkeypatch.setattr(kind.NumbaPlace, "_view", lambda place, array: OnDevice(seen(array), array.owner))

    def put(self, array):
        return OnDevice(array)

    def get(self, array):
        return array.memory.copy()  # for the array may be all that keeps it


class OnDevice:
    """An ndarray in disguise."""

    def __init__(self, memory, owner=None, **more):
        self.memory, self.owner, self.dtype = memory, owner, memory.dtype
        self.device_ctypes_pointer = types.SimpleNamespace(value=memory.ctypes.data)
        self.more = more

    @property
    def __cuda_array_interface__(self):
        there = self.memory.__array_interface__
        return {**{k: there[k] for k in ("shape", "strides", "data", "typestr")}, "version": 3, **self.more}


def _new(place, shape, strides, dtype):
    memory = np.empty(max(int(np.prod(shape)), 1) * dtype.itemsize, np.uint8)
    return OnDevice(np.ndarray(shape, dtype, memory, 0, strides))


class Jax:
    """JAX's arrays on the CPU, which come and go by DLPack."""

    def __init__(self, monkeypatch):
        import jax
        from cuda.core.utils import StridedMemoryView

        from normnumba.device import jax as kind

        self.jax, self.type, self.waits = jax, jax.Array, 0
        monkeypatch.setattr(kind, "on_device", lambda array: isinstance(array, jax.Array))
        monkeypatch.setattr(kind, "_memory_view", lambda a, stream: StridedMemoryView.from_any_interface(a, -1))
        monkeypatch.setattr(kind, "_synchronize", self._wait)
        monkeypatch.setattr(kind.JaxPlace, "allocate", _allocate)
        monkeypatch.setattr(kind, "_exported", _by_torch)

    def _wait(self, stream, device):
        self.waits += 1

    def put(self, array):
        return self.jax.numpy.asarray(array)

    def get(self, array):
        return np.asarray(array)


def _allocate(place, nbytes):
    memory = np.empty(nbytes + 64, np.uint8)
    return memory.ctypes.data + -memory.ctypes.data % 64, memory


def _by_torch(array):
    """NumPy's DLPack does not know bfloat16."""
    import torch

    raw = seen(array)
    if raw.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(raw.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(raw.copy())


class Cupy:
    """What a module named cupy would have."""

    def __init__(self, monkeypatch):
        module = types.ModuleType("cupy")
        module.ndarray, module.cuda = (
            CupyArray,
            types.SimpleNamespace(
                alloc=lambda nbytes: Pointer(np.empty(max(nbytes, 1), np.uint8)),
                get_current_stream=lambda: types.SimpleNamespace(ptr=0),
                Device=contextlib.nullcontext,
            ),
        )
        monkeypatch.setitem(sys.modules, "cupy", module)
        monkeypatch.delitem(sys.modules, "normnumba.device.cupy", raising=False)
        self.type = CupyArray

    def put(self, array):
        return CupyArray(array.shape, array.dtype, Pointer(array), array.strides)

    def get(self, array):
        place = types.SimpleNamespace(device=0)
        return seen(DeviceArray(array.data.ptr, array.shape, array.strides, array.dtype, None, place)).copy()


class Pointer:
    def __init__(self, memory, offset=0):
        self.memory, self.offset, self.ptr = memory, offset, memory.ctypes.data + offset

    def __add__(self, offset):
        return Pointer(self.memory, self.offset + offset)


class CupyArray:
    def __init__(self, shape, dtype, memory, strides):
        self.shape, self.dtype, self.data, self.strides = shape, dtype, memory, strides
        self.device = types.SimpleNamespace(id=0)


CupyArray.__module__, CupyArray.__name__ = "cupy", "ndarray"

KINDS = {"torch": Torch, "interface": Interface, "jax": Jax, "cupy": Cupy}
