"""How blocks share the elements of a unit: parts of it along lines, or across them.

Shares follow from the shape of a unit and the width of accesses alone: a unit has the same bits in any batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import cuda, types

from .geometry import Lines
from .launching import WARP, accumulator, power_of_two

THREADS = 256
"""Threads of a block."""

SHARE = 16384
"""Elements along lines for a block: 64 for each thread, few enough for sums in float32."""

LINES = 128
"""Lines for a block across them."""

MOST = 1024
"""Shares of a unit along lines."""

MOST_ACROSS = 4096
"""Shares of a unit across lines, whose number has to fit the second axis of a grid."""

TILE = WARP
"""Threads side by side in a block across lines."""


class Rule(NamedTuple):
    """Where the parts of unit u are: that of member a and share s at

    u // groups * sample + u % groups * group + a * member + s * share
    """

    groups: int
    sample: int
    group: int
    member: int
    share: int
    members: int
    """A group of columns has one for each."""


class Shares(NamedTuple):
    """The launch of a kernel that reduces units, and where it puts the parts of each."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[int, ...]
    """What the kernel takes to find its elements."""
    total: int
    shares: int
    rule: Rule

    def parts(self, like: Any, quantities: int) -> Any:
        """Room for all parts."""
        return like.new((quantities, self.total), accumulator(like.dtype))


def along(view: Lines, width: int) -> Shares:
    """Each unit is whole lines, each part a run of lines and of positions in them."""
    members = view.lines // view.units
    spacing = 1 if view.every > 1 else view.units  # the lines of a group follow one another, those of a channel do not
    wanted = min(-(-view.elements // SHARE), MOST)
    runs = min(members, wanted)
    step = -(-view.length // -(-wanted // runs))
    step = -(-step // width) * width
    pieces = -(-view.length // step)
    across = min(power_of_two(-(-step // width)), THREADS)
    shares = runs * pieces
    arguments = view.length, view.every, spacing, members, step
    rule = Rule(view.units, 0, shares, 0, 1, 1)
    lines = min(THREADS // across, max(power_of_two(-(-members // runs)), WARP // across))
    return Shares((view.units, runs, pieces), (across, lines), arguments, view.units * shares, shares, rule)


def across(view: Lines, width: int) -> Shares:
    """Each unit is columns of a sample, each part some lines of one column."""
    lines = view.lines // view.samples
    shares = min(-(-lines // LINES), MOST_ACROSS)
    tiles = -(-view.length // (TILE * width))
    grid, block = (view.samples * tiles, shares), (TILE, THREADS // TILE)
    arguments = view.length, lines, tiles
    rule = Rule(view.groups, shares * view.length, view.width, 1, view.length, view.width)
    return Shares(grid, block, arguments, view.samples * shares * view.length, shares, rule)


@cuda.jit(device=True)
def part_along(every, spacing, members, step):
    """First line and the line behind the last, first position, and index of a block's part"""
    unit, run = types.int64(cuda.blockIdx.x), types.int64(cuda.blockIdx.y)
    line = unit * every + members * run // cuda.gridDim.y * spacing
    last = unit * every + members * (run + 1) // cuda.gridDim.y * spacing
    return line, last, cuda.blockIdx.z * step, (unit * cuda.gridDim.y + run) * cuda.gridDim.z + cuda.blockIdx.z


@cuda.jit(device=True)
def part_across(length, lines, tiles, width):
    """First line and the line behind the last, first column of a thread, and index of the part of that"""
    sample, share = types.int64(cuda.blockIdx.x) // tiles, types.int64(cuda.blockIdx.y)
    column = (cuda.blockIdx.x % tiles * TILE + cuda.threadIdx.x) * width
    line = sample * lines + lines * share // cuda.gridDim.y
    last = sample * lines + lines * (share + 1) // cuda.gridDim.y
    return line, last, column, (sample * cuda.gridDim.y + share) * length + column
