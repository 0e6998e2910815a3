"""Serial or parallel: whether a kernel has threads for its tasks, and on which of numba's threading layers.

The bits are the same, so the choice is about speed and safety alone. workqueue aborts the process when two Python
threads launch at once, so there one of them goes without; TBB is preferred because it needs no such care. GNU OpenMP
kills a forked child that launches threads, and under TBB a child forked while another thread was in a kernel was seen
to hang, so children of a process that has launched threads stay serial.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from .compiling import address, compile_kernel
from .tasks import SPREAD, spread

PARALLEL_FROM = 1 << 16
"""Elements from which threads are faster: a launch costs some us, a core moves some 5 elements a ns."""

_launching = threading.Lock()
_forked = False


def call(variant: Callable[..., Any], x: np.ndarray, *args: Any, others: tuple[np.dtype, ...] = ()) -> None:
    """Call the kernel for x's dtype and others with the launcher of tasks or with 0, whichever suits the size of x."""
    kernel = variant(x.dtype, *others)
    kind = layer() if x.size >= PARALLEL_FROM and not _forked else None  # starts the threads, on the layer wanted
    if kind is None or numba.get_num_threads() == 1:
        kernel(0, *args)
    elif kind == "workqueue":
        _call_alone(kernel, args)
    else:
        kernel(launcher(), *args)


def _call_alone(kernel: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call a kernel with threads unless another thread has called one so that is not done yet."""
    if not _launching.acquire(blocking=False):
        kernel(0, *args)
        return
    try:
        kernel(launcher(), *args)
    finally:
        _launching.release()


@functools.cache
def spread_tasks() -> Any:
    """The launcher of tasks, compiled."""
    return compile_kernel(spread, "spread", SPREAD, parallel=True)


@functools.cache
def launcher() -> int:
    """Its address."""
    return address(spread_tasks())


@functools.cache
def layer() -> str:
    """Start numba's threads, at the first parallel launch and never at import, and name the threading layer."""
    _preload_tbb()
    numba.get_num_threads()
    return numba.threading_layer()


def _preload_tbb() -> None:
    """Load the TBB that pip put into this environment's lib folder, which numba looks for on the loader's path only."""
    if numba.config.THREADING_LAYER in ("omp", "workqueue"):
        return
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name in ("libtbb.so.12", "tbb12.dll", "libtbb.12.dylib"):
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                return


def _after_fork_in_child() -> None:
    """A child of a process that has started threads has none of them, and only half of their state."""
    global _forked
    _forked = _forked or layer.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
