"""Layer norm and RMS norm, alone and of a sum with a residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .numeric import Array, Parameter, centre, float64, gradient, mean_over, parameter, select, split, sum_over

# --- layer norm ------------------------------------------------------------------------------------------------------


def layer_norm_forward(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, axis: int | Sequence[int] = -1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """y = (x - mean) * rstd * weight + bias, with mean and rstd = 1 / sqrt(var + eps) over `axis`.

    weight and bias have the shape of the normalized axes in increasing order, mean and rstd that of the others.
    """
    x = float64(x)
    inside, others = split(x.ndim, axis)
    mean, centred = centre(x, inside)
    rstd = 1.0 / np.sqrt(mean_over(centred**2, inside) + eps)
    y = centred * rstd * parameter(weight, 1.0, others) + parameter(bias, 0.0, others)
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
    dy, x = float64(dy), float64(x)
    inside, others = split(x.ndim, axis)
    rstd = np.expand_dims(float64(rstd), inside)
    xhat = centre(x, inside)[1] * rstd
    dx = gradient(dy, xhat, rstd, parameter(weight, 1.0, others), inside)
    return select((dx, sum_over(dy * xhat, others), sum_over(dy, others)), output_mask)


def layer_norm(
    x: ArrayLike, weight: Parameter = None, bias: Parameter = None, *, axis: int | Sequence[int] = -1, eps: float = 1e-5
) -> Array:
    """`layer_norm_forward`, y alone."""
    return layer_norm_forward(x, weight, bias, axis=axis, eps=eps)[0]


# --- RMS norm --------------------------------------------------------------------------------------------------------


def _rounded(xhat: Array, dtype: Any, casting: str) -> Array:
    """xhat, rounded to `dtype` where `casting` says so."""
    return xhat.astype(dtype).astype(np.float64) if casting == "input" else xhat


def _divided(
    x: ArrayLike,
    weight: Parameter,
    axis: int | Sequence[int],
    eps: float,
    weight_offset: float,
    casting: str,
    dtype: Any,
) -> tuple[Array, Array]:
    wide = float64(x)
    inside, others = split(wide.ndim, axis)
    rstd = 1.0 / np.sqrt(mean_over(wide**2, inside) + eps)
    scale = 1.0 if weight is None else weight_offset + parameter(weight, 1.0, others)
    return _rounded(wide * rstd, dtype, casting) * scale, np.squeeze(rstd, inside)


def _differentiated(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter,
    axis: int | Sequence[int],
    weight_offset: float,
    casting: str,
    dtype: Any,
) -> tuple[Array, Array]:
    dy, wide = float64(dy), float64(x)
    inside, others = split(wide.ndim, axis)
    rstd = np.expand_dims(float64(rstd), inside)
    xhat = wide * rstd
    g = dy * (1.0 if weight is None else weight_offset + parameter(weight, 1.0, others))
    dx = rstd * (g - xhat * mean_over(g * xhat, inside))
    return dx, sum_over(dy * _rounded(xhat, dtype, casting), others)


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
    return _divided(x, weight, axis, eps, weight_offset, casting, np.asarray(x).dtype)


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
    gradients = _differentiated(dy, x, rstd, weight, axis, weight_offset, casting, np.asarray(x).dtype)
    return select(gradients, output_mask)


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


# --- a residual added before -----------------------------------------------------------------------------------------


def _added(x: ArrayLike, residual: ArrayLike) -> NDArray[Any]:
    """x + residual, rounded to the wider of their dtypes; float32 for float16 with bfloat16, neither of which is."""
    x, residual = np.asarray(x), np.asarray(residual)
    kind = x.dtype
    if residual.dtype != kind:
        kind = np.promote_types(np.promote_types(kind, np.float32), residual.dtype)
    return x.astype(kind) + residual.astype(kind)


def _joined(dsum: Any, dsummed: ArrayLike | None) -> Any:
    """The gradient of the sum: what came through the norm and, unless it is None, from its other uses."""
    return dsum if dsummed is None else dsum + float64(dsummed)


def add_layer_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, Array]:
    """summed = x + residual in the wider of the two dtypes, and `layer_norm_forward` of that: y, summed, mean, rstd."""
    summed = _added(x, residual)
    y, mean, rstd = layer_norm_forward(summed, weight, bias, axis=axis, eps=eps)
    return y, float64(summed), mean, rstd


def add_layer_norm_backward(
    dy: ArrayLike,
    dsummed: ArrayLike | None,
    summed: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    bias: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    x_dtype: Any = None,
    output_mask: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """`layer_norm_backward` of the sum; dx = dresidual = its dx + dsummed. x_dtype is that of a rounding left out."""
    dsum, dweight, dbias = layer_norm_backward(dy, summed, mean, rstd, weight, bias, axis=axis)
    dx = _joined(dsum, dsummed)
    return select((dx, dx, dweight, dbias), output_mask)


def add_rms_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    weight: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
) -> tuple[Array, Array, Array]:
    """summed = x + residual in the wider of the two dtypes, and `rms_norm_forward` of that: y, summed, rstd.

    casting="input" rounds to x's dtype, which is y's, all the same.
    """
    summed = _added(x, residual)
    y, rstd = _divided(summed, weight, axis, eps, weight_offset, casting, np.asarray(x).dtype)
    return y, float64(summed), rstd


def add_rms_norm_backward(
    dy: ArrayLike,
    dsummed: ArrayLike | None,
    summed: ArrayLike,
    rstd: ArrayLike,
    weight: Parameter = None,
    *,
    axis: int | Sequence[int] = -1,
    weight_offset: float = 0.0,
    casting: str = "float32",
    x_dtype: Any = None,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`rms_norm_backward` of the sum; dx = dresidual = its dx + dsummed. x_dtype is that of the forward's rounding."""
    dtype = np.asarray(summed).dtype if x_dtype is None else np.dtype(x_dtype)
    dsum, dweight = _differentiated(dy, summed, rstd, weight, axis, weight_offset, casting, dtype)
    dx = _joined(dsum, dsummed)
    return select((dx, dx, dweight), output_mask)
