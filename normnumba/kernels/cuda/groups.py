"""Groups: x (N, G, K, S), statistics over K and S, weight and bias (G * K). Group and instance norm, channels first."""

from __future__ import annotations

from typing import Any

from .geometry import of_groups, of_rows
from .launching import NOTHING, is_there
from .merging import merge_parameters
from .pipeline import Gradients, forward, prepared
from .rows import normalize_short
from .sharing import Rule


def groups_forward(x: Any, weight: Any, bias: Any, eps: float, activation: int, y: Any, mean: Any, rstd: Any) -> None:
    """See the CPU's."""
    if not normalize_short(x, weight, bias, eps, activation, y, mean, rstd):
        forward(of_groups(*x.shape), x, weight, bias, eps, True, False, activation, y, mean, rstd)


def groups_backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    bias: Any,
    activation: int,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """See the CPU's."""
    samples, groups, width, size = x.shape
    view, channels = of_groups(*x.shape), groups * width
    gradients = Gradients(view, dy, x, NOTHING, prepared(view, x, mean, rstd), weight, bias, activation).recentred()
    parts, shares = gradients.parts(of_rows(samples * channels, size), False)
    each = shares.shares
    of_units = shares._replace(rule=Rule(groups, channels * each, width * each, each, 1, width))
    sums, deltas = gradients.merged(parts, of_units, weight)
    if is_there(dweight):
        of_channels = shares._replace(rule=Rule(channels, 0, each, 0, 1, 1))
        merge_parameters(parts, of_channels, samples, channels * each, deltas, groups, width, dweight, dbias)
    gradients.apply(sums, view.elements, True, dx)
