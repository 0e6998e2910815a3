"""Batch norm: training, inference, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..device.array import assign, empty, may_share_memory, shares_memory
from ..dispatch import everywhere, home
from ..kernels import BATCH, CONSTANT, GIVEN
from ..pool import fresh
from ..views import Array, Channels, as_channels
from . import plain
from .channels import Given, Tail, differentiate_channels, normalize_channels, statistics_of, tail_of
from .checks import EMPTY, FLOAT64, as_gradient, check_like, finite, output, unpacked
from .masks import differentiate_masked, masked_moments


@everywhere(short=plain.batch_norm_forward)
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
        Broadcasts to x without its channel axis; True counts. Statistics are those of the counted positions; y is
        computed everywhere. Where nothing counts, mean and variance are 0. On a device the call waits until the
        positions are counted.
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
    if running_mean is not None:
        _check_running("running_mean", running_mean, view, (x, weight, bias, mask, residual, running_var))
    if running_var is not None:
        _check_running("running_var", running_var, view, (x, weight, bias, mask, residual))
    momentum = finite("momentum", momentum)
    tail = tail_of(view, x, weight, bias, residual, activation)
    y, mean, rstd, stats, count = normalize_batch(kernels, view, x, tail, eps, mask, out, (running_mean, running_var))
    if count and running_mean is not None:
        kernels.update_running(running_mean, stats[0], momentum, 1.0)
    if count and running_var is not None:
        kernels.update_running(running_var, stats[1], momentum, count / max(count - 1, 1))
    return y, mean, rstd


def normalize_batch(
    kernels: Any,
    view: Channels,
    x: Array,
    tail: Tail,
    eps: float,
    mask: Array | None = None,
    out: Array | None = None,
    others: tuple[Array | None, ...] = (),
) -> tuple[Array, Array, Array, Array, int]:
    """y, mean and rstd of `batch_norm_forward`, the float64 mean and biased variance (2, C), and how many values count.

    `others` are what `out` must not be, besides the arguments of the norm.
    """
    eps = finite("eps", eps)
    counted = None if mask is None else view.positions(mask)
    count = view.count if counted is None else kernels.count_positions(counted)
    if count == 1 and view.channels:
        which = "one value" if mask is None else "one value that counts"
        raise ValueError(
            f"x of shape {x.shape} has {which} per channel on axis {view.channel_axis}: its variance is 0 and y would "
            "be the bias whatever x is. Training needs at least two; use batch_norm_inference for a single one"
        )
    y = output(out, x, (x,), (tail.weight, tail.bias, *others, mask, tail.residual))
    given = None if counted is None else masked_moments(kernels, view, x, counted)
    mean, rstd = empty(x, view.channels, view.number), empty(x, view.channels, view.number)
    stats = normalize_channels(kernels, view, x, tail, eps, given, y, mean, rstd)
    return y, mean, rstd, stats, count


@everywhere(short=plain.batch_norm_backward)
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
        What the forward had. z is computed again from x. With a mask, x is read once more.
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
    given = Given(statistics_of(kernels, view, "mean", mean, "rstd", rstd))
    tail = tail_of(view, x, weight, bias, residual, activation)
    counted = None if mask is None else view.positions(mask)
    others = (mean, rstd, weight, bias, mask, residual)
    return _backward(kernels, view, dy, x, given, tail, counted, output_mask, out, others, BATCH)


@everywhere(short=plain.batch_norm_inference)
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
    tail = tail_of(view, x, weight, bias, residual, activation)
    given = statistics_of(kernels, view, "mean", mean, "var", var)
    eps = finite("eps", eps)
    y = output(out, x, (x,), (mean, var, weight, bias, residual))
    none = EMPTY[view.number, 1]
    normalize_channels(kernels, view, x, tail, eps, given, y, none, none)
    return y


@everywhere(short=plain.batch_norm_inference_backward)
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
    given = Given(statistics_of(kernels, view, "mean", mean, "var", var), True, finite("eps", eps))
    tail = tail_of(view, x, weight, bias, residual, activation)
    others = (mean, var, weight, bias, residual)
    return _backward(kernels, view, dy, x, given, tail, None, output_mask, out, others, CONSTANT)


@everywhere
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


def _backward(
    kernels: Any,
    view: Channels,
    dy: Array,
    x: Array,
    given: Given,
    tail: Tail,
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
    dresidual = fresh(x) if want_dresidual and tail.residual is not None else None
    sums = empty(x, (2, view.channels), FLOAT64)
    through = dresidual if tail.activation else None
    if dresidual is not None and not tail.activation:
        assign(dresidual, dy)  # now, for dx may be written over dy
    if counted is None:
        differentiate_channels(kernels, view, dy, x, given, tail, terms, view.count, dx, through, sums)
    else:
        exact = masked_moments(kernels, view, x, counted)  # the given mean is rounded: no gradient must inherit that
        kernels.copy_finite(exact[0], given.stats[0])
        differentiate_channels(kernels, view, dy, x, given, tail, CONSTANT, 1, None, None, sums)
        count = max(kernels.count_positions(counted), 1)
        if dx is not None:
            differentiate_masked(kernels, view, dy, x, given, tail, count, dx, through, sums, counted)
        elif through is not None:
            differentiate_channels(kernels, view, dy, x, given, tail, GIVEN, count, None, through, sums)
    dweight = as_gradient(sums[1], tail.weight, view.number) if want_dweight else None
    dbias = as_gradient(sums[0], tail.bias, view.number) if want_dbias else None
    return dx, dweight, dbias, dresidual


def _check_running(name: str, array: Array, view: Channels, others: tuple[Array | None, ...]) -> None:
    shape = (view.channels,)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} is updated in place and must be of a float dtype, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to go with x, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but is updated in place; pass a writable array")
    near = [a for a in others if a is not None and may_share_memory(array, a)]
    if (array.strides == (0,) and shape[0] > 1) or any(shares_memory(array, a) for a in near):
        raise ValueError(f"{name} shares memory, with itself or another argument, but is updated in place; pass a copy")
