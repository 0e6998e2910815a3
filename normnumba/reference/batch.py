"""Batch norm: training, inference, the parts for batches that are spread over blocks, and folding it away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .activations import activate, differentiate
from .numeric import Array, Axes, Parameter, centre, float64, mean_over, parameter, select, split, sum_over

Mask = ArrayLike | None


def _positions(x: Array, channel_axis: int, mask: Mask) -> tuple[Axes, NDArray[np.bool_], int]:
    """The axes that a channel spans, which positions on them count (of length one along channels), and how many do."""
    channel, reduced = split(x.ndim, channel_axis)
    counted = np.broadcast_to(np.asarray(True if mask is None else mask), [x.shape[a] for a in reduced])
    return reduced, np.expand_dims(counted, channel), int(np.count_nonzero(counted))


def _before_activation(
    xhat: Array, weight: Parameter, bias: Parameter, residual: ArrayLike | None, axes: Axes
) -> Array:
    """z = xhat * weight + bias + residual."""
    z = xhat * parameter(weight, 1.0, axes) + parameter(bias, 0.0, axes)
    return z if residual is None else z + float64(residual)


def _through_statistics(
    dz: Array, xhat: Array, scale: Array, sums: Sequence[Array], counted: NDArray[np.bool_], count: int
) -> Array:
    """scale * (dz - counted / count * (sum_dz + xhat * sum_dz_xhat)): the sums act where the statistics came from."""
    sum_dz, sum_dz_xhat = sums
    return scale * (dz - counted * (sum_dz + xhat * sum_dz_xhat) / max(count, 1))


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
    mask: Mask = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """y = activation((x - mean) * rstd * weight + bias + residual), rstd = 1 / sqrt(var + eps), statistics (C,).

    Statistics are of the positions where `mask`, of x's shape without channels or broadcast to it, is True; y is
    computed everywhere. Running statistics are updated in place, running += momentum * (new - running), with the
    unbiased variance; where nothing counts they stay as they are.
    """
    x = float64(x)
    reduced, counted, count = _positions(x, channel_axis, mask)
    mean, centred = centre(x, reduced, counted)
    var = mean_over(centred**2, reduced, counted)
    rstd = 1.0 / np.sqrt(var + eps)
    y = activate(_before_activation(centred * rstd, weight, bias, residual, reduced), activation)
    if count and running_mean is not None:
        running_mean[...] = (1.0 - momentum) * float64(running_mean) + momentum * np.squeeze(mean, reduced)
    if count and running_var is not None:
        unbiased = np.squeeze(var, reduced) * count / (count - 1)
        running_var[...] = (1.0 - momentum) * float64(running_var) + momentum * unbiased
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
    mask: Mask = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """dx = weight * rstd * (dz - counted / count * (dbias + xhat * dweight)), dz = dy * activation'(z).

    dweight = sum(dz * xhat) and dbias = sum(dz) over all positions; dresidual = dz, None without a residual. xhat is
    centred by the mean of x itself, for the reason given in `layer_norm_backward`.
    """
    dy, x = float64(dy), float64(x)
    reduced, counted, count = _positions(x, channel_axis, mask)
    rstd = np.expand_dims(float64(rstd), reduced)
    xhat = centre(x, reduced, counted)[1] * rstd
    dz = differentiate(dy, _before_activation(xhat, weight, bias, residual, reduced), activation)
    dweight, dbias = sum_over(dz * xhat, reduced), sum_over(dz, reduced)
    sums = [np.expand_dims(a, reduced) for a in (dbias, dweight)]
    dx = _through_statistics(dz, xhat, parameter(weight, 1.0, reduced) * rstd, sums, counted, count)
    return select((dx, dweight, dbias, None if residual is None else dz), output_mask)


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
    mask: Mask = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """`batch_norm_forward`, y alone; running statistics are updated too."""
    return batch_norm_forward(
        x,
        weight,
        bias,
        running_mean=running_mean,
        running_var=running_var,
        momentum=momentum,
        channel_axis=channel_axis,
        eps=eps,
        mask=mask,
        residual=residual,
        activation=activation,
    )[0]


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual) with the given mean and var, (C,)."""
    x = float64(x)
    _, reduced = split(x.ndim, channel_axis)
    mean, var = (np.expand_dims(float64(a), reduced) for a in (mean, var))
    xhat = (x - mean) / np.sqrt(var + eps)
    return activate(_before_activation(xhat, weight, bias, residual, reduced), activation)


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
    residual: ArrayLike | None = None,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """dx = dz * weight * rstd, dweight = sum(dz * xhat), dbias = sum(dz), dresidual = dz = dy * activation'(z).

    mean and var are constants here, and xhat is centred by that mean. dresidual is None without a residual.
    """
    dy, x = float64(dy), float64(x)
    _, reduced = split(x.ndim, channel_axis)
    mean, var = (np.expand_dims(float64(a), reduced) for a in (mean, var))
    rstd = 1.0 / np.sqrt(var + eps)
    xhat = (x - mean) * rstd
    dz = differentiate(dy, _before_activation(xhat, weight, bias, residual, reduced), activation)
    dx = dz * parameter(weight, 1.0, reduced) * rstd
    dresidual = None if residual is None else dz
    return select((dx, sum_over(dz * xhat, reduced), sum_over(dz, reduced), dresidual), output_mask)


def batch_moments(x: ArrayLike, *, channel_axis: int = 1, mask: Mask = None) -> tuple[int, Array, Array]:
    """Counted positions, and each channel's mean and biased variance over them; 0 and 0 where there are none."""
    x = float64(x)
    reduced, counted, count = _positions(x, channel_axis, mask)
    mean, centred = centre(x, reduced, counted)
    return count, np.squeeze(mean, reduced), np.squeeze(mean_over(centred**2, reduced, counted), reduced)


def batch_norm_backward_sums(
    dy: ArrayLike, x: ArrayLike, mean: ArrayLike, rstd: ArrayLike, *, channel_axis: int = 1, mask: Mask = None
) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * xhat) per channel, xhat = (x - mean) * rstd with the GIVEN mean, which need not be x's.

    Over all positions, whatever the mask: those that do not count have a y as well, which depends on the statistics.
    """
    dy, x = float64(dy), float64(x)
    _, reduced = split(x.ndim, channel_axis)
    mean, rstd = (np.expand_dims(float64(a), reduced) for a in (mean, rstd))
    return sum_over(dy, reduced), sum_over(dy * (x - mean) * rstd, reduced)


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
    mask: Mask = None,
) -> Array:
    """dx = weight * rstd * (dy - counted / count * (sum_dy + xhat * sum_dy_xhat)), xhat = (x - mean) * rstd."""
    dy, x = float64(dy), float64(x)
    reduced, counted, _ = _positions(x, channel_axis, mask)
    mean, rstd, *sums = (np.expand_dims(float64(a), reduced) for a in (mean, rstd, sum_dy, sum_dy_xhat))
    scale = parameter(weight, 1.0, reduced) * rstd
    return _through_statistics(dy, (x - mean) * rstd, scale, sums, counted, count)


def fold_batch_norm(
    weight: ArrayLike,
    bias: Parameter,
    mean: ArrayLike,
    var: ArrayLike,
    bn_weight: Parameter = None,
    bn_bias: Parameter = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
) -> tuple[Array, Array]:
    """weight * scale along `axis` and (bias - mean) * scale + bn_bias, with scale = bn_weight / sqrt(var + eps).

    A linear map with these, whose outputs lie on `axis` of its weight, is the one with `weight` and `bias` followed by
    `batch_norm_inference`.
    """
    weight = float64(weight)
    scale = parameter(bn_weight, 1.0, ()) / np.sqrt(float64(var) + eps)
    _, others = split(weight.ndim, axis)
    folded_bias = (parameter(bias, 0.0, ()) - float64(mean)) * scale + parameter(bn_bias, 0.0, ())
    return weight * np.expand_dims(scale, others), folded_bias
