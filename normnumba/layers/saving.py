"""States on disk, without pickle."""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..views import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def save(path: str | os.PathLike[str], state: Mapping[str, npt.ArrayLike]) -> None:
    """Write a mapping of names to arrays to a file, such as the `state_dict` of a layer.

    Parameters
    ----------
    path : str or path
        Ends in .safetensors (needs the package `safetensors`) or .npz. An existing file is replaced.
    state : mapping of str to array
        Of bool, an integer type, float16, bfloat16, float32 or float64, of any shape and strides.

    Raises
    ------
    ValueError
        For another suffix, or a name that one of the formats has another use for.
    TypeError
        For a name that is no str, or an array of another dtype, objects among them: nothing is ever pickled.
    ImportError
        Without the package that the suffix needs.

    Notes
    -----
    Everything is checked before the file is touched. In .npz bfloat16 is stored as void of two bytes, which only `load`
    takes for bfloat16 again.
    """
    write = _write_safetensors if _is_safetensors(path) else _write_npz
    write(path, {_checked_name(name): _storable(name, value) for name, value in state.items()})


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read what `save` has written, or another .safetensors or .npz file of arrays.

    Parameters
    ----------
    path : str or path
        Ends in .safetensors (needs the package `safetensors`) or .npz.

    Returns
    -------
    dict of str to ndarray
        Writable arrays of their own.

    Raises
    ------
    ValueError
        For another suffix, or a file with objects in it: nothing is ever unpickled.
    ImportError
        Without the package that the suffix needs.
    """
    if _is_safetensors(path):
        return _safetensors().load_file(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: _restored(file[name]) for name in file.files}


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".safetensors", ".npz"):
        raise ValueError(f"the file name must end in .safetensors or .npz, got {os.fspath(path)!r}")
    return suffix == ".safetensors"


def _safetensors() -> ModuleType:
    try:
        return importlib.import_module("safetensors.numpy")
    except ImportError:
        raise ImportError(
            "a .safetensors file needs the package safetensors: pip install 'normnumba[safetensors]', or use .npz"
        ) from None


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names must be str, got {name!r}")
    if name.endswith(".npy") or "\0" in name or name == "__metadata__":
        raise ValueError(f"{name!r} means something else to the file formats; choose another name")
    return name


def _storable(name: str, value: npt.ArrayLike) -> Array:
    """`value` in C order, which safetensors takes for granted, and in the machine's byte order."""
    array = np.asarray(value)
    if (array.dtype.kind not in "biuf" and array.dtype != _BFLOAT16) or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} has dtype {array.dtype}; only bool, integers, float16, bfloat16, float32 and float64 can be saved"
        )
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _write_safetensors(path: str | os.PathLike[str], arrays: dict[str, Array]) -> None:
    _safetensors().save_file(arrays, path)


def _write_npz(path: str | os.PathLike[str], arrays: dict[str, Array]) -> None:
    # np.savez takes names as keyword arguments, among which "file" has a meaning of its own.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                raw = array.view("V2") if array.dtype == _BFLOAT16 else array
                np.lib.format.write_array(member, raw, allow_pickle=False)


def _restored(array: Array) -> Array:
    return array.view(_BFLOAT16) if array.dtype == np.dtype("V2") else array
