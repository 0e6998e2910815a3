"""Outputs in memory that was used before: the system takes as long to provide fresh pages as a kernel to fill them.

A pool keeps the memory of the outputs that it hands out, and hands it out again once nothing refers to it: no output,
no view, no other library's array or buffer of one, all of which hold a reference to the array that owns the memory.
"""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .device.array import DeviceArray
from .views import Array

PAGE = 4096
"""Bytes: outputs begin as far in a page, to 16 bytes, as x. A load waits for the stores past the caches before it that
ended up to eight lines further in their pages. NumPy's large arrays begin 16 bytes behind a line: where outputs began a
line, 48 bytes further, rows of 768 took 1.1 to 1.26 of the time, and gradients of a batch norm with a residual, which
are two such outputs, 3.8 times as long."""

SMALLEST = 1 << 20
"""Bytes from which outputs come from a pool. Smaller ones malloc itself provides from memory that was used before."""

_pools: ContextVar[tuple[OutputPool, ...]] = ContextVar("pools", default=())


def reuse_outputs(max_bytes: int = 1 << 30) -> OutputPool:
    """Let outputs of 1 MiB and more use the memory of earlier ones that nothing refers to any more.

    For loops that make and drop large outputs: ``with normnumba.reuse_outputs(): ...``. It acts on what is called in
    the block by the thread that entered it; other threads may enter the same pool. Outputs are what they would be
    without it, except that they do not own their memory (``y.base`` is not None). An array of which only the address
    is kept, as in ``y.ctypes.data``, counts as dropped.

    Parameters
    ----------
    max_bytes : int
        The most memory to keep, outputs in use included. Further outputs are made as without a pool.

    Returns
    -------
    OutputPool
        A context manager. The memory is let go when the last block that entered it ends.

    Notes
    -----
    Nothing is used again by an interpreter without a global lock, where references cannot be counted reliably.
    """
    return OutputPool(max_bytes)


class OutputPool:
    """The memory that `reuse_outputs` keeps."""

    def __init__(self, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int | np.integer):
            raise TypeError(f"max_bytes must be an int, got {max_bytes!r}")
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = int(max_bytes)
        self._lock = threading.Lock()
        self._owners: list[Array] = []  # the one used last at the end
        self._entered = 0

    def __enter__(self) -> OutputPool:
        with self._lock:
            self._entered += 1
        _pools.set((*_pools.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pools = list(_pools.get())
        if self in pools:  # else entered in another context, such as an outer one of a generator
            del pools[len(pools) - 1 - pools[::-1].index(self)]
            _pools.set(tuple(pools))
        with self._lock:
            self._entered -= 1
            if not self._entered:
                self._owners.clear()

    @property
    def nbytes(self) -> int:
        """The bytes that are kept."""
        with self._lock:
            return sum(owner.nbytes for owner in self._owners)

    def place(self, like: Array, beside: int) -> Array | None:
        """An array like another in shape, dtype and strides, as far in a page as an address, if there is memory."""
        with self._lock:
            if not (self._entered and (self._take_idle(like.nbytes) or self._add(like.nbytes))):
                return None
            owner = self._owners[-1]
            first = (beside // 16 * 16 - owner.ctypes.data) % PAGE
            return np.ndarray(like.shape, like.dtype, owner, first, like.strides)

    def _take_idle(self, size: int) -> bool:
        """Put what was used last of that which is idle, large enough, and not too large at the end, if there is any."""
        for i in range(len(self._owners) - 1, -1, -1):
            if size <= self._owners[i].nbytes - PAGE <= 2 * size and self._idle(i):
                self._owners.append(self._owners.pop(i))
                return True
        return False

    def _add(self, size: int) -> bool:
        """Append new memory, if there is room for it once the memory that is idle longest is let go."""
        size += PAGE
        room, index = self.max_bytes - sum(owner.nbytes for owner in self._owners), 0
        while room < size <= self.max_bytes and index < len(self._owners):
            if self._idle(index):
                room += self._owners.pop(index).nbytes
            else:
                index += 1
        if size <= room:
            self._owners.append(np.empty(size, np.uint8))
        return size <= room

    def _idle(self, index: int) -> bool:
        return _COUNTS and _references(self._owners, index) == _ALONE


def fresh(x: Array, dtype: DTypeLike | None = None) -> Array:
    """A new array in x's layout, whose values do not matter."""
    if isinstance(x, DeviceArray):
        return x.empty_like(dtype)
    pools = _pools.get()
    if pools and x.nbytes >= SMALLEST:
        like = x if dtype is None and x.flags.forc else np.empty_like(x, dtype, subok=False)
        placed = pools[-1].place(like, x.ctypes.data)
        if placed is not None:
            return placed
    return np.empty_like(x, dtype, subok=False)


def _references(arrays: list[Any], index: int) -> int:
    """How many references there are to an array of a list, those of this question included."""
    return sys.getrefcount(arrays[index])


_ALONE = _references([np.empty(1)], 0)

_COUNTS = bool(getattr(sys, "_is_gil_enabled", lambda: True)())
"""Without a global lock another thread may be taking a reference while they are counted."""
