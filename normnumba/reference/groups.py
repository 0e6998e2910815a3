"""Group norm and instance norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .activations import activate, differentiate
from .numeric import Array, Axes, Parameter, centre, float64, gradient, mean_over, select, sum_over


def _grouped(x: Array, num_groups: int, channel_axis: int) -> tuple[Array, Axes]:
    """x with its channel axis as (groups, channels of a group), and the axes that a mean is taken over."""
    channel = channel_axis % x.ndim
    shape = (*x.shape[:channel], num_groups, x.shape[channel] // num_groups, *x.shape[channel + 1 :])
    return x.reshape(shape), tuple(a for a in range(1, x.ndim + 1) if a != channel)


def _affine(weight: Parameter, bias: Parameter, x: Array, num_groups: int, channel_axis: int) -> tuple[Array, Array]:
    """Scale and shift of shape (C,), or 1 and 0 where they are None, to broadcast against `_grouped` x."""
    shape = (num_groups, -1, *[1] * (x.ndim - 1 - channel_axis % x.ndim))
    scale = float64(1.0) if weight is None else float64(weight).reshape(shape)
    return scale, float64(0.0) if bias is None else float64(bias).reshape(shape)


def group_norm_forward(
    x: ArrayLike,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """y = activation((x - mean) * rstd * weight + bias), rstd = 1 / sqrt(var + eps), statistics (N, num_groups)."""
    x = float64(x)
    grouped, inside = _grouped(x, num_groups, channel_axis)
    mean, centred = centre(grouped, inside)
    rstd = 1.0 / np.sqrt(mean_over(centred**2, inside) + eps)
    scale, shift = _affine(weight, bias, x, num_groups, channel_axis)
    y = activate(centred * rstd * scale + shift, activation)
    return y.reshape(x.shape), np.squeeze(mean, inside), np.squeeze(rstd, inside)


def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dz * weight; dweight = sum(dz * xhat), dbias = sum(dz).

    dz = dy * activation'(xhat * weight + bias). xhat is centred by the mean of x itself, for the reason given in
    `layer_norm_backward`.
    """
    dy, x = float64(dy), float64(x)
    grouped, inside = _grouped(x, num_groups, channel_axis)
    rstd = np.expand_dims(float64(rstd), inside)
    xhat = centre(grouped, inside)[1] * rstd
    scale, shift = _affine(weight, bias, x, num_groups, channel_axis)
    dz = differentiate(dy.reshape(grouped.shape), xhat * scale + shift, activation)
    dx = gradient(dz, xhat, rstd, scale, inside)
    channel = channel_axis % x.ndim
    others = tuple(a for a in range(x.ndim + 1) if a not in (channel, channel + 1))
    dweight, dbias = sum_over(dz * xhat, others).ravel(), sum_over(dz, others).ravel()
    return select((dx.reshape(x.shape), dweight, dbias), output_mask)


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Array:
    """`group_norm_forward`, y alone."""
    return group_norm_forward(x, num_groups, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation)[0]


def instance_norm_forward(
    x: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """`group_norm_forward` with a group for each channel: mean and rstd are (N, C)."""
    groups = np.shape(x)[channel_axis]
    return group_norm_forward(x, groups, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation)


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`group_norm_backward` with a group for each channel."""
    groups = np.shape(x)[channel_axis]
    return group_norm_backward(
        dy,
        x,
        mean,
        rstd,
        groups,
        weight,
        bias,
        channel_axis=channel_axis,
        activation=activation,
        output_mask=output_mask,
    )


def instance_norm(
    x: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Array:
    """`instance_norm_forward`, y alone."""
    return instance_norm_forward(x, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation)[0]
