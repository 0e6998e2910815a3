"""JAX: the formulas in jax.numpy, compiled by XLA, with the statistics of halves in float32.

A function has the name of its op and takes the table's arguments, arrays as JAX has them; the axes are the table's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Arguments, Op
from benchmarks.contender import Contender

jax: Any = None
"""The module, once `load` has imported it: asv imports this file where there is no JAX."""

Array = Any
Axes = tuple[int, ...]


def load(threads: int) -> None:
    """Import JAX, with as many threads as numba has."""
    global jax
    os.environ.setdefault("NPROC", str(threads))  # XLA sizes its pool by it, once
    import jax

    # Else float64 would quietly become float32. float32 stays what it is.
    jax.config.update("jax_enable_x64", True)


def prepare(op: Op, arguments: Arguments) -> Contender:
    """The op compiled for exactly these shapes."""
    arrays = {k: jax.device_put(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    options = {k: v for k, v in arguments.items() if k not in arrays}
    function = globals()[op.function]
    compiled = jax.jit(lambda *values: function(**dict(zip(arrays, values, strict=True)), **options))
    values = tuple(arrays.values())

    def outputs(result: Any) -> tuple[Any, ...]:
        found = [None if a is None else np.asarray(a) for a in (result if isinstance(result, tuple) else (result,))]
        return (*found, *[None] * (len(op.outputs) - len(found)))

    return Contender(lambda: jax.block_until_ready(compiled(*values)), outputs)


# --- what several ops share ------------------------------------------------------------------------------------------


def _axes(x: Array, axis: int | Sequence[int]) -> Axes:
    return tuple(sorted(a % x.ndim for a in np.atleast_1d(axis).tolist()))


def _others(x: Array, axes: Axes) -> Axes:
    return tuple(a for a in range(x.ndim) if a not in axes)


def _wide(a: Array) -> Array:
    return a.astype(np.float32) if a.dtype.itemsize == 2 else a


def _along(p: Array, x: Array, axes: Axes) -> Array:
    """View a parameter that lives on `axes` of x so that it broadcasts against x."""
    return p.reshape([n if a in axes else 1 for a, n in enumerate(x.shape)])


def _normalized(x: Array, over: Axes, eps: float, center: bool = True) -> tuple[Array, Array, Array]:
    """xhat, mean and rstd, the normalized axes kept."""
    x = _wide(x)
    mean = x.mean(over, keepdims=True) if center else 0
    centered = x - mean
    rstd = jax.lax.rsqrt((centered * centered).mean(over, keepdims=True) + eps)
    return centered * rstd, mean, rstd


def _dx(dxhat: Array, xhat: Array, rstd: Array, over: Axes, center: bool = True) -> Array:
    inner = xhat * (dxhat * xhat).mean(over, keepdims=True)
    return (dxhat - dxhat.mean(over, keepdims=True) - inner if center else dxhat - inner) * rstd


def _activated(z: Array, activation: str | None) -> Array:
    if activation is None:
        return z
    return jax.nn.gelu(z, approximate=False) if activation == "gelu" else getattr(jax.nn, activation)(z)


def _before(dy: Array, z: Array, activation: str | None) -> Array:
    """The gradient before an activation."""
    if activation is None:
        return dy
    return jax.vjp(partial(_activated, activation=activation), z)[1](dy)[0]


# --- rows ------------------------------------------------------------------------------------------------------------


def layer_norm_forward(x: Array, weight: Array, bias: Array, *, axis: Any) -> tuple[Array, ...]:
    axes = _axes(x, axis)
    xhat, mean, rstd = _normalized(x, axes, 1e-5)
    y = xhat * _along(weight, x, axes) + _along(bias, x, axes)
    return y.astype(x.dtype), mean.squeeze(axes), rstd.squeeze(axes)


def layer_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array, bias: Array, *, axis: Any
) -> tuple[Array, ...]:
    axes = _axes(x, axis)
    others, dy = _others(x, axes), _wide(dy)
    rstd = _along(rstd, x, others)
    xhat = (_wide(x) - _along(mean, x, others)) * rstd
    dx = _dx(dy * _along(weight, x, axes), xhat, rstd, axes)
    return dx.astype(x.dtype), (dy * xhat).sum(others), dy.sum(others)


def rms_norm_forward(x: Array, weight: Array, *, axis: Any) -> tuple[Array, ...]:
    axes = _axes(x, axis)
    xhat, _, rstd = _normalized(x, axes, 1e-6, center=False)
    return (xhat * _along(weight, x, axes)).astype(x.dtype), rstd.squeeze(axes)


def rms_norm_backward(dy: Array, x: Array, rstd: Array, weight: Array, *, axis: Any) -> tuple[Array, ...]:
    axes = _axes(x, axis)
    others, dy = _others(x, axes), _wide(dy)
    rstd = _along(rstd, x, others)
    xhat = _wide(x) * rstd
    dx = _dx(dy * _along(weight, x, axes), xhat, rstd, axes, center=False)
    return dx.astype(x.dtype), (dy * xhat).sum(others)


def add_layer_norm_forward(x: Array, residual: Array, weight: Array, bias: Array, *, axis: Any) -> tuple[Array, ...]:
    summed = x + residual
    y, mean, rstd = layer_norm_forward(summed, weight, bias, axis=axis)
    return y, summed, mean, rstd


def add_layer_norm_backward(
    dy: Array, dsummed: Array, summed: Array, mean: Array, rstd: Array, weight: Array, bias: Array, *, axis: Any
) -> tuple[Array, ...]:
    dx, dweight, dbias = layer_norm_backward(dy, summed, mean, rstd, weight, bias, axis=axis)
    dx += dsummed
    return dx, dx, dweight, dbias


def add_rms_norm_forward(x: Array, residual: Array, weight: Array, *, axis: Any) -> tuple[Array, ...]:
    summed = x + residual
    y, rstd = rms_norm_forward(summed, weight, axis=axis)
    return y, summed, rstd


def add_rms_norm_backward(
    dy: Array, dsummed: Array, summed: Array, rstd: Array, weight: Array, *, axis: Any
) -> tuple[Array, ...]:
    dx, dweight = rms_norm_backward(dy, summed, rstd, weight, axis=axis)
    dx += dsummed
    return dx, dx, dweight


# --- channels --------------------------------------------------------------------------------------------------------


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, ...]:
    channel = _axes(x, channel_axis)
    xhat, mean, rstd = _normalized(x, _others(x, channel), 1e-5)
    z = xhat * _along(weight, x, channel) + _along(bias, x, channel)
    if residual is not None:
        z += residual
    return _activated(z, activation).astype(x.dtype), mean.reshape(-1), rstd.reshape(-1)


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array | None, ...]:
    channel = _axes(x, channel_axis)
    others = _others(x, channel)
    weight, bias, mean, rstd = (_along(p, x, channel) for p in (weight, bias, mean, rstd))
    xhat = (_wide(x) - mean) * rstd
    dz = _before(_wide(dy), xhat * weight + bias + (0 if residual is None else residual), activation)
    dx = _dx(dz * weight, xhat, rstd, others).astype(x.dtype)
    return dx, (dz * xhat).sum(others), dz.sum(others), None if residual is None else dz.astype(x.dtype)


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    *,
    channel_axis: int,
    activation: str | None = None,
) -> Array:
    channel = _axes(x, channel_axis)
    scale = weight * jax.lax.rsqrt(var + 1e-5)
    z = _wide(x) * _along(scale, x, channel) + _along(bias - mean * scale, x, channel)
    return _activated(z, activation).astype(x.dtype)


def batch_norm_inference_backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, bias: Array, *, channel_axis: int
) -> tuple[Array, ...]:
    channel = _axes(x, channel_axis)
    others, dy = _others(x, channel), _wide(dy)
    rstd = jax.lax.rsqrt(var + 1e-5)
    dweight = (dy * (_wide(x) - _along(mean, x, channel))).sum(others) * rstd
    return (dy * _along(weight * rstd, x, channel)).astype(x.dtype), dweight, dy.sum(others)


def batch_moments(x: Array, *, channel_axis: int) -> tuple[Array, ...]:
    others = _others(x, _axes(x, channel_axis))
    x = _wide(x)
    return x.size // x.shape[channel_axis], x.mean(others), x.var(others)


def batch_norm_backward_sums(dy: Array, x: Array, mean: Array, rstd: Array, *, channel_axis: int) -> tuple[Array, ...]:
    channel = _axes(x, channel_axis)
    others, dy = _others(x, channel), _wide(dy)
    return dy.sum(others), (dy * (_wide(x) - _along(mean, x, channel))).sum(others) * rstd


def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    *,
    count: int,
    channel_axis: int,
) -> Array:
    channel = _axes(x, channel_axis)
    # The sums come in float64 and would widen everything they touch.
    constant, slope = ((s / count).astype(rstd.dtype) for s in (sum_dy, sum_dy_xhat))
    xhat = (_wide(x) - _along(mean, x, channel)) * _along(rstd, x, channel)
    dx = _wide(dy) - _along(constant, x, channel) - xhat * _along(slope, x, channel)
    return (dx * _along(weight * rstd, x, channel)).astype(x.dtype)


# --- groups ----------------------------------------------------------------------------------------------------------


def _grouped(x: Array, channel: int, num_groups: int) -> tuple[Array, Axes]:
    """View x with its channels as (groups, width), and name the axes of a mean."""
    shape = (*x.shape[:channel], num_groups, x.shape[channel] // num_groups, *x.shape[channel + 1 :])
    return x.reshape(shape), tuple(a for a in range(1, x.ndim + 1) if a != channel)


def group_norm_forward(
    x: Array, weight: Array, bias: Array, *, num_groups: int, channel_axis: int, activation: str | None = None
) -> tuple[Array, ...]:
    channel = _axes(x, channel_axis)
    grouped, inside = _grouped(x, channel[0], num_groups)
    xhat, mean, rstd = _normalized(grouped, inside, 1e-5)
    z = xhat.reshape(x.shape) * _along(weight, x, channel) + _along(bias, x, channel)
    return _activated(z, activation).astype(x.dtype), mean.squeeze(inside), rstd.squeeze(inside)


def group_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    *,
    num_groups: int,
    channel_axis: int,
    activation: str | None = None,
) -> tuple[Array, ...]:
    channel = _axes(x, channel_axis)
    others = _others(x, channel)
    grouped, inside = _grouped(_wide(x), channel[0], num_groups)
    weight, bias = (_along(p, x, channel) for p in (weight, bias))
    mean, rstd = (jax.numpy.expand_dims(s, inside) for s in (mean, rstd))
    grouped_xhat = (grouped - mean) * rstd
    xhat = grouped_xhat.reshape(x.shape)
    dz = _before(_wide(dy), xhat * weight + bias, activation)
    dx = _dx((dz * weight).reshape(grouped.shape), grouped_xhat, rstd, inside)
    return dx.reshape(x.shape).astype(x.dtype), (dz * xhat).sum(others), dz.sum(others)


def instance_norm_forward(x: Array, weight: Array, bias: Array, *, channel_axis: int) -> tuple[Array, ...]:
    return group_norm_forward(x, weight, bias, num_groups=x.shape[channel_axis], channel_axis=channel_axis)


def instance_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Array, bias: Array, *, channel_axis: int
) -> tuple[Array, ...]:
    groups = x.shape[channel_axis]
    return group_norm_backward(dy, x, mean, rstd, weight, bias, num_groups=groups, channel_axis=channel_axis)
