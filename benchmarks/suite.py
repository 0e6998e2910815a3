"""asv: the time of each op of the table, by direction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import normnumba
from benchmarks import device
from benchmarks.selection import every_cell, find_cell


@lru_cache(maxsize=1)
def prepared(cell: str) -> Callable[[], Any]:
    """A call that is compiled and warm, on inputs made once: asv runs `setup` before every single timed call."""
    found = find_cell(cell)
    function = getattr(normnumba, found.op.function, None)
    arguments = found.arguments() if function else {}
    if function is None or not set(arguments) <= set(inspect.signature(function).parameters):
        raise NotImplementedError(f"this commit has no {found.op.name}")

    def call() -> Any:
        return function(**arguments)

    for _ in range(3):
        call()
    return call


class _Cells:
    """One benchmark per direction; the parameter names op, shape, axis and dtype."""

    # A fixed version, or asv forgets the history whenever this file changes.
    version = "1"
    param_names = ("cell",)
    # 20 samples at least and 200 at most, in half a second: with 200, a 7 us call repeats within half a percent.
    repeat = (20, 200, 0.5)
    number = 1
    timeout = 120.0

    def setup(self, cell: str) -> None:
        self.call = prepared(cell)


@lru_cache(maxsize=1)
def prepared_on_device(cell: str) -> Callable[[], Any]:
    """The same on a CUDA device, until it is done."""
    problem = device.problem()
    if problem is not None:
        raise NotImplementedError(problem)
    found, on = find_cell(cell), device.Device()
    contender = on.ours(found.op.function, found.arguments())

    def call() -> None:
        contender.call()
        on.synchronize()

    for _ in range(3):
        call()
    return call


def _of(direction: str) -> list[str]:
    return [str(cell) for cell in every_cell() if cell.op.direction == direction]


class Forward(_Cells):
    params = _of("forward")

    def time_forward(self, cell: str) -> None:
        self.call()


class Backward(_Cells):
    params = _of("backward")

    def time_backward(self, cell: str) -> None:
        self.call()


class Inference(_Cells):
    params = _of("inference")

    def time_inference(self, cell: str) -> None:
        self.call()


class Moments(_Cells):
    params = _of("moments")

    def time_moments(self, cell: str) -> None:
        self.call()


class Cuda(_Cells):
    """On a CUDA device; asv shows n/a where there is none, or where its environment has no numba-cuda."""

    params = (
        "rms_norm_forward 16384x4096@-1 bfloat16",
        "rms_norm_backward 16384x4096@-1 bfloat16",
        "batch_norm_forward 64x256x56x56@1 bfloat16",
        "batch_norm_backward 64x256x56x56@1 bfloat16",
    )

    def setup(self, cell: str) -> None:
        self.call = prepared_on_device(cell)

    def time_cuda(self, cell: str) -> None:
        self.call()
