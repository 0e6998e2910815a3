"""How blocks share the elements of a unit: parts of it along lines, or across them.

Shares follow from the shape of a unit alone, so that a unit has the same bits in any batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .geometry import Lines
from .launching import LARGEST_GRID, WARP, power_of_two

THREADS = 256
"""Threads of a block."""

SHARE = 16384
"""Elements along lines for a block: 64 for each thread, few enough for sums in float32."""

LINES = 128
"""Lines for a block across them."""

MOST = 1024
"""Shares of a unit."""

TILE = WARP
"""Threads side by side in a block across lines."""


class Shares(NamedTuple):
    """The launch of a kernel that reduces units, and where the parts of each are.

    The part of unit u, of inner member a and share s is at u // groups * sample + u % groups * group + a * inner +
    s * share; a group of columns has a member for each.
    """

    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[int, ...]
    """What the kernel takes to find its elements."""
    total: int
    shares: int
    rule: tuple[int, ...]
    """groups, sample, group, inner, share, and members of a group"""

    def parts(self, like: Any, quantities: int) -> Any:
        """Room for all parts."""
        number = np.dtype(np.float64 if like.dtype.itemsize == 8 else np.float32)
        return like.new((quantities, self.total), number)


def along(view: Lines, width: int) -> Shares:
    """Each unit is whole lines, each part a run of lines and of positions in them."""
    members = view.lines // view.units
    spacing = 1 if view.every > 1 else view.units
    wanted = min(-(-view.count // SHARE), MOST)
    runs = min(members, wanted)
    step = -(-view.length // -(-wanted // runs))
    step = -(-step // width) * width
    pieces = -(-view.length // step)
    across = min(power_of_two(-(-step // width)), THREADS)
    shares = runs * pieces
    arguments = view.length, view.every, spacing, members, step
    rule = max(view.units, 1), 0, shares, 0, 1, 1
    return Shares((view.units, runs, pieces), (across, THREADS // across), arguments, view.units * shares, shares, rule)


def across(view: Lines, width: int) -> Shares:
    """Each unit is columns of a sample, each part some lines of one column."""
    lines = view.lines // view.samples
    shares = min(-(-lines // LINES), 4 * MOST)
    tiles = -(-view.length // (TILE * width))
    grid, block = (view.samples * tiles, shares), (TILE, THREADS // TILE)
    arguments = view.length, lines, tiles
    rule = view.groups, shares * view.length, view.width, 1, view.length, view.width
    return Shares(grid, block, arguments, view.samples * shares * view.length, shares, rule)


assert LARGEST_GRID > MOST
