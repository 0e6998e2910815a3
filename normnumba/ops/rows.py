"""Layer norm and RMS norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..device.array import empty
from ..dispatch import everywhere, home
from ..views import Array, Rows, as_rows
from . import plain
from .checks import EMPTY, as_gradient, check_like, constant, finite, output, parameter, rsqrt, unpacked

Axis = int | Sequence[int]


@everywhere(short=plain.layer_norm_forward)
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
        float16, bfloat16, float32 or float64, any shape and strides.
    weight, bias : ndarray, optional
        Of any real dtype, in the shape of the normalized axes in order. None stands for ones and zeros.
    axis : int or tuple of int
        The axes normalized over. Where they are neither the innermost in memory nor neighbours with 16 elements or more
        behind them (axis 1 of NCHW), x is copied first and y once more.
    eps : float
        Added to the variance.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    mean, rstd : ndarray
        Of x's shape without `axis`, float32, or float64 for float64 x. An empty row has mean 0 and variance 0.

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
    scale = parameter("weight", weight, view.normalized, view.number, 1)
    offset = parameter("bias", bias, view.normalized, view.number, 0)
    eps = finite("eps", eps)
    return _normalize(kernels, view, x, scale, offset, eps, True, False, out, (weight, bias))


@everywhere(short=plain.layer_norm_backward)
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
        The axes normalized over. Where x is copied in the forward, dy and x are copied first and dx once more.
    output_mask : sequence of three bool
        Which of dx, dweight, dbias to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight, dbias : ndarray or None
        dx like x; dweight and dbias in the shape of the normalized axes, and in the dtype of weight and bias, or mean's
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
    want_dx, want_dweight, want_dbias = unpacked(output_mask, 3)
    check_like("dy", dy, x)
    means = view.row_values(parameter("mean", mean, view.kept, view.number))
    rstds = view.row_values(parameter("rstd", rstd, view.kept, view.number))
    scale = view.vector(parameter("weight", weight, view.normalized, view.number, 1))
    parameter("bias", bias, view.normalized, view.number, 0)
    dx = output(out, x, (x, dy), (mean, rstd, weight, bias)) if want_dx else None
    sums = parameter_sums(x, view, want_dweight or want_dbias)
    _differentiate(kernels, view, dy, x, means, rstds, scale, True, False, dx, *sums)
    dweight = view.parameter(as_gradient(sums[0], weight)) if want_dweight else None
    dbias = view.parameter(as_gradient(sums[1], bias)) if want_dbias else None
    return dx, dweight, dbias


@everywhere
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


@everywhere(short=plain.rms_norm_forward)
def rms_norm_forward(
    x: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Divide by the root mean square over `axis`: y = x * rstd * (weight_offset + weight).

    rstd = 1 / sqrt(mean(x^2) + eps).

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, any shape and strides.
    weight : ndarray, optional
        Of any real dtype, in the shape of the normalized axes in order. None stands for ones, whatever the offset.
    axis : int or tuple of int
        The axes normalized over. Where they are neither the innermost in memory nor neighbours with 16 elements or more
        behind them (axis 1 of NCHW), x is copied first and y once more.
    eps : float
        Added to the mean square.
    weight_offset : float
        Added to the weight: 1.0 for Gemma's 1 + weight.
    casting : {"float32", "input"}
        For halves, when x * rstd is rounded: "float32" after the weight has multiplied it (PyTorch, Keras, Flax),
        "input" before, and once more after (Llama, ONNX). The same for other dtypes.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    rstd : ndarray
        Of x's shape without `axis`, float32, or float64 for float64 x.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, an unknown casting, or a bad `out`.

    Notes
    -----
    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467).
    """
    kernels = home(x, weight, out)
    view = as_rows(x, axis)
    rounding = rounds_first(casting, x.dtype)
    scale = offset_weight(kernels, weight, view, weight_offset)
    zeros = constant(scale.shape, view.number, 0)
    eps = finite("eps", eps)
    y, _, rstd = _normalize(kernels, view, x, scale, zeros, eps, False, rounding, out, (weight,))
    return y, rstd


@everywhere(short=plain.rms_norm_backward)
def rms_norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    weight_offset: float = 0.0,
    casting: str = "float32",
    output_mask: Sequence[bool] = (True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None]:
    """Gradients of `rms_norm_forward`.

    With xhat = x * rstd and g = dy * (weight_offset + weight): dx = rstd * (g - xhat * average(g * xhat)) over `axis`
    and dweight = sum(dy * xhat) over the other axes.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, in x's shape and dtype.
    x, rstd : ndarray
        What the forward had and returned.
    weight, axis, weight_offset, casting
        What the forward had. With casting="input" dweight has the rounded xhat, and the rounding's own gradient is 1.
    output_mask : sequence of two bool
        Which of dx, dweight to compute; None stands for the other.
    out : ndarray, optional
        Where dx is written: dy or x itself, or an array of their shape and dtype that shares no memory with the inputs.

    Returns
    -------
    dx, dweight : ndarray or None
        dx like x; dweight in the shape of the normalized axes, and in weight's dtype, or rstd's where that is None or
        an integer type.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, an unknown casting, or a bad `out`.

    Notes
    -----
    Same bits on any number of threads.
    """
    kernels = home(dy, x, rstd, weight, out)
    view = as_rows(x, axis)
    want_dx, want_dweight = unpacked(output_mask, 2)
    rounding = rounds_first(casting, x.dtype)
    check_like("dy", dy, x)
    rstds = view.row_values(parameter("rstd", rstd, view.kept, view.number))
    scale = view.vector(offset_weight(kernels, weight, view, weight_offset))
    dx = output(out, x, (x, dy), (rstd, weight)) if want_dx else None
    sums = parameter_sums(x, view, want_dweight)
    _differentiate(kernels, view, dy, x, EMPTY[view.number, 1], rstds, scale, False, rounding, dx, *sums)
    return dx, view.parameter(as_gradient(sums[0], weight)) if want_dweight else None


@everywhere
def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
    out: Array | None = None,
) -> Array:
    """Return y of `rms_norm_forward` alone."""
    return rms_norm_forward(x, weight, axis=axis, eps=eps, weight_offset=weight_offset, casting=casting, out=out)[0]


def _normalize(
    kernels: Any,
    view: Rows,
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    center: bool,
    rounding: bool,
    out: Array | None,
    others: tuple[Array | None, ...],
) -> tuple[Array, Array, Array]:
    """y, and mean and rstd in the shape of the other axes; without `center` the mean is empty."""
    number = view.number
    mean, rstd = empty(x, view.rows, number) if center else EMPTY[number, 1], empty(x, view.rows, number)
    y = output(out, x, (x,), others)
    if x.size:
        target = view.result(y)
        kernel = kernels.strips_forward if view.strips else kernels.rows_forward
        vectors = view.vector(weight), view.vector(bias)
        kernel(view.enter(x), *vectors, eps, center, rounding, target, mean, rstd)
        view.leave(target, y)
    else:
        mean[:], rstd[:] = 0, rsqrt(eps)
    return y, view.statistics(mean) if center else mean, view.statistics(rstd)


def _differentiate(
    kernels: Any,
    view: Rows,
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    center: bool,
    rounding: bool,
    dx: Array | None,
    dweight: Array,
    dbias: Array,
) -> None:
    """Fill dx unless it is None, and dweight and dbias unless they are empty."""
    if x.size:
        target = EMPTY[view.storage, len(view.geometry)] if dx is None else view.result(dx)
        kernel = kernels.strips_backward if view.strips else kernels.rows_backward
        kernel(view.enter(dy), view.enter(x), mean, rstd, weight, center, rounding, target, dweight, dbias)
        if dx is not None and target is not dx:
            view.leave(target, dx)
    else:
        dweight[:] = 0
        dbias[:] = 0


def parameter_sums(x: Array, view: Rows, wanted: bool) -> tuple[Array, Array]:
    """Where a kernel writes dweight and dbias: it fills both, or neither."""
    if not wanted:
        return EMPTY[view.number, 1], EMPTY[view.number, 1]
    return empty(x, view.cols, view.number), empty(x, view.cols, view.number)


def offset_weight(kernels: Any, weight: Array | None, view: Rows, weight_offset: float) -> Array:
    """weight_offset + weight, added in the type that x is computed in; ones where the weight is None."""
    scale = parameter("weight", weight, view.normalized, view.number, 1)
    offset = finite("weight_offset", weight_offset)
    return scale if weight is None or not offset else kernels.shifted(scale, offset)


def rounds_first(casting: str, dtype: np.dtype[Any]) -> bool:
    """Whether xhat is rounded to x's dtype before the weight multiplies it, which only halves can tell."""
    if not isinstance(casting, str) or casting not in ("float32", "input"):
        raise ValueError(f"casting must be 'float32' or 'input', got {casting!r}")
    return casting == "input" and dtype.itemsize == 2
