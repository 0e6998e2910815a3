"""Channels: x (O, C, I), statistics over O and I, weight and bias (C). BatchNorm, channels first.

A core takes one channel at a time: what its statistics have read is still in its cache when it is normalized. What goes
past the caches is written while the next channel is read for its statistics, since memory does both at once. Of few
channels that are too large for that, each is shared by tasks of some samples each, lest cores be idle.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from .. import BATCH, GIVEN, RELU
from .compiling import array_in, array_out, variants
from .launching import call
from .lowlevel import BLOCK, bounds, fence, flat, scalar, tasks_in_turn, tasks_of, work
from .moments import NO_SUMS, any_moments, moments, moments_of_sums, pivot_of
from .spans import (
    centre_before,
    channel_sums,
    room_for_gradients,
    room_for_upstream,
    ways_of_differentiating,
    ways_of_writing,
    write_and_sum,
    write_gradients,
    write_span,
)
from .tasks import launch

FEW = 16
"""Channels below which threads share each of them."""

LARGE = 4 << 20
"""Bytes of a channel from which they do: it is read from memory twice in any case."""

TASKS = 64
"""How many tasks there are then."""


def channels_forward(
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    training: bool,
    activation: int,
    stats: Any,
    y: Any,
    mean: Any,
    rstd: Any,
) -> None:
    """Write y, and mean and rstd (C), each unless it is empty, from the statistics of x itself in training.

    The float64 mean and variance are in `stats` (2, C), put there in training, and else given. An empty residual is
    none.
    """
    if training and _shared(x):
        call(_moments, x, x, weight, stats)
        training = False
    call(_forward, x, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd)


def channels_backward(
    dy: Any,
    x: Any,
    residual: Any,
    stats: Any,
    weight: Any,
    bias: Any,
    eps: float,
    squared: bool,
    terms: int,
    count: int,
    activation: int,
    dx: Any,
    dresidual: Any,
    sums: Any,
) -> None:
    """Write dx, and with an activation dresidual, unless they are empty; sum(dz) and sum(dz * xhat) into `sums` (2, C).

    dz = dy * activation'. The float64 `stats` (2, C) are mean and rstd, or where they are `squared` mean and variance,
    to which eps is added. `terms` says what dx takes from the float64 sums: BATCH that mean and rstd are x's own,
    CONSTANT that they do not depend on x, GIVEN that `sums` holds those of a larger batch of `count` values a channel.
    """
    if terms == BATCH and _shared(x):
        stats = stats.copy()
        call(_sums, x, dy, x, residual, weight, bias, activation, stats, sums)
        terms = GIVEN
    args = (dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums)
    call(_backward, x, *args)


def _shared(x: np.ndarray) -> bool:
    """Whether threads share a channel: where there are few, each too large to stay in a core's cache anyway."""
    return x.shape[1] < FEW and x.shape[0] > 1 and x.nbytes > LARGE * x.shape[1]


@scalar
def _shares(outer, channels):
    """How many tasks share a channel: from the shape alone, hence the same bits on any number of threads"""
    return max(1, min(outer, TASKS // channels))


@scalar
def _samples(task, shares, outer):
    """The channel of a task, and its samples"""
    share = task % shares
    return task // shares, share * outer // shares, (share + 1) * outer // shares


@scalar
def _centre(mean, rstd, zero):
    """What rounding a float64 mean leaves in xhat"""
    return (mean - type(zero)(mean)) * rstd


@scalar
def _merge(parts, c, shares, outer, stats):
    """Mean and variance of a channel from those of its shares, as in Chan, Golub and LeVeque, 1983"""
    mean, squares, seen = 0.0, 0.0, 0
    for task in range(c * shares, (c + 1) * shares):
        _, first, last = _samples(task, shares, outer)
        count, away = last - first, parts[0, task] - mean
        seen += count
        mean += away * count / seen
        squares += parts[1, task] * count + away * away * (seen - count) * count / seen
    stats[0, c], stats[1, c] = mean, squares / seen


@work
def _set_moments(task, tasks, x, shape, weight, parts):
    """Mean and variance of a share of a channel"""
    outer, channels, inner = shape
    stride = channels * inner
    c, first, last = _samples(task, tasks // channels, outer)
    span = c * inner + first * stride, last - first, stride, inner
    pivot, shift, var, _ = any_moments(x, *span, 0.0, True, weight.dtype.type(0))
    parts[0, task], parts[1, task] = pivot + shift, var


@variants(lambda T, A: types.void(types.intp, array_in(T, 3), array_in(A, 1), array_out(types.float64, 2)))
def _moments(launcher, x, weight, stats):
    """Mean and variance of channels that tasks share; of the weight only the type matters."""
    outer, channels, _ = x.shape
    shares = _shares(outer, channels)
    parts = np.empty((2, channels * shares))
    launch(launcher, _set_moments, channels * shares, (flat(x), x.shape, weight, parts))
    for c in range(channels):
        _merge(parts, c, shares, outer, stats)


@work
def _normalize_some(
    task, tasks, x, residual, shape, shares, weight, bias, eps, training, activation, stats, y, past, staged, mean, rstd
):
    """y, stats, mean and rstd of some channels, or of some shares of channels"""
    outer, channels, inner = shape
    number, stride = weight.dtype.type, channels * inner
    buffer = np.empty(BLOCK if staged else 0, y.dtype)
    z = np.empty(BLOCK if activation > RELU else 0, weight.dtype)
    begin, end = bounds(task, tasks, channels * shares)
    known, about, sums = False, number(0), NO_SUMS
    for part in range(begin, end):
        c, first, last = _samples(part, shares, outer)
        if training:
            whole = c * inner, outer, stride, inner
            if known:
                pivot, shift, var, r = moments_of_sums(x, *whole, about, sums, eps, True)
            else:
                pivot, shift, var, r = moments(x, *whole, eps, True, number(0))
            stats[0, c], stats[1, c] = pivot + shift, var
        else:
            pivot = number(stats[0, c])
            shift, r = stats[0, c] - pivot, 1 / math.sqrt(stats[1, c] + eps)
        if mean.size and not first:
            mean[c], rstd[c] = stats[0, c], r
        scale = r * weight[c]
        line = pivot, number(scale), number(bias[c] - shift * scale), BLOCK
        span = c * inner + first * stride, last - first if y.size else 0, stride, inner
        known = training and past and part + 1 < end
        if known:
            about = pivot_of(x, (c + 1) * inner, inner, True, number(0))
            sums = write_and_sum(x, residual, *span, line, activation, y, (c + 1) * inner, about, NO_SUMS)
        else:
            write_span(x, residual, *span, line, activation, z, y, past, buffer, inner)
    if staged or past:
        fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), types.float64, types.boolean),
        *(types.intp, array_out(types.float64, 2), array_out(T, 3), array_out(A, 1), array_out(A, 1)),
    )
)
def _forward(launcher, x, residual, weight, bias, eps, training, activation, stats, y, mean, rstd):
    outer, channels, inner = x.shape
    past, staged = ways_of_writing(y, inner, x, activation)
    shares = 1 if training else _shares(outer, channels)
    tasks = tasks_in_turn(channels * shares, x.size, training and past)
    inputs = flat(x), flat(residual), x.shape, shares, weight, bias, eps, training, activation
    launch(launcher, _normalize_some, tasks, (*inputs, stats, flat(y), past, staged, mean, rstd))


@work
def _differentiate_some(
    task, tasks, dy, x, residual, shape, shares, stats, weight, bias, options, dx, dresidual, past, staged, sums
):
    """dx, dresidual and sums of some channels, or of some shares of channels"""
    (outer, channels, inner), (eps, squared, terms, count, activation) = shape, options
    number, stride = weight.dtype.type, channels * inner
    writes = dx.size > 0 or dresidual.size > 0
    room = room_for_upstream(activation, 0 if terms == GIVEN else outer * inner, weight.itemsize)
    buffer = np.empty(room_for_gradients(activation, residual, staged, dx), dx.dtype)
    dz, kept = np.empty(room, weight.dtype), terms != GIVEN and room >= outer * inner
    outputs = dx, dresidual, past, staged, buffer, inner
    begin, end = bounds(task, tasks, channels * shares)
    for part in range(begin, end):
        c, first, last = _samples(part, shares, outer)
        start, mean, rstd = c * inner, stats[0, c], 1 / math.sqrt(stats[1, c] + eps) if squared else stats[1, c]
        m, r, scale = number(mean), number(rstd), rstd * weight[c]
        centre = _centre(mean, rstd, number(0))
        if terms == BATCH:
            centre = centre_before(x, start, outer, stride, inner, m, r, number(0))
        line = m, number(scale), number(bias[c] - centre * weight[c]), BLOCK
        if terms != GIVEN:
            whole = start, outer, stride, inner
            sum_dy, sum_dyt = channel_sums(dy, x, residual, *whole, m, r, line, activation, dz, kept)
            sums[0, c], sums[1, c] = sum_dy, sum_dyt - (centre * sum_dy if centre else 0.0)
        slope = -scale * sums[1, c] / count
        shift = number(-scale * sums[0, c] / count - slope * centre)
        curve = m, r, number(scale), number(slope), shift, BLOCK
        span = start + first * stride, last - first if writes else 0, stride, inner
        write_gradients(dy, x, residual, *span, line, curve, terms, activation, dz, kept, outputs)
    if staged or past:
        fence()


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 3), array_in(T, 3), array_in(T, 3), array_in(types.float64, 2), array_in(A, 1)),
        *(array_in(A, 1), types.float64, types.boolean, types.intp, types.intp, types.intp),
        *(array_out(T, 3), array_out(T, 3), array_out(types.float64, 2)),
    )
)
def _backward(
    launcher, dy, x, residual, stats, weight, bias, eps, squared, terms, count, activation, dx, dresidual, sums
):
    outer, channels, inner = x.shape
    past, staged = ways_of_differentiating(dx, inner, dy, x, activation, residual, dresidual)
    shares = _shares(outer, channels) if terms == GIVEN else 1
    options = eps, squared, terms, count, activation
    inputs = flat(dy), flat(x), flat(residual), x.shape, shares, stats, weight, bias, options
    launch(
        launcher,
        _differentiate_some,
        tasks_of(channels * shares, x.size),
        (*inputs, flat(dx), flat(dresidual), past, staged, sums),
    )


@work
def _set_centres(task, tasks, x, shape, stats, weight, parts):
    """What rounding the mean left in a share of a channel"""
    outer, channels, inner = shape
    number, stride = weight.dtype.type, channels * inner
    c, first, last = _samples(task, tasks // channels, outer)
    start, m, r = c * inner + first * stride, number(stats[0, c]), number(stats[1, c])
    parts[2, task] = centre_before(x, start, last - first, stride, inner, m, r, number(0)) * (last - first)


@work
def _set_sums(task, tasks, dy, x, residual, shape, stats, weight, bias, activation, parts):
    """The sums of a share of a channel"""
    outer, channels, inner = shape
    number, stride = weight.dtype.type, channels * inner
    c, first, last = _samples(task, tasks // channels, outer)
    span = c * inner + first * stride, last - first, stride, inner
    m, r, centre = number(stats[0, c]), number(stats[1, c]), _centre(stats[0, c], stats[1, c], number(0))
    dz = np.empty(room_for_upstream(activation, 0, 0), weight.dtype)
    line = m, number(stats[1, c] * weight[c]), number(bias[c] - centre * weight[c]), BLOCK
    sum_dy, sum_dyt = channel_sums(dy, x, residual, *span, m, r, line, activation, dz, False)
    parts[0, task], parts[1, task] = sum_dy, sum_dyt - (centre * sum_dy if centre else 0.0)


@variants(
    lambda T, A: types.void(
        *(types.intp, array_in(T, 3), array_in(T, 3), array_in(T, 3), array_in(A, 1), array_in(A, 1), types.intp),
        *(array_out(types.float64, 2), array_out(types.float64, 2)),
    )
)
def _sums(launcher, dy, x, residual, weight, bias, activation, stats, sums):
    """`sums` of x's own statistics, whose mean is corrected by what rounding left in xhat."""
    outer, channels, _ = x.shape
    xs, shares, number = flat(x), _shares(outer, channels), weight.dtype.type
    parts = np.empty((3, channels * shares))
    launch(launcher, _set_centres, channels * shares, (xs, x.shape, stats, weight, parts))
    for c in range(channels):
        centre = parts[2, c * shares : (c + 1) * shares].sum() / outer
        stats[0, c] = number(stats[0, c]) + (centre / stats[1, c] if centre else 0.0)
    args = flat(dy), xs, flat(residual), x.shape, stats, weight, bias, activation, parts
    launch(launcher, _set_sums, channels * shares, args)
    for c in range(channels):
        for k in range(2):
            sums[k, c] = parts[k, c * shares : (c + 1) * shares].sum()
