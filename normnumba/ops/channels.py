"""What batch norm and its parts share: from checked arguments to the kernels of channels and columns, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..device.array import empty
from ..kernels import NONE
from ..views import Array, Channels
from .checks import EMPTY, FLOAT64, activation_code, check_like, parameter, real, rsqrt


class Tail(NamedTuple):
    """What follows xhat, checked: y = activation(xhat * weight + bias + residual)."""

    weight: Array | None
    bias: Array | None
    residual: Array | None
    kernel_weight: Array
    """What the kernels take for the weight: contiguous, and in the type that x is computed in."""
    kernel_bias: Array
    activation: int


class Given(NamedTuple):
    """Statistics of channels that an op was given."""

    stats: Array
    """float64 (2, C): mean and rstd, or mean and variance."""
    squared: bool = False
    """Whether the second is the variance."""
    eps: float = 0.0
    """What is added to the variance."""


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
    kind = NONE if activation is None else activation_code(activation)
    return Tail(weight, bias, residual, kernel_weight, kernel_bias, kind)


def normalize_channels(
    kernels: Any,
    view: Channels,
    x: Array,
    tail: Tail,
    eps: float,
    stats: Array | None,
    y: Array | None,
    mean: Array,
    rstd: Array,
) -> Array:
    """Fill y unless it is None, mean and rstd unless they are empty; return the float64 mean and variance (2, C).

    Those are x's own, unless they are given as `stats`.
    """
    training = stats is None
    if stats is None:
        stats = empty(x, (2, view.channels), FLOAT64)
    none = EMPTY[view.storage, 3]
    if x.size:
        target = none if y is None else view.result(y)
        kernel = kernels.columns_forward if view.columns else kernels.channels_forward
        added = none if tail.residual is None else view.enter(tail.residual)
        weight, bias, activation = tail.kernel_weight, tail.kernel_bias, tail.activation
        kernel(view.enter(x), added, weight, bias, eps, training, activation, stats, target, mean, rstd)
        if y is not None and target is not y:
            view.leave(target, y)
    else:
        if training:
            stats[:] = 0
        if mean.size:
            mean[:], rstd[:] = 0, rsqrt(eps)  # those of nothing, with and without a mask
    return stats


def differentiate_channels(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    given: Given,
    tail: Tail,
    terms: int,
    count: int,
    dx: Array | None,
    dresidual: Array | None,
    sums: Array,
) -> None:
    """Fill dx and dresidual unless they are None, and the float64 (2, C) sums of dz and dz * xhat unless GIVEN."""
    if not x.size:
        sums[:] = 0
        return
    none = EMPTY[view.storage, 3]
    residual = none if tail.residual is None else view.enter(tail.residual)
    inputs = view.enter(dy), view.enter(x), residual
    results = none if dx is None else view.result(dx), none if dresidual is None else view.result(dresidual)
    kernel = kernels.columns_backward if view.columns else kernels.channels_backward
    channel = given.stats, tail.kernel_weight, tail.kernel_bias, given.eps, given.squared
    kernel(*inputs, *channel, terms, count, tail.activation, *results, sums)
    for result, a in zip(results, (dx, dresidual), strict=True):
        if a is not None and result is not a:
            view.leave(result, a)


def statistics_of(kernels: Any, view: Channels, name: str, value: Array, other: str, second: Array) -> Array:
    """Two given statistics of channels in float64, (2, C)."""
    shape = (view.channels,)
    return kernels.stacked(real(name, value, shape), real(other, second, shape))
