"""What a claim is, and how its measure sees the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.claims.decide import Test
from benchmarks.claims.runs import Grid, Run

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
    grids: Mapping[str, Grid]
    timed: Mapping[str, Grid]
    """Runs of which a step's time is taken."""
    every: bool
    """Whether all tests have to hold, or any."""

    @property
    def method(self) -> str:
        return " ".join((self.measure.__doc__ or "").split())

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        return [run for grid in self.grids.values() for run in grid.runs(seeds)]


class Results:
    """The records of one claim's runs, and its steps' times.

    Parameters
    ----------
    seeds : sequence of int
        Those of the study.
    records : mapping
        From each run of the claim's grids to its record.
    seconds : mapping
        From each run of the claim's timed grids to the seconds of a step.
    """

    def __init__(
        self, claim: Claim, seeds: Sequence[int], records: Mapping[Run, Record], seconds: Mapping[Run, float]
    ) -> None:
        self.claim, self.seeds, self._records, self._seconds = claim, seeds, records, seconds

    def each(self, grid: str, metric: Callable[[Record], Any]) -> Array:
        """A metric of every run: an array (*grid, seeds, *metric)."""
        found = self.claim.grids[grid]
        values = np.array([metric(self._records[run]) for run in found.runs(self.seeds)])
        return values.reshape(*found.shape, len(self.seeds), *values.shape[1:])

    def seconds(self, grid: str) -> Array:
        """The seconds of a step: an array (*grid, seeds)."""
        found = self.claim.timed[grid]
        return np.array([self._seconds[run] for run in found.runs(self.seeds)]).reshape(*found.shape, len(self.seeds))


CLAIMS: dict[str, Claim] = {}
"""Every claim by its id, in the order in which the modules define them."""


def claim(
    id: str,
    says: str,
    tests: Mapping[str, Test],
    why_smallest: str,
    grids: Mapping[str, Grid] | None = None,
    timed: Mapping[str, Grid] | None = None,
    every: bool = True,
) -> Callable[[Callable[[Results], Findings]], Callable[[Results], Findings]]:
    """Enter a measure into the study."""

    def enter(measure: Callable[[Results], Findings]) -> Callable[[Results], Findings]:
        CLAIMS[id] = Claim(id, says, measure, tests, why_smallest, grids or {}, timed or {}, every)
        return measure

    return enter


# --- what measures have in common ---

WINDOW = 10
"""Steps over which a training loss is averaged: the loss of one batch is noise to a good part."""


def smooth_loss(record: Record) -> Array:
    """The mean loss of the last `WINDOW` batches, from the first step that has as many; infinite once it diverged."""
    loss = np.nan_to_num(np.asarray(record["loss"], np.float64), nan=np.inf, posinf=np.inf)
    sums = np.cumsum(np.concatenate([[0], loss]))
    with np.errstate(invalid="ignore"):
        means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    return np.nan_to_num(means, nan=np.inf, posinf=np.inf)


def steps_to_loss(record: Record, target: float) -> float:
    """Steps until the training loss is no more than `target`; a run that does not get there counts as its length."""
    reached = np.flatnonzero(smooth_loss(record) <= target)
    return float(reached[0] + WINDOW if len(reached) else len(record["loss"]))


def steps_to_score(record: Record, target: float) -> float:
    """The same until the test score is at least `target`, to the test after which it is."""
    every = len(record["loss"]) // len(record["score"])
    reached = np.flatnonzero(np.asarray(record["score"]) >= target)
    return float((reached[0] + 1) * every if len(reached) else len(record["loss"]))


LAST = 5


def last_score(record: Record) -> float:
    """The mean of the last `LAST` tests: where a single one falls is chance to a good part."""
    return float(np.mean(record["score"][-LAST:]))


def best(values: Array, least: bool = False, axes: int = 1) -> Array:
    """Which setting each seed is to be judged by, as an index: the one that is best on average over the OTHER seeds.

    So the best learning rate is chosen for every net by what is measured, and no seed has a say in its own.

    Parameters
    ----------
    values : ndarray
        (..., settings, seeds), where `axes` axes are settings.
    least : bool
        Whether little is good.

    Returns
    -------
    ndarray of int
        (..., seeds), an index into the settings, flattened.
    """
    flat = _flat_settings(values, axes)
    others = flat.sum(axis=-1, keepdims=True) - flat
    return others.argmin(axis=-2) if least else others.argmax(axis=-2)


def at(values: Array, chosen: Array, axes: int = 1) -> Array:
    """The values (..., settings, seeds) at the settings that `best` chose: (..., seeds)."""
    return np.take_along_axis(_flat_settings(values, axes), chosen[..., None, :], axis=-2)[..., 0, :]


def tuned(values: Array, least: bool = False, axes: int = 1) -> Array:
    """`at` the `best`."""
    return at(values, best(values, least, axes), axes)


def _flat_settings(values: Array, axes: int) -> Array:
    return values.reshape(*values.shape[: values.ndim - 1 - axes], -1, values.shape[-1])


def by(names: Sequence[Any], values: Array, summary: Callable[[Array], Any] = np.mean) -> dict[str, float]:
    """A number for each name: the mean over seeds, or another summary."""
    return {str(name): float(summary(value)) for name, value in zip(names, values, strict=True)}
