"""From the source of a kernel to its variants, and from a variant to a launch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from cuda.core import Stream
from numba import cuda, types

from .lowlevel import BYTES, pointer

LARGEST_GRID = 65535
"""Blocks along the second and third axis of a grid; along the first there may be 2^31 - 1."""

WARP = 32

WEIGHT, BIAS, OTHER, DX, DRESIDUAL, PARTS, MEAN, RSTD, STATS, SUMS = (1 << k for k in range(10))
"""Bits of a kernel's `present`, which says what is there: a kernel cannot tell a null pointer.

`other` is a residual or dsummed, SUMS are given, and PARTS, of the gradients of parameters, are wanted.
"""

WEIGHTED, ROUNDING, RECENTRE, PINNED, SQUARED = (1 << k for k in range(10, 15))
"""More of them: sums have the weight in them; xhat is rounded to x's type; xhat is centred again; the mean is 0; a
variance is given and not rstd.
"""

REGISTERS = 65536
"""Of a multiprocessor."""

SAFE = 256
"""Threads of a block that can be launched with as many registers as a thread may have, 255."""

NOTHING = np.empty(0)
"""Stands for an array that is not there."""


class Kernel(NamedTuple):
    """A variant: its source with its constants bound."""

    name: str
    function: Callable[..., None]
    signature: tuple[types.Type, ...]
    """The numba types of its parameters."""
    threads: int
    """The most that a block of its launches has."""

    @property
    def options(self) -> dict[str, int]:
        """What cuda.jit is told: so many registers that a block can be launched.

        launch_bounds would say the same, but makes ptxas spill a few bytes of kernels that are far from any limit.
        """
        return {"max_registers": REGISTERS // self.threads} if self.threads > SAFE else {}


def variants(source: Callable[..., Any]) -> Callable[..., Kernel]:
    """Turn a function of constants that returns a kernel, its signature and its threads into a factory of variants."""

    @functools.cache
    @functools.wraps(source)
    def variant(*constants: Any) -> Kernel:
        function, signature, threads = source(*constants)
        return Kernel("-".join((source.__name__, *map(str, constants))), function, tuple(signature), threads)

    return variant


def launch(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], place: Any, *args: Any) -> None:
    """Run a kernel on the stream of a place. Arrays become pointers, those on the host null pointers."""
    for kind, a in zip(kernel.signature, args, strict=True):
        if type(kind) is types.CPointer and is_there(a) and a.address % a.dtype.itemsize:
            what = f"an array of shape {a.shape} begins at an address that is no multiple of its elements'"
            raise ValueError(f"{what} {a.dtype.itemsize} bytes, which devices cannot read; copy it")
    run(kernel, grid, block, place, args)


def run(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], place: Any, args: tuple[Any, ...]) -> None:
    """Run it on a device: what tests put the emulator in the place of."""
    numbers = [_address(a) if type(t) is types.CPointer else a for t, a in zip(kernel.signature, args, strict=True)]
    with cuda.gpus[place.device]:
        # not through an indexed dispatcher, which warns of small grids and keeps streams alive
        _compiled(kernel).launch(numbers, grid, block, _stream(place.stream))


class _Readable:
    """What numba copies to the host, once the work on a stream is done."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.address, True),
            "version": 3,
            "stream": array.place.stream or 1,
        }


def fetch(array: Any) -> np.ndarray:
    """A copy of an array in C order on the host."""
    with cuda.gpus[array.place.device]:
        values = cuda.as_cuda_array(_Readable(array)).copy_to_host()
        cuda.synchronize()  # a copy on a stream may come back before it is done
        return values


@functools.lru_cache(64)
def _stream(handle: int) -> Any:
    return Stream.from_handle(handle)


def _address(array: Any) -> int:
    return array.address if is_there(array) else 0


def is_there(array: Any) -> bool:
    """Whether a kernel is to read or write it: what is on the host stands for ones, zeros or nothing."""
    return type(array) is not np.ndarray


_compiling = threading.Lock()


@functools.cache
def _dispatcher(kernel: Kernel) -> Any:
    return cuda.jit(types.void(*kernel.signature), **kernel.options)(kernel.function)


def _compiled(kernel: Kernel) -> Any:
    """A variant for the current device, and for others of its kind."""
    with _compiling:  # or two threads would compile it, and each keep its own
        return next(iter(_dispatcher(kernel).overloads.values()))


def number_of(dtype: np.dtype) -> types.Type:
    """The numba type that elements of a dtype are computed in."""
    return types.float64 if dtype.itemsize == 8 else types.float32


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype that elements of a dtype are computed in."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def pointers(*dtypes: np.dtype) -> tuple[types.Type, ...]:
    """The types of pointers to elements of these dtypes."""
    return tuple(map(pointer, dtypes))


def width_of(length: int, *arrays: Any) -> int:
    """How many elements of x a thread takes at a time: 16 bytes where all lines of all arrays begin at such addresses.

    Where elements have different sizes, the largest decide.
    """
    present = [a for a in arrays if is_there(a)]
    width = BYTES // max(a.dtype.itemsize for a in present)
    aligned = all(a.address % (width * a.dtype.itemsize) == 0 for a in present)
    return width if length % width == 0 and aligned else 1


def power_of_two(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()
