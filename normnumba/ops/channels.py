"""What batch norm and its parts share: from checked arguments to the kernels of channels and columns, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels import CONSTANT, NONE
from ..views import Array, Channels
from .checks import EMPTY, FLOAT64, activation_code, check_like, constant, parameter, rsqrt


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows xhat, checked: y = activation(xhat * weight + bias + residual)."""

    weight: Array | None
    bias: Array | None
    residual: Array | None
    kernel_weight: Array
    """What the kernels take for the weight: contiguous, and in the type that x is computed in."""
    kernel_bias: Array
    activation: int


def tail_of(
    view: Channels,
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
) -> Tail:
    """Check what follows xhat."""
    kernel_weight = parameter("weight", weight, (view.channels,), view.number, 1)
    kernel_bias = parameter("bias", bias, (view.channels,), view.number, 0)
    if residual is not None:
        check_like("residual", residual, x)
    return Tail(weight, bias, residual, kernel_weight, kernel_bias, activation_code(activation))


def masked_moments(kernels: Any, view: Channels, x: Array, counted: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over the counted positions, 0 where nothing counts."""
    stats = np.zeros((3, view.channels))
    if x.size and counted.any():
        picked = view.pick(view.enter(x), counted)
        kernel = kernels.columns_forward if view.columns else kernels.channels_forward
        one, none = constant((view.channels,), view.number, 1), EMPTY[view.storage, 3]
        kernel(picked, none, one, one, 0.0, True, NONE, none, stats.reshape(3, *view.vector_shape))
    return stats[0], stats[1]


def normalize_channels(
    kernels: Any,
    view: Channels,
    x: Array,
    tail: Tail,
    eps: float,
    given: Sequence[Array] | None,
    y: Array | None,
) -> Array:
    """Fill y unless it is None; return float64 (3, C) mean, var and rstd, of x itself unless mean and var are given."""
    stats = np.zeros((3, view.channels))
    if given is not None:
        stats[0], stats[1] = given
    if given is not None or not x.size:
        stats[2] = rsqrt(stats[1] + eps)
    if x.size:
        none = EMPTY[view.storage, 3]
        target = none if y is None else view.result(y)
        added = none if tail.residual is None else view.enter(tail.residual)
        kernel = kernels.columns_forward if view.columns else kernels.channels_forward
        statistics = stats.reshape(3, *view.vector_shape)
        training = given is None
        kernel(
            view.enter(x),
            added,
            tail.kernel_weight,
            tail.kernel_bias,
            eps,
            training,
            tail.activation,
            target,
            statistics,
        )
        if y is not None:
            view.leave(target, y)
    return stats


def differentiate_channels(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    tail: Tail,
    terms: int,
    count: int,
    dx: Array | None,
    dresidual: Array | None,
    sums: Array,
    counted: Array | None = None,
) -> None:
    """Fill dx and dresidual unless they are None, and the float64 (2, C) sums of dz and dz * xhat unless GIVEN.

    Positions that are not `counted` get the dx of constant statistics.
    """
    if not x.size:
        return
    none = EMPTY[view.storage, 3]
    inputs = [none if a is None else view.enter(a) for a in (dy, x, tail.residual)]
    results = [none if a is None else view.result(a) for a in (dx, dresidual)]
    kernel = kernels.columns_backward if view.columns else kernels.channels_backward
    shape = view.vector_shape
    channel = (mean.reshape(shape), rstd.reshape(shape), tail.kernel_weight, tail.kernel_bias)
    rest = None if counted is None or dx is None else ~counted
    if rest is not None:  # before dx, which may be one of the inputs
        picked = [view.pick(a, rest) if a.size else none for a in inputs]
        alone, no_sums = np.empty_like(picked[0]), np.empty((2, *shape))
        if alone.size:
            kernel(*picked, *channel, CONSTANT, 1, tail.activation, alone, none, no_sums)
    kernel(*inputs, *channel, terms, count, tail.activation, *results, sums.reshape(2, *shape))
    if rest is not None:
        view.put(results[0], rest, alone)
    for result, a in zip(results, (dx, dresidual), strict=True):
        if a is not None:
            view.leave(result, a)


def statistics_of(view: Channels, **values: Array) -> list[Array]:
    """Given statistics of channels, in float64."""
    return [parameter(name, value, (view.channels,), FLOAT64) for name, value in values.items()]
