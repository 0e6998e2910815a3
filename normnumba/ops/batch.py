"""Batch norm: training, inference, and the parts for batches that are spread over blocks."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dispatch import home
from ..kernels import BATCH, CONSTANT, GIVEN
from ..views import Array, Channels, as_channels
from .checks import EMPTY, FLOAT64, as_gradient, check_like, constant, finite, output, parameter, rsqrt, unpacked


def batch_norm_forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each channel by its statistics in this batch: y = (x - mean) * rstd * weight + bias.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`. Contiguous arrays are not copied,
        whatever the order of their axes in memory; others are.
    weight, bias : ndarray, optional
        (C,), of any real dtype. None stands for ones and zeros.
    running_mean, running_var : ndarray, optional
        (C,), of any float dtype. Updated in place: running = (1 - momentum) * running + momentum * statistic, the
        variance being the unbiased one. An empty batch leaves them as they are.
    momentum : float
        The weight of the new value, as in PyTorch. Keras and Flax call 1 minus this their momentum.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    eps : float
        Added to the variance.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    mean, rstd : ndarray
        (C,), of the batch, rstd = 1 / sqrt(var + eps) from the biased variance, float32, or float64 for
        float64 x.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, a bad `out`, or one value per channel, which has no variance.

    Notes
    -----
    Ioffe and Szegedy, Batch Normalization, 2015 (arXiv:1502.03167), with PyTorch's conventions.
    """
    kernels = home(x, weight, bias, running_mean, running_var, out)
    view = as_channels(x, channel_axis)
    channels = (view.channels,)
    scale = parameter("weight", weight, channels, view.number, 1)
    offset = parameter("bias", bias, channels, view.number, 0)
    _check_running("running_mean", running_mean, channels)
    _check_running("running_var", running_var, channels)
    eps, momentum = finite("eps", eps), finite("momentum", momentum)
    if view.count == 1 and view.channels:
        raise ValueError(
            f"x of shape {x.shape} has one value per channel on axis {channel_axis}: its variance is 0 and y would be "
            "the bias whatever x is. Training needs at least two; use batch_norm_inference for a single one"
        )
    y = output(out, x, (x,), (weight, bias, running_mean, running_var))
    stats = _normalize_channels(kernels, view, x, scale, offset, eps, None, y)
    if view.count:
        _update(running_mean, stats[0], momentum)
        _update(running_var, stats[1] * (view.count / max(view.count - 1, 1)), momentum)
    return y, stats[0].astype(view.number), stats[2].astype(view.number)


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    output_mask: Sequence[bool] = (True, True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `batch_norm_forward`.

    With xhat = (x - mean) * rstd and n values per channel: dbias = sum(dy), dweight = sum(dy * xhat) and
    dx = weight * rstd * (dy - (dbias + xhat * dweight) / n).

    Parameters
    ----------
    dy : ndarray
        The gradient of y, in x's shape and dtype; copied where its memory layout is not x's.
    x : ndarray
        What the forward had.
    mean, rstd : ndarray
        (C,), what the forward returned. xhat is centred again, so that the rounding of the mean does not reach the
        gradients.
    weight, bias : ndarray, optional
        What the forward had. Of the bias only the dtype matters.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    output_mask : sequence of four bool
        Which of dx, dweight, dbias, dresidual to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias, dresidual : ndarray or None
        dx like x; dweight and dbias (C,), in the dtype of weight and bias, or mean's where that is None or an integer
        type. dresidual is None: the forward took no residual.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, or a bad `out`.

    Notes
    -----
    Same bits on any number of threads.
    """
    kernels = home(dy, x, mean, rstd, weight, bias, out)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    return _backward(kernels, view, dy, x, means, rstds, weight, bias, output_mask, out, (mean, rstd), BATCH)


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalize each channel by given statistics: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`.
    mean, var : ndarray
        (C,), of any real dtype: the running statistics, or those of a larger batch. A float64 mean keeps its digits for
        float32 x.
    weight, bias : ndarray, optional
        (C,), of any real dtype. None stands for ones and zeros.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    eps : float
        Added to the variance.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, or a bad `out`.
    """
    kernels = home(x, mean, var, weight, bias, out)
    view = as_channels(x, channel_axis)
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    offset = parameter("bias", bias, (view.channels,), view.number, 0)
    given = _statistics(view, mean=mean, var=var)
    y = output(out, x, (x,), (mean, var, weight, bias))
    _normalize_channels(kernels, view, x, scale, offset, finite("eps", eps), given, y)
    return y


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    output_mask: Sequence[bool] = (True, True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `batch_norm_inference`, with mean and var as constants: a frozen batch norm in training.

    With rstd = 1 / sqrt(var + eps): dx = dy * weight * rstd, dweight = sum(dy * (x - mean) * rstd), dbias = sum(dy).

    Parameters
    ----------
    dy, x : ndarray
        The gradient of y, and what the forward had.
    mean, var : ndarray
        (C,), what the forward had.
    weight, bias : ndarray, optional
        What the forward had. Of the bias only the dtype matters.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    eps : float
        Added to the variance.
    output_mask : sequence of four bool
        Which of dx, dweight, dbias, dresidual to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias, dresidual : ndarray or None
        As in `batch_norm_backward`.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, or a bad `out`.
    """
    kernels = home(dy, x, mean, var, weight, bias, out)
    view = as_channels(x, channel_axis)
    means, variances = _statistics(view, mean=mean, var=var)
    rstds = rsqrt(variances + finite("eps", eps))
    return _backward(kernels, view, dy, x, means, rstds, weight, bias, output_mask, out, (mean, var), CONSTANT)


def batch_moments(x: Array, *, channel_axis: int = 1) -> tuple[int, Array, Array]:
    """Count, mean and biased variance of each channel, to be merged with those of other blocks or machines.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.

    Returns
    -------
    count : int
        Values per channel.
    mean, var : ndarray
        (C,), float64. 0 where the count is 0.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For an axis that x does not have.

    Notes
    -----
    Blocks a and b merge exactly: with d = mean_b - mean_a and n = n_a + n_b, mean = mean_a + d * n_b / n and
    var = (n_a * var_a + n_b * var_b) / n + d^2 * n_a * n_b / n^2 (Chan, Golub and LeVeque, 1983).
    """
    kernels = home(x)
    view = as_channels(x, channel_axis)
    ones, zeros = (constant(view.channels, view.number, value) for value in (1, 0))
    stats = _normalize_channels(kernels, view, x, ones, zeros, 0.0, None, None)
    return view.count, stats[0], stats[1]


def batch_norm_backward_sums(
    dy: Array, x: Array, mean: Array, rstd: Array, *, channel_axis: int = 1
) -> tuple[Array, Array]:
    """The sums that `batch_norm_backward_apply` needs from every block of a batch: sum(dy) and sum(dy * xhat).

    xhat = (x - mean) * rstd with the statistics of the whole batch. Sums of blocks add up; the totals are dbias and
    dweight.

    Parameters
    ----------
    dy, x : ndarray
        A block of the gradient of y, and of x.
    mean, rstd : ndarray
        (C,), of the whole batch. Give float64: a mean rounded to float32 costs digits where it is large against 1 /
        rstd.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.

    Returns
    -------
    sum_dy, sum_dy_xhat : ndarray
        (C,), float64.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit.
    """
    kernels = home(dy, x, mean, rstd)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    check_like("dy", dy, x)
    ones = constant(view.channels, view.number, 1)
    sums = np.zeros((2, view.channels))
    _differentiate_channels(kernels, view, dy, x, means, rstds, ones, CONSTANT, 1, None, sums)
    return sums[0], sums[1]


def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    sum_dy: Array,
    sum_dy_xhat: Array,
    count: int,
    *,
    channel_axis: int = 1,
    out: Array | None = None,
) -> Array:
    """The gradient of a block of a batch from the sums over all of it.

    dx = weight * rstd * (dy - (sum_dy + xhat * sum_dy_xhat) / count) with xhat = (x - mean) * rstd.

    Parameters
    ----------
    dy, x : ndarray
        A block of the gradient of y, and of x.
    mean, rstd : ndarray
        (C,), of the whole batch, preferably float64.
    weight : ndarray or None
        (C,), of any real dtype. None stands for ones.
    sum_dy, sum_dy_xhat : ndarray
        (C,), the sums of `batch_norm_backward_sums` over all blocks.
    count : int
        Values per channel in the whole batch.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx : ndarray
        Of x's shape, dtype and memory layout.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, a bad `out`, or a count below 1 for a block that is not empty.
    """
    kernels = home(dy, x, mean, rstd, weight, sum_dy, sum_dy_xhat, out)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    sums = np.stack(_statistics(view, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat))
    check_like("dy", dy, x)
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    try:
        count = operator.index(count)
    except TypeError:
        raise TypeError(f"count must be an int, got {count!r}") from None
    if count < 1 and x.size:
        raise ValueError(f"count is the values per channel in the whole batch, at least {view.count}, got {count}")
    dx = output(out, x, (x, dy), (mean, rstd, weight, sum_dy, sum_dy_xhat))
    _differentiate_channels(kernels, view, dy, x, means, rstds, scale, GIVEN, count, dx, sums)
    return dx


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Return y of `batch_norm_forward` alone."""
    return batch_norm_forward(
        x,
        weight,
        bias,
        running_mean=running_mean,
        running_var=running_var,
        momentum=momentum,
        channel_axis=channel_axis,
        eps=eps,
        out=out,
    )[0]


def _normalize_channels(
    kernels: Any,
    view: Channels,
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    given: list[Array] | None,
    y: Array | None,
) -> Array:
    """Fill y unless it is None; return float64 (3, C) mean, var and rstd, of x itself unless mean and var are given."""
    stats = np.zeros((3, view.channels))
    if given is not None:
        stats[0], stats[1] = given
    if given is not None or not x.size:
        stats[2] = rsqrt(stats[1] + eps)
    if x.size:
        target = EMPTY[view.storage, 3] if y is None else view.result(y)
        kernel = kernels.columns_forward if view.columns else kernels.channels_forward
        kernel(view.enter(x), weight, bias, eps, given is None, target, stats.reshape(3, *view.vector_shape))
        if y is not None:
            view.leave(target, y)
    return stats


def _differentiate_channels(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    terms: int,
    count: int,
    dx: Array | None,
    sums: Array,
) -> None:
    """Fill dx unless it is None, and the float64 (2, C) sums of dy and of dy * xhat unless those are given."""
    if not x.size:
        return
    target = EMPTY[view.storage, 3] if dx is None else view.result(dx)
    kernel = kernels.columns_backward if view.columns else kernels.channels_backward
    shape = view.vector_shape
    means, rstds = mean.reshape(shape), rstd.reshape(shape)
    kernel(view.enter(dy), view.enter(x), means, rstds, weight, terms, count, target, sums.reshape(2, *shape))
    if dx is not None:
        view.leave(target, dx)


def _backward(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    output_mask: Sequence[bool],
    out: Array | None,
    statistics: tuple[Array, Array],
    terms: int,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """The gradients of a batch norm whose statistics are x's own (BATCH) or not (CONSTANT)."""
    want_dx, want_dweight, want_dbias, _ = unpacked(output_mask, 4)
    check_like("dy", dy, x)
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    parameter("bias", bias, (view.channels,), view.number, 0)
    dx = output(out, x, (x, dy), (*statistics, weight, bias)) if want_dx else None
    sums = np.zeros((2, view.channels))
    _differentiate_channels(kernels, view, dy, x, mean, rstd, scale, terms, view.count, dx, sums)
    dweight = as_gradient(sums[1], weight, view.number) if want_dweight else None
    dbias = as_gradient(sums[0], bias, view.number) if want_dbias else None
    return dx, dweight, dbias, None


def _statistics(view: Channels, **values: Array) -> list[Array]:
    """Given statistics of channels, in float64."""
    return [parameter(name, value, (view.channels,), FLOAT64) for name, value in values.items()]


def _check_running(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    if array is None:
        return
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} is updated in place and must be of a float dtype, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to go with x, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but is updated in place; pass a writable array")


def _update(running: Array | None, statistic: Array, momentum: float) -> None:
    if running is not None:
        running[...] = ((1 - momentum) * running + momentum * statistic).astype(running.dtype)
