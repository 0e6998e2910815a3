"""The oracle: every public function again, in plain float64 NumPy on the original axes.

It is deliberately slow and plain, and shares no code with the kernels, so that the two cannot be wrong together.
Whatever comes in is converted to float64, everything that goes out is float64, and no argument is validated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Axes = tuple[int, ...]
Parameter = ArrayLike | None


def _float64(a: ArrayLike) -> Array:
    return np.asarray(a, dtype=np.float64)


def _parameter(value: Parameter, default: float, missing: Axes) -> Array:
    """`value`, or the default where it is None, with axes of length one where x has axes that it lacks."""
    return _float64(default) if value is None else np.expand_dims(_float64(value), missing)


def _sum(a: Array, axes: Axes) -> Array:
    """Sum over `axes`. They are moved last because NumPy adds in pairs, hence accurately, only along memory."""
    last = tuple(range(-len(axes), 0))
    return np.sum(np.ascontiguousarray(np.moveaxis(a, axes, last)), axis=last)


def _mean(a: Array, axes: Axes) -> Array:
    """Mean over `axes`, kept with length one; the mean of nothing is 0."""
    return np.expand_dims(_sum(a, axes) / max(math.prod(a.shape[axis] for axis in axes), 1), axes)


def _centre(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Mean over `axes` and x minus it; the second pass takes out what rounding left in the first mean."""
    mean = _mean(x, axes)
    rest = _mean(x - mean, axes)
    return np.where(np.isfinite(mean), mean + rest, mean), x - mean - rest


def _split(ndim: int, axis: int | Sequence[int]) -> tuple[Axes, Axes]:
    """The axes in `axis`, and the others in increasing order, all non-negative."""
    inside = tuple(int(a) % ndim for a in np.atleast_1d(axis))
    return inside, tuple(a for a in range(ndim) if a not in inside)


def _select(values: tuple[Any, ...], output_mask: Sequence[bool]) -> tuple[Any, ...]:
    return tuple(value if wanted else None for value, wanted in zip(values, output_mask, strict=True))


def _gradient(dy: Array, xhat: Array, rstd: Array, weight: Array, axes: Axes) -> Array:
    """Gradient through y = xhat * weight with xhat = (x - mean(x)) * rstd(x), statistics over `axes`."""
    dxhat = dy * weight
    return rstd * (dxhat - _mean(dxhat, axes) - xhat * _mean(dxhat * xhat, axes))


# --- layer norm ------------------------------------------------------------------------------------------------------


def layer_norm_forward(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, axis: int | Sequence[int] = -1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """y = (x - mean) * rstd * weight + bias, with mean and rstd = 1 / sqrt(var + eps) over `axis`.

    weight and bias have the shape of the normalized axes in increasing order, mean and rstd that of the others.
    """
    x = _float64(x)
    inside, others = _split(x.ndim, axis)
    mean, centred = _centre(x, inside)
    rstd = 1.0 / np.sqrt(_mean(centred**2, inside) + eps)
    y = centred * rstd * _parameter(weight, 1.0, others) + _parameter(bias, 0.0, others)
    return y, np.squeeze(mean, inside), np.squeeze(rstd, inside)


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * weight; dweight = sum(dy * xhat), dbias = sum(dy).

    xhat is centred by the mean of x itself: the given mean was rounded to float32, which may be coarser than x's
    standard deviation, and the exact gradient must not inherit that.
    """
    dy, x = _float64(dy), _float64(x)
    inside, others = _split(x.ndim, axis)
    rstd = np.expand_dims(_float64(rstd), inside)
    xhat = _centre(x, inside)[1] * rstd
    dx = _gradient(dy, xhat, rstd, _parameter(weight, 1.0, others), inside)
    return _select((dx, _sum(dy * xhat, others), _sum(dy, others)), output_mask)


def layer_norm(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, axis: int | Sequence[int] = -1, eps: float = 1e-5
) -> Array:
    """`layer_norm_forward`, y alone."""
    return layer_norm_forward(x, weight, bias, axis=axis, eps=eps)[0]


# --- RMS norm --------------------------------------------------------------------------------------------------------


def _rounded(xhat: Array, x: ArrayLike, casting: str) -> Array:
    """xhat, rounded to x's dtype where `casting` says so."""
    return xhat.astype(np.asarray(x).dtype).astype(np.float64) if casting == "input" else xhat


def rms_norm_forward(
    x: ArrayLike,
    weight: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
) -> tuple[Array, Array]:
    """y = x * rstd * (weight_offset + weight) with rstd = 1 / sqrt(mean(x^2) + eps) over `axis`.

    casting="input" rounds x * rstd to x's dtype before the weight multiplies it.
    """
    wide = _float64(x)
    inside, others = _split(wide.ndim, axis)
    rstd = 1.0 / np.sqrt(_mean(wide**2, inside) + eps)
    scale = 1.0 if weight is None else weight_offset + _parameter(weight, 1.0, others)
    return _rounded(wide * rstd, x, casting) * scale, np.squeeze(rstd, inside)


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    weight_offset: float = 0.0,
    casting: str = "float32",
    output_mask: Sequence[bool] = (True, True),
) -> tuple[Array | None, Array | None]:
    """dx = rstd * (g - xhat * mean(g * xhat)), g = dy * (weight_offset + weight); dweight = sum(dy * xhat)."""
    dy, wide = _float64(dy), _float64(x)
    inside, others = _split(wide.ndim, axis)
    rstd = np.expand_dims(_float64(rstd), inside)
    xhat = wide * rstd
    g = dy * (1.0 if weight is None else weight_offset + _parameter(weight, 1.0, others))
    dx = rstd * (g - xhat * _mean(g * xhat, inside))
    return _select((dx, _sum(dy * _rounded(xhat, x, casting), others)), output_mask)


def rms_norm(
    x: ArrayLike,
    weight: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
) -> Array:
    """`rms_norm_forward`, y alone."""
    return rms_norm_forward(x, weight, axis=axis, eps=eps, weight_offset=weight_offset, casting=casting)[0]


# --- batch norm ------------------------------------------------------------------------------------------------------


def batch_norm_forward(
    x: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    momentum: float = 0.1,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """y = (x - mean) * rstd * weight + bias, with mean and rstd = 1 / sqrt(var + eps) per channel, all of shape (C,).

    Running statistics are updated in place, running += momentum * (new - running), with the unbiased variance; an
    empty batch leaves them as they are.
    """
    x = _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, centred = _centre(x, reduced)
    var = _mean(centred**2, reduced)
    rstd = 1.0 / np.sqrt(var + eps)
    y = centred * rstd * _parameter(weight, 1.0, reduced) + _parameter(bias, 0.0, reduced)
    count = math.prod(x.shape[a] for a in reduced)
    if count and running_mean is not None:
        running_mean[...] = (1.0 - momentum) * _float64(running_mean) + momentum * np.squeeze(mean, reduced)
    if count and running_var is not None:
        unbiased = np.squeeze(var, reduced) * count / (count - 1)
        running_var[...] = (1.0 - momentum) * _float64(running_var) + momentum * unbiased
    return y, np.squeeze(mean, reduced), np.squeeze(rstd, reduced)


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    output_mask: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, None]:
    """dx = weight * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)), dweight = sum(dy * xhat), dbias = sum(dy).

    xhat is centred by the mean of x itself, for the reason given in `layer_norm_backward`. dresidual is None.
    """
    dy, x = _float64(dy), _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    rstd = np.expand_dims(_float64(rstd), reduced)
    xhat = _centre(x, reduced)[1] * rstd
    dx = _gradient(dy, xhat, rstd, _parameter(weight, 1.0, reduced), reduced)
    return _select((dx, _sum(dy * xhat, reduced), _sum(dy, reduced), None), output_mask)


def batch_norm(
    x: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    momentum: float = 0.1,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    """`batch_norm_forward`, y alone; running statistics are updated too."""
    running: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var, "momentum": momentum}
    return batch_norm_forward(x, weight, bias, **running, channel_axis=channel_axis, eps=eps)[0]


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    """y = (x - mean) / sqrt(var + eps) * weight + bias with the given mean and var, of shape (C,)."""
    x = _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, var = (np.expand_dims(_float64(a), reduced) for a in (mean, var))
    scale = _parameter(weight, 1.0, reduced) / np.sqrt(var + eps)
    return (x - mean) * scale + _parameter(bias, 0.0, reduced)


def batch_norm_inference_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    output_mask: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, None]:
    """dx = dy * weight * rstd, dweight = sum(dy * xhat), dbias = sum(dy): mean and var are constants here."""
    dy, x = _float64(dy), _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, var = (np.expand_dims(_float64(a), reduced) for a in (mean, var))
    rstd = 1.0 / np.sqrt(var + eps)
    dx = dy * _parameter(weight, 1.0, reduced) * rstd
    dweight = _sum(dy * (x - mean) * rstd, reduced)
    return _select((dx, dweight, _sum(dy, reduced), None), output_mask)


def batch_moments(x: ArrayLike, *, channel_axis: int = 1) -> tuple[int, Array, Array]:
    """Elements per channel, and each channel's mean and biased variance; 0 and 0 where there is no element."""
    x = _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, centred = _centre(x, reduced)
    count = math.prod(x.shape[a] for a in reduced)
    return count, np.squeeze(mean, reduced), np.squeeze(_mean(centred**2, reduced), reduced)


def batch_norm_backward_sums(
    dy: ArrayLike, x: ArrayLike, mean: ArrayLike, rstd: ArrayLike, *, channel_axis: int = 1
) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * xhat) per channel, xhat = (x - mean) * rstd with the GIVEN mean, which need not be x's."""
    dy, x = _float64(dy), _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, rstd = (np.expand_dims(_float64(a), reduced) for a in (mean, rstd))
    return _sum(dy, reduced), _sum(dy * (x - mean) * rstd, reduced)


def batch_norm_backward_apply(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter,
    sum_dy: ArrayLike,
    sum_dy_xhat: ArrayLike,
    count: int,
    *,
    channel_axis: int = 1,
) -> Array:
    """dx = weight * rstd * (dy - (sum_dy + xhat * sum_dy_xhat) / count), xhat = (x - mean) * rstd."""
    dy, x = _float64(dy), _float64(x)
    _, reduced = _split(x.ndim, channel_axis)
    mean, rstd, s1, s2 = (np.expand_dims(_float64(a), reduced) for a in (mean, rstd, sum_dy, sum_dy_xhat))
    xhat = (x - mean) * rstd
    return _parameter(weight, 1.0, reduced) * rstd * (dy - (s1 + xhat * s2) / max(count, 1))


# --- group norm and instance norm
# --------------------------------------------------------------------------------------


def _grouped(x: Array, num_groups: int, channel_axis: int) -> tuple[Array, Axes]:
    """x with its channel axis as (groups, channels of a group), and the axes that a mean is taken over."""
    channel = channel_axis % x.ndim
    shape = (*x.shape[:channel], num_groups, x.shape[channel] // num_groups, *x.shape[channel + 1 :])
    return x.reshape(shape), tuple(a for a in range(1, x.ndim + 1) if a != channel)


def _per_channel(value: Parameter, default: float, x: Array, num_groups: int, channel_axis: int) -> Array:
    """`value` of shape (C,), or the default where it is None, to broadcast against `_grouped` x."""
    if value is None:
        return _float64(default)
    after = x.ndim - 1 - channel_axis % x.ndim
    return _float64(value).reshape((num_groups, -1, *[1] * after))


def group_norm_forward(
    x: ArrayLike,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """y = (x - mean) * rstd * weight + bias, with mean and rstd = 1 / sqrt(var + eps) of each group of each sample."""
    x = _float64(x)
    grouped, inside = _grouped(x, num_groups, channel_axis)
    mean, centred = _centre(grouped, inside)
    rstd = 1.0 / np.sqrt(_mean(centred**2, inside) + eps)
    scale, shift = (_per_channel(v, d, x, num_groups, channel_axis) for v, d in ((weight, 1.0), (bias, 0.0)))
    y = centred * rstd * scale + shift
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
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * weight; dweight = sum(dy * xhat), dbias = sum(dy).

    xhat is centred by the mean of x itself, for the reason given in `layer_norm_backward`.
    """
    dy, x = _float64(dy), _float64(x)
    grouped, inside = _grouped(x, num_groups, channel_axis)
    dys = dy.reshape(grouped.shape)
    rstd = np.expand_dims(_float64(rstd), inside)
    xhat = _centre(grouped, inside)[1] * rstd
    dx = _gradient(dys, xhat, rstd, _per_channel(weight, 1.0, x, num_groups, channel_axis), inside)
    channel = channel_axis % x.ndim
    others = tuple(a for a in range(x.ndim + 1) if a not in (channel, channel + 1))
    dweight, dbias = _sum(dys * xhat, others).ravel(), _sum(dys, others).ravel()
    return _select((dx.reshape(x.shape), dweight, dbias), output_mask)


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    """`group_norm_forward`, y alone."""
    return group_norm_forward(x, num_groups, weight, bias, channel_axis=channel_axis, eps=eps)[0]


def instance_norm_forward(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, channel_axis: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`group_norm_forward` with a group for each channel: mean and rstd are (N, C)."""
    groups = np.shape(x)[channel_axis]
    return group_norm_forward(x, groups, weight, bias, channel_axis=channel_axis, eps=eps)


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`group_norm_backward` with a group for each channel."""
    groups = np.shape(x)[channel_axis]
    return group_norm_backward(
        dy, x, mean, rstd, groups, weight, bias, channel_axis=channel_axis, output_mask=output_mask
    )


def instance_norm(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, channel_axis: int = 1, eps: float = 1e-5
) -> Array:
    """`instance_norm_forward`, y alone."""
    return instance_norm_forward(x, weight, bias, channel_axis=channel_axis, eps=eps)[0]
