"""The streaming ceiling: how fast this machine moves so many bytes, in so many passes, at this size, right now.

For an op that must read R arrays of x's size and write W, the ceiling reads R such arrays and writes W, adding where
two are read for one written, and does nothing else. Arrays that an op has to read twice are read twice here. It runs
serial and parallel, with ordinary and with non-temporal stores; the fastest at that size is the ceiling. Its outputs
exist beforehand, so it is compared with ops that write into `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from benchmarks.measure import Call, Effort, Timing, side_by_side
from normnumba.kernels.cpu.launching import layer
from normnumba.kernels.cpu.lowlevel import fence, stream

BLOCK = 2048
"""Elements that a thread sums into L1 before it streams them out."""

PARTS = 64
"""Shares of the work: a fixed number that divides well among any number of threads."""

SERIAL_BELOW = 1 << 19
"""Bytes of x below which the serial kernels are tried too."""

# Loops live in functions of their own that take slices: an index is then known not to be negative, and LLVM vectorizes.
_njit = numba.njit(nogil=True)


@_njit
def _share(n: int, part: int) -> tuple[int, int]:
    """Begin and end of a share, on whole blocks: blocks of shares differ by one at most."""
    blocks = (n + BLOCK - 1) // BLOCK
    return min(n, blocks * part // PARTS * BLOCK), min(n, blocks * (part + 1) // PARTS * BLOCK)


@_njit
def _copy_share(a: Any, out: Any) -> None:
    for i in range(a.size):
        out[i] = a[i]


@_njit
def _add_share(a: Any, b: Any, out: Any) -> None:
    for i in range(a.size):
        out[i] = a[i] + b[i]


@numba.njit(nogil=True, fastmath={"nsz", "contract", "reassoc"})
def _sum_share(a: Any) -> Any:
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i]
    return total


def _copy(a: Any, out: Any) -> None:
    for part in numba.prange(PARTS):
        begin, end = _share(a.size, part)
        _copy_share(a[begin:end], out[begin:end])


def _add(a: Any, b: Any, out: Any) -> None:
    for part in numba.prange(PARTS):
        begin, end = _share(a.size, part)
        _add_share(a[begin:end], b[begin:end], out[begin:end])


def _copy_past_cache(a: Any, out: Any) -> None:
    for part in numba.prange(PARTS):
        begin, end = _share(a.size, part)
        stream(out, begin, a[begin:end], end - begin, a, a, end)
        fence()


def _add_past_cache(a: Any, b: Any, out: Any) -> None:
    for part in numba.prange(PARTS):
        row = np.empty(BLOCK, a.dtype)
        begin, end = _share(a.size, part)
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            _add_share(a[start:stop], b[start:stop], row)
            stream(out, start, row, stop - start, a, b, stop)
        fence()


def _read(a: Any, sums: Any) -> None:
    for part in numba.prange(PARTS):
        begin, end = _share(a.size, part)
        sums[part] = _sum_share(a[begin:end])


def _compile(kernel: Callable[..., None], parallel: bool) -> Callable[..., None]:
    # No disk cache: numba would not notice a change of `stream`, and all of them take a few seconds.
    return numba.njit(parallel=parallel, nogil=True)(kernel)


_KERNELS = {
    "serial": tuple(_compile(kernel, False) for kernel in (_copy, _add, _read)),
    "plain": tuple(_compile(kernel, True) for kernel in (_copy, _add, _read)),
}
_KERNELS["streaming"] = (_compile(_copy_past_cache, True), _compile(_add_past_cache, True), _KERNELS["plain"][2])


def _steps(reads: int, writes: int, repeats: int) -> list[tuple[int, ...]]:
    """Which of the read arrays each pass takes; the first `writes` passes write one array each."""
    if reads < writes:
        raise ValueError(f"an op that writes {writes} arrays of x's size must read as many, not {reads}")
    waiting = list(range(reads))
    written: list[tuple[int, ...]] = [(waiting.pop(0),) for _ in range(writes)]
    for i in range(min(writes, len(waiting))):
        written[i] += (waiting.pop(0),)
    again = [(i % max(reads, 1),) for i in range(repeats)]
    return written + [(i,) for i in waiting] + again


def ceiling_calls(nbytes: int, reads: int, writes: int, repeats: int = 0) -> dict[str, Call]:
    """The ways to move (reads + writes + repeats) times `nbytes`, by name.

    Parameters
    ----------
    nbytes : int
        Size of one array.
    reads, writes : int
        How many different arrays are read and written.
    repeats : int
        How many reads of arrays that were read already.
    """
    layer()  # the library's threading layer, before a kernel of ours makes numba choose another
    size = max(1, nbytes // 4)
    sources = [np.full(size, i + 1, np.float32) for i in range(reads)]
    targets = [np.zeros(size, np.float32) for _ in range(writes)]
    sums = np.zeros(PARTS, np.float32)
    steps = _steps(reads, writes, repeats)

    def run(kernels: tuple[Callable[..., None], ...]) -> None:
        copy, add, read = kernels
        for i, step in enumerate(steps):
            if i >= writes:
                read(sources[step[0]], sums)
            elif len(step) == 2:
                add(sources[step[0]], sources[step[1]], targets[i])
            else:
                copy(sources[step[0]], targets[i])

    names = ["plain", "streaming"] if writes else ["plain"]
    if nbytes < SERIAL_BELOW:
        names = ["serial", "plain"]
    return {name: partial(run, _KERNELS[name]) for name in names}


def best(timings: dict[str, Timing]) -> str:
    """The name of the fastest: of the ceiling's ways, the ceiling."""
    return min(timings, key=lambda name: timings[name].seconds)


SIZES = tuple(1 << p for p in range(14, 29, 2))


def sweep(effort: Effort, sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """GB/s of reading, copying and adding over array sizes, each the best of its ways."""
    rows = []
    for nbytes in sizes:
        row: dict[str, Any] = {"nbytes": nbytes}
        for name, (reads, writes) in {"read": (1, 0), "copy": (1, 1), "add": (2, 1)}.items():
            timings = side_by_side(ceiling_calls(nbytes, reads, writes), effort)
            way = best(timings)
            row[name] = {"way": way, "gbs": (reads + writes) * nbytes / timings[way].seconds / 1e9}
        rows.append(row)
    return rows
