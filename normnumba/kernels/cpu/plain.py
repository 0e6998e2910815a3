"""Small contiguous arrays as callers have them: the kernels without threads, with what Python would do around them.

In Python a check of a vector's strides is 0.2 us, a reshape 0.13, two statistics in one float64 array 0.6, the sums in
two arrays of another type 0.5; a norm of 8x16 is 1 us. What is below checks that vectors fit and that all arrays are
aligned, and else returns False, having done nothing; that matrices have their shape and are contiguous is for the
caller to see to. Each entry calls the compiled kernel by its address, so that it is compiled itself in half a
second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from .. import BATCH, CONSTANT, GIVEN, NONE
from . import channels, columns, groups, launching, rows
from .compiling import address, array_in, array_out, variants
from .lowlevel import allocating, assumed_contiguous, calling, scalar


def rows_forward(x: Any, *arguments: Any) -> bool:
    """Write y, mean and rstd of x (R, C): x, weight, bias, eps, center, y, mean, rstd."""
    return _run(_rows_forward, rows._forward, x, arguments)


def rows_backward(x: Any, *arguments: Any) -> bool:
    """Write the gradients: x, dy, mean, rstd, weight, center, dx, dweight, dbias."""
    return _run(_rows_backward, rows._backward, x, arguments)


def add_rows_forward(x: Any, *arguments: Any) -> bool:
    """Write summed, y, mean and rstd: x, residual, weight, bias, eps, center, summed, y, mean, rstd."""
    return _run(_add_rows_forward, rows._add_forward, x, arguments)


def add_rows_backward(summed: Any, *arguments: Any) -> bool:
    """Write the gradients: summed, dy, dsummed, mean, rstd, weight, center, dx, dweight, dbias."""
    return _run(_add_rows_backward, rows._add_backward, summed, arguments)


def batch_forward(x: Any, *arguments: Any) -> bool:
    """Write y, mean and rstd of x, (S, C) or NCHW, and update running statistics, unless they are empty.

    x, weight, bias, eps, activation, y, mean, rstd, running_mean, running_var, momentum.
    """
    if x.ndim == 2:
        return _run(_columns_forward, columns._forward_sample, x, arguments)
    return _run(_channels_forward, channels._forward, x, arguments)


def batch_inference(x: Any, *arguments: Any) -> bool:
    """Write y: x, mean, var, weight, bias, eps, activation, y."""
    if x.ndim == 2:
        return _run(_columns_inference, columns._forward_sample, x, arguments)
    return _run(_channels_inference, channels._forward, x, arguments)


def batch_backward(x: Any, *arguments: Any) -> bool:
    """Write the gradients: x, dy, mean, rstd_or_var, weight, bias, eps, given, activation, dx, dweight, dbias."""
    if x.ndim == 2:
        return _run(_columns_backward, columns._backward_sample, x, arguments)
    return _run(_channels_backward, channels._backward, x, arguments)


def batch_apply(x: Any, *arguments: Any) -> bool:
    """Write dx from float64 statistics and sums: x, dy, mean, rstd, weight, bias, sum_dy, sum_dyxhat, count, dx."""
    if x.ndim == 2:
        return _run(_columns_apply, columns._backward_sample, x, arguments)
    return _run(_channels_apply, channels._backward, x, arguments)


def groups_forward(x: Any, *arguments: Any) -> bool:
    """Write y, and mean and rstd (N, G), of x, NCHW: x, weight, bias, eps, activation, y, mean, rstd."""
    return _run(_groups_forward, groups._forward, x, arguments)


def groups_backward(x: Any, *arguments: Any) -> bool:
    """Write the gradients: x, dy, mean, rstd, weight, bias, activation, dx, dweight, dbias."""
    return _run(_groups_backward, groups._backward, x, arguments)


def _run(entry: Callable[..., Any], kernel: Any, x: Any, arguments: tuple[Any, ...]) -> bool:
    if x.size >= launching.PARALLEL_FROM:
        return False
    run, where = _found(entry, kernel, x.dtype)
    return run(where, x, *arguments)


@functools.cache
def _found(entry: Callable[..., Any], kernel: Any, dtype: np.dtype) -> tuple[Callable[..., bool], int]:
    """What is called, and the address of the kernel that it calls, without a launcher."""
    return entry(dtype), address(kernel(dtype, *[dtype] * kernel.others))


_run_rows, _differentiate_rows = calling(rows._forward.signature), calling(rows._backward.signature)
_run_sums, _differentiate_sums = calling(rows._add_forward.signature), calling(rows._add_backward.signature)
_run_columns, _differentiate_columns = (
    calling(columns._forward_sample.signature),
    calling(columns._backward_sample.signature),
)
_run_channels, _differentiate_channels = calling(channels._forward.signature), calling(channels._backward.signature)
_run_groups, _differentiate_groups = calling(groups._forward.signature), calling(groups._backward.signature)


@scalar
def _aligned(array):
    return array.ctypes.data % array.itemsize == 0


@scalar
def _fits(vector, size):
    """Whether a vector of any layout is contiguous, aligned, and of that size"""
    return vector.size == size and (vector.strides[0] == vector.itemsize or size < 2) and _aligned(vector)


@allocating
def _in_geometry(x):
    """(S, C) as columns, NCHW as channels"""
    if x.ndim == 2:  # a condition that numba decides when it compiles
        return x.reshape((1, x.shape[0], x.shape[1]))
    return x.reshape((x.shape[0], x.shape[1], x.shape[2] * x.shape[3]))


@allocating
def _in_groups(x, groups):
    """NCHW as (N, G, K, S)"""
    return x.reshape((x.shape[0], groups, x.shape[1] // groups, x.shape[2] * x.shape[3]))


@allocating
def _stacked(first, second):
    """Both in one float64 array"""
    stats = np.empty((2, first.size))
    for c in range(first.size):
        stats[0, c], stats[1, c] = first[c], second[c]
    return stats


@scalar
def _apart(a, b):
    """Whether two contiguous arrays share no memory"""
    first, second = a.ctypes.data, b.ctypes.data
    return first + a.size * a.itemsize <= second or second + b.size * b.itemsize <= first


@scalar
def _may_run(running_mean, running_var, x, weight, bias):
    """Whether running statistics have a size that fits, and memory of their own"""
    size, apart = x.shape[1], _apart(running_mean, running_var)
    for running in (running_mean, running_var):
        apart = apart and _apart(running, x) and _apart(running, weight) and _apart(running, bias)
    return apart and _fits(running_mean, size) and _fits(running_var, size)


@scalar
def _update(running_mean, running_var, momentum, stats, count):
    """Average running statistics, unless they are empty, with those of a batch, in float64, rounding once"""
    for c in range(running_mean.size):
        unbiased = stats[1, c] * (count / max(count - 1, 1))
        running_mean[c] = (1 - momentum) * running_mean[c] + momentum * stats[0, c]
        running_var[c] = (1 - momentum) * running_var[c] + momentum * unbiased


def _vectors(A, count):
    return (types.Array(A, 1, "A", readonly=True),) * count


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 2), *_vectors(A, 2), types.float64, types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    ),
    plain=True,
)
def _rows_forward(kernel, x, weight, bias, eps, center, y, mean, rstd):
    if not (_aligned(x) and _fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        return False
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    _run_rows(kernel, (0, x, *affine, eps, center, False, y, mean, rstd))
    return True


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 2), array_in(T, 2), *_vectors(A, 3), types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    ),
    plain=True,
)
def _rows_backward(kernel, x, dy, mean, rstd, weight, center, dx, dweight, dbias):
    count, size = x.shape
    if not (_fits(mean, count if center else 0) and _fits(rstd, count) and _fits(weight, size)):
        return False
    if not (_aligned(dy) and _aligned(x)):
        return False
    known = assumed_contiguous(mean), assumed_contiguous(rstd), assumed_contiguous(weight)
    _differentiate_rows(kernel, (0, dy, x, *known, center, False, dx, dweight, dbias))
    return True


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 2), array_in(T, 2), *_vectors(A, 2), types.float64, types.boolean),
        *(array_out(T, 2), array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    ),
    plain=True,
)
def _add_rows_forward(kernel, x, residual, weight, bias, eps, center, summed, y, mean, rstd):
    if not (_aligned(x) and _aligned(residual) and _fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        return False
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    _run_sums(kernel, (0, x, residual, *affine, eps, center, False, summed, y, mean, rstd))
    return True


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 2), array_in(T, 2), array_in(T, 2), *_vectors(A, 3), types.boolean),
        *(array_out(T, 2), array_out(A, 1), array_out(A, 1)),
    ),
    plain=True,
)
def _add_rows_backward(kernel, summed, dy, dsummed, mean, rstd, weight, center, dx, dweight, dbias):
    count, size = summed.shape
    if not (_fits(mean, count if center else 0) and _fits(rstd, count) and _fits(weight, size)):
        return False
    if not (_aligned(dy) and _aligned(dsummed) and _aligned(summed)):
        return False
    known = assumed_contiguous(mean), assumed_contiguous(rstd), assumed_contiguous(weight)
    _differentiate_sums(kernel, (0, dy, dsummed, summed, *known, center, False, dx, dx[:0], dweight, dbias))
    return True


def _normalize(kernel, x, weight, bias, eps, activation, y, mean, rstd, running_mean, running_var, momentum):
    if not (_aligned(x) and _fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        return False
    if running_mean.size and not _may_run(running_mean, running_var, x, weight, bias):
        return False
    xs, ys, stats = _in_geometry(x), _in_geometry(y), np.empty((2, weight.size))
    known = xs, xs[:0], assumed_contiguous(weight), assumed_contiguous(bias), eps, True, activation, stats
    if x.ndim == 2:
        _run_columns(kernel, (0, 0, *known, ys, mean, rstd))
    else:
        _run_channels(kernel, (0, *known, ys, mean, rstd))
    _update(running_mean, running_var, momentum, stats, x.size // weight.size)
    return True


def _infer(kernel, x, mean, var, weight, bias, eps, activation, y):
    size = x.shape[1]
    if not (_aligned(x) and _fits(weight, size) and _fits(bias, size) and _fits(mean, size) and _fits(var, size)):
        return False
    xs, ys, stats, none = _in_geometry(x), _in_geometry(y), _stacked(mean, var), np.empty(0, weight.dtype)
    known = xs, xs[:0], assumed_contiguous(weight), assumed_contiguous(bias), eps, False, activation, stats
    if x.ndim == 2:
        _run_columns(kernel, (0, 0, *known, ys, none, none))
    else:
        _run_channels(kernel, (0, *known, ys, none, none))
    return True


def _differentiate(kernel, x, dy, mean, rstd_or_var, weight, bias, eps, given, activation, dx, dweight, dbias):
    size, terms = x.shape[1], CONSTANT if given else BATCH
    if not (_fits(weight, size) and _fits(bias, size) and _fits(mean, size) and _fits(rstd_or_var, size)):
        return False
    if not (_aligned(dy) and _aligned(x)):
        return False
    dys, xs, dxs = _in_geometry(dy), _in_geometry(x), _in_geometry(dx)
    stats, sums = _stacked(mean, rstd_or_var), np.empty((2, size))
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    known = dys, xs, xs[:0], stats, *affine, eps, given, terms, x.size // size, activation
    if x.ndim == 2:
        _differentiate_columns(kernel, (0, 0, *known, dxs, dxs[:0], sums))
    else:
        _differentiate_channels(kernel, (0, *known, dxs, dxs[:0], sums))
    for c in range(size):
        dbias[c], dweight[c] = sums[0, c], sums[1, c]
    return True


def _apply(kernel, x, dy, mean, rstd, weight, bias, sum_dy, sum_dyxhat, count, dx):
    size = x.shape[1]
    if not (_fits(mean, size) and _fits(rstd, size) and _fits(sum_dy, size) and _fits(sum_dyxhat, size)):
        return False
    if not (_aligned(dy) and _aligned(x) and _fits(weight, size) and _fits(bias, size)):
        return False
    dys, xs, dxs = _in_geometry(dy), _in_geometry(x), _in_geometry(dx)
    stats, sums = _stacked(mean, rstd), _stacked(sum_dy, sum_dyxhat)
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    known = dys, xs, xs[:0], stats, *affine, 0.0, False, GIVEN, count, NONE
    if x.ndim == 2:
        _differentiate_columns(kernel, (0, 0, *known, dxs, dxs[:0], sums))
    else:
        _differentiate_channels(kernel, (0, *known, dxs, dxs[:0], sums))
    return True


def _forward_signature(ndim):
    return lambda T, A: types.boolean(
        *(types.intp, array_in(T, ndim), *_vectors(A, 2), types.float64, types.intp, array_out(T, ndim)),
        *(array_out(A, 1), array_out(A, 1), array_out(A, 1), array_out(A, 1), types.float64),
    )


def _inference_signature(ndim):
    return lambda T, A: types.boolean(
        types.intp, array_in(T, ndim), *_vectors(A, 4), types.float64, types.intp, array_out(T, ndim)
    )


def _backward_signature(ndim):
    return lambda T, A: types.boolean(
        *(types.intp, array_in(T, ndim), array_in(T, ndim), *_vectors(A, 4), types.float64, types.boolean, types.intp),
        *(array_out(T, ndim), array_out(A, 1), array_out(A, 1)),
    )


def _apply_signature(ndim):
    return lambda T, A: types.boolean(
        *(types.intp, array_in(T, ndim), array_in(T, ndim), *_vectors(types.float64, 2), *_vectors(A, 2)),
        *(*_vectors(types.float64, 2), types.intp, array_out(T, ndim)),
    )


_columns_forward = variants(_forward_signature(2), "columns_forward", plain=True)(_normalize)
_columns_inference = variants(_inference_signature(2), "columns_inference", plain=True)(_infer)
_columns_backward = variants(_backward_signature(2), "columns_backward", plain=True)(_differentiate)
_columns_apply = variants(_apply_signature(2), "columns_apply", plain=True)(_apply)
_channels_forward = variants(_forward_signature(4), "channels_forward", plain=True)(_normalize)
_channels_inference = variants(_inference_signature(4), "channels_inference", plain=True)(_infer)
_channels_backward = variants(_backward_signature(4), "channels_backward", plain=True)(_differentiate)
_channels_apply = variants(_apply_signature(4), "channels_apply", plain=True)(_apply)


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 4), *_vectors(A, 2), types.float64, types.intp),
        *(array_out(T, 4), array_out(A, 2), array_out(A, 2)),
    ),
    plain=True,
)
def _groups_forward(kernel, x, weight, bias, eps, activation, y, mean, rstd):
    if not (_aligned(x) and _fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        return False
    xs, ys = _in_groups(x, mean.shape[1]), _in_groups(y, mean.shape[1])
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    _run_groups(kernel, (0, xs, *affine, eps, activation, ys, mean, rstd))
    return True


@variants(
    lambda T, A: types.boolean(
        *(types.intp, array_in(T, 4), array_in(T, 4), array_in(A, 2), array_in(A, 2), *_vectors(A, 2), types.intp),
        *(array_out(T, 4), array_out(A, 1), array_out(A, 1)),
    ),
    plain=True,
)
def _groups_backward(kernel, x, dy, mean, rstd, weight, bias, activation, dx, dweight, dbias):
    if not (_aligned(dy) and _aligned(x) and _aligned(mean) and _aligned(rstd)):
        return False
    if not (_fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        return False
    groups = mean.shape[1]
    arrays = _in_groups(dy, groups), _in_groups(x, groups), mean, rstd
    affine = assumed_contiguous(weight), assumed_contiguous(bias)
    _differentiate_groups(kernel, (0, *arrays, *affine, activation, _in_groups(dx, groups), dweight, dbias))
    return True
