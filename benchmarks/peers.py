"""normnumba, NumPy and torch side by side in one process, next to the streaming ceiling.

Two ways of calling normnumba are timed. `ours` allocates its outputs, as NumPy and torch do, and is what is compared
with them. `ours_out` writes its large output into an existing array, as the ceiling does, and gives GB/s and percent of
it: fresh pages of memory cost as much as a kernel. An op without a large output has the first way only.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np

import normnumba
from benchmarks import ceiling, numpy_peer
from benchmarks.cases import Arguments, data_of
from benchmarks.machine import Others, numba_threads, private_cache
from benchmarks.measure import Call, Effort, Timing, side_by_side
from benchmarks.selection import Cell

FORMAT = 1
"""Version of what `compare` returns and reports/peers.json holds."""


def find_torch() -> ModuleType | None:
    """torch with as many threads as numba has, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(numba_threads()[0])
    return torch


def large_outputs(cell: Cell, outputs: tuple[Any, ...]) -> int:
    """How many different arrays of x's size an op returned."""
    large = {id(a) for a in outputs if isinstance(a, np.ndarray) and a.size == cell.geometry.size and a.ndim > 0}
    # (C,) statistics are as large as x where each has one element; they are not what moves the bytes.
    return min(len(large), 0 if cell.op.direction == "moments" else cell.op.transfers // 2)


def contenders(cell: Cell, arguments: Arguments, torch: ModuleType | None) -> dict[str, Call]:
    """Everything that can compute the cell, by name."""
    ours = getattr(normnumba, cell.op.function)
    calls: dict[str, Call] = {"ours": lambda: ours(**arguments)}
    if cell.op.direction != "moments" and "out" in inspect.signature(ours).parameters:
        out = np.zeros_like(data_of(arguments))
        calls["ours_out"] = lambda: ours(**arguments, out=out)
    if hasattr(numpy_peer, cell.op.function):
        calls["numpy"] = lambda: cell.op(numpy_peer, arguments)
    if torch is not None and cell.op.torch is not None:
        calls["torch"] = cell.op.torch(torch, arguments)
    return calls


def compare(cell: Cell, effort: Effort, torch: ModuleType | None) -> dict[str, Any]:
    """Time one cell against its peers and its ceiling."""
    arguments = cell.arguments()
    writes = large_outputs(cell, cell.op(normnumba, arguments))
    moved = cell.op.bytes_moved(cell.geometry, data_of(arguments).dtype, private_cache())
    transfers = moved // cell.x_bytes if cell.x_bytes else cell.op.transfers
    ways = ceiling.ceiling_calls(cell.x_bytes, cell.op.transfers - writes, writes, transfers - cell.op.transfers)
    calls = contenders(cell, arguments, torch)
    others = Others()
    timings = side_by_side({**calls, **{f"ceiling {name}": call for name, call in ways.items()}}, effort)
    disturbance = others.cores()
    top = ceiling.best({name: timings[name] for name in timings if name.startswith("ceiling")})
    kept = {name: timings[name] for name in calls} | {"ceiling": timings[top]}
    return {**summarize(cell, moved, kept, top.split()[1]), "others": round(disturbance, 2)}


def summarize(cell: Cell, moved: int, timings: dict[str, Timing], ceiling_way: str) -> dict[str, Any]:
    """One row of reports/peers.json."""
    ours = timings["ours"]
    streamed = timings.get("ours_out", ours)
    return {
        "op": cell.op.name,
        "family": cell.op.family,
        "direction": cell.op.direction,
        "geometry": str(cell.geometry),
        "dtype": cell.dtype,
        "x_bytes": cell.x_bytes,
        "bytes_moved": moved,
        "transfers": moved // max(cell.x_bytes, 1),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "into_out": "ours_out" in timings,
        "gbs": moved / streamed.seconds / 1e9,
        "ceiling_gbs": moved / timings["ceiling"].seconds / 1e9,
        "ceiling_way": ceiling_way,
        "percent_of_ceiling": 100 * timings["ceiling"].ratio_to(streamed),
        "times_torch": timings["torch"].ratio_to(ours) if "torch" in timings else None,
        "times_numpy": timings["numpy"].ratio_to(ours) if "numpy" in timings else None,
    }
