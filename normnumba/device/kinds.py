"""Whose arrays they are. Each library has a module here; a type is recognized by name, so that none is imported.

The module of a kind has `on_device(value)`, whether an array of its type is in a device's memory; `device_of(value)`,
on which; `place_of(value)`, there on the stream that the caller is on; `adopt(value, place, name)`, the array as ops
see it; and IMMUTABLE, why its arrays are never written to, or None.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np

from .array import DeviceArray

_MODULES = {
    ("torch", "Tensor"): "torch",
    ("cupy", "ndarray"): "cupy",
    ("jax", "ArrayImpl"): "jax",
    ("jaxlib", "ArrayImpl"): "jax",
}

_NO_ARRAYS = (np.ndarray, np.generic, DeviceArray, type(None), bool, int, float, complex, str, bytes, list, tuple)


def kind_of(value: Any) -> ModuleType | None:
    """The module of the kind of an array in a device's memory, None for everything else."""
    cls: Any = type(value)
    kind = _kind_of_type(cls)
    return kind if kind is not None and kind.on_device(value) else None


@functools.lru_cache(256)
def _kind_of_type(cls: type) -> ModuleType | None:
    if issubclass(cls, _NO_ARRAYS):
        return None
    names = [(base.__module__.partition(".")[0], base.__name__) for base in cls.__mro__]
    known = next((_MODULES[name] for name in names if name in _MODULES), "numba")
    return importlib.import_module(f"{__package__}.{known}")
