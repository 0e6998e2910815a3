"""Which backend an array belongs to: where its memory is decides, never a setting, and never a silent fallback."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from .kernels import cpu

_HOST = frozenset((np.ndarray, type(None)))

_NO_CUDA = "this version of normnumba has no CUDA kernels; copy the arrays to the host"


def backends() -> dict[str, str | None]:
    """Return for each backend None, or why it cannot be used here.

    Returns
    -------
    dict
        Keys "cpu" and "cuda".
    """
    return {"cpu": None, "cuda": _NO_CUDA}


def home(*arrays: Any) -> ModuleType:
    """Return the kernels for these arrays; None is at home everywhere.

    Raises
    ------
    TypeError
        If one is not an array, or they are not all in the same place.
    RuntimeError
        If they are on a device whose backend cannot be used.
    """
    if _HOST.issuperset(map(type, arrays)):
        return cpu
    return _uncommon_home(arrays)


def _uncommon_home(arrays: tuple[Any, ...]) -> ModuleType:
    present = [a for a in arrays if a is not None]
    on_device = [_is_on_device(a) for a in present]
    if any(on_device):
        if not all(on_device):
            kinds = ", ".join(sorted({type(a).__name__ for a in present}))
            raise TypeError(f"all arrays must be in one place, got host and device arrays together ({kinds})")
        raise RuntimeError(f"the CUDA backend cannot be used: {_NO_CUDA}")
    for array in present:
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("masked arrays are not supported: their mask would be ignored; pass array.filled(...)")
        if not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            raise TypeError(f"arrays must be numpy.ndarray, got {kind}; convert with numpy.asarray(...)")
    return cpu


def _is_on_device(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    try:
        return int(array.__dlpack_device__()[0]) == 2  # kDLCUDA
    except (AttributeError, TypeError, RuntimeError, BufferError):
        return False
