"""normnumba on a CUDA device beside whatever else runs there, next to the device's own copy.

Every contender allocates its outputs as it comes, and is timed where its results agree with the reference.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks import device, numpy_peer, torch_peer, verify
from benchmarks.cases import Arguments, Op, data_of, dtype_of
from benchmarks.contender import Contender
from benchmarks.device import Device
from benchmarks.device_time import MOST_CALLS, DeviceTiming, side_by_side
from benchmarks.measure import Call, Effort
from benchmarks.peers import Prepare, admit, against_peers
from benchmarks.published import published
from benchmarks.selection import Cell
from normnumba import reference

FRAMEWORKS = ("torch", "torch_compile", "cudnn")
PLAIN = "cupy"
"""A formula in the array's own dtype, as NumPy's on the host; it counts as no framework."""

CACHES = 4
"""How many times the inputs that are taken in turn fill the last cache."""


# --- contenders ------------------------------------------------------------------------------------------------------


def prepare_cudnn(op: Op, arguments: Arguments) -> Contender | None:
    """Batch norm as torch's layers have it on CUDA: by cuDNN. torch's own kernels are the contender "torch"."""
    aten, given = torch_peer.torch.ops.aten, torch_peer.given_to(arguments, device.TORCH_DEVICE)
    plain = {"x", "weight", "bias"}
    if op.name not in ("batch_norm_forward", "batch_norm_backward"):
        return None

    def forward(x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        return aten.cudnn_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)

    def backward(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, reserve: Any) -> tuple[Any, ...]:
        return aten.cudnn_batch_norm_backward(x, dy, weight, None, None, mean, rstd, 1e-5, reserve)

    if op.name == "batch_norm_forward":
        return Contender(partial(forward, **given), lambda r: torch_peer.outputs_of(op, arguments, r[:3]))
    *_, reserve = forward(**{k: v for k, v in given.items() if k in plain})
    del given["bias"]
    return Contender(partial(backward, **given, reserve=reserve), partial(torch_peer.outputs_of, op, arguments))


def prepare_cupy(op: Op, arguments: Arguments) -> Contender | None:
    """NumPy's formula, which NumPy hands on to CuPy for CuPy's arrays."""
    import cupy

    if not hasattr(numpy_peer, op.function):
        return None
    given = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}

    def outputs(result: Any) -> tuple[Any, ...]:
        found = result if isinstance(result, tuple) else (result,)
        return tuple(cupy.asnumpy(a) if isinstance(a, cupy.ndarray) else a for a in found)

    return Contender(partial(getattr(numpy_peer, op.function), **given), outputs)


PEERS: dict[str, Prepare] = {
    "torch": lambda op, arguments: torch_peer.prepare(op, arguments, device.TORCH_DEVICE),
    "torch_compile": lambda op, arguments: torch_peer.prepare_compiled(op, arguments, device.TORCH_DEVICE),
    "cudnn": prepare_cudnn,
    "cupy": prepare_cupy,
}


def obstacle(name: str, on: Device) -> str | None:
    """Why a peer cannot run on a device; None where it can."""
    if name == "cupy":
        return None if importlib.util.find_spec("cupy") else "CuPy is not installed"
    if on.torch is None:
        return "torch is not installed, or sees no device"
    if name == "torch_compile" and not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if name == "cudnn" and not on.torch.backends.cudnn.is_available():
        return "torch has no cuDNN here"
    return None


def load(on: Device) -> tuple[dict[str, Prepare], dict[str, str]]:
    """The peers that can run, and why the others cannot."""
    missing = {name: problem for name in PEERS if (problem := obstacle(name, on))}
    return {name: prepare for name, prepare in PEERS.items() if name not in missing}, missing


def sets_of(nbytes: int, cache: int) -> int:
    """How many copies of inputs of `nbytes` to take in turn, so that none is in the cache when it is taken again."""
    return max(2, min(MOST_CALLS, math.ceil(CACHES * cache / max(nbytes, 1))))


def in_turn(call: Call, clone: Callable[[Any], Any], count: int) -> list[Call]:
    """The same call on `count` copies of its arrays."""
    assert isinstance(call, partial), "a contender on a device is a function and its arguments"

    def copied() -> dict[str, Any]:
        return {k: clone(v) if hasattr(v, "dtype") else v for k, v in call.keywords.items()}

    return [call, *(partial(call.func, *call.args, **copied()) for _ in range(count - 1))]


# --- cases -----------------------------------------------------------------------------------------------------------


class WrongResult(Exception):
    """normnumba's result is not the reference's."""


class Comparison:
    """One cell with all that can compute it on a device, prepared and checked once."""

    def __init__(self, cell: Cell, on: Device, peers: dict[str, Prepare]) -> None:
        self.cell, self.device = cell, on
        arguments = cell.arguments()
        want = cell.op(reference, arguments)
        ours = on.ours(cell.op.function, arguments)
        errors = verify.errors_between(cell.op, arguments, want, ours.outputs(ours.call()))
        output, self.error = max(errors.items(), key=lambda item: item[1])
        if not self.error <= verify.TOLERANCE[cell.dtype]:
            raise WrongResult(f"{output} is off by {self.error:.3g} eps")
        admitted, self.left_out = admit(cell, arguments, peers, want)
        sets = sets_of(sum(a.nbytes for a in arguments.values() if isinstance(a, np.ndarray)), on.cache)
        self.calls = {name: in_turn(call, on.clone, sets) for name, call in ({"ours": ours.call} | admitted).items()}
        self.moved = cell.op.transfers * data_of(arguments).nbytes
        self.calls["copy"] = on.copies(max(self.moved // 2, 1), sets)

    def time(self, effort: Effort) -> dict[str, Any]:
        """One row of reports/cuda.json."""
        timings = side_by_side(self.device, self.calls, effort)
        return {**summarize(self.cell, timings), "error": self.error, "left_out": self.left_out}


def _seconds(timings: Mapping[str, DeviceTiming], kind: str, names: Collection[str]) -> dict[str, float]:
    return {name: getattr(timings[name], kind).seconds for name in names}


def summarize(cell: Cell, timings: Mapping[str, DeviceTiming]) -> dict[str, Any]:
    """What the timings of a cell say. GB/s counts `Op.transfers`, as everybody who publishes them does."""
    moved = cell.op.transfers * cell.geometry.size * dtype_of(cell.dtype).itemsize
    kernels = {name: timing.kernel for name, timing in timings.items()}
    calls = {name: timing.call for name, timing in timings.items()}
    return {
        **cell.as_dict(),
        "bytes_moved": moved,
        "seconds": _seconds(timings, "kernel", timings),
        "call_seconds": _seconds(timings, "call", timings),
        "spread": {name: round(timing.spread, 3) for name, timing in kernels.items()},
        "waited": [name for name, timing in timings.items() if timing.waited],
        "gbs": moved / kernels["ours"].seconds / 1e9,
        "copy_gbs": moved / kernels["copy"].seconds / 1e9,
        "percent_of_copy": 100 * kernels["copy"].ratio_to(kernels["ours"]),
        **against_peers(kernels, FRAMEWORKS, PLAIN),
        "call_times": against_peers(calls, FRAMEWORKS, PLAIN)["times"],
        "published": published(cell),
    }
