"""Every op against the float64 reference, before anything is timed.

An error is measured in units of the dtype's eps, relative to the output's scale: the largest reference value, at least
1, since data, weights and gradients of the table are normal draws. A sum over n elements wanders like sqrt(n) even
where it happens to end near zero, so its scale is at least that. dx is a difference of terms of size rstd, and all but
vanishes where few elements share a mean, so its scale is at least the largest rstd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.cases import DTYPES, RAGGED, Arguments, Op, data_of
from benchmarks.selection import Cell

TOLERANCE = {"float32": 32.0, "float64": 64.0, "float16": 2.0, "bfloat16": 2.0}
"""Allowed error in eps. Halves are computed in float32 and rounded once. float32 ops round a handful of times an
element and sum in blocks; in float64 the reference itself rounds as often as the op does, over sums that NumPy takes
pairwise."""

SUMS = {"dweight", "dbias", "sum_dy", "sum_dy_xhat"}
"""Outputs that are sums over many elements."""

SMALL = 1 << 20
"""Elements up to which the second dtype is verified without --full."""


@dataclass(frozen=True)
class Check:
    """The worst error of one op in one dtype."""

    op: str
    dtype: str
    cases: int
    error: float
    """In eps."""
    output: str
    where: str
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def least_scale(output: str, arguments: Arguments, want: Any) -> float:
    """The smallest scale for errors of an output: see this module's docstring."""
    if output in SUMS:
        return math.sqrt(data_of(arguments).size / max(np.size(want), 1))
    if output in ("dx", "dresidual") and "rstd" in arguments:
        return max(1.0, float(np.max(arguments["rstd"])))
    return 1.0


def error_of(got: Any, want: Any, dtype: np.dtype, least: float = 1.0) -> float:
    """The largest error of one output, in eps of `dtype`, on a scale of at least `least`.

    Infinite where shape, presence or finiteness differ.
    """
    if got is None or want is None:
        return 0.0 if got is want else math.inf
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return math.inf
    if want.size == 0:
        return 0.0
    difference = float(np.max(np.abs(got.astype(np.float64) - want)))
    scale = max(float(np.max(np.abs(want))), least)
    error = difference / scale / float(ml_dtypes.finfo(dtype).eps)
    return error if math.isfinite(error) else math.inf


def errors_of(cell: Cell, library: ModuleType, reference: ModuleType) -> dict[str, float]:
    """The error of every output of one cell."""
    arguments = cell.arguments()
    return errors_between(cell.op, arguments, cell.op(reference, arguments), cell.op(library, arguments))


def errors_between(op: Op, arguments: Arguments, want: Sequence[Any], got: Sequence[Any]) -> dict[str, float]:
    """The error of every output of an op."""
    if len(got) != len(op.outputs):
        return dict.fromkeys(op.outputs, math.inf)
    return {
        name: error_of(g, w, data_of(arguments).dtype, least_scale(name, arguments, w))
        for name, g, w in zip(op.outputs, got, want, strict=True)
    }


def cells_to_verify(ops: Iterable[Op], dtypes: Iterable[str] = DTYPES, full: bool = False) -> list[Cell]:
    """Ragged and timed shapes of the ops; the second dtype on the smaller ones unless `full`."""
    found = []
    for op in ops:
        for geometry in (*RAGGED[op.family], *op.shapes):
            small = full or geometry.size <= SMALL
            found += [Cell(op, geometry, dtype) for dtype in dtypes if small or dtype == DTYPES[0]]
    return found


def verify(
    cells: Iterable[Cell], library: ModuleType, reference: ModuleType, done: Callable[[Cell], None] = lambda cell: None
) -> list[Check]:
    """The worst error of each op in each dtype. `done` is called after every cell."""
    worst: dict[tuple[str, str], Check] = {}
    for cell in cells:
        key = cell.op.name, cell.dtype
        before = worst.get(key)
        try:
            output, error = max(errors_of(cell, library, reference).items(), key=lambda item: item[1])
        except Exception as problem:  # an op that raises has failed like one that is wrong, and the others go on
            output, error = f"{type(problem).__name__}: {problem}", math.inf
        cases = 1 + (before.cases if before else 0)
        if before and before.error >= error:
            worst[key] = Check(*key, cases, before.error, before.output, before.where, before.tolerance)
        else:
            worst[key] = Check(*key, cases, error, output, str(cell.geometry), TOLERANCE[cell.dtype])
        done(cell)
    return list(worst.values())


def failed_ops(checks: Iterable[Check]) -> set[str]:
    return {check.op for check in checks if not check.passed}


def smallest_cells(cells: Iterable[Cell]) -> list[Cell]:
    """For each op and dtype among `cells`, its ragged shapes: a check of a second, for runs that only time."""
    pairs = dict.fromkeys((cell.op, cell.dtype) for cell in cells)
    return [Cell(op, geometry, dtype) for op, dtype in pairs for geometry in RAGGED[op.family]]
