"""Arrays in the memory of a CUDA device, by library, and the emulated device that runs the same tests without one."""

import contextlib
import functools
import importlib
import os

import ml_dtypes
import numpy as np
import pytest

import normnumba
from tests import pretend
from tests.test_device import got_back, put


def flat(array):
    """The memory from the first element of an array to its last, and its strides in elements, none negative."""
    steps = [stride // array.itemsize for stride in array.strides]
    length = sum((n - 1) * step for n, step in zip(array.shape, steps, strict=True)) + 1 if array.size else 0
    return np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,)), steps


class Device:
    """A library of arrays on a device, and normnumba as the tests of the host call it; `type` is that of its arrays."""

    def laid_out(self, array, offset=0):
        """A copy on the device with the strides that it has on the host, that many elements into its memory."""
        elements, steps = flat(array)
        return self.strided(np.concatenate([np.zeros(offset, array.dtype), elements]), array.shape, steps, offset)

    def strided(self, memory, shape, steps, offset):
        """A copy of some memory, as an array that begins at `offset`."""
        raise NotImplementedError

    def get(self, array):
        """A copy on the host."""
        raise NotImplementedError

    def put(self, array):
        """A copy on the device, in C order."""
        return self.laid_out(np.asarray(array, order="C"))

    def put_all(self, arguments):
        return put(self, arguments)

    def __getattr__(self, name):
        """A public function, for arguments from the host or already on the device, that returns arrays on the host."""
        function = getattr(normnumba, name)

        def call(**arguments):
            with self.settings():
                results = function(**self.put_all(arguments))
                every = got_back(self, results if isinstance(results, tuple) else (results,))
            return every if isinstance(results, tuple) else every[0]

        return call

    def settings(self):
        """A context for calls."""
        return contextlib.nullcontext()


class Torch(Device):
    """Tensors of the current device."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        if not self.torch.cuda.is_available():
            pytest.skip("torch has no CUDA device")
        self.type = self.torch.Tensor

    def strided(self, memory, shape, steps, offset):
        return pretend.Torch.put(self, memory).cuda().as_strided(shape, steps, offset)

    def get(self, tensor):
        return pretend.Torch.get(self, tensor.cpu())

    def synchronize(self):
        self.torch.cuda.synchronize()


class Numba(Device):
    """numba's arrays, which travel as bits: not all of numba knows bfloat16."""

    def __init__(self):
        from numba import cuda
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        self.cuda, self.type = cuda, DeviceNDArray

    def strided(self, memory, shape, steps, offset):
        bits = self.cuda.to_device(bits_of(memory))
        size = memory.dtype.itemsize
        data = bits.gpu_data.view(offset * size) if offset else bits.gpu_data
        return self.type(shape, tuple(step * size for step in steps), memory.dtype, gpu_data=data)

    def get(self, array):
        raw = bits_of(np.empty(0, array.dtype)).dtype
        return self.type(array.shape, array.strides, raw, gpu_data=array.gpu_data).copy_to_host().view(array.dtype)

    def synchronize(self):
        self.cuda.synchronize()


class Cupy(Device):
    """CuPy's arrays."""

    def __init__(self):
        self.cupy = pytest.importorskip("cupy")
        self.type = self.cupy.ndarray

    def strided(self, memory, shape, steps, offset):
        if memory.dtype == ml_dtypes.bfloat16 and int(self.cupy.__version__.partition(".")[0]) < 14:
            pytest.skip("this CuPy has no bfloat16")
        bits, size = self.cupy.asarray(bits_of(memory)), memory.dtype.itemsize
        return self.cupy.ndarray(shape, memory.dtype, bits.data + offset * size, [step * size for step in steps])

    def get(self, array):
        raw = bits_of(np.empty(0, array.dtype)).dtype
        return self.cupy.asnumpy(self.cupy.ndarray(array.shape, raw, array.data, array.strides)).view(array.dtype)

    def synchronize(self):
        self.cupy.cuda.Device().synchronize()


class Jax(Device):
    """JAX's arrays, of no other layout than C order."""

    def __init__(self):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other libraries need memory as well
        self.jax = pytest.importorskip("jax")
        if self.jax.default_backend() not in ("gpu", "cuda"):
            pytest.skip("JAX has no CUDA device")
        self.type = self.jax.Array

    def put(self, array):
        return self.jax.device_put(array)

    def get(self, array):
        return np.asarray(array)

    def settings(self):
        return self.jax.enable_x64(True) if hasattr(self.jax, "enable_x64") else self.jax.experimental.enable_x64()

    def synchronize(self):
        """Calls wait for JAX anyway."""


class Emulated(Device):
    """Host memory that the library takes for a device's, and kernels that are emulated; torch's tensors if it is there.

    Nothing waits for anything here, as calls have returned when their work is done.
    """

    def __init__(self, monkeypatch):
        pytest.importorskip("greenlet", reason="the emulator switches between greenlets")
        pytest.importorskip("numba_cuda", reason="kernels are written for NVIDIA's numba-cuda")
        from tests.cuda.emulation import Emulation

        kind = pretend.Torch if importlib.util.find_spec("torch") else pretend.Interface
        self.emulation, self.arrays = Emulation(monkeypatch), kind(monkeypatch)
        self.type = self.arrays.type
        if kind is pretend.Torch:
            self.torch = self.arrays.torch

    def strided(self, memory, shape, steps, offset):
        strides = [step * memory.itemsize for step in steps]
        return self.arrays.put(np.lib.stride_tricks.as_strided(memory[offset:], shape, strides))

    def get(self, array):
        return self.arrays.get(array).copy()

    def synchronize(self):
        pass


def bits_of(array):
    """The same memory as unsigned integers."""
    return array.view(f"u{array.dtype.itemsize}")


KINDS = {"torch": Torch, "numba": Numba, "cupy": Cupy, "jax": Jax}


@functools.cache
def has_torch():
    """Whether torch sees a CUDA device."""
    return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()


def real(kind=None):
    """A library of arrays on the device that is here: by default torch where it sees the device, or else numba."""
    reason = normnumba.backends()["cuda"]
    if reason is not None:
        pytest.skip(reason)
    return KINDS[kind or ("torch" if has_torch() else "numba")]()
