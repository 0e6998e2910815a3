"""Numbers for people: how a time, a rate or a ratio is written, and what the cases of a run say together."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import DISTURBED

LEVEL = 0.05
"""Times within this part of each other count as level: neither side is called faster."""

UNSTEADY = 0.25
"""A spread over rounds above which a time is called unsteady."""

STREAMING_BYTES = 1 << 20
"""From this size of x on, moving bytes is most of a call's time, and a percentage of the ceiling says something."""


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 999.5 * scale else f"{value / scale:.0f} {unit}"
    return f"{value / 1e-9:.0f} ns"


def nbytes(value: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def times(value: float | None) -> str:
    """A ratio of times."""
    return "-" if value is None else f"{value:.2f}x" if value < 9.995 else f"{value:.0f}x"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def label(case: dict[str, Any]) -> str:
    """A case in one line; the usual dtype goes without saying."""
    dtype = "" if case["dtype"] == "float32" else f" {case['dtype']}"
    return f"{case['op']} {case['geometry']}{dtype}"


def streams(case: dict[str, Any]) -> bool:
    """Whether the case is large enough for its percentage of the ceiling to mean something."""
    return case["x_bytes"] >= STREAMING_BYTES


def disturbance(case: dict[str, Any]) -> float:
    """How far other processes, or rounds that disagree, spoil a case's ratios: beyond 1 these say little."""
    spread = max(case["spread"].get(name, 0.0) for name in ("ours", "ours_out", "torch", "ceiling"))
    return max(spread / UNSTEADY, case["others"] / DISTURBED)


def unsteady(case: dict[str, Any]) -> bool:
    return disturbance(case) > 1


@dataclass(frozen=True)
class Tally:
    """How the steady cases of a run compare with one peer."""

    peer: str
    count: int
    faster: int
    level: int
    slower: list[dict[str, Any]]
    low: float
    median: float
    high: float


def tally(cases: list[dict[str, Any]], peer: str) -> Tally | None:
    """Compare with `peer` ("torch" or "numpy"); None where no steady case has it."""
    key = f"times_{peer}"
    with_peer = [case for case in cases if case[key] is not None and not unsteady(case)]
    if not with_peer:
        return None
    ratios = [case[key] for case in with_peer]
    slower = sorted((case for case in with_peer if case[key] < 1 - LEVEL), key=lambda case: case[key])
    faster = sum(ratio > 1 + LEVEL for ratio in ratios)
    return Tally(
        peer,
        len(ratios),
        faster,
        len(ratios) - faster - len(slower),
        slower,
        min(ratios),
        statistics.median(ratios),
        max(ratios),
    )


def ceiling_median(cases: list[dict[str, Any]]) -> float | None:
    """The median percentage of the ceiling over the cases that stream."""
    found = [case["percent_of_ceiling"] for case in cases if streams(case) and not unsteady(case)]
    return statistics.median(found) if found else None
