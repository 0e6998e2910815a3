"""The public functions: check the arguments, view them as the kernels do, call, and put the results into shape.

Every function takes x in float32 or float64 and computes in that type, with sums beyond a few thousand values in
float64. Inputs are never changed except the running statistics, and `out` where it is one of them.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .dispatch import home
from .kernels import BATCH, CONSTANT, GIVEN
from .views import Channels, as_channels, as_rows

Array = npt.NDArray[Any]
Axis = int | Sequence[int]

_FLOAT64 = np.dtype(np.float64)


# --- layer norm ------------------------------------------------------------------------------------------------------


def layer_norm_forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize over `axis`: y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(var + eps).

    Parameters
    ----------
    x : ndarray
        float32 or float64, any shape and strides.
    weight, bias : ndarray, optional
        Of any real dtype, in the shape of the normalized axes in order. None stands for ones and zeros.
    axis : int or tuple of int
        The axes normalized over. Where they are not the innermost in memory, x is copied first and y once more.
    eps : float
        Added to the variance.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    mean, rstd : ndarray
        Of x's shape without `axis`, in x's dtype. An empty row has mean 0 and variance 0.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, or a bad `out`.

    Notes
    -----
    Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv:1607.06450). The variance is biased, as in PyTorch and Keras.
    """
    kernels = home(x, weight, bias, out)
    view = as_rows(x, axis)
    scale = view.vector(_parameter("weight", weight, view.normalized, view.number, 1))
    offset = view.vector(_parameter("bias", bias, view.normalized, view.number, 0))
    eps = _finite("eps", eps)
    y = _output(out, x, (x,), (weight, bias))
    mean, rstd = np.empty(view.geometry[0], view.number), np.empty(view.geometry[0], view.number)
    if x.size:
        target = view.result(y)
        kernels.rows_forward(view.enter(x), scale, offset, eps, target, mean, rstd)
        view.leave(target, y)
    else:
        mean[:], rstd[:] = 0, _rsqrt(eps)
    return y, view.statistics(mean), view.statistics(rstd)


def layer_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    output_mask: Sequence[bool] = (True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `layer_norm_forward`.

    With xhat = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - average(g) - xhat * average(g * xhat)) over
    `axis`, dweight = sum(dy * xhat) and dbias = sum(dy) over the other axes.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, in x's shape and dtype.
    x : ndarray
        What the forward had.
    mean, rstd : ndarray
        What the forward returned. xhat is centred again, so that the rounding of the mean does not reach the gradients.
    weight, bias : ndarray, optional
        What the forward had. Of the bias only the dtype matters.
    axis : int or tuple of int
        The axes normalized over. Where they are not the innermost in memory, dy and x are copied first and dx once
        more.
    output_mask : sequence of three bool
        Which of dx, dweight, dbias to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias : ndarray or None
        dx like x; dweight and dbias in the shape of the normalized axes, and in the dtype of weight and bias, or x's
        where that is None or an integer type. Without weight or bias they are those of implicit ones and zeros.

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
    view = as_rows(x, axis)
    want_dx, want_dweight, want_dbias = _mask(output_mask, 3)
    _check_like("dy", dy, x)
    means = view.row_values(_parameter("mean", mean, view.kept, view.number))
    rstds = view.row_values(_parameter("rstd", rstd, view.kept, view.number))
    scale = view.vector(_parameter("weight", weight, view.normalized, view.number, 1))
    _parameter("bias", bias, view.normalized, view.number, 0)
    dx = _output(out, x, (x, dy), (mean, rstd, weight, bias)) if want_dx else None
    sums = np.zeros((2, view.geometry[1] if want_dweight or want_dbias else 0), view.number)
    if x.size:
        target = _EMPTY[x.dtype, 2] if dx is None else view.result(dx)
        kernels.rows_backward(view.enter(dy), view.enter(x), means, rstds, scale, target, sums)
        if dx is not None:
            view.leave(target, dx)
    dweight = view.parameter(_as_gradient(sums[1], weight)) if want_dweight else None
    dbias = view.parameter(_as_gradient(sums[0], bias)) if want_dbias else None
    return dx, dweight, dbias


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Return y of `layer_norm_forward` alone."""
    return layer_norm_forward(x, weight, bias, axis=axis, eps=eps, out=out)[0]


# --- batch norm ------------------------------------------------------------------------------------------------------


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
        float32 or float64, with the channels on `channel_axis`. Contiguous arrays are not copied, whatever the order of
        their axes in memory; others are.
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
        (C,), of the batch, rstd = 1 / sqrt(var + eps) from the biased variance, in x's dtype.

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
    scale = _parameter("weight", weight, channels, view.number, 1)
    offset = _parameter("bias", bias, channels, view.number, 0)
    _check_running("running_mean", running_mean, channels)
    _check_running("running_var", running_var, channels)
    eps, momentum = _finite("eps", eps), _finite("momentum", momentum)
    if view.count == 1 and view.channels:
        raise ValueError(
            f"x of shape {x.shape} has one value per channel on axis {channel_axis}: its variance is 0 and y would be "
            "the bias whatever x is. Training needs at least two; use batch_norm_inference for a single one"
        )
    y = _output(out, x, (x,), (weight, bias, running_mean, running_var))
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
        dx like x; dweight and dbias (C,), in the dtype of weight and bias, or x's where that is None or an integer
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
        float32 or float64, with the channels on `channel_axis`.
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
    scale = _parameter("weight", weight, (view.channels,), view.number, 1)
    offset = _parameter("bias", bias, (view.channels,), view.number, 0)
    given = _statistics(view, mean=mean, var=var)
    y = _output(out, x, (x,), (mean, var, weight, bias))
    _normalize_channels(kernels, view, x, scale, offset, _finite("eps", eps), given, y)
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
    rstds = _rsqrt(variances + _finite("eps", eps))
    return _backward(kernels, view, dy, x, means, rstds, weight, bias, output_mask, out, (mean, var), CONSTANT)


def batch_moments(x: Array, *, channel_axis: int = 1) -> tuple[int, Array, Array]:
    """Count, mean and biased variance of each channel, to be merged with those of other blocks or machines.

    Parameters
    ----------
    x : ndarray
        float32 or float64, with the channels on `channel_axis`.
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
    ones, zeros = (_constant(view.channels, view.number, value) for value in (1, 0))
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
    _check_like("dy", dy, x)
    ones = _constant(view.channels, view.number, 1)
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
    _check_like("dy", dy, x)
    scale = _parameter("weight", weight, (view.channels,), view.number, 1)
    try:
        count = operator.index(count)
    except TypeError:
        raise TypeError(f"count must be an int, got {count!r}") from None
    if count < 1 and x.size:
        raise ValueError(f"count is the values per channel in the whole batch, at least {view.count}, got {count}")
    dx = _output(out, x, (x, dy), (mean, rstd, weight, sum_dy, sum_dy_xhat))
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


# --- what they share -------------------------------------------------------------------------------------------------


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
        stats[2] = _rsqrt(stats[1] + eps)
    if x.size:
        target = _EMPTY[x.dtype, 3] if y is None else view.result(y)
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
    target = _EMPTY[x.dtype, 3] if dx is None else view.result(dx)
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
    want_dx, want_dweight, want_dbias, _ = _mask(output_mask, 4)
    _check_like("dy", dy, x)
    scale = _parameter("weight", weight, (view.channels,), view.number, 1)
    _parameter("bias", bias, (view.channels,), view.number, 0)
    dx = _output(out, x, (x, dy), (*statistics, weight, bias)) if want_dx else None
    sums = np.zeros((2, view.channels))
    _differentiate_channels(kernels, view, dy, x, mean, rstd, scale, terms, view.count, dx, sums)
    dweight = _as_gradient(sums[1], weight, view.number) if want_dweight else None
    dbias = _as_gradient(sums[0], bias, view.number) if want_dbias else None
    return dx, dweight, dbias, None


def _parameter(
    name: str, value: Array | None, shape: tuple[int, ...], number: np.dtype[Any], default: int | None = None
) -> Array:
    """A weight, bias or statistic as kernels take it: contiguous and in the type that x is computed in."""
    if value is None and default is not None:
        return _constant(shape[0] if len(shape) == 1 else shape, number, default)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an ndarray of shape {shape}, got {value!r}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to go with x, got {value.shape}")
    if value.dtype == number and value.flags.carray:
        return value
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be of a real dtype, got {value.dtype}")
    return np.require(value, number, ["C", "A"])


def _statistics(view: Channels, **values: Array) -> list[Array]:
    """Given statistics of channels, in float64."""
    return [_parameter(name, value, (view.channels,), _FLOAT64) for name, value in values.items()]


@functools.lru_cache(64)
def _constant(shape: int | tuple[int, ...], number: np.dtype[Any], value: int) -> Array:
    """The parameter that None stands for."""
    array = np.full(shape, value, number)
    array.flags.writeable = False
    return array


_EMPTY = {(np.dtype(kind), rank): np.empty((0,) * rank, kind) for kind in (np.float32, np.float64) for rank in (2, 3)}
"""Stands for an x-sized output that is not wanted."""


def _output(out: Array | None, x: Array, allowed: tuple[Array, ...], others: tuple[Array | None, ...]) -> Array:
    """`out`, checked, or a new array in x's layout."""
    if out is None:
        return np.empty_like(x, subok=False)
    if out.dtype != x.dtype:
        raise TypeError(f"out must have x's dtype {x.dtype}, got {out.dtype}")
    if out.shape != x.shape:
        raise ValueError(f"out must have x's shape {x.shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writable array")
    for array in (*allowed, *others):
        if array is None or not np.may_share_memory(out, array):
            continue
        exact = any(array is a for a in allowed) and _same_memory(out, array)
        if not exact and np.shares_memory(out, array):
            raise ValueError(
                f"out shares memory with an input of shape {array.shape} without being exactly it; "
                "pass x (or dy in a backward) itself, or an array of its own"
            )
    return out


def _same_memory(a: Array, b: Array) -> bool:
    return a is b or (a.strides == b.strides and a.__array_interface__["data"] == b.__array_interface__["data"])


def _check_like(name: str, array: Array, x: Array) -> None:
    if array is None:
        raise TypeError(f"{name} must be an ndarray like x, got None")
    if array.dtype != x.dtype:
        raise TypeError(f"{name} must have x's dtype {x.dtype}, got {array.dtype}")
    if array.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {x.shape}, got {array.shape}")


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


def _as_gradient(total: Array, parameter: Array | None, number: np.dtype[Any] | None = None) -> Array:
    """A parameter's gradient in the parameter's dtype; in `number` where there is none, or it is no float type."""
    if parameter is not None and (parameter.dtype.kind == "f" or parameter.dtype.name == "bfloat16"):
        return total.astype(parameter.dtype, copy=False)
    return total if number is None else total.astype(number, copy=False)


def _mask(output_mask: Sequence[bool], length: int) -> Sequence[bool]:
    if len(output_mask) != length:
        raise ValueError(f"output_mask must have {length} entries, one for each output, got {output_mask}")
    return output_mask


def _finite(name: str, value: float) -> float:
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except OverflowError:
        number = math.inf
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a float, got {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _rsqrt(value: Any) -> Any:
    """1 / sqrt(value); Inf at 0 and NaN below, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 / np.sqrt(np.asarray(value, _FLOAT64))
