"""normnumba and whatever else is installed side by side in one process, next to the streaming ceiling.

Fresh pages of memory cost as much as a kernel, so there are three ways of calling normnumba. `ours` allocates its
outputs, as its peers do, and is what is compared with them. `ours_reused` does so under `reuse_outputs`, and is what is
compared with a framework that keeps the memory of its outputs from call to call; small arrays have no such way.
`ours_out` writes its large output into an existing array, as the ceiling does, and another that it may have into reused
memory; it gives GB/s and percent of the ceiling. An op without a large output has the first way only.

Every framework runs as it comes, on as many threads as numba. Up to 32 MiB, NumPy, torch and `ours` get the pages of
the call before from malloc. A framework is timed where its results agree with the reference.
"""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from contextvars import copy_context
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

import normnumba
from benchmarks import ceiling, jax_peer, numpy_peer, onnx_peer, torch_peer
from benchmarks.cases import Arguments, Op, data_of
from benchmarks.contender import Contender, Outputs, disagreement
from benchmarks.machine import Others, numba_threads, private_cache
from benchmarks.measure import Call, Effort, Timing, side_by_side
from benchmarks.selection import SMALL_BYTES, Cell, size_class
from normnumba import reference
from normnumba.pool import SMALLEST

NOT_COMPILED = f"not timed below {SMALL_BYTES >> 10} KiB without --full, nor in quick runs"
"""Why torch.compile misses small cells: it takes a second a cell, to find that its guards alone cost 20 us a call."""

KEEPING = ("onnxruntime",)
"""The frameworks that keep the memory of their outputs from call to call."""

Prepare = Callable[[Op, Arguments], Contender | None]

PEERS: dict[str, tuple[ModuleType, Prepare]] = {
    "torch": (torch_peer, torch_peer.prepare),
    "torch_compile": (torch_peer, torch_peer.prepare_compiled),
    "jax": (jax_peer, jax_peer.prepare),
    "onnxruntime": (onnx_peer, onnx_peer.prepare),
}
"""The frameworks whose fastest we want to beat. NumPy is timed beside them and is none of them."""


def obstacle(name: str, threads: int) -> str | None:
    """Why a peer cannot run here; None where it can, and is loaded then."""
    if name == "torch_compile" and not shutil.which("g++"):
        return "there is no g++"
    try:
        PEERS[name][0].load(threads)
    except ImportError as problem:
        return f"{problem.name} is not installed"
    return None


def load() -> tuple[dict[str, Prepare], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    threads = numba_threads()[0]
    missing = {name: problem for name in PEERS if (problem := obstacle(name, threads))}
    return {name: prepare for name, (_, prepare) in PEERS.items() if name not in missing}, missing


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def large_outputs(cell: Cell, outputs: tuple[Any, ...]) -> int:
    """How many different arrays of x's size an op returned."""
    large = {id(a) for a in outputs if isinstance(a, np.ndarray) and a.size == cell.geometry.size and a.ndim > 0}
    # (C,) statistics are as large as x where each has one element; they are not what moves the bytes.
    return min(len(large), 0 if cell.op.direction == "moments" else cell.op.transfers // 2)


def our_calls(cell: Cell, arguments: Arguments) -> dict[str, Call]:
    """normnumba in its ways, and NumPy."""
    ours = getattr(normnumba, cell.op.function)
    calls: dict[str, Call] = {"ours": partial(ours, **arguments)}
    into = {}
    if cell.op.direction != "moments" and "out" in inspect.signature(ours).parameters:
        into["ours_out"] = partial(ours, **arguments, out=np.zeros_like(data_of(arguments)))
    if cell.op.direction != "moments" and cell.x_bytes >= SMALLEST:
        context = copy_context()  # where outputs are reused, as long as there is a call that runs in it
        context.run(normnumba.reuse_outputs().__enter__)
        into = {name: partial(context.run, call) for name, call in {"ours_reused": calls["ours"], **into}.items()}
    calls |= into
    if hasattr(numpy_peer, cell.op.function):
        calls["numpy"] = lambda: cell.op(numpy_peer, arguments)
    return calls


def admit(
    cell: Cell, arguments: Arguments, peers: dict[str, Prepare], want: Outputs | None = None
) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers that compute the cell as the reference does, or `want` if that is at hand, and why others do not."""
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    want = cell.op(reference, arguments) if want is None else want
    for name, prepare in peers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.compile warns of its own deprecations
                contender = prepare(cell.op, arguments)
                if contender is None:
                    continue
                problem = disagreement(cell.op, arguments, want, contender.outputs(contender.call()))
        except Exception as error:  # whatever a framework says, the others are timed
            problem = in_short(error)
        if problem is None:
            calls[name] = contender.call
        else:
            left_out[name] = problem
    return calls, left_out


class Comparison:
    """One cell with all that can compute it, prepared and checked once and timed as often as asked."""

    def __init__(self, cell: Cell, peers: dict[str, Prepare], compile_from: float = 0) -> None:
        self.cell = cell
        skipped = {} if cell.x_bytes >= compile_from else {"torch_compile": NOT_COMPILED}
        arguments = cell.arguments()
        writes = large_outputs(cell, cell.op(normnumba, arguments))
        self.moved = cell.op.bytes_moved(cell.geometry, data_of(arguments).dtype, private_cache())
        transfers = self.moved // cell.x_bytes if cell.x_bytes else cell.op.transfers
        self.ways = ceiling.ceiling_calls(
            cell.x_bytes, cell.op.transfers - writes, writes, transfers - cell.op.transfers
        )
        taking_part = {name: prepare for name, prepare in peers.items() if name not in skipped}
        admitted, wrong = admit(cell, arguments, taking_part)
        self.left_out = {name: reason for name, reason in (skipped | wrong).items() if name in peers}
        self.calls = our_calls(cell, arguments) | admitted

    def time(self, effort: Effort) -> dict[str, Any]:
        """One row of reports/peers.json."""
        others = Others()
        timings = side_by_side({**self.calls, **{f"ceiling {name}": call for name, call in self.ways.items()}}, effort)
        disturbance = others.cores()
        top = ceiling.best({name: timings[name] for name in timings if name.startswith("ceiling")})
        kept = {name: timings[name] for name in self.calls} | {"ceiling": timings[top]}
        row = summarize(self.cell, self.moved, kept, top.split()[1])
        return {**row, "left_out": self.left_out, "others": round(disturbance, 2)}


def against_peers(
    timings: Mapping[str, Timing], frameworks: Collection[str] = tuple(PEERS), plain: str = "numpy"
) -> dict[str, Any]:
    """Each peer's time over ours, and which framework is the fastest; the `plain` formula is none."""
    ours = timings["ours"]
    alike = dict.fromkeys(KEEPING, timings.get("ours_reused", ours))
    times = {name: timings[name].ratio_to(alike.get(name, ours)) for name in (*frameworks, plain) if name in timings}
    fastest = min((name for name in times if name in frameworks), key=lambda name: times[name], default=None)
    return {"times": times, "fastest_peer": fastest, "times_fastest": times[fastest] if fastest else None}


def summarize(cell: Cell, moved: int, timings: dict[str, Timing], ceiling_way: str) -> dict[str, Any]:
    """What the timings of a cell say."""
    streamed = timings.get("ours_out", timings["ours"])
    return {
        **cell.as_dict(),
        "size": size_class(cell),
        "bytes_moved": moved,
        "transfers": moved // max(cell.x_bytes, 1),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "into_out": "ours_out" in timings,
        "gbs": moved / streamed.seconds / 1e9,
        "ceiling_gbs": moved / timings["ceiling"].seconds / 1e9,
        "ceiling_way": ceiling_way,
        "percent_of_ceiling": 100 * timings["ceiling"].ratio_to(streamed),
        **against_peers(timings),
    }
