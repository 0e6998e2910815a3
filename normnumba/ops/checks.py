"""What every public function does with its arguments before the kernel, and with what comes back."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..views import STORAGE, Array

FLOAT64 = np.dtype(np.float64)


def parameter(
    name: str, value: Array | None, shape: tuple[int, ...], number: np.dtype[Any], default: int | None = None
) -> Array:
    """A weight, bias or statistic as kernels take it: contiguous and in the type that x is computed in."""
    if value is None and default is not None:
        return constant(shape[0] if len(shape) == 1 else shape, number, default)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an ndarray of shape {shape}, got {value!r}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to go with x, got {value.shape}")
    if value.dtype == number and value.flags.carray:
        return value
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be of a real dtype, got {value.dtype}")
    return np.require(value, number, ["C", "A"])


@functools.lru_cache(64)
def constant(shape: int | tuple[int, ...], number: np.dtype[Any], value: int) -> Array:
    """The parameter that None stands for."""
    array = np.full(shape, value, number)
    array.flags.writeable = False
    return array


EMPTY = {(kind, rank): np.empty((0,) * rank, kind) for kind in set(STORAGE.values()) for rank in (2, 3, 4)}
"""Stands for an x-sized output that is not wanted."""


def output(out: Array | None, x: Array, allowed: tuple[Array, ...], others: tuple[Array | None, ...]) -> Array:
    """`out`, checked, or a new array in x's layout."""
    if out is None:
        return np.empty_like(x, subok=False)
    if out.dtype != x.dtype:
        raise TypeError(f"out must have x's dtype {x.dtype}, got {out.dtype}")
    if out.shape != x.shape:
        raise ValueError(f"out must have x's shape {x.shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writable array")
    for array in (*allowed, *others):
        if array is None or not np.may_share_memory(out, array):
            continue
        exact = any(array is a for a in allowed) and _same_memory(out, array)
        if not exact and np.shares_memory(out, array):
            raise ValueError(
                f"out shares memory with an input of shape {array.shape} without being exactly it; "
                "pass x (or dy in a backward) itself, or an array of its own"
            )
    return out


def _same_memory(a: Array, b: Array) -> bool:
    return a is b or (a.strides == b.strides and a.__array_interface__["data"] == b.__array_interface__["data"])


def check_like(name: str, array: Array, x: Array) -> None:
    """Refuse an array that is not of x's shape and dtype."""
    if array is None:
        raise TypeError(f"{name} must be an ndarray like x, got None")
    if array.dtype != x.dtype:
        raise TypeError(f"{name} must have x's dtype {x.dtype}, got {array.dtype}")
    if array.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {x.shape}, got {array.shape}")


def as_gradient(total: Array, parameter: Array | None, number: np.dtype[Any] | None = None) -> Array:
    """A parameter's gradient in the parameter's dtype; in `number` where there is none, or it is no float type."""
    if parameter is not None and (parameter.dtype.kind == "f" or parameter.dtype.name == "bfloat16"):
        return total.astype(parameter.dtype, copy=False)
    return total if number is None else total.astype(number, copy=False)


def unpacked(output_mask: Sequence[bool], length: int) -> Sequence[bool]:
    """`output_mask`, if it has an entry for each output."""
    if len(output_mask) != length:
        raise ValueError(f"output_mask must have {length} entries, one for each output, got {output_mask}")
    return output_mask


def finite(name: str, value: float) -> float:
    """`value` as a float, if it is a finite number."""
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except OverflowError:
        number = math.inf
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a float, got {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def rsqrt(value: Any) -> Any:
    """1 / sqrt(value); Inf at 0 and NaN below, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 / np.sqrt(np.asarray(value, FLOAT64))
