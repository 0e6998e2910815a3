"""Runs the Python body of a numba.cuda kernel without a GPU: one greenlet per thread, blocks one after the other.

    launch(kernel, grid, block, (Pointer(x), Pointer(y), n, np.float32(eps)), replacements={lowlevel.load: load})

A warp runs until all its threads wait, then the next one does (``order="reversed"``: last thread and block first).

What it finds
    Accesses outside of a pointer, shared or local array, negative indices included (``OutOfBounds``); barriers and
    shuffles that some of their threads never reach (``BarrierError``); conflicting accesses to shared memory with no
    barrier between them (``RaceError``); reads of uninitialised shared and local memory, which holds NaN, or all bits
    set; values shuffled from a lane that takes no part, which are NaN or -1; intrinsics that nothing replaces.

What it cannot find
    Races in global memory, between blocks or between threads. Memory order: a shuffle counts as one of the threads that
    it joins, which PTX promises for ``syncwarp`` alone. Threads that never come to the last barrier: those that have
    exited do not count, as on Volta and later. Types: Python and NumPy scalars promote as NumPy's do, where numba makes
    uint64 of uint32 + uint32, float64 of float32 * int64, and float32 of ``math.sqrt`` of a float32, which is a Python
    float here, and ``fma`` rounds float64 twice: numbers agree with a device's to rounding only. What Python alone
    raises (``math.sqrt(-1.0)``, ``1.0 / 0.0``) is raised. Alignment, spills and speed are the compiler's.

Not emulated: votes, atomics, fences, dynamic shared memory, clusters, cooperative grids, slices of shared arrays, names
imported out of ``numba.cuda`` (write ``cuda.syncthreads``).
"""

import contextvars
import functools
import itertools
import math
import sys
import types
import typing

import numba.cuda
import numpy as np
from greenlet import getcurrent, greenlet

from tests.cuda.binding import Binder, Integer

FULL = 0xFFFFFFFF
LIMITS = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}


class BarrierError(RuntimeError):
    """Threads wait for others that never arrive, or at different barriers."""


class RaceError(RuntimeError):
    """Two threads use one element of shared memory, one of them writes it, and nothing orders the two."""


class OutOfBounds(IndexError):
    """An index outside of an array."""


# --- memory ----------------------------------------------------------------------------------------------------------


class Pointer:
    """A flat view on a contiguous array that checks every index; of None, a null pointer."""

    __slots__ = ("name", "size", "values")

    def __init__(self, values, name=None):
        if values is not None and (values.ndim != 1 or not values.flags.c_contiguous):
            raise ValueError("a pointer needs a contiguous array of one dimension")
        self.values, self.name, self.size = values, name, 0 if values is None else values.size

    def __getitem__(self, index):
        if 0 <= index < self.size:
            return self.values[index]
        raise self._outside(index)

    def __setitem__(self, index, value):
        if 0 <= index < self.size:
            self.values[index] = value
        else:
            raise self._outside(index)

    def _outside(self, index):
        kind = "is a null pointer" if self.values is None else f"has {self.size} elements"
        return OutOfBounds(f"{self.name or 'pointer'}[{index}]: {self.name or 'it'} {kind}")


class Shared:
    """An array of a block, which knows who read and wrote its elements since the last barrier."""

    __slots__ = ("cuda", "name", "readers", "shape", "values", "writers")

    def __init__(self, cuda, shape, kind, name):
        self.cuda, self.shape, self.name = cuda, shape, name
        self.values = _poisoned(math.prod(shape), kind)
        self.readers, self.writers = {}, {}

    def _at(self, index):
        index = index if isinstance(index, tuple) else (index,)
        at = 0
        for i, extent in zip(index, self.shape, strict=True):
            if not 0 <= i < extent:
                raise OutOfBounds(f"{self.name}{list(index)}: its shape is {self.shape}")
            at = at * extent + i
        return at

    def _after(self, earlier, does, thread, at):
        """See that what other threads did to an element, after so many meetings of their warps, is over."""
        for other, met in earlier.items():
            if other is not thread and not _ordered(other, met, thread):
                raise RaceError(f"{self.name}: {thread} {does} element {at} with no barrier since {other} used it")

    def __getitem__(self, index):
        at, thread = self._at(index), self.cuda.current
        if at in self.writers:
            self._after(self.writers[at], "reads", thread, at)
        self.readers.setdefault(at, {})[thread] = len(thread.warp.meetings)
        return self.values[at]

    def __setitem__(self, index, value):
        at, thread = self._at(index), self.cuda.current
        self._after(self.writers.get(at, {}), "writes", thread, at)
        self._after(self.readers.pop(at, {}), "writes", thread, at)
        self.writers[at] = {thread: len(thread.warp.meetings)}
        self.values[at] = value


def _ordered(earlier, met, later):
    """Whether shuffles or syncwarps lead from what one thread did after so many meetings of its warp to another."""
    if earlier.warp is not later.warp:
        return False
    reached = earlier.bit
    for i in range(met, len(earlier.warp.meetings)):
        lanes = earlier.warp.meetings[i]
        if lanes & reached:
            reached |= lanes
            if later.bit & reached:
                return True
    return False


# --- threads ---------------------------------------------------------------------------------------------------------


class Index(typing.NamedTuple):
    """What threadIdx and its like are."""

    x: int
    y: int = 1
    z: int = 1


class Thread(greenlet):
    """One thread: where it is, and what it waits for."""

    def __init__(self, run, index, block, warp, lane):
        super().__init__(run)
        self.index, self.block, self.warp, self.lane, self.bit = index, block, warp, lane, 1 << lane
        self.waits = None
        warp.threads[lane] = self
        warp.alive |= self.bit

    def __str__(self):
        return f"thread {tuple(self.index)} of block {tuple(self.block.index)}"

    def where(self):
        """The line of the kernel at which it waits."""
        frame = self.gr_frame
        while frame.f_code.co_filename == __file__:
            frame = frame.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Warp:
    """32 threads: those alive, their shuffles under way, and the lanes of all shuffles since the last barrier."""

    def __init__(self):
        self.threads, self.alive, self.exchanges, self.meetings = {}, 0, {}, []


class Block:
    """The threads of a block, those that wait at its barrier and its shared arrays."""

    def __init__(self, cuda, run, index):
        self.index, self.shared, self.waiting, self.site = index, {}, [], None
        self.warps = [Warp() for _ in range(0, math.prod(cuda.blockDim), 32)]
        places = enumerate(_indices(cuda.blockDim))
        self.threads = [Thread(run, index, self, self.warps[i // 32], i % 32) for i, index in places]
        self.alive = len(self.threads)


class Cuda:
    """What the name ``cuda`` means in an emulated kernel, and the scheduler of its threads."""

    warpsize = 32
    threadIdx = property(lambda self: self.current.index)
    blockIdx = property(lambda self: self.current.block.index)
    laneid = property(lambda self: self.current.lane)

    def __init__(self):
        self.ready = []
        self.shared = types.SimpleNamespace(array=self._shared_array)
        self.local = types.SimpleNamespace(array=_local_array)

    def __getattr__(self, name):
        converted = self.binder.attribute(numba.cuda, name)
        if converted is getattr(numba.cuda, name):
            raise NotImplementedError(f"cuda.{name} is not emulated")
        setattr(self, name, converted)
        return converted

    def grid(self, n):
        block, size, at = self.blockIdx, self.blockDim, self.threadIdx
        places = block.x * size.x + at.x, block.y * size.y + at.y, block.z * size.z + at.z
        return places[0] if n == 1 else places[:n]

    def gridsize(self, n):
        grid, size = self.gridDim, self.blockDim
        sizes = grid.x * size.x, grid.y * size.y, grid.z * size.z
        return sizes[0] if n == 1 else sizes[:n]

    def fma(self, a, b, c):
        return type(a)(np.float64(a) * np.float64(b) + np.float64(c))

    def _shared_array(self, shape, dtype, alignment=None):
        # One array per place in the code of a compiled function: a bound function has globals of its own.
        frame, arrays = sys._getframe(1), self.current.block.shared
        shape = shape if isinstance(shape, tuple) else (shape,)
        key = id(frame.f_globals), frame.f_lasti, shape, dtype
        if key not in arrays:
            where = f"the shared array of {frame.f_code.co_name}, line {frame.f_lineno}"
            arrays[key] = Shared(self, shape, _dtype(dtype), where)
        return arrays[key]

    # What threads wait for.

    def syncthreads(self):
        block, frame = self.current.block, sys._getframe(1)
        site = id(frame.f_globals), frame.f_lasti
        if block.waiting and block.site != site:
            other = block.waiting[0]
            raise BarrierError(
                f"{self.current} is at the syncthreads of line {frame.f_lineno}, {other} at {other.where()}"
            )
        block.site = site
        block.waiting.append(self.current)
        self._pass_barrier(block)
        self._wait(("syncthreads", 0))

    def syncwarp(self, mask=FULL):
        self._exchange("syncwarp", mask, None)

    def shfl_sync(self, mask, value, lane):
        return self._taken(self._exchange("shfl_sync", mask, value), lane & 31, value)

    def shfl_xor_sync(self, mask, value, lanes):
        return self._taken(self._exchange("shfl_xor_sync", mask, value), self.current.lane ^ (lanes & 31), value)

    def shfl_down_sync(self, mask, value, delta):
        return self._taken(self._exchange("shfl_down_sync", mask, value), self.current.lane + delta, value)

    def shfl_up_sync(self, mask, value, delta):
        return self._taken(self._exchange("shfl_up_sync", mask, value), self.current.lane - delta, value)

    def _taken(self, values, lane, own):
        """The value of a lane: one's own beyond the warp, and an unlikely one of lanes that took no part."""
        if lane in values:
            return values[lane]
        if not 0 <= lane < 32:
            return own
        kind = type(own)
        return kind("nan") if isinstance(own, (float, np.floating)) else kind(0) - kind(1)

    def _exchange(self, operation, mask, value):
        """The values that the lanes of a mask bring to one place in the code, by lane."""
        thread, frame = self.current, sys._getframe(2)
        warp, mask = thread.warp, int(mask) & FULL
        if not mask & thread.bit:
            raise BarrierError(f"{thread}: lane {thread.lane} is not in the mask {mask:#x} of its {operation}")
        values = warp.exchanges.setdefault((operation, mask, id(frame.f_globals), frame.f_lasti), {})
        values[thread.lane] = value
        if len(values) == (mask & warp.alive).bit_count():
            self._pass_exchanges(warp)
        self._wait((operation, mask))
        return values

    def _pass_exchanges(self, warp):
        for key, values in list(warp.exchanges.items()):
            lanes = key[1] & warp.alive
            if len(values) == lanes.bit_count():
                del warp.exchanges[key]
                warp.meetings.append(lanes)
                self.ready.extend(warp.threads[lane] for lane in reversed(values))

    def _pass_barrier(self, block):
        if not block.waiting or len(block.waiting) < block.alive:
            return
        self.ready.extend(reversed(block.waiting))
        block.waiting.clear()
        for array in block.shared.values():
            array.readers.clear()
            array.writers.clear()
        for warp in block.warps:
            warp.meetings.clear()

    # The scheduler: a thread that waits hands over to the next ready one, or to `run` if there is none.

    def _wait(self, what):
        thread = self.current
        thread.waits = what
        if not self.ready or not self.ready[-1]:  # A greenlet begun by another goes on counting its recursion.
            self.hub.switch()
        else:
            following = self.current = self.ready.pop()
            if following is not thread:
                following.switch()

    def run(self, block, order):
        """Run all threads of a block to their ends."""
        self.hub = getcurrent()
        self.ready[:] = block.threads if order == "reversed" else reversed(block.threads)
        context = contextvars.copy_context()  # A new greenlet has an empty one, in which NumPy warns.
        for thread in block.threads:
            thread.gr_context = context
        try:
            while self.ready:
                self.current = self.ready.pop()
                self.current.switch()
                if self.current.dead:
                    self._exit(self.current)
            if block.alive:
                raise BarrierError(_stuck(block))
        except OutOfBounds as error:
            raise OutOfBounds(f"{error} ({self.current})") from error
        finally:
            for thread in filter(None, block.threads):  # Those begun and not over: there was an error.
                thread.throw()

    def _exit(self, thread):
        block, warp = thread.block, thread.warp
        block.alive -= 1
        warp.alive &= ~thread.bit
        if warp.exchanges:
            self._pass_exchanges(warp)
        self._pass_barrier(block)


def _stuck(block):
    """Say for every thread that is left what it waits for."""
    groups = {}
    for thread in block.threads:
        if not thread.dead:
            operation, mask = thread.waits
            what = f"{operation} of the lanes {mask:#x}" if mask else operation
            groups.setdefault(f"{what} at {thread.where()}", []).append(tuple(thread.index))
    lines = [f"threads {', '.join(map(str, indices))} wait for {what}" for what, indices in groups.items()]
    return f"block {tuple(block.index)}: {block.alive} threads wait for others that never come\n" + "\n".join(lines)


def _dtype(kind):
    return kind.dtype if isinstance(kind, Integer) else np.dtype(kind)


def _poisoned(count, kind):
    """An array of all bits set: NaN in every floating type."""
    return np.full(count * kind.itemsize, 0xFF, np.uint8).view(kind)


def _local_array(shape, dtype, alignment=None):
    return Pointer(_poisoned(*shape if isinstance(shape, tuple) else (shape,), _dtype(dtype)), "a local array")


# --- launching -------------------------------------------------------------------------------------------------------


_BINDERS = {}


def _bound(function, replacements):
    """The emulated function and its namespace: the same ones again as long as nothing it names has changed."""
    key = function, frozenset(replacements.items())
    if key not in _BINDERS or not _BINDERS[key].current():
        cuda = Cuda()
        cuda.binder = _BINDERS[key] = Binder({**replacements, numba.cuda: cuda})
    return _BINDERS[key].bind(function), _BINDERS[key].replacements[id(numba.cuda)]


def _extent(size, kind):
    index = Index(*map(int, size if isinstance(size, tuple) else (size,)))
    if not all(1 <= n <= most for n, most in zip(index, LIMITS[kind], strict=True)):
        raise ValueError(f"{kind} {size}: CUDA takes 1 to {LIMITS[kind]}")
    return index


def _indices(size):
    return [Index(x, y, z) for z, y, x in itertools.product(range(size.z), range(size.y), range(size.x))]


def launch(function, grid, block, args, *, replacements=None, order="forward"):
    """Run a kernel on every thread of a grid; `replacements` maps intrinsics and the like to Python functions."""
    function = getattr(function, "py_func", function)
    bound, cuda = _bound(function, dict(replacements or {}))
    cuda.gridDim, cuda.blockDim = size, threads = _extent(grid, "grid"), _extent(block, "block")
    if math.prod(threads) > LIMITS["block"][0]:
        raise ValueError(f"block {block}: CUDA takes {LIMITS['block'][0]} threads")
    names = function.__code__.co_varnames  # The parameters come first.
    named = [
        Pointer(a.values, a.name or name) if isinstance(a, Pointer) else a for a, name in zip(args, names, strict=False)
    ]
    with np.errstate(all="ignore"):
        for index in _indices(size)[:: -1 if order == "reversed" else 1]:
            cuda.run(Block(cuda, functools.partial(bound, *named), index), order)
