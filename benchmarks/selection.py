"""Which cells of the table a run takes: by default, quickly, or by filters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from benchmarks.cases import DEVICE_DTYPES, DTYPES, OPS, SMALL_ON_DEVICE, Arguments, Geometry, Op, dtype_of
from benchmarks.machine import last_level_cache

MAX_CELLS = 60
"""What asv times by default, at some 2.5 seconds a cell."""

QUICK_BYTES = 1 << 25
"""The largest x of a quick run."""

SMALL_BYTES = 1 << 16
"""An x below this is done before a second thread would help: what counts is the cost of a call."""

SIZES = ("small", "cache", "memory")
"""Cells by size: those of `SMALL_BYTES`, and those whose large arrays together fit the last-level cache or do not."""

HUGE_BYTES = 1 << 28
"""A larger x is timed only with --full or where its shape is asked for: its reference takes gigabytes."""

STARTUP_BENCHMARKS = ("startup.Import", "startup.FirstCall", "memory.Peak", "learning.Learning")
"""Prefixes of the benchmarks that are not cells of the table."""

FULL_STARTUP_BENCHMARKS = (*STARTUP_BENCHMARKS, "startup.CompileKernel", "startup.EveryKernel")
"""The same of a full run: compiling every kernel takes a minute or two."""


@dataclass(frozen=True)
class Cell:
    """One op on one shape in one dtype."""

    op: Op
    geometry: Geometry
    dtype: str

    def __str__(self) -> str:
        # asv keys history by this text: sizes and dtype stand in it, so that no cell ever changes meaning.
        return f"{self.op.name} {self.geometry} {self.dtype}"

    @property
    def x_bytes(self) -> int:
        return self.geometry.size * dtype_of(self.dtype).itemsize

    def as_dict(self) -> dict[str, Any]:
        """What the files of results call it."""
        return {
            "op": self.op.name,
            "family": self.op.family,
            "direction": self.op.direction,
            "geometry": str(self.geometry),
            "dtype": self.dtype,
            "x_bytes": self.x_bytes,
        }

    def arguments(self, seed: int = 0) -> Arguments:
        return self.op.arguments(self.geometry, dtype_of(self.dtype), np.random.default_rng(seed))


def every_cell(ops: Sequence[Op] = OPS, dtypes: Sequence[str] = DTYPES) -> list[Cell]:
    """The whole table."""
    return [Cell(op, geometry, dtype) for op in ops for geometry in op.shapes + op.more_shapes for dtype in dtypes]


def size_class(cell: Cell) -> str:
    """The name in `SIZES` that a cell belongs to."""
    if cell.x_bytes < SMALL_BYTES:
        return "small"
    return "memory" if cell.op.transfers * cell.x_bytes > last_level_cache() else "cache"


def find_cell(text: str) -> Cell:
    """The cell that `str` made `text` of."""
    return next(cell for cell in (*every_cell(), *device_cells(dtypes=DEVICE_DTYPES)) if str(cell) == text)


def by_priority(geometries: Sequence[Geometry]) -> list[Geometry]:
    """Largest, smallest, second largest, ...: memory speed and the cost of a call first, what lies between later."""
    ordered = sorted(geometries, key=lambda g: g.size)
    return [ordered.pop(-1 if i % 2 == 0 else 0) for i in range(len(ordered))]


def _deal(ops: Sequence[Op], limit: int, per_op: int = 1 << 30, max_bytes: float = math.inf) -> list[Cell]:
    """Deal shapes to the ops in turn, so that every op keeps its most telling shapes as the table grows."""
    hands = []
    for op in ops:
        cells = {geometry: Cell(op, geometry, DTYPES[0]) for geometry in op.shapes}
        fitting = [geometry for geometry, cell in cells.items() if cell.x_bytes <= max_bytes]
        hands.append([cells[geometry] for geometry in by_priority(fitting)][:per_op])
    dealt = _in_turn(hands)[:limit]
    return [cell for cell in every_cell(ops) if cell in set(dealt)]


def _in_turn(hands: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The first of every hand, the second of every hand, ..."""
    return [hand[i] for i in range(max(map(len, hands), default=0)) for hand in hands if i < len(hand)]


def device_cells(
    ops: Sequence[Op] = OPS, dtypes: Sequence[str] = DEVICE_DTYPES[:1], per_op: int | None = None
) -> list[Cell]:
    """What is timed on a CUDA device, in the order of interest: a run that is cut short has the most telling cells."""
    return _in_turn([[Cell(op, g, dtype) for g in op.device_shapes[:per_op]] for dtype in dtypes for op in ops])


def small_device_cells(ops: Sequence[Op] = OPS, dtypes: Sequence[str] = DEVICE_DTYPES[:2]) -> list[Cell]:
    """Every op on shapes that take each way through the kernels for devices, and next to no time."""
    return [Cell(op, geometry, dtype) for dtype in dtypes for op in ops for geometry in SMALL_ON_DEVICE[op.family]]


def default_cells(ops: Sequence[Op] = OPS, others: int = 0) -> list[Cell]:
    """What a run without options times, leaving room for `others` benchmarks in `MAX_CELLS`."""
    return _deal(ops, MAX_CELLS - others)


def quick_cells(ops: Sequence[Op] = OPS) -> list[Cell]:
    """Two shapes of each op, none of them huge."""
    return _deal(ops, MAX_CELLS, per_op=2, max_bytes=QUICK_BYTES)


def _matches(value: str, patterns: Iterable[str]) -> bool:
    patterns = list(patterns)
    return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns)


def without_huge(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.x_bytes < HUGE_BYTES]


def filter_cells(
    cells: Iterable[Cell], ops: Sequence[str], shapes: Sequence[str], dtypes: Sequence[str], sizes: str | None = None
) -> list[Cell]:
    """The cells that match one of each kind of pattern (`*` and `?` as in a shell); no pattern matches everything.

    A shape is "8192x768", or "8192x768@-1" with its axis. `sizes` is one of `SIZES`.
    """

    def wanted(cell: Cell) -> bool:
        shape = str(cell.geometry)
        with_axis = any("@" in pattern for pattern in shapes)
        return (
            _matches(cell.op.name, ops)
            and _matches(shape if with_axis else shape.partition("@")[0], shapes)
            and _matches(cell.dtype, dtypes)
            and sizes in (None, size_class(cell))
        )

    return [cell for cell in cells if wanted(cell)]


def asv_patterns(cells: Iterable[Cell], others: Sequence[str] = STARTUP_BENCHMARKS) -> Iterator[str]:
    """Regular expressions for asv's --bench that choose `cells` and the benchmarks `others`.

    Selecting by expression leaves the suite's parameter lists alone, so a run of a part keeps the rest's history.
    """
    # asv writes a parameter as its repr, quotes included.
    for cell in cells:
        yield re.escape(f"({str(cell)!r})") + "$"
    for prefix in others:
        yield "^" + re.escape(prefix)
