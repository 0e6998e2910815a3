"""Channels: x (O, C, I), and columns: x (O, S, C). Batch norm in either layout, and channels-last group norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import BATCH, CONSTANT, GIVEN
from .elementwise import normalize_lines
from .geometry import Lines, of_channels, of_columns
from .launching import NOTHING, accumulator, is_there
from .merging import merge_moments, merge_parameters, prepare
from .moments import moments_of
from .pipeline import Gradients
from .sharing import Rule


def _columns(x: Any, groups: int) -> Lines:
    outer, size, channels = x.shape
    return of_columns(outer, size, channels, groups)


def channels_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    training: bool,
    activation: int,
    stats: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """See the CPU's."""
    batch_forward(of_channels(*x.shape), x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd)


def columns_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    training: bool,
    activation: int,
    stats: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """See the CPU's."""
    view = _columns(x, stats.shape[1] // x.shape[0])
    batch_forward(view, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd)


def batch_forward(
    view: Lines,
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    training: bool,
    activation: int,
    stats: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """`channels_forward` of either geometry."""
    coefficients = x.new((3, view.units), accumulator(x.dtype))
    if training:
        parts, shares = moments_of(view, x, NOTHING)
        merge_moments(parts, shares, view.units, eps, False, coefficients, mean, rstd, stats)
    else:
        prepare(stats[0], stats[1], eps, True, coefficients, mean, rstd)
    if is_there(y):
        normalize_lines(view, x, residual, coefficients, weight, bias, False, activation, y)


def channels_backward(
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    eps: float,
    squared: bool,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
) -> None:
    """See the CPU's."""
    args = dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums
    batch_backward(of_channels(*x.shape), *args)


def columns_backward(
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    eps: float,
    squared: bool,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
) -> None:
    """See the CPU's."""
    args = dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums
    batch_backward(_columns(x, stats.shape[1] // x.shape[0]), *args)


def batch_backward(
    view: Lines,
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    eps: float,
    squared: bool,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
    mask: Any = NOTHING,
) -> None:
    """`channels_backward` of either geometry, and of groups of columns."""
    coefficients = x.new((3, view.units), accumulator(x.dtype))
    prepare(stats[0], stats[1], eps, squared, coefficients, NOTHING, NOTHING)
    gradients = Gradients(view, dy, x, residual if activation else NOTHING, coefficients, weight, bias, activation)
    unit_sums = sums
    if terms == BATCH:
        gradients = gradients.recentred()
    if terms != GIVEN:
        parts, shares = gradients.parts(view, False)
        unit_sums, deltas = gradients.merged(parts, shares, weight if view.width > 1 else NOTHING, terms == BATCH, sums)
        if view.width > 1:
            each = shares.shares * view.length
            of_each = shares._replace(rule=Rule(view.length, each, 1, 0, view.length, 1))
            merge_parameters(parts, of_each, 1, 0, deltas, view.units, view.width, sums[1], sums[0])
    if is_there(dx) or is_there(dresidual):
        taken = NOTHING if terms == CONSTANT else unit_sums
        gradients.apply(taken, count, view.width > 1, dx, dresidual, mask=mask)


def masked_moments(x: Any, counted: Any, columns: bool) -> Any:
    """Mean and biased variance (2, C) in float64, over the positions that count."""
    view = _columns(x, x.shape[2]) if columns else of_channels(*x.shape)
    stats, coefficients = x.new((2, view.units), np.float64), x.new((3, view.units), accumulator(x.dtype))
    parts, shares = moments_of(view, x, counted)
    merge_moments(parts, shares, view.units, 0.0, False, coefficients, NOTHING, NOTHING, stats)
    return stats


def differentiate_masked(
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
    counted: Any,
    columns: bool,
) -> None:
    """dx and dresidual from given sums, which only the positions that count take something of."""
    view = _columns(x, x.shape[2]) if columns else of_channels(*x.shape)
    args = dy, x, residual, stats, weight, bias, 0.0, False, GIVEN, count, activation, dx, dresidual, sums
    batch_backward(view, *args, counted)
