"""Batch norm: training, inference, and the parts for batches that are spread over blocks."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dispatch import home
from ..kernels import BATCH, CONSTANT, GIVEN, NONE
from ..views import Array, Channels, as_channels
from .checks import (
    EMPTY,
    FLOAT64,
    activation_code,
    as_gradient,
    check_like,
    constant,
    finite,
    output,
    parameter,
    rsqrt,
    unpacked,
)


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
    mask: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each channel by its statistics in this batch: y = activation(z), z = xhat * weight + bias + residual.

    xhat = (x - mean) * rstd. With a residual and relu it is the tail of a ResNet's block.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`. Contiguous arrays are not copied,
        whatever the order of their axes in memory; others are.
    weight, bias : ndarray, optional
        (C,), of any real dtype. None stands for ones and zeros.
    running_mean, running_var : ndarray, optional
        (C,), of any float dtype. Updated in place: running = (1 - momentum) * running + momentum * statistic, the
        variance being the unbiased one. A batch in which nothing counts leaves them as they are.
    momentum : float
        The weight of the new value, as in PyTorch. Keras and Flax call 1 minus this their momentum.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    eps : float
        Added to the variance.
    mask : ndarray of bool, optional
        Broadcasts to x without its channel axis; True counts. Statistics are those of the counted positions, which are
        copied; y is computed everywhere. Where nothing counts, mean and variance are 0.
    residual : ndarray, optional
        Added before the activation, in x's shape and dtype; copied where its memory layout is not x's.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        What y is of z. gelu is z * Phi(z) through erf, gelu_tanh its approximation by tanh (Hendrycks and Gimpel, 2016,
        arXiv:1606.08415), silu is z * sigmoid(z).
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
    kernels = home(x, weight, bias, running_mean, running_var, mask, residual, out)
    view = as_channels(x, channel_axis)
    tail = _tail(view, x, weight, bias, residual, activation)
    _check_running("running_mean", running_mean, (view.channels,))
    _check_running("running_var", running_var, (view.channels,))
    eps, momentum = finite("eps", eps), finite("momentum", momentum)
    counted = None if mask is None else view.positions(mask)
    count = view.count if counted is None else np.count_nonzero(counted)
    if count == 1 and view.channels:
        which = "one value" if mask is None else "one value that counts"
        raise ValueError(
            f"x of shape {x.shape} has {which} per channel on axis {channel_axis}: its variance is 0 and y would be "
            "the bias whatever x is. Training needs at least two; use batch_norm_inference for a single one"
        )
    y = output(out, x, (x,), (weight, bias, running_mean, running_var, mask, residual))
    given = None if counted is None else _moments(kernels, view, x, counted)
    stats = _normalize_channels(kernels, view, x, tail, eps, given, y)
    if count:
        _update(running_mean, stats[0], momentum)
        _update(running_var, stats[1] * (count / max(count - 1, 1)), momentum)
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
    mask: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `batch_norm_forward`.

    With dz = dy * activation'(z), xhat = (x - mean) * rstd and n values per channel: dresidual = dz, dbias = sum(dz),
    dweight = sum(dz * xhat) and dx = weight * rstd * (dz - (dbias + xhat * dweight) / n). With a mask, n is the number
    of counted positions, the sums are over all positions, and dx = weight * rstd * dz at those that do not count.

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
        What the forward had. Without an activation only the dtype of the bias matters.
    channel_axis, mask, residual, activation
        What the forward had. z is computed again from x. With a mask, the positions that do not count are copied.
    output_mask : sequence of four bool
        Which of dx, dweight, dbias, dresidual to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias, dresidual : ndarray or None
        dx and dresidual like x, dresidual None without a residual; dweight and dbias (C,), in the dtype of weight and
        bias, or mean's where that is None or an integer type.

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
    kernels = home(dy, x, mean, rstd, weight, bias, mask, residual, out)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    tail = _tail(view, x, weight, bias, residual, activation)
    counted = None if mask is None else view.positions(mask)
    others = (mean, rstd, weight, bias, mask, residual)
    return _backward(kernels, view, dy, x, means, rstds, tail, counted, output_mask, out, others, BATCH)


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    residual: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Normalize each channel by given statistics: y = activation(z).

    z = (x - mean) / sqrt(var + eps) * weight + bias + residual.

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
    residual, activation
        As in `batch_norm_forward`.
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
        For shapes or axes that do not fit, an unknown activation, or a bad `out`.
    """
    kernels = home(x, mean, var, weight, bias, residual, out)
    view = as_channels(x, channel_axis)
    tail = _tail(view, x, weight, bias, residual, activation)
    given = _statistics(view, mean=mean, var=var)
    eps = finite("eps", eps)
    y = output(out, x, (x,), (mean, var, weight, bias, residual))
    _normalize_channels(kernels, view, x, tail, eps, given, y)
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
    residual: Array | None = None,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `batch_norm_inference`, with mean and var as constants: a frozen batch norm in training.

    With rstd = 1 / sqrt(var + eps) and dz = dy * activation'(z): dx = dz * weight * rstd,
    dweight = sum(dz * (x - mean) * rstd), dbias = sum(dz), dresidual = dz.

    Parameters
    ----------
    dy, x : ndarray
        The gradient of y, and what the forward had.
    mean, var : ndarray
        (C,), what the forward had.
    weight, bias : ndarray, optional
        What the forward had. Without an activation only the dtype of the bias matters.
    channel_axis, eps, residual, activation
        What the forward had.
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
    kernels = home(dy, x, mean, var, weight, bias, residual, out)
    view = as_channels(x, channel_axis)
    means, variances = _statistics(view, mean=mean, var=var)
    rstds = rsqrt(variances + finite("eps", eps))
    tail = _tail(view, x, weight, bias, residual, activation)
    others = (mean, var, weight, bias, residual)
    return _backward(kernels, view, dy, x, means, rstds, tail, None, output_mask, out, others, CONSTANT)


def batch_moments(x: Array, *, channel_axis: int = 1, mask: Array | None = None) -> tuple[int, Array, Array]:
    """Count, mean and biased variance of each channel, to be merged with those of other blocks or machines.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the channels on `channel_axis`.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    mask : ndarray of bool, optional
        Broadcasts to x without its channel axis; True counts. The counted positions are copied.

    Returns
    -------
    count : int
        Values per channel, those that count.
    mean, var : ndarray
        (C,), float64. 0 where the count is 0.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For an axis that x does not have, or a mask that does not fit.

    Notes
    -----
    Blocks a and b merge exactly: with d = mean_b - mean_a and n = n_a + n_b, mean = mean_a + d * n_b / n and
    var = (n_a * var_a + n_b * var_b) / n + d^2 * n_a * n_b / n^2 (Chan, Golub and LeVeque, 1983).
    """
    kernels = home(x, mask)
    view = as_channels(x, channel_axis)
    if mask is not None:
        counted = view.positions(mask)
        return int(np.count_nonzero(counted)), *_moments(kernels, view, x, counted)
    stats = _normalize_channels(kernels, view, x, _tail(view, x), 0.0, None, None)
    return view.count, stats[0], stats[1]


def batch_norm_backward_sums(
    dy: Array, x: Array, mean: Array, rstd: Array, *, channel_axis: int = 1, mask: Array | None = None
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
    mask : ndarray of bool, optional
        What the moments had. It changes nothing here: y is computed everywhere, and so are these sums.

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
    kernels = home(dy, x, mean, rstd, mask)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    check_like("dy", dy, x)
    if mask is not None:
        view.positions(mask)
    sums = np.zeros((2, view.channels))
    _differentiate_channels(kernels, view, dy, x, means, rstds, _tail(view, x), CONSTANT, 1, None, None, sums)
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
    mask: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of a block of a batch from the sums over all of it.

    dx = weight * rstd * (dy - (sum_dy + xhat * sum_dy_xhat) / count) with xhat = (x - mean) * rstd, and
    weight * rstd * dy at positions that do not count.

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
        Values per channel in the whole batch, those that count.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    mask : ndarray of bool, optional
        What the moments of this block had. The positions that do not count are copied.
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
        For shapes or axes that do not fit, a bad `out`, or a count below that of this block.
    """
    kernels = home(dy, x, mean, rstd, weight, sum_dy, sum_dy_xhat, mask, out)
    view = as_channels(x, channel_axis)
    means, rstds = _statistics(view, mean=mean, rstd=rstd)
    sums = np.stack(_statistics(view, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat))
    check_like("dy", dy, x)
    tail = _tail(view, x, weight)
    counted = None if mask is None else view.positions(mask)
    try:
        count = operator.index(count)
    except TypeError:
        raise TypeError(f"count must be an int, got {count!r}") from None
    least = view.count if counted is None else np.count_nonzero(counted)
    if count < least and x.size:
        raise ValueError(f"count is the values per channel in the whole batch, at least {least}, got {count}")
    dx = output(out, x, (x, dy), (mean, rstd, weight, sum_dy, sum_dy_xhat, mask))
    _differentiate_channels(kernels, view, dy, x, means, rstds, tail, GIVEN, max(count, 1), dx, None, sums, counted)
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
    mask: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
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
        mask=mask,
        residual=residual,
        activation=activation,
        out=out,
    )[0]


@dataclass(frozen=True, slots=True)
class _Tail:
    """What follows xhat, checked, and ready for the kernels: y = activation(xhat * scale + offset + residual)."""

    scale: Array
    offset: Array
    activation: int
    residual: Array | None
    weight: Array | None
    bias: Array | None


def _tail(
    view: Channels,
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
) -> _Tail:
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    offset = parameter("bias", bias, (view.channels,), view.number, 0)
    if residual is not None:
        check_like("residual", residual, x)
    return _Tail(scale, offset, activation_code(activation), residual, weight, bias)


def _moments(kernels: Any, view: Channels, x: Array, counted: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over the counted positions, 0 where nothing counts."""
    stats = np.zeros((3, view.channels))
    if x.size and counted.any():
        picked = view.pick(view.enter(x), counted)
        kernel = kernels.columns_forward if view.columns else kernels.channels_forward
        one, none = constant(view.channels, view.number, 1), EMPTY[view.storage, 3]
        kernel(picked, none, one, one, 0.0, True, NONE, none, stats.reshape(3, *view.vector_shape))
    return stats[0], stats[1]


def _normalize_channels(
    kernels: Any,
    view: Channels,
    x: Array,
    tail: _Tail,
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
        kernel(view.enter(x), added, tail.scale, tail.offset, eps, training, tail.activation, target, statistics)
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
    tail: _Tail,
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
    channel = (mean.reshape(shape), rstd.reshape(shape), tail.scale, tail.offset)
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


def _backward(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    tail: _Tail,
    counted: Array | None,
    output_mask: Sequence[bool],
    out: Array | None,
    others: tuple[Array | None, ...],
    terms: int,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """The gradients of a batch norm whose statistics are x's own (BATCH) or not (CONSTANT)."""
    want_dx, want_dweight, want_dbias, want_dresidual = unpacked(output_mask, 4)
    check_like("dy", dy, x)
    dx = output(out, x, (x, dy), others) if want_dx else None
    dresidual = np.empty_like(x, subok=False) if want_dresidual and tail.residual is not None else None
    sums = np.zeros((2, view.channels))
    through = dresidual if tail.activation else None
    if dresidual is not None and not tail.activation:
        np.copyto(dresidual, dy)  # now, for dx may be written over dy
    if counted is None:
        _differentiate_channels(kernels, view, dy, x, mean, rstd, tail, terms, view.count, dx, through, sums)
    else:
        exact, _ = _moments(kernels, view, x, counted)  # the given mean is rounded: no gradient must inherit that
        mean = np.where(np.isfinite(exact), exact, mean)
        _differentiate_channels(kernels, view, dy, x, mean, rstd, tail, CONSTANT, 1, None, None, sums)
        count = max(int(np.count_nonzero(counted)), 1)
        if dx is not None or through is not None:
            _differentiate_channels(kernels, view, dy, x, mean, rstd, tail, GIVEN, count, dx, through, sums, counted)
    dweight = as_gradient(sums[1], tail.weight, view.number) if want_dweight else None
    dbias = as_gradient(sums[0], tail.bias, view.number) if want_dbias else None
    return dx, dweight, dbias, dresidual


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
