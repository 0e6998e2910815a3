"""`pytest benchmarks`: normnumba and its peers on the table, by pytest-benchmark; GB/s are in its extra_info.

For a quick look while working on a kernel: `pytest benchmarks -k "layer_norm_forward and 8192x768"`. What is published
comes from `python -m benchmarks`, which alternates the contenders. pytest is imported late: see `benchmarks`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import normnumba
from benchmarks import peers, selection
from benchmarks.cases import dtype_of
from benchmarks.measure import Effort, plan
from benchmarks.selection import Cell

CONTENDERS = ("ours", "ours_reused", "ours_out", "numpy", *peers.PEERS)


def pytest_generate_tests(metafunc: Any) -> None:
    metafunc.parametrize("contender", CONTENDERS)
    metafunc.parametrize("cell", selection.default_cells(), ids=str)


@lru_cache(maxsize=1)
def comparison(cell: Cell) -> peers.Comparison:
    return peers.Comparison(cell, peers.load()[0])


def test_speed(benchmark: Any, cell: Cell, contender: str) -> None:
    import pytest

    if not hasattr(normnumba, cell.op.function):
        pytest.skip(f"normnumba has no {cell.op.name} yet")
    call = comparison(cell).calls.get(contender)
    if call is None:
        reason = comparison(cell).left_out.get(contender, "not installed, or without such an op")
        pytest.skip(f"{contender} cannot compute {cell.op.name} here: {reason}")
    rounds, samples, batch = plan(call, Effort(rounds=1, block=0.1))
    benchmark.group = str(cell)
    benchmark.pedantic(call, rounds=rounds * samples, iterations=batch, warmup_rounds=1)
    if benchmark.stats:  # None under --benchmark-disable
        moved = cell.op.bytes_moved(cell.geometry, dtype_of(cell.dtype))
        benchmark.extra_info["GB/s"] = round(moved / benchmark.stats.stats.median / 1e9, 3)
