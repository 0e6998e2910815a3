"""Group norm and instance norm."""

from __future__ import annotations

from collections.abc import Sequence

from ..device.array import empty
from ..dispatch import everywhere, home
from ..kernels import BATCH, NONE
from ..views import Array, as_groups, integer
from . import plain
from .checks import (
    EMPTY,
    FLOAT64,
    activation_code,
    as_gradient,
    check_like,
    finite,
    output,
    parameter,
    rsqrt,
    unpacked,
)


@everywhere(short=plain.group_norm_forward)
def group_norm_forward(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each sample over groups of its channels: y = activation((x - mean) * rstd * weight + bias).

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, with the samples on axis 0 and the channels on `channel_axis`. Arrays
        that are contiguous with the channels first or last are not copied; others are.
    num_groups : int
        How many groups of neighbouring channels there are; it divides the number of channels.
    weight, bias : ndarray, optional
        (C,), of any real dtype. None stands for ones and zeros.
    channel_axis : int
        1 for (N, C, ...), -1 for channels last.
    eps : float
        Added to the variance.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        As in `batch_norm_forward`.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    mean, rstd : ndarray
        (N, G), float32, or float64 for float64 x. rstd = 1 / sqrt(var + eps) from the biased variance. An empty group
        has mean 0 and variance 0.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, fewer than two axes, or a bad `out`.

    Notes
    -----
    Wu and He, Group Normalization, 2018 (arXiv:1803.08494).
    """
    kernels = home(x, weight, bias, out)
    view = as_groups(x, channel_axis, integer("num_groups", num_groups))
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    offset = parameter("bias", bias, (view.channels,), view.number, 0)
    eps, kind = finite("eps", eps), NONE if activation is None else activation_code(activation)
    y = output(out, x, (x,), (weight, bias))
    shape = x.shape[0], view.groups
    mean, rstd = empty(x, shape, view.number), empty(x, shape, view.number)
    if not x.size:
        mean[:], rstd[:] = 0, rsqrt(eps)
        return y, mean, rstd
    target = view.result(y)
    if view.columns:
        stats, none = empty(x, (2, mean.size), FLOAT64), EMPTY[view.storage, 3]
        vectors = stats, target, mean.reshape(-1), rstd.reshape(-1)
        kernels.columns_forward(view.enter(x), none, scale, offset, eps, True, kind, *vectors)
    else:
        kernels.groups_forward(view.enter(x), scale, offset, eps, kind, target, mean, rstd)
    if target is not y:
        view.leave(target, y)
    return y, mean, rstd


@everywhere(short=plain.group_norm_backward)
def group_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `group_norm_forward`.

    With xhat = (x - mean) * rstd, dz = dy * activation'(xhat * weight + bias) and g = dz * weight:
    dx = rstd * (g - average(g) - xhat * average(g * xhat)) over each group of each sample, dweight = sum(dz * xhat) and
    dbias = sum(dz) over everything but the channels.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, in x's shape and dtype; copied where its memory layout is not x's.
    x : ndarray
        What the forward had.
    mean, rstd : ndarray
        (N, G), what the forward returned. xhat is centred again, so that the rounding of the mean does not reach the
        gradients.
    num_groups, channel_axis, activation
        What the forward had.
    weight, bias : ndarray, optional
        What the forward had. Without an activation only the dtype of the bias matters.
    output_mask : sequence of three bool
        Which of dx, dweight, dbias to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias : ndarray or None
        dx like x; dweight and dbias (C,), in the dtype of weight and bias, or mean's where that is None or an integer
        type.

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
    view = as_groups(x, channel_axis, integer("num_groups", num_groups))
    want_dx, want_dweight, want_dbias = unpacked(output_mask, 3)
    check_like("dy", dy, x)
    shape = x.shape[0], view.groups
    means, rstds = parameter("mean", mean, shape, view.number), parameter("rstd", rstd, shape, view.number)
    scale = parameter("weight", weight, (view.channels,), view.number, 1)
    offset = parameter("bias", bias, (view.channels,), view.number, 0)
    kind = NONE if activation is None else activation_code(activation)
    dx = output(out, x, (x, dy), (mean, rstd, weight, bias)) if want_dx else None
    dw, db = empty(x, view.channels, view.number), empty(x, view.channels, view.number)
    if x.size:
        none = EMPTY[view.storage, len(view.geometry)]
        target, given, entered = none if dx is None else view.result(dx), view.enter(dy), view.enter(x)
        if view.columns:
            stats = kernels.stacked(means.reshape(-1), rstds.reshape(-1))
            sums = empty(x, (2, x.shape[0] * view.channels), FLOAT64)
            count = x.size // means.size
            vectors = stats, scale, offset, 0.0, False, BATCH, count, kind
            kernels.columns_backward(given, entered, none, *vectors, target, none, sums)
            totals = kernels.sum_samples(sums, x.shape[0])
            db[:], dw[:] = totals[0], totals[1]
        else:
            kernels.groups_backward(given, entered, means, rstds, scale, offset, kind, target, dw, db)
        if dx is not None and target is not dx:
            view.leave(target, dx)
    else:
        dw[:] = 0
        db[:] = 0
    dweight = as_gradient(dw, weight) if want_dweight else None
    dbias = as_gradient(db, bias) if want_dbias else None
    return dx, dweight, dbias


@everywhere
def group_norm(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Return y of `group_norm_forward` alone."""
    return group_norm_forward(
        x, num_groups, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation, out=out
    )[0]


@everywhere(short=plain.instance_norm_forward)
def instance_norm_forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each channel of each sample: `group_norm_forward` with a group for each channel.

    Parameters, results and errors are those of `group_norm_forward`; mean and rstd are (N, C).

    Notes
    -----
    Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv:1607.08022).
    """
    groups = _channels(channel_axis, x, weight, bias, out)
    return group_norm_forward(
        x, groups, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation, out=out
    )


@everywhere(short=plain.instance_norm_backward)
def instance_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    activation: str | None = None,
    output_mask: Sequence[bool] = (True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `instance_norm_forward`: `group_norm_backward` with a group for each channel.

    Parameters, results and errors are those of `group_norm_backward`; mean and rstd are (N, C).
    """
    groups = _channels(channel_axis, x, dy, mean, rstd, weight, bias, out)
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
        out=out,
    )


@everywhere
def instance_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Return y of `instance_norm_forward` alone."""
    return instance_norm_forward(x, weight, bias, channel_axis=channel_axis, eps=eps, activation=activation, out=out)[0]


def _channels(channel_axis: int, x: Array, *others: Array | None) -> int:
    """How many channels x has, once it is clear that x and the others are in one place."""
    home(x, *others)
    return as_groups(x, channel_axis, None).channels
