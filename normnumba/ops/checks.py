"""What every public function does with its arguments before the kernel, and with what comes back."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..device.array import DeviceArray, may_share_memory, same_memory, shares_memory
from ..kernels import GELU, GELU_TANH, NONE, RELU, SILU
from ..pool import fresh
from ..views import STORAGE, Array

FLOAT64 = np.dtype(np.float64)

ACTIVATIONS = {None: NONE, "relu": RELU, "gelu": GELU, "gelu_tanh": GELU_TANH, "silu": SILU}
"""What may follow a norm, as kernels know it."""


def parameter(
    name: str, value: Array | None, shape: tuple[int, ...], number: np.dtype[Any], default: int | None = None
) -> Array:
    """A weight, bias or statistic as kernels take it: contiguous and in the type that x is computed in."""
    if type(value) is np.ndarray and value.dtype is number and value.shape == shape and value.flags.carray:
        return value
    if value is None and default is not None:
        return constant(shape, number, default)
    array = real(name, value, shape)
    if isinstance(array, DeviceArray):
        return array.astype(number, "C", copy=False)  # type: ignore[return-value]
    return array.astype(number, "C", subok=False)  # a third of the time of np.require


_REAL = {np.dtype(t) for t in (np.float32, np.float64)}


def real(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """A weight, bias or statistic, if it is an array of that shape and of a real dtype."""
    if type(value) is np.ndarray and value.shape == shape and value.dtype in _REAL:
        return value
    if not isinstance(value, np.ndarray | DeviceArray):
        raise TypeError(f"{name} must be an ndarray of shape {shape}, got {value!r}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to go with x, got {value.shape}")
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be of a real dtype, got {value.dtype}")
    return value


@functools.lru_cache(64)
def constant(shape: tuple[int, ...], number: np.dtype[Any], value: int) -> Array:
    """The parameter that None stands for."""
    return np.full(shape, value, number)  # writable, or numba would take 0.05 us longer to recognize its type


# Both are host arrays in a call on a device as well: kernels there know a parameter on the host for the constant that
# it is, and an empty array for what is absent.

EMPTY = {(kind, rank): np.empty((0,) * rank, kind) for kind in set(STORAGE.values()) for rank in (1, 2, 3, 4)}
"""Stands for an output that is not wanted."""


def output(
    out: Array | None,
    x: Array,
    allowed: tuple[Array, ...],
    others: tuple[Array | None, ...],
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """`out`, checked, or a new array in x's layout; of x's dtype unless another is given."""
    if out is None:
        return fresh(x, dtype)
    wanted = x.dtype if dtype is None else dtype
    if out.dtype != wanted:
        raise TypeError(f"out must have x's dtype {wanted}, got {out.dtype}")
    if out.shape != x.shape:
        raise ValueError(f"out must have x's shape {x.shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writable array")
    if out.size and any(stride == 0 and n > 1 for stride, n in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out has elements that share memory, strides {out.strides}; pass an array of its own")
    for array in (*allowed, *others):
        if array is None or not may_share_memory(out, array):
            continue
        exact = any(array is a for a in allowed) and same_memory(out, array)
        if not exact and shares_memory(out, array):
            raise ValueError(
                f"out shares memory with an input of shape {array.shape} without being exactly it; "
                "pass x (or dy in a backward) itself, or an array of its own"
            )
    return out


def check_like(name: str, array: Array, x: Array, other: str = "x", dtype: np.dtype[Any] | None = None) -> None:
    """Refuse an array that is not of the shape of x, which the caller knows as `other`, and of its dtype or another."""
    if dtype is None and array is not None and array.dtype is x.dtype and array.shape == x.shape:
        return
    wanted = x.dtype if dtype is None else dtype
    if array is None:
        raise TypeError(f"{name} must be an ndarray like {other}, got None")
    if array.dtype != wanted:
        whose = f"{other}'s dtype {wanted}" if dtype is None else f"x's dtype, or else x_dtype must be given: {wanted}"
        raise TypeError(f"{name} must have {whose}, got {array.dtype}")
    if array.shape != x.shape:
        raise ValueError(f"{name} must have {other}'s shape {x.shape}, got {array.shape}")


def activation_code(name: str | None) -> int:
    """An activation as kernels know it."""
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        names = ", ".join(repr(a) for a in ACTIVATIONS)
        raise ValueError(f"activation must be one of {names}, got {name!r}") from None


def as_gradient(total: Array, like: Array | None, number: np.dtype[Any] | None = None) -> Array:
    """A parameter's gradient in the parameter's dtype; in `number` where there is none, or it is no float type."""
    if like is None:
        return total if number is None else total.astype(number, copy=False)
    if like.dtype is total.dtype:
        return total
    if like.dtype.kind == "f" or like.dtype.name == "bfloat16":
        if like.dtype.itemsize > 2:
            return total.astype(like.dtype, copy=False)
        with np.errstate(over="ignore"):  # Inf in a half is the answer; elsewhere this would cost more than all else
            return total.astype(like.dtype)
    return total if number is None else total.astype(number, copy=False)


def unpacked(output_mask: Sequence[bool], length: int) -> Sequence[bool]:
    """`output_mask`, if it has an entry for each output."""
    if type(output_mask) is tuple and len(output_mask) == length:
        return output_mask
    known = isinstance(output_mask, tuple | list | np.ndarray)
    if not known or len(output_mask) != length:
        raise ValueError(f"output_mask must have {length} entries, one for each output, got {output_mask}")
    return output_mask


def finite(name: str, value: float) -> float:
    """`value` as a float, if it is a finite number."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
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
