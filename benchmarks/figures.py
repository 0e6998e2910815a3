"""Numbers for people: how a time, a rate or a ratio is written, and what the cases of a run say together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import DISTURBED
from benchmarks.selection import SIZES, SMALL_BYTES

TITLES = {
    "torch": "torch eager",
    "torch_compile": "torch.compile",
    "jax": "JAX jit",
    "onnxruntime": "ONNX Runtime",
    "cudnn": "cuDNN",
    "numpy": "NumPy",
    "cupy": "CuPy",
}
"""The peers as people know them, in the order of tables."""

SHORT = {
    **{"torch": "torch", "torch_compile": "compile", "jax": "JAX", "onnxruntime": "ORT"},
    **{"cudnn": "cuDNN", "numpy": "NumPy", "cupy": "CuPy"},
}
"""The same where there is little room."""

SIZE_TITLES = dict(zip(SIZES, ("small calls", "in cache", "in memory"), strict=True))
"""The sizes of cases in a table's head."""

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


def number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def label(case: dict[str, Any]) -> str:
    """A case in one line; the usual dtype goes without saying."""
    dtype = "" if case["dtype"] == "float32" else f" {case['dtype']}"
    return f"{case['op']} {case['geometry']}{dtype}"


def streams(case: dict[str, Any]) -> bool:
    """Whether the case is large enough for its percentage of the ceiling to mean something."""
    return case["x_bytes"] >= STREAMING_BYTES


def title(peer: str) -> str:
    """A peer's name for people."""
    return TITLES.get(peer, peer)


def ratio(case: dict[str, Any], peer: str) -> float | None:
    """A peer's time over ours; of the fastest framework where `peer` is "fastest"."""
    return case["times_fastest"] if peer == "fastest" else case["times"].get(peer)


def fastest(case: dict[str, Any]) -> str:
    """The fastest framework and its time over ours, in short."""
    return f"{SHORT[case['fastest_peer']]} {times(case['times_fastest'])}" if case["fastest_peer"] else "-"


def peers_of(cases: Iterable[dict[str, Any]]) -> list[str]:
    """The peers that any of the cases was compared with."""
    return [name for name in TITLES if any(name in case["times"] for case in cases)]


def frameworks(peers: Iterable[str]) -> str:
    """The names of those that compete for being the fastest."""
    return ", ".join(title(name) for name in peers if name not in ("numpy", "cupy"))


def left_out(cases: Iterable[dict[str, Any]]) -> list[str]:
    """Which peers were left out where, and why, in one line a peer and reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for peer, reason in case["left_out"].items():
            where.setdefault((peer, reason), []).append(label(case))
    return [
        f"Without {title(peer)} ({reason}): {', '.join(labels[:3])}"
        + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
        for (peer, reason), labels in where.items()
    ]


def disturbance(case: dict[str, Any]) -> float:
    """How far other processes, or rounds that disagree, spoil a case's ratios: beyond 1 these say little."""
    deciding = ("ours", "ours_out", "ceiling", "torch", case["fastest_peer"])
    spread = max(case["spread"].get(name, 0.0) for name in deciding)
    return max(spread / UNSTEADY, case["others"] / DISTURBED)


def unsteady(case: dict[str, Any]) -> bool:
    return disturbance(case) > 1


def doubtful_on_device(case: dict[str, Any]) -> bool:
    """Whether the times that decide a case of a GPU spread too far, or are of a device that waited for the host."""
    deciding = {"ours", "copy", case["fastest_peer"]}
    waited = not deciding.isdisjoint(case["waited"])
    return waited or max(case["spread"].get(name, 0.0) for name in deciding) > UNSTEADY


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

    def __str__(self) -> str:
        return (
            f"Against {'the fastest framework' if self.peer == 'fastest' else title(self.peer)}: {self.faster} of "
            f"{self.count} faster, {self.level} level, {len(self.slower)} slower; median {times(self.median)}."
        )


def tally(cases: list[dict[str, Any]], peer: str) -> Tally | None:
    """Compare with `peer`, or with the "fastest" framework of each case; None where no steady case has it."""
    found = [(value, case) for case in cases if (value := ratio(case, peer)) is not None and not unsteady(case)]
    if not found:
        return None
    ratios = [value for value, _ in found]
    slower = [case for value, case in sorted(found, key=lambda pair: pair[0]) if value < 1 - LEVEL]
    faster = sum(value > 1 + LEVEL for value in ratios)
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


def tallies(cases: list[dict[str, Any]]) -> list[str]:
    """How the cases compare with the fastest framework, torch and NumPy, in a line each."""
    found = (tally(cases, peer) for peer in ("fastest", "torch", "numpy"))
    return [str(one) for one in found if one]


def _count(cases: Sequence[Any]) -> str:
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''}"


def _worst(cases: list[dict[str, Any]], peer: str) -> str:
    """The geometric mean of the ratios to a peer, and the lowest, in words."""
    found = [(value, label(case)) for case in cases if (value := ratio(case, peer)) is not None]
    if not found:
        return "nothing to compare with"
    mean = statistics.geometric_mean(value for value, _ in found)
    low, where = min(found)
    return f"{times(mean)} on geometric average, {times(low)} at worst ({where})"


def _median_ceiling(cases: list[dict[str, Any]], *directions: str) -> str:
    found = [case["percent_of_ceiling"] for case in cases if case["direction"] in directions]
    return f"{percent(statistics.median(found) if found else None)} ({_count(found)})"


def classes(cases: list[dict[str, Any]]) -> list[str]:
    """What the steady cases of each size say, in a line each."""
    of = {size: [case for case in cases if case["size"] == size and not unsteady(case)] for size in SIZES}
    small, cache, memory = (of[size] for size in SIZES)
    lines = (
        f"Small calls, x below {nbytes(SMALL_BYTES)}, {_count(small)}: "
        f"against torch eager {_worst(small, 'torch')}; against the fastest {_worst(small, 'fastest')}.",
        f"Within the last-level cache, {_count(cache)}: against the fastest {_worst(cache, 'fastest')}.",
        f"Beyond the last-level cache, {_count(memory)}: median of the ceiling, forward "
        f"{_median_ceiling(memory, 'forward', 'inference')}, backward {_median_ceiling(memory, 'backward')}; "
        f"against the fastest {_worst(memory, 'fastest')}.",
    )
    return [line for line, cases in zip(lines, (small, cache, memory), strict=True) if cases]


def ceiling_median(cases: list[dict[str, Any]]) -> float | None:
    """The median percentage of the ceiling over the cases that stream."""
    found = [case["percent_of_ceiling"] for case in cases if streams(case) and not unsteady(case)]
    return statistics.median(found) if found else None
