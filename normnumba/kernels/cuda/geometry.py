"""One view for all geometries: lines of neighbouring elements, and which statistics and parameters each element has.

Element m of line l has the statistics of unit u = l // every % cycle * stride + (m // width if `varying`), and the
parameters w = m if `along`, or else l % channels. Its place in a mask is l // mask_every * mask_stride + m * mask_step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, types


class Lines(NamedTuple):
    """x (lines, length) and its rules."""

    lines: int
    length: int
    every: int = 1
    cycle: int = 1
    stride: int = 1
    width: int = 1
    channels: int = 1
    mask_every: int = 1
    mask_stride: int = 0
    mask_step: int = 0
    varying: bool = False
    along: bool = False
    samples: int = 0
    """Where statistics run across lines, how often; 0 where they run along lines."""
    units: int = 1
    groups: int = 1
    """Units that a sample has, where they run across lines."""

    @property
    def elements(self) -> int:
        """Elements of a unit."""
        return self.lines * self.length // self.units

    @property
    def rule(self) -> tuple[int, ...]:
        """What kernels take."""
        return self[:7]

    @property
    def mask_rule(self) -> tuple[int, ...]:
        """What kernels take besides, with a mask."""
        return self[7:10]

    @property
    def kind(self) -> tuple[types.Type, int, bool]:
        """What `indexing` takes: constants of a kernel."""
        varying = 0 if not self.varying else 1 if self.width == 1 else 2
        return types.uint32 if self.lines < 1 << 32 else types.int64, varying, self.along


RULE, MASK_RULE = types.UniTuple(types.int64, 7), types.UniTuple(types.int64, 3)
"""The types of these."""


@functools.cache
def indexing(index: types.Type, varying: int, along: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two device functions: what all of a line shares, and the unit and parameter of an element.

    Lines are divided in 32 bits where they can be: a division in 64 takes some hundred instructions.
    """

    @cuda.jit(device=True)
    def begin(line, rule):
        _, _, every, cycle, stride, _, channels = rule
        unit = types.int64(index(line) // index(every) % index(cycle)) * stride
        return unit, types.int64(0 if along else index(line) % index(channels))

    @cuda.jit(device=True)
    def place(begun, m, rule):
        unit, parameter = begun
        if varying == 1:
            unit += m
        elif varying == 2:
            unit += types.int64(types.uint32(m) // types.uint32(rule[5]))
        return unit, m if along else parameter

    return begin, place


@cuda.jit(device=True)
def counts(mask, line, m, rule):
    """Whether an element is one of those that count"""
    every, stride, step = rule
    return mask[line // every * stride + m * step] != 0


def of_rows(rows: int, cols: int) -> Lines:
    """(R, C)"""
    return Lines(rows, cols, cycle=rows, along=True, units=rows)


def of_strips(outer: int, channels: int, inner: int) -> Lines:
    """(O, C, I), statistics over C"""
    view = Lines(outer * channels, inner, every=channels, cycle=outer, stride=inner, channels=channels, varying=True)
    return view._replace(samples=outer, units=outer * inner, groups=inner)


def of_channels(outer: int, channels: int, inner: int) -> Lines:
    """(O, C, I), statistics over O and I"""
    view = Lines(outer * channels, inner, cycle=channels, channels=channels, units=channels)
    return view._replace(mask_every=channels, mask_stride=inner, mask_step=1)


def of_groups(samples: int, groups: int, width: int, size: int) -> Lines:
    """(N, G, K, S), statistics over K and S"""
    channels, units = groups * width, samples * groups
    return Lines(samples * channels, size, every=width, cycle=units, channels=channels, units=units)


def of_columns(outer: int, size: int, channels: int, groups: int) -> Lines:
    """(O, S, C), statistics over S and C / G"""
    view = Lines(outer * size, channels, every=size, cycle=outer, stride=groups, varying=True, along=True)
    view = view._replace(width=channels // groups, mask_stride=1)
    return view._replace(samples=outer, units=outer * groups, groups=groups)
