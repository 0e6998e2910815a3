"""Conversions, sums and means: what every norm is written with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Axes = tuple[int, ...]
Parameter = ArrayLike | None


def float64(a: ArrayLike) -> Array:
    """`a` in float64."""
    return np.asarray(a, dtype=np.float64)


def parameter(value: Parameter, default: float, missing: Axes) -> Array:
    """`value`, or the default where it is None, with axes of length one where x has axes that it lacks."""
    return float64(default) if value is None else np.expand_dims(float64(value), missing)


def sum_over(a: Array, axes: Axes) -> Array:
    """Sum over `axes`. They are moved last because NumPy adds in pairs, hence accurately, only along memory."""
    last = tuple(range(-len(axes), 0))
    return np.sum(np.ascontiguousarray(np.moveaxis(a, axes, last)), axis=last)


def mean_over(a: Array, axes: Axes, counted: NDArray[np.bool_] | None = None) -> Array:
    """Mean over `axes`, kept with length one, of the positions that are counted; the mean of nothing is 0.

    `counted` has a's shape along `axes` and length one along the others; None counts everything.
    """
    if counted is None:
        count = math.prod(a.shape[axis] for axis in axes)
    else:
        count, a = int(np.count_nonzero(counted)), np.where(counted, a, 0.0)
    return np.expand_dims(sum_over(a, axes) / max(count, 1), axes)


def centre(x: Array, axes: Axes, counted: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
    """`mean_over` of x, and x minus it; the second pass takes out what rounding left in the first mean."""
    mean = mean_over(x, axes, counted)
    rest = mean_over(x - mean, axes, counted)
    return np.where(np.isfinite(mean), mean + rest, mean), x - mean - rest


def split(ndim: int, axis: int | Sequence[int]) -> tuple[Axes, Axes]:
    """The axes in `axis`, and the others in increasing order, all non-negative."""
    inside = tuple(int(a) % ndim for a in np.atleast_1d(axis))
    return inside, tuple(a for a in range(ndim) if a not in inside)


def select(values: tuple[Any, ...], output_mask: Sequence[bool]) -> tuple[Any, ...]:
    """`values`, with None where they are not wanted."""
    return tuple(value if wanted else None for value, wanted in zip(values, output_mask, strict=True))


def gradient(dy: Array, xhat: Array, rstd: Array, weight: Array, axes: Axes) -> Array:
    """Gradient through y = xhat * weight with xhat = (x - mean(x)) * rstd(x), statistics over `axes`."""
    dxhat = dy * weight
    return rstd * (dxhat - mean_over(dxhat, axes) - xhat * mean_over(dxhat * xhat, axes))
