"""Forwards and backwards whose units are shared by many blocks, in any geometry.

forward    moments of every unit, in parts -> merged -> every element normalized
backward   sums of every unit, in parts -> merged -> every element differentiated
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .elementwise import differentiate_lines, normalize_lines
from .geometry import Lines
from .launching import NOTHING, is_there
from .merging import merge_moments, merge_sums, prepare
from .moments import moments_of
from .products import products_of
from .sharing import Shares

FLOAT64 = np.dtype(np.float64)


def forward(
    view: Lines,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    center: bool,
    rounding: bool,
    activation: int,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """y, mean and rstd from x's own statistics."""
    coefficients = x.new((3, view.units), rstd.dtype)
    parts, shares = moments_of(view, x, NOTHING)
    merge_moments(parts, shares, view.units, eps, not center, coefficients, mean, rstd, NOTHING)
    normalize_lines(view, x, NOTHING, coefficients, weight, bias, rounding, activation, y)


def prepared(view: Lines, x: Any, mean: Any, rstd: Any) -> Any:
    """The coefficients of the statistics that a forward returned."""
    coefficients = x.new((3, view.units), rstd.dtype)
    prepare(mean, rstd, 0.0, False, coefficients, NOTHING, NOTHING)
    return coefficients


class Gradients(NamedTuple):
    """What all launches of a backward take."""

    view: Lines
    dy: Any
    x: Any
    other: Any
    """The residual before an activation, or the gradient that is added to x's"""
    coefficients: Any
    weight: Any
    bias: Any
    activation: int

    def recentred(self) -> Gradients:
        """With x's own mean where z is needed: the rounding of a given one could take it across relu's kink.

        Elsewhere sum(xhat) says what the rounding left, at no cost.
        """
        if not self.activation:
            return self
        units = self.view.units
        stats, rstd = self.x.new((2, units), FLOAT64), self.coefficients[1]
        parts, shares = moments_of(self.view, self.x, NOTHING)
        coefficients = self.x.new((3, units), rstd.dtype)
        merge_moments(parts, shares, units, 0.0, False, coefficients, NOTHING, NOTHING, stats)
        prepare(stats[0], rstd, 0.0, False, coefficients, NOTHING, NOTHING)
        return self._replace(coefficients=coefficients)

    def parts(self, over: Lines, weighted: bool, rounding: bool = False) -> tuple[Any, Shares]:
        """Parts of the sums over the units of `over`."""
        inputs = self.dy, self.x, self.other, self.coefficients, self.weight, self.bias, self.activation
        return products_of(self.view, over, *inputs, weighted, rounding)

    def merged(
        self, parts: Any, shares: Shares, weight: Any, recentre: bool = True, sums: Any = NOTHING, pinned: bool = False
    ) -> tuple[Any, Any]:
        """The sums of each unit, in `sums` if they fit, and what was taken out of its mean."""
        units = self.view.units
        if sums.shape != (2, units):
            sums = self.x.new((2, units), FLOAT64)
        deltas = self.x.new((units,), FLOAT64) if recentre else NOTHING
        count = self.view.elements
        merge_sums(parts, shares, units, count, weight, recentre, pinned, self.coefficients, sums, deltas)
        return sums, deltas

    def row_sums(self, center: bool) -> Any:
        """The sums of units whose elements each have a weight of their own."""
        parts, shares = self.parts(self.view, True)
        return self.merged(parts, shares, NOTHING, center, pinned=not center)[0]

    def apply(
        self,
        sums: Any,
        count: int,
        weighted: bool,
        dx: Any,
        dresidual: Any = NOTHING,
        *,
        mask: Any = NOTHING,
        summed: bool = False,
    ) -> None:
        """dx and dresidual of every element, each unless it is empty."""
        if is_there(dx) or is_there(dresidual):
            given = self.dy, self.x, self.other, self.coefficients, sums, weighted, count, self.weight, self.bias, mask
            differentiate_lines(self.view, *given, self.activation, summed, dx, dresidual)
