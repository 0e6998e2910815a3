"""What a claim is, and how its measure sees the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.claims.decide import Test
from benchmarks.claims.runs import Grid, Run, Tuned, seeded

Array = Any
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A curve with a band over seeds: the median, and the middle 80 percent."""

    label: str
    x: Sequence[float]
    values: Array
    """(seeds, x)"""

    def as_dict(self) -> dict[str, Any]:
        low, median, high = np.quantile(self.values, (0.1, 0.5, 0.9), axis=0)
        return {
            "label": self.label,
            "x": [float(x) for x in self.x],
            "median": _short(median),
            "low": _short(low),
            "high": _short(high),
        }


@dataclass(frozen=True)
class Plot:
    """A chart of lines."""

    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    timed: bool = False
    """Whether it shows seconds."""

    def as_dict(self) -> dict[str, Any]:
        lines = [line.as_dict() for line in self.lines]
        return {
            "x": self.x,
            "y": self.y,
            "log_x": self.log_x,
            "log_y": self.log_y,
            "timed": self.timed,
            "lines": lines,
        }


def _short(values: Array) -> list[float]:
    """Six digits, which is more than a chart shows."""
    return [float(f"{value:.6g}") for value in values]


@dataclass(frozen=True)
class Findings:
    """What a claim's measure returns."""

    effects: Mapping[str, Array]
    """For each test of the claim, one number for each seed."""
    metrics: Mapping[str, Any]
    plots: Sequence[Plot] = ()
    timings: Mapping[str, Any] = field(default_factory=dict)
    """What was measured in seconds, and with it changes from run to run."""


@dataclass(frozen=True)
class Claim:
    """One sentence, and the experiment about it."""

    id: str
    says: str
    measure: Callable[[Results], Findings]
    """Its docstring is the method, as the page shows it."""
    tests: Mapping[str, Test]
    why_smallest: str
    grids: Mapping[str, Grid | Tuned]
    timed: Mapping[str, Grid]
    """Runs of which a step's time is taken."""
    every: bool
    """Whether all tests have to hold, or any."""

    @property
    def method(self) -> str:
        return " ".join((self.measure.__doc__ or "").split())


@dataclass(frozen=True)
class Seeds:
    """Those that decide, and those that only the choice of learning rates and the like depends on."""

    study: Sequence[int]
    tuning: Sequence[int]


class Results:
    """The records of one claim's runs, and its steps' times.

    Parameters
    ----------
    records : mapping
        From each run of the claim's grids to its record.
    seconds : mapping
        From each run of the claim's timed grids to the seconds of a step.
    """

    def __init__(self, claim: Claim, seeds: Seeds, records: Mapping[Run, Record], seconds: Mapping[Run, float]) -> None:
        self.claim, self.seeds, self._records, self._seconds = claim, seeds, records, seconds

    def first(self) -> list[Run]:
        """The runs that are known from the start: plain grids, and what is tuned."""
        return [
            run
            for grid in self.claim.grids.values()
            for run in (grid.grid.runs(self.seeds.tuning) if isinstance(grid, Tuned) else grid.runs(self.seeds.study))
        ]

    def second(self) -> list[Run]:
        """The runs that tuning chose."""
        return [run for name in self.claim.grids for run in seeded(self.settings(name), self.seeds.study)]

    def settings(self, grid: str) -> list[Run]:
        """The grid's settings, those that were chosen where it is tuned."""
        found = self.claim.grids[grid]
        return found.best(self._records, self.seeds.tuning) if isinstance(found, Tuned) else found.settings()

    def each(self, grid: str, metric: Callable[[Record], Any]) -> Array:
        """A metric of every run: an array (*grid, seeds, *metric), without the axes that were tuned."""
        return self._array(self.settings(grid), self.seeds.study, self.claim.grids[grid].shape, metric)

    def sweep(self, grid: str, metric: Callable[[Record], Any]) -> Array:
        """A metric of what was tuned: an array (*grid, tuning seeds, *metric) with all axes."""
        found = self.claim.grids[grid]
        assert isinstance(found, Tuned)
        return self._array(found.grid.settings(), self.seeds.tuning, found.grid.shape, metric)

    def _array(
        self, settings: Sequence[Run], seeds: Sequence[int], shape: tuple[int, ...], metric: Callable[[Record], Any]
    ) -> Array:
        values = np.array([metric(self._records[run]) for run in seeded(settings, seeds)])
        return values.reshape(*shape, len(seeds), *values.shape[1:])

    def seconds(self, grid: str) -> Array:
        """The seconds of a step: an array (*grid, seeds)."""
        found = self.claim.timed[grid]
        values = [self._seconds[run] for run in found.runs(self.seeds.study)]
        return np.array(values).reshape(*found.shape, -1)


CLAIMS: dict[str, Claim] = {}
"""Every claim by its id, in the order in which the modules define them."""


def claim(
    id: str,
    says: str,
    tests: Mapping[str, Test],
    why_smallest: str,
    grids: Mapping[str, Grid | Tuned] | None = None,
    timed: Mapping[str, Grid] | None = None,
    every: bool = True,
) -> Callable[[Callable[[Results], Findings]], Callable[[Results], Findings]]:
    """Enter a measure into the study."""

    def enter(measure: Callable[[Results], Findings]) -> Callable[[Results], Findings]:
        CLAIMS[id] = Claim(id, says, measure, tests, why_smallest, grids or {}, timed or {}, every)
        return measure

    return enter
