"""What a careful NumPy user writes: the ops in x's own dtype, in place where that saves a temporary.

A peer to be timed against, not an oracle: `normnumba.reference` judges, in float64.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def _axes(x: Array, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(a % x.ndim for a in np.atleast_1d(axis)))


def _others(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(x.ndim) if a not in axes)


def _along(p: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """View a parameter that lives on `axes` of x so that it broadcasts against x."""
    return p.reshape([n if a in axes else 1 for a, n in enumerate(x.shape)])


def _normalize(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    mean = x.mean(axes, keepdims=True)
    xhat = x - mean
    rstd = 1 / np.sqrt(np.square(xhat).mean(axes, keepdims=True) + x.dtype.type(eps))
    xhat *= rstd
    return xhat, mean, rstd


def _activated(z: Array, activation: str | None) -> Array:
    """activation(z), in z's memory"""
    match activation:
        case None:
            pass
        case "relu":
            np.maximum(z, 0, out=z)
        case "silu":
            z /= 1 + np.exp(-z)
        case "gelu":
            z *= _normal_cdf(z)
        case _:
            raise NotImplementedError(activation)
    return z


def _before(dy: Array, z: Array, activation: str) -> Array:
    """The gradient before an activation"""
    match activation:
        case "relu":
            return dy * (z > 0)
        case "silu":
            gate = 1 / (1 + np.exp(-z))
            return dy * (gate * (1 + z * (1 - gate)))
        case _:
            raise NotImplementedError(activation)


def _normal_cdf(z: Array) -> Array:
    # asv imports every module of this package where only the library's own dependencies are installed.
    from scipy.special import erf

    return (1 + erf(z * z.dtype.type(math.sqrt(0.5)))) / 2


def layer_norm_forward(
    x: Array, weight: Array, bias: Array, *, axis: int | tuple[int, ...] = -1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    axes = _axes(x, axis)
    y, mean, rstd = _normalize(x, axes, eps)
    y *= _along(weight, x, axes)
    y += _along(bias, x, axes)
    return y, mean.squeeze(axes), rstd.squeeze(axes)


def layer_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array, bias: Array, *, axis: int | tuple[int, ...] = -1
) -> tuple[Array, Array, Array]:
    axes = _axes(x, axis)
    others = _others(x, axes)
    rstd = _along(rstd, x, others)
    xhat = (x - _along(mean, x, others)) * rstd
    dweight, dbias = (dy * xhat).sum(others), dy.sum(others)
    dx = dy * _along(weight, x, axes)
    inner = (dx * xhat).mean(axes, keepdims=True)
    dx -= dx.mean(axes, keepdims=True)
    xhat *= inner
    dx -= xhat
    dx *= rstd
    return dx, dweight, dbias


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    channel = _axes(x, channel_axis)
    y, mean, rstd = _normalize(x, _others(x, channel), eps)
    y *= _along(weight, x, channel)
    y += _along(bias, x, channel)
    if residual is not None:
        y += residual
    return _activated(y, activation), mean.reshape(-1), rstd.reshape(-1)


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array, Array | None]:
    channel = _axes(x, channel_axis)
    xhat = (x - _along(mean, x, channel)) * _along(rstd, x, channel)
    if activation is not None:
        z = xhat * _along(weight, x, channel)
        z += _along(bias, x, channel)
        if residual is not None:
            z += residual
        dy = _before(dy, z, activation)
    others = _others(x, channel)
    dbias, dweight = dy.sum(others), (dy * xhat).sum(others)
    count = x.dtype.type(math.prod(x.shape[a] for a in others))
    xhat *= _along(dweight / count, x, channel)
    dx = dy - _along(dbias / count, x, channel)
    dx -= xhat
    dx *= _along(weight * rstd, x, channel)
    return dx, dweight, dbias, None if residual is None else dy


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Array:
    channel = _axes(x, channel_axis)
    scale = weight / np.sqrt(var + var.dtype.type(eps))
    y = x * _along(scale, x, channel)
    y += _along(bias - mean * scale, x, channel)
    return _activated(y, activation)


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, None]:
    channel = _axes(x, channel_axis)
    others = _others(x, channel)
    rstd = 1 / np.sqrt(var + var.dtype.type(eps))
    centered = x - _along(mean, x, channel)
    centered *= dy
    return dy * _along(weight * rstd, x, channel), centered.sum(others) * rstd, dy.sum(others), None


def batch_moments(x: Array, *, channel_axis: int = 1) -> tuple[int, Array, Array]:
    channel = _axes(x, channel_axis)
    others = _others(x, channel)
    return math.prod(x.shape[a] for a in others), x.mean(others), x.var(others)


def batch_norm_backward_sums(
    dy: Array, x: Array, mean: Array, rstd: Array, *, channel_axis: int = 1
) -> tuple[Array, Array]:
    channel = _axes(x, channel_axis)
    others = _others(x, channel)
    centered = x - _along(mean, x, channel)
    centered *= dy
    return dy.sum(others), centered.sum(others) * rstd


def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    count: int,
    *,
    channel_axis: int = 1,
) -> Array:
    channel = _axes(x, channel_axis)
    kind = x.dtype.type
    xhat = x - _along(mean, x, channel)
    xhat *= _along(rstd * (sum_dy_xhat / count).astype(kind), x, channel)
    dx = dy - _along((sum_dy / count).astype(kind), x, channel)
    dx -= xhat
    dx *= _along(weight * rstd, x, channel)
    return dx


def rms_norm_forward(
    x: Array, weight: Array, *, axis: int | tuple[int, ...] = -1, eps: float = 1e-6
) -> tuple[Array, Array]:
    axes = _axes(x, axis)
    rstd = 1 / np.sqrt(np.square(x).mean(axes, keepdims=True) + x.dtype.type(eps))
    y = x * rstd
    y *= _along(weight, x, axes)
    return y, rstd.squeeze(axes)


def rms_norm_backward(
    dy: Array, x: Array, rstd: Array, weight: Array, *, axis: int | tuple[int, ...] = -1
) -> tuple[Array, Array]:
    axes = _axes(x, axis)
    others = _others(x, axes)
    rstd = _along(rstd, x, others)
    xhat = x * rstd
    dweight = (dy * xhat).sum(others)
    dx = dy * _along(weight, x, axes)
    xhat *= (dx * xhat).mean(axes, keepdims=True)
    dx -= xhat
    dx *= rstd
    return dx, dweight


def add_layer_norm_forward(
    x: Array, residual: Array, weight: Array, bias: Array, *, axis: int | tuple[int, ...] = -1
) -> tuple[Array, Array, Array, Array]:
    summed = x + residual
    y, mean, rstd = layer_norm_forward(summed, weight, bias, axis=axis)
    return y, summed, mean, rstd


def add_layer_norm_backward(
    dy: Array,
    dsummed: Array,
    summed: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    *,
    axis: int | tuple[int, ...] = -1,
) -> tuple[Array, Array, Array, Array]:
    dx, dweight, dbias = layer_norm_backward(dy, summed, mean, rstd, weight, bias, axis=axis)
    dx += dsummed
    return dx, dx, dweight, dbias


def add_rms_norm_forward(
    x: Array, residual: Array, weight: Array, *, axis: int | tuple[int, ...] = -1
) -> tuple[Array, Array, Array]:
    summed = x + residual
    y, rstd = rms_norm_forward(summed, weight, axis=axis)
    return y, summed, rstd


def add_rms_norm_backward(
    dy: Array, dsummed: Array, summed: Array, rstd: Array, weight: Array, *, axis: int | tuple[int, ...] = -1
) -> tuple[Array, Array, Array]:
    dx, dweight = rms_norm_backward(dy, summed, rstd, weight, axis=axis)
    dx += dsummed
    return dx, dx, dweight


def _grouped(x: Array, channel_axis: int, num_groups: int) -> tuple[Array, tuple[int, ...]]:
    """View x with its channels as (groups, width), and name the axes of a mean."""
    channel = channel_axis % x.ndim
    shape = (*x.shape[:channel], num_groups, x.shape[channel] // num_groups, *x.shape[channel + 1 :])
    return x.reshape(shape), tuple(a for a in range(1, x.ndim + 1) if a != channel)


def group_norm_forward(
    x: Array,
    num_groups: int,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    grouped, inside = _grouped(x, channel_axis, num_groups)
    y, mean, rstd = _normalize(grouped, inside, eps)
    y = y.reshape(x.shape)
    y *= _along(weight, x, _axes(x, channel_axis))
    y += _along(bias, x, _axes(x, channel_axis))
    return _activated(y, activation), mean.squeeze(inside), rstd.squeeze(inside)


def group_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    num_groups: int,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    grouped, inside = _grouped(x, channel_axis, num_groups)
    axes = _axes(x, channel_axis)
    others = _others(x, axes)
    rstd = np.expand_dims(rstd, inside)
    xhat = (grouped - np.expand_dims(mean, inside)) * rstd
    if activation is not None:
        z = xhat.reshape(x.shape) * _along(weight, x, axes)
        z += _along(bias, x, axes)
        dy = _before(dy, z, activation)
    dweight, dbias = (dy * xhat.reshape(x.shape)).sum(others), dy.sum(others)
    dx = (dy * _along(weight, x, axes)).reshape(grouped.shape)
    inner = (dx * xhat).mean(inside, keepdims=True)
    dx -= dx.mean(inside, keepdims=True)
    xhat *= inner
    dx -= xhat
    dx *= rstd
    return dx.reshape(x.shape), dweight, dbias


def instance_norm_forward(
    x: Array, weight: Array, bias: Array, *, channel_axis: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    groups = x.shape[channel_axis]
    return group_norm_forward(x, groups, weight, bias, channel_axis=channel_axis, eps=eps)


def instance_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array, bias: Array, *, channel_axis: int = 1
) -> tuple[Array, Array, Array]:
    groups = x.shape[channel_axis]
    return group_norm_backward(dy, x, mean, rstd, groups, weight, bias, channel_axis=channel_axis)
