"""Layer norm and RMS norm of the sum of two arrays: a transformer's residual stream and what a block adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..device.array import empty
from ..dispatch import everywhere, home
from ..pool import fresh
from ..views import Array, Rows, as_rows, retyped, supported
from . import plain
from .checks import EMPTY, as_gradient, check_like, constant, finite, output, parameter, rsqrt, unpacked
from .rows import Axis, offset_weight, parameter_sums, rounds_first


@everywhere(short=plain.add_layer_norm_forward)
def add_layer_norm_forward(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Layer norm of a sum: y = (summed - mean) * rstd * weight + bias with summed = x + residual.

    Parameters
    ----------
    x : ndarray
        float16, bfloat16, float32 or float64, any shape and strides.
    residual : ndarray
        In x's shape and any of these dtypes; copied where its memory layout is not x's.
    weight, bias : ndarray, optional
        Of any real dtype, in the shape of the normalized axes in order. None stands for ones and zeros.
    axis : int or tuple of int
        The axes normalized over. Where they are not the innermost in memory, the inputs and the outputs are copied.
    eps : float
        Added to the variance.
    out : ndarray, optional
        Where y is written: x itself, or an array of its shape and dtype that shares no memory with the inputs.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    summed : ndarray
        The sum, rounded to the wider of the two dtypes (float32 for float16 with bfloat16): the residual stream keeps
        float32 beside halves. What is normalized is the rounded sum, so that the backward sees the same.
    mean, rstd : ndarray
        Of x's shape without `axis`, float32, or float64 where the sum is.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, or a bad `out`.

    Notes
    -----
    The fusion of a pre-norm transformer block (Xiong et al., 2020, arXiv:2002.04745). Same bits as
    ``layer_norm_forward(x + residual)`` where the dtypes agree.
    """
    kernels = home(x, residual, weight, bias, out)
    view, wide = _views(x, residual, axis)
    scale = view.vector(parameter("weight", weight, view.normalized, wide.number, 1))
    offset = view.vector(parameter("bias", bias, view.normalized, wide.number, 0))
    y = output(out, x, (x,), (residual, weight, bias))
    return _forward(kernels, view, wide, x, residual, scale, offset, finite("eps", eps), True, False, y)


@everywhere(short=plain.add_layer_norm_backward)
def add_layer_norm_backward(
    dy: Array,
    dsummed: Array | None,
    summed: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    x_dtype: DTypeLike | None = None,
    output_mask: Sequence[bool] = (True, True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `add_layer_norm_forward`: dx = dresidual = dsummed + that of `layer_norm_backward` for the sum.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, in x's shape and dtype.
    dsummed : ndarray or None
        The gradient that reached the sum by other ways, in its shape and dtype. None stands for zeros.
    summed, mean, rstd : ndarray
        What the forward returned.
    weight, bias : ndarray, optional
        What the forward had. Of the bias only the dtype matters.
    axis : int or tuple of int
        What the forward had.
    x_dtype : dtype, optional
        That of x, where it was not summed's.
    output_mask : sequence of four bool
        Which of dx, dresidual, dweight, dbias to compute; None stands for the others.
    out : ndarray, optional
        Where dx is written: dy or, of the same dtype, summed itself; or an array like dy that shares no memory with the
        inputs.

    Returns
    -------
    dx, dresidual, dweight, dbias : ndarray or None
        dx in x_dtype and dresidual in summed's, one array where these are the same; dweight and dbias in the shape of
        the normalized axes, and in the dtype of weight and bias, or mean's where that is None or an integer type.

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
    kernels = home(dy, dsummed, summed, mean, rstd, weight, bias, out)
    view = as_rows(summed, axis, strips=False)
    want_dx, want_dresidual, want_dweight, want_dbias = unpacked(output_mask, 4)
    means = view.row_values(parameter("mean", mean, view.kept, view.number))
    scale = view.vector(parameter("weight", weight, view.normalized, view.number, 1))
    parameter("bias", bias, view.normalized, view.number, 0)
    others = (dsummed, mean, rstd, weight, bias)
    dtype = _dtype_of_x(x_dtype, summed)
    wanted = want_dx, want_dresidual, want_dweight or want_dbias
    gradients = _backward(
        kernels, view, dy, dsummed, summed, means, rstd, scale, True, False, dtype, wanted, out, others
    )
    dx, dresidual, sums = gradients
    dweight = view.parameter(as_gradient(sums[0], weight)) if want_dweight else None
    return dx, dresidual, dweight, view.parameter(as_gradient(sums[1], bias)) if want_dbias else None


@everywhere(short=plain.add_rms_norm_forward)
def add_rms_norm_forward(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    casting: str = "float32",
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """RMS norm of a sum: y = summed * rstd * (weight_offset + weight) with summed = x + residual.

    Parameters
    ----------
    x, residual, axis, out
        As in `add_layer_norm_forward`.
    weight, eps, weight_offset, casting
        As in `rms_norm_forward`.

    Returns
    -------
    y : ndarray
        Of x's shape, dtype and memory layout.
    summed : ndarray
        The sum, rounded to the wider of the two dtypes.
    rstd : ndarray
        Of x's shape without `axis`, float32, or float64 where the sum is.

    Raises
    ------
    TypeError
        For a dtype or kind of array that is not supported.
    ValueError
        For shapes or axes that do not fit, an unknown casting, or a bad `out`.
    """
    kernels = home(x, residual, weight, out)
    view, wide = _views(x, residual, axis)
    rounding = rounds_first(casting, x.dtype)
    scale = view.vector(offset_weight(kernels, weight, wide, weight_offset))
    zeros = constant(scale.shape, wide.number, 0)
    y = output(out, x, (x,), (residual, weight))
    y, summed, _, rstd = _forward(
        kernels, view, wide, x, residual, scale, zeros, finite("eps", eps), False, rounding, y
    )
    return y, summed, rstd


@everywhere(short=plain.add_rms_norm_backward)
def add_rms_norm_backward(
    dy: Array,
    dsummed: Array | None,
    summed: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    axis: Axis = -1,
    weight_offset: float = 0.0,
    casting: str = "float32",
    x_dtype: DTypeLike | None = None,
    output_mask: Sequence[bool] = (True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `add_rms_norm_forward`: dx = dresidual = dsummed + that of `rms_norm_backward` for the sum.

    Parameters
    ----------
    dy, dsummed, summed, rstd, x_dtype, out
        As in `add_layer_norm_backward`.
    weight, axis, weight_offset, casting
        What the forward had.
    output_mask : sequence of three bool
        Which of dx, dresidual, dweight to compute; None stands for the others.

    Returns
    -------
    dx, dresidual, dweight : ndarray or None
        As in `add_layer_norm_backward`.

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
    kernels = home(dy, dsummed, summed, rstd, weight, out)
    view = as_rows(summed, axis, strips=False)
    want_dx, want_dresidual, want_dweight = unpacked(output_mask, 3)
    dtype = _dtype_of_x(x_dtype, summed)
    rounding = rounds_first(casting, dtype)
    scale = view.vector(offset_weight(kernels, weight, view, weight_offset))
    wanted, others = (want_dx, want_dresidual, want_dweight), (dsummed, rstd, weight)
    gradients = _backward(
        kernels,
        view,
        dy,
        dsummed,
        summed,
        EMPTY[view.number, 1],
        rstd,
        scale,
        False,
        rounding,
        dtype,
        wanted,
        out,
        others,
    )
    dx, dresidual, sums = gradients
    return dx, dresidual, view.parameter(as_gradient(sums[0], weight)) if want_dweight else None


def _views(x: Array, residual: Array, axis: Axis) -> tuple[Rows, Rows]:
    """The views of x and of the sum."""
    view = as_rows(x, axis, strips=False)
    if residual is None:
        raise TypeError("residual must be an ndarray like x, got None")
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {x.shape}, got {residual.shape}")
    retyped(view, residual.dtype, "residual")  # is it supported?
    return view, retyped(view, _wider(x.dtype, residual.dtype), "summed")


def _wider(one: np.dtype[Any], other: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a sum: float32 for the two kinds of halves, of which neither holds the other."""
    halves = one != other and one.itemsize == other.itemsize == 2
    return np.dtype(np.float32) if halves else np.promote_types(one, other)


def _dtype_of_x(x_dtype: DTypeLike | None, summed: Array) -> np.dtype[Any]:
    dtype = summed.dtype if x_dtype is None else supported(np.dtype(x_dtype), "x_dtype")
    if _wider(dtype, summed.dtype) != summed.dtype:
        raise ValueError(f"x_dtype must be that of x, no wider than summed's {summed.dtype}, got {dtype}")
    return dtype


def _forward(
    kernels: Any,
    view: Rows,
    wide: Rows,
    x: Array,
    residual: Array,
    weight: Array,
    bias: Array,
    eps: float,
    center: bool,
    rounding: bool,
    y: Array,
) -> tuple[Array, Array, Array, Array]:
    """Fill y; return it, the sum, and mean and rstd of its rows."""
    summed = fresh(x, _wider(x.dtype, residual.dtype))
    number = wide.number
    mean, rstd = empty(x, view.rows, number) if center else EMPTY[number, 1], empty(x, view.rows, number)
    if x.size:
        targets = wide.result(summed), view.result(y)
        other = retyped(view, residual.dtype, "residual").enter(residual)
        kernels.add_rows_forward(view.enter(x), other, weight, bias, eps, center, rounding, *targets, mean, rstd)
        wide.leave(targets[0], summed)
        view.leave(targets[1], y)
    else:
        mean[:], rstd[:] = 0, rsqrt(eps)
    return y, summed, view.statistics(mean) if center else mean, view.statistics(rstd)


def _backward(
    kernels: Any,
    view: Rows,
    dy: Array,
    dsummed: Array | None,
    summed: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    center: bool,
    rounding: bool,
    dtype: np.dtype[Any],
    wanted: tuple[bool, bool, bool],
    out: Array | None,
    others: tuple[Array | None, ...],
) -> tuple[Array | None, Array | None, tuple[Array, Array]]:
    """dx, dresidual, and the sums for dweight and dbias, (C,) or empty."""
    narrow, one = retyped(view, dtype, "x_dtype"), dtype == summed.dtype
    check_like("dy", dy, summed, "summed", dtype)
    if dsummed is not None:
        check_like("dsummed", dsummed, summed, "summed")
    rstds = view.row_values(parameter("rstd", rstd, view.kept, view.number))
    want_dx, want_dresidual, want_sums = wanted
    allowed = (dy, summed) if one else (dy,)
    dx = output(out, summed, allowed, (*others, summed), dtype) if want_dx else None
    dresidual = (dx if one and want_dx else fresh(summed)) if want_dresidual else None
    dweight, dbias = parameter_sums(summed, view, want_sums)
    if summed.size:
        none, narrow_none = EMPTY[view.storage, 2], EMPTY[narrow.storage, 2]
        targets = (
            narrow_none if dx is None else narrow.result(dx),
            none if dresidual is None or dresidual is dx else view.result(dresidual),
        )
        inputs = narrow.enter(dy), none if dsummed is None else view.enter(dsummed), view.enter(summed)
        kernels.add_rows_backward(*inputs, mean, rstds, weight, center, rounding, *targets, dweight, dbias)
        if dx is not None:
            narrow.leave(targets[0], dx)
        if dresidual is not None and dresidual is not dx:
            view.leave(targets[1], dresidual)
    else:
        dweight[:] = 0
        dbias[:] = 0
    return dx, dresidual, (dweight, dbias)
