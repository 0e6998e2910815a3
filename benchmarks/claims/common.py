"""What measures have in common: the sweep, what counts, and what is read from a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.decide import DIGITS, Test
from benchmarks.claims.runs import NORMS, Grid
from benchmarks.claims.study import Line
from benchmarks.claims.training import EVERY

Array = Any
Record = Mapping[str, Any]

RATES = (0.003, 0.01, 0.018, 0.03, 0.056, 0.1, 0.18, 0.3, 0.56, 1.0, 1.8, 3.0)
SWEEP = Grid(norm=NORMS, rate=RATES)
UNTUNED = Grid(norm=NORMS, rate=0.03)
"""All at the rate that was the plain net's best in a pilot, with other seeds than the study's."""

RATE_AXIS = "learning rate (seeds for tuning)"
SCORE = "test digits right, %"

# --- the smallest effects that count ---

FACTOR = float(np.log2(1.1))

FASTER = Test("doublings of speed", FACTOR)
WHY_FASTER = "A factor of 1.1: a smaller gain is less than what a neighbouring learning rate or another seed changes."

POINT = Test("points", 1.0)
WHY_POINT = "One digit in a hundred: about what one seed differs from the next."

HALF = Test("points", 0.5)
WHY_HALF = "Half a point: two of the 359 test digits."

# --- what a record says ---

TARGET = 0.1
"""The training loss to be reached: some 97 of 100 training digits are right by then."""

WINDOW = 10
"""Steps over which a training loss is averaged: the loss of one batch is noise to a good part."""


def smooth_loss(record: Record) -> Array:
    """The mean loss of the last `WINDOW` batches, from the first step that has as many; infinite once it diverged."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(record["loss"], np.float64), WINDOW)
    with np.errstate(over="ignore"):
        return np.nan_to_num(windows.mean(axis=1), nan=np.inf, posinf=np.inf)


def steps_to_loss(record: Record, target: float) -> float:
    """Steps until the training loss is no more than `target`; a run that does not get there counts as its length."""
    reached = np.flatnonzero(smooth_loss(record) <= target)
    return float(reached[0] + WINDOW if len(reached) else len(record["loss"]))


def steps_to_score(record: Record, target: float) -> float:
    """The same until the test score is at least `target`, to the test after which it is."""
    reached = np.flatnonzero(np.asarray(record["score"]) >= target)
    return float((reached[0] + 1) * EVERY if len(reached) else len(record["loss"]))


def to_target(record: Record) -> float:
    return steps_to_loss(record, TARGET)


def to_score(record: Record) -> float:
    return steps_to_score(record, 95)


LAST = 5


def final_score(record: Record) -> float:
    """The last test's, of the net that the probes see."""
    return float(record["score"][-1])


WRONG = "test digits wrong, %"


def wrong(scores: Array) -> Array:
    """Of scores in percent, for a logarithmic axis: 0.1 where none is wrong, which is less than one of 359."""
    return np.maximum(100 - scores, 0.1)


def tested(scores: Array) -> Array:
    """The steps after which scores (..., tests) were taken."""
    return EVERY * np.arange(1, scores.shape[-1] + 1)


def last_score(record: Record) -> float:
    """The mean of the last `LAST` tests: where a single one falls is chance to a good part."""
    return float(np.mean(record["score"][-LAST:]))


# --- what a measure makes of it ---


def by(names: Sequence[Any], values: Array, summary: Callable[[Array], Any] = np.mean) -> dict[str, float]:
    """A number for each name: the mean over seeds, or another summary."""
    return {str(name): round(float(summary(value)), DIGITS) for name, value in zip(names, values, strict=True)}


def against_plain(values: Array, of: str = "") -> dict[str, Array]:
    """The values (norm, ...) of each norm minus the plain net's, under the names of tests: the norm's, then `of`."""
    return {f"{norm}{of}": value - values[0] for norm, value in zip(NORMS[1:], values[1:], strict=True)}


def doublings(values: Array, of: str = "") -> dict[str, Array]:
    """log2(the plain net's / each norm's), by the names of tests."""
    return against_plain(-np.log2(values), of)


def lines(names: Sequence[Any], x: Sequence[float], values: Array) -> list[Line]:
    """A line for each name from values (name, x, seed)."""
    return [Line(str(name), x, value.T) for name, value in zip(names, values, strict=True)]
