"""The CUDA device that benchmarks run on, and arrays there: torch's where torch sees it, else numba's.

Nothing but `normnumba[cuda]` is needed, and nothing of CUDA is imported before a `Device` is made.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import normnumba
from benchmarks import torch_peer
from benchmarks.cases import Arguments
from benchmarks.contender import Contender
from benchmarks.machine import numba_threads, version
from benchmarks.measure import Call

TORCH_DEVICE = "cuda"
"""Where torch's tensors are."""

LEAST_SCRATCH = 1 << 27
"""Bytes of the array that is copied to keep the device busy."""

PACKAGES = ("numba-cuda", "cuda-bindings", "cuda-core", "torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "cupy")

NVIDIA_SMI = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_sm_clock_mhz": "clocks.max.sm",
    "max_memory_clock_mhz": "clocks.max.mem",
    "power_limit_w": "power.limit",
}
"""What to ask nvidia-smi for, by the name in our files."""


def problem() -> str | None:
    """Why nothing can run on a device here; None where it can. Old commits have no backend to ask."""
    backends = getattr(normnumba, "backends", dict)
    found = backends().get("cuda", "this commit has no CUDA backend")
    return found and found.rstrip(".")


def nvidia_smi(device: str) -> dict[str, str]:
    """The driver and the clocks of a device right now; empty where nvidia-smi does not say."""
    command = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, f"--id={device}"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(NVIDIA_SMI, values, strict=True)) if len(values) == len(NVIDIA_SMI) else {}


def _torch() -> Any:
    """torch if it sees a device, else None."""
    try:
        torch_peer.load(numba_threads()[0])
    except ImportError:
        return None
    return torch_peer.torch if torch_peer.torch.cuda.is_available() else None


class Device:
    """The current device: its events, its arrays, and what describes it."""

    def __init__(self) -> None:
        from numba import cuda

        self.cuda = cuda
        self.torch = _torch()
        self.current = cuda.get_current_device()
        self.cache = int(self.current.L2_CACHE_SIZE)
        """Bytes of the last cache before memory."""
        self._scratch = self._pair(max(LEAST_SCRATCH, 2 * self.cache))

    # --- time ---

    def event(self) -> Any:
        return self.cuda.event()

    def elapsed(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def occupy(self, pieces: int) -> None:
        target, source = self._scratch
        for _ in range(pieces):
            target.copy_to_device(source)

    # --- arrays ---

    def put(self, array: np.ndarray) -> Any:
        """A copy of an array on the device."""
        if self.torch is not None:
            return torch_peer.tensor_of(array, TORCH_DEVICE)
        if array.dtype == ml_dtypes.bfloat16:  # which is no dtype that buffers know
            return self.cuda.to_device(array.view(np.uint16)).view(array.dtype)
        return self.cuda.to_device(array)

    def get(self, value: Any) -> Any:
        """A copy on the host of what an op returned."""
        if self.torch is not None and self.torch.is_tensor(value):
            return torch_peer.array_of(value)
        if not hasattr(value, "copy_to_host"):
            return value
        if value.dtype == ml_dtypes.bfloat16:
            return value.view(np.uint16).copy_to_host().view(ml_dtypes.bfloat16)
        return value.copy_to_host()

    def clone(self, array: Any) -> Any:
        """A copy of an array of any library in the same layout."""
        if hasattr(array, "clone"):  # torch
            return array.clone()
        if hasattr(array, "copy"):  # CuPy
            return array.copy(order="K")
        copy = self.cuda.device_array_like(array)
        copy.copy_to_device(array)
        return copy

    def release(self) -> None:
        """Give memory back that no array needs, so that every library can have it."""
        if self.torch is not None:
            self.torch.cuda.empty_cache()

    def _pair(self, nbytes: int) -> tuple[Any, Any]:
        source = self.cuda.to_device(np.random.default_rng(0).integers(0, 256, nbytes, np.uint8))
        return self.cuda.device_array_like(source), source

    # --- calls ---

    def ours(self, function: str, arguments: Arguments) -> Contender:
        """A function of normnumba on arrays of this device."""
        given = {k: self.put(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        call = partial(getattr(normnumba, function), **given)
        return Contender(call, lambda result: tuple(map(self.get, result if isinstance(result, tuple) else (result,))))

    def copies(self, nbytes: int, count: int) -> list[Call]:
        """Copies from one array of `nbytes` to another, each time others: the ceiling."""
        return [partial(target.copy_to_device, source) for target, source in (self._pair(nbytes) for _ in range(count))]

    # --- words ---

    @property
    def kind(self) -> str:
        """Whose arrays they are."""
        return "numba" if self.torch is None else "torch"

    def clocks(self) -> dict[str, str]:
        return nvidia_smi(self.current.uuid)

    def describe(self) -> dict[str, Any]:
        """Everything about the device that a measured time depends on."""
        _, memory = self.cuda.current_context().get_memory_info()
        return {
            "name": str(self.current.name),
            "compute_capability": ".".join(map(str, tuple(self.current.compute_capability)[:2])),
            "multiprocessors": int(self.current.MULTIPROCESSOR_COUNT),
            "l2_cache": self.cache,
            "memory": int(memory),
            "arrays": self.kind,
            "clocks": self.clocks(),
            "versions": {name: found for name in PACKAGES if (found := version(name))},
        }


class Library:
    """normnumba on a device, for arrays on the host: what `verify` compares with the reference."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> tuple[Any, ...]:
            contender = self._device.ours(name, arguments)
            return contender.outputs(contender.call())

        return call
