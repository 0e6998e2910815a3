"""Read what asv saved: the times of each benchmark over commits."""

from __future__ import annotations

import ast
import datetime
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """One value of one benchmark at one commit."""

    series: tuple[str, str]
    """Machine and environment: values of two are not comparable."""
    benchmark: str
    parameter: str
    commit: str
    date: datetime.datetime
    value: float
    """Seconds, bytes of memory, or steps of training."""
    version: str


def _parameter(texts: tuple[str, ...]) -> str:
    """asv keeps parameters as the repr of their values."""
    return ", ".join(str(ast.literal_eval(text)) if text[:1] in "'\"" else text for text in texts)


def _points_of(path: Path) -> Iterator[Point]:
    saved: dict[str, Any] = json.loads(path.read_text())
    date = datetime.datetime.fromtimestamp(saved["date"] / 1000, datetime.timezone.utc)
    for benchmark, row in saved["results"].items():
        # asv leaves out trailing columns that are empty.
        entry = dict(zip(saved["result_columns"], row, strict=False))
        values = entry.get("result") or []
        for texts, value in zip(itertools.product(*(entry.get("params") or [])), values, strict=False):
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield Point(
                    (path.parent.name, saved["env_name"]),
                    benchmark,
                    _parameter(texts),
                    saved["commit_hash"][:8],
                    date,
                    float(value),
                    str(entry.get("version")),
                )


def read(results: Path) -> list[Point]:
    """All points under `results`, oldest commit first; of a benchmark with several versions the newest alone."""
    points: list[Point] = []
    for path in sorted(results.glob("*/*.json")):
        if path.name != "machine.json":
            points += _points_of(path)
    points.sort(key=lambda point: point.date)
    newest = {point.benchmark: point.version for point in points}
    return [point for point in points if point.version == newest[point.benchmark]]


def lines(points: list[Point]) -> dict[tuple[str, str], dict[str, list[Point]]]:
    """Points by series and then by benchmark: a cell of the table by its own name, the others by their function's."""
    found: dict[tuple[str, str], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        cell = point.benchmark.startswith("suite.")
        name = point.parameter if cell else f"{point.benchmark.rpartition('.')[2]} {point.parameter}".strip()
        found[point.series][name].append(point)
    return {series: dict(members) for series, members in found.items()}
