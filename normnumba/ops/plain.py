"""Small calls on plain arguments, where checks and views in Python would take longer than the kernel.

Each function is the short form of the op of its name. It gets ndarrays and Nones where that takes arrays, and serves
float32 and float64 arrays of fewer than `views.SMALL` elements, contiguous, all of one dtype, and of the shapes that
they must have. For all others it returns None or raises TypeError, and the op is called, which can do with them or says
what is wrong with them; a ValueError about x's axes is the op's own. No output is large enough for a pool.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..kernels.cpu import plain as kernels
from ..views import Array, Channels, Groups, Rows, as_channels, as_groups, as_rows
from .checks import ACTIVATIONS, EMPTY, FLOAT64, constant

Vector = Array | None
Results = tuple[Any, ...] | None


def layer_norm_forward(x: Array, weight: Vector, bias: Vector, axis: int | tuple[int, ...], eps: float) -> Results:
    """y, mean, rstd."""
    view = _rows(x, axis)
    if view is None:
        return None
    return _normalize_rows(view, x, *_affine(view, view.cols, weight, bias), eps, True)


def rms_norm_forward(x: Array, weight: Vector, axis: int | tuple[int, ...], eps: float) -> Results:
    """y, rstd."""
    view = _rows(x, axis)
    if view is None:
        return None
    results = _normalize_rows(view, x, *_affine(view, view.cols, weight, None), eps, False)
    return results and (results[0], results[2])


def _rows(x: Array, axis: int | tuple[int, ...]) -> Rows | None:
    """x as rows, if kernels can take it as it is."""
    if type(axis) is int or isinstance(axis, tuple):  # another may be an iterator, and the op's to read
        view = as_rows(x, axis)
        if view.plain_shape:
            return view
    return None


def _normalize_rows(view: Rows, x: Array, weight: Array, bias: Array, eps: float, center: bool) -> Results:
    number = view.number
    if not (weight.dtype == bias.dtype == number and _finite(eps)):
        return None
    results = y, mean, rstd = (
        np.empty(view.shape, number),
        np.empty(view.kept, number) if center else EMPTY[number, 1],
        np.empty(view.kept, number),
    )
    if view.plain_shape is not view.shape:
        x, y, mean, rstd = *_reshaped(view, x, y), mean.reshape(-1), rstd.reshape(-1)
    return results if kernels.rows_forward(x, weight, bias, eps, center, y, mean, rstd) else None


def layer_norm_backward(
    dy: Array, x: Array, mean: Array, rstd: Array, weight: Vector, bias: Vector, axis: int | tuple[int, ...]
) -> Results:
    """dx, dweight, dbias."""
    view = _rows(x, axis)
    if view is None or mean.shape != view.kept or mean.dtype != view.number:
        return None
    return _differentiate_rows(view, dy, x, mean, rstd, *_affine(view, view.cols, weight, bias), True)


def rms_norm_backward(dy: Array, x: Array, rstd: Array, weight: Vector, axis: int | tuple[int, ...]) -> Results:
    """dx, dweight."""
    view = _rows(x, axis)
    if view is None:
        return None
    mean = EMPTY[view.number, 1]
    results = _differentiate_rows(view, dy, x, mean, rstd, *_affine(view, view.cols, weight, None), False)
    return results and results[:2]


def _differentiate_rows(
    view: Rows, dy: Array, x: Array, mean: Array, rstd: Array, weight: Array, bias: Array, center: bool
) -> Results:
    number, size = view.number, view.cols
    if not (dy.dtype == rstd.dtype == weight.dtype == bias.dtype == number and dy.flags.c_contiguous):
        return None
    if dy.shape != view.shape or rstd.shape != view.kept or bias.shape != view.normalized:
        return None
    results = dx, dweight, dbias = np.empty(view.shape, number), np.empty(size, number), np.empty(size, number)
    if view.plain_shape is not view.shape:
        x, dy, dx, mean, rstd = *_reshaped(view, x, dy, dx), mean.reshape(-1), rstd.reshape(-1)
    return results if kernels.rows_backward(x, dy, mean, rstd, weight, center, dx, dweight, dbias) else None


def add_layer_norm_forward(
    x: Array, residual: Array, weight: Vector, bias: Vector, axis: int | tuple[int, ...], eps: float
) -> Results:
    """y, summed, mean, rstd."""
    view = _rows(x, axis)
    if view is None:
        return None
    return _normalize_sums(view, x, residual, *_affine(view, view.cols, weight, bias), eps, True)


def add_rms_norm_forward(x: Array, residual: Array, weight: Vector, axis: int | tuple[int, ...], eps: float) -> Results:
    """y, summed, rstd."""
    view = _rows(x, axis)
    if view is None:
        return None
    results = _normalize_sums(view, x, residual, *_affine(view, view.cols, weight, None), eps, False)
    return results and (*results[:2], results[3])


def _normalize_sums(
    view: Rows, x: Array, residual: Array, weight: Array, bias: Array, eps: float, center: bool
) -> Results:
    number = view.number
    if not (residual.dtype == weight.dtype == bias.dtype == number and _finite(eps)):
        return None
    if residual.shape != view.shape or not residual.flags.c_contiguous:
        return None
    results = y, summed, mean, rstd = (
        np.empty(view.shape, number),
        np.empty(view.shape, number),
        np.empty(view.kept, number) if center else EMPTY[number, 1],
        np.empty(view.kept, number),
    )
    if view.plain_shape is not view.shape:
        x, residual, y, summed = _reshaped(view, x, residual, y, summed)
        mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    known = residual, weight, bias, eps, center
    return results if kernels.add_rows_forward(x, *known, summed, y, mean, rstd) else None


def add_layer_norm_backward(
    dy: Array,
    dsummed: Array,
    summed: Array,
    mean: Array,
    rstd: Array,
    weight: Vector,
    bias: Vector,
    axis: int | tuple[int, ...],
) -> Results:
    """dx, dresidual, which is dx, dweight, dbias. A dsummed of None is left to the op."""
    view = _rows(summed, axis)
    if view is None or mean.shape != view.kept or mean.dtype != view.number:
        return None
    affine = _affine(view, view.cols, weight, bias)
    return _differentiate_sums(view, dy, dsummed, summed, mean, rstd, *affine, True)


def add_rms_norm_backward(
    dy: Array, dsummed: Array, summed: Array, rstd: Array, weight: Vector, axis: int | tuple[int, ...]
) -> Results:
    """dx, dresidual, which is dx, dweight. A dsummed of None is left to the op."""
    view = _rows(summed, axis)
    if view is None:
        return None
    mean, affine = EMPTY[view.number, 1], _affine(view, view.cols, weight, None)
    results = _differentiate_sums(view, dy, dsummed, summed, mean, rstd, *affine, False)
    return results and results[:3]


def _differentiate_sums(
    view: Rows,
    dy: Array,
    dsummed: Array,
    summed: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    center: bool,
) -> Results:
    number, size = view.number, view.cols
    if not dy.dtype == dsummed.dtype == rstd.dtype == weight.dtype == bias.dtype == number:
        return None
    if not (dy.shape == dsummed.shape == view.shape and rstd.shape == view.kept and bias.shape == view.normalized):
        return None
    if not (dy.flags.c_contiguous and dsummed.flags.c_contiguous):
        return None
    result = dx = np.empty(view.shape, number)
    dweight, dbias = np.empty(size, number), np.empty(size, number)
    if view.plain_shape is not view.shape:
        summed, dy, dsummed, dx = _reshaped(view, summed, dy, dsummed, dx)
        mean, rstd = mean.reshape(-1), rstd.reshape(-1)
    known = dy, dsummed, mean, rstd, weight, center
    return (result, result, dweight, dbias) if kernels.add_rows_backward(summed, *known, dx, dweight, dbias) else None


def batch_norm_forward(
    x: Array,
    weight: Vector,
    bias: Vector,
    running_mean: Vector,
    running_var: Vector,
    momentum: float,
    channel_axis: int,
    eps: float,
    activation: str | None,
) -> Results:
    """y, mean, rstd."""
    view = as_channels(x, channel_axis)
    number = view.number
    if view.count == 1 or not view.plain_shape:
        return None
    if running_mean is None and running_var is None:
        running_mean = running_var = EMPTY[number, 1]
    if running_mean is None or running_var is None or not _finite(momentum):
        return None
    if not running_mean.dtype == running_var.dtype == number:
        return None
    kind, (scale, offset) = ACTIVATIONS.get(activation), _affine(view, view.channels, weight, bias)
    if kind is None or not (scale.dtype == offset.dtype == number and _finite(eps)):
        return None
    size = view.channels
    results = y, mean, rstd = np.empty(view.shape, number), np.empty(size, number), np.empty(size, number)
    if view.plain_shape is not view.shape:
        x, y = _reshaped(view, x, y)
    running = running_mean, running_var, momentum
    return results if kernels.batch_forward(x, scale, offset, eps, kind, y, mean, rstd, *running) else None


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Vector,
    bias: Vector,
    channel_axis: int,
    eps: float,
    activation: str | None,
) -> Array | None:
    """y."""
    view = as_channels(x, channel_axis)
    if not (view.plain_shape and mean.dtype == var.dtype == view.number):
        return None
    kind, (scale, offset) = ACTIVATIONS.get(activation), _affine(view, view.channels, weight, bias)
    if kind is None or not (scale.dtype == offset.dtype == view.number and _finite(eps)):
        return None
    result = y = np.empty(view.shape, view.number)
    if view.plain_shape is not view.shape:
        x, y = _reshaped(view, x, y)
    return result if kernels.batch_inference(x, mean, var, scale, offset, eps, kind, y) else None


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Vector,
    bias: Vector,
    channel_axis: int,
    activation: str | None,
) -> Results:
    """dx, dweight, dbias, None."""
    view = as_channels(x, channel_axis)
    return _differentiate_channels(view, dy, x, mean, rstd, weight, bias, 0.0, False, activation)


def batch_norm_inference_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Vector,
    bias: Vector,
    channel_axis: int,
    eps: float,
    activation: str | None,
) -> Results:
    """dx, dweight, dbias, None."""
    view = as_channels(x, channel_axis)
    return _differentiate_channels(view, dy, x, mean, var, weight, bias, eps, True, activation)


def batch_norm_backward_apply(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Vector,
    sum_dy: Array,
    sum_dy_xhat: Array,
    count: int,
    channel_axis: int,
) -> Array | None:
    """dx."""
    view = as_channels(x, channel_axis)
    number, (scale, offset) = view.number, _affine(view, view.channels, weight, None)
    if not (view.plain_shape and dy.dtype == scale.dtype == number and dy.shape == view.shape):
        return None
    if not (type(count) is int and view.count <= count < 1 << 63 and dy.flags.c_contiguous):
        return None
    if mean.dtype == rstd.dtype == number:
        mean, rstd = mean.astype(FLOAT64), rstd.astype(FLOAT64)
    if not mean.dtype == rstd.dtype == sum_dy.dtype == sum_dy_xhat.dtype == FLOAT64:
        return None
    result = dx = np.empty(view.shape, number)
    if view.plain_shape is not view.shape:
        x, dy, dx = _reshaped(view, x, dy, dx)
    known = dy, mean, rstd, scale, offset, sum_dy, sum_dy_xhat, count
    return result if kernels.batch_apply(x, *known, dx) else None


def _differentiate_channels(
    view: Channels,
    dy: Array,
    x: Array,
    mean: Array,
    rstd_or_var: Array,
    weight: Vector,
    bias: Vector,
    eps: float,
    given: bool,
    activation: str | None,
) -> Results:
    number, kind, (scale, offset) = view.number, ACTIVATIONS.get(activation), _affine(view, view.channels, weight, bias)
    if kind is None or not (view.plain_shape and _finite(eps) and dy.shape == view.shape and dy.flags.c_contiguous):
        return None
    if not dy.dtype == mean.dtype == rstd_or_var.dtype == scale.dtype == offset.dtype == number:
        return None
    size = view.channels
    results = dx, dweight, dbias = np.empty(view.shape, number), np.empty(size, number), np.empty(size, number)
    if view.plain_shape is not view.shape:
        x, dy, dx = _reshaped(view, x, dy, dx)
    known = dy, mean, rstd_or_var, scale, offset, eps, given, kind
    return (*results, None) if kernels.batch_backward(x, *known, dx, dweight, dbias) else None


def group_norm_forward(
    x: Array, num_groups: int, weight: Vector, bias: Vector, channel_axis: int, eps: float, activation: str | None
) -> Results:
    """y, mean, rstd."""
    if num_groups is None:
        return None
    return _normalize_groups(as_groups(x, channel_axis, num_groups), x, weight, bias, eps, activation)


def instance_norm_forward(
    x: Array, weight: Vector, bias: Vector, channel_axis: int, eps: float, activation: str | None
) -> Results:
    """y, mean, rstd."""
    return _normalize_groups(as_groups(x, channel_axis, None), x, weight, bias, eps, activation)


def _normalize_groups(
    view: Groups, x: Array, weight: Vector, bias: Vector, eps: float, activation: str | None
) -> Results:
    number, kind, (scale, offset) = view.number, ACTIVATIONS.get(activation), _affine(view, view.channels, weight, bias)
    if kind is None or not (view.plain_shape and scale.dtype == offset.dtype == number and _finite(eps)):
        return None
    shape = view.geometry[:2]
    results = y, mean, rstd = np.empty(view.shape, number), np.empty(shape, number), np.empty(shape, number)
    if view.plain_shape is not view.shape:
        x, y = _reshaped(view, x, y)
    return results if kernels.groups_forward(x, scale, offset, eps, kind, y, mean, rstd) else None


def group_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    num_groups: int,
    weight: Vector,
    bias: Vector,
    channel_axis: int,
    activation: str | None,
) -> Results:
    """dx, dweight, dbias."""
    if num_groups is None:
        return None
    view = as_groups(x, channel_axis, num_groups)
    return _differentiate_groups(view, dy, x, mean, rstd, weight, bias, activation)


def instance_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Vector,
    bias: Vector,
    channel_axis: int,
    activation: str | None,
) -> Results:
    """dx, dweight, dbias."""
    view = as_groups(x, channel_axis, None)
    return _differentiate_groups(view, dy, x, mean, rstd, weight, bias, activation)


def _differentiate_groups(
    view: Groups, dy: Array, x: Array, mean: Array, rstd: Array, weight: Vector, bias: Vector, activation: str | None
) -> Results:
    number, kind, (scale, offset) = view.number, ACTIVATIONS.get(activation), _affine(view, view.channels, weight, bias)
    if kind is None or not (view.plain_shape and dy.dtype == scale.dtype == offset.dtype == number):
        return None
    if not (
        dy.shape == view.shape and mean.shape == rstd.shape == view.geometry[:2] and mean.dtype == rstd.dtype == number
    ):
        return None
    if not (dy.flags.c_contiguous and mean.flags.c_contiguous and rstd.flags.c_contiguous):
        return None
    size = view.channels
    results = dx, dweight, dbias = np.empty(view.shape, number), np.empty(size, number), np.empty(size, number)
    if view.plain_shape is not view.shape:
        x, dy, dx = _reshaped(view, x, dy, dx)
    known = dy, mean, rstd, scale, offset, kind
    return results if kernels.groups_backward(x, *known, dx, dweight, dbias) else None


def _affine(view: Rows | Channels | Groups, size: int, weight: Vector, bias: Vector) -> tuple[Array, Array]:
    """The weight and the bias, or what None stands for."""
    return (
        constant((size,), view.number, 1) if weight is None else weight,
        constant((size,), view.number, 0) if bias is None else bias,
    )


def _reshaped(view: Rows | Channels | Groups, *arrays: Array) -> list[Array]:
    """Arrays of x's shape in that of the kernels."""
    return [array.reshape(view.plain_shape) for array in arrays]


def _finite(value: float) -> bool:
    """Whether this is a finite float, and no other kind of number: numba would take 0.1 ms to refuse some of those."""
    return type(value) is float and -math.inf < value < math.inf
