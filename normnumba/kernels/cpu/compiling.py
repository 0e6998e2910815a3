"""From one kernel source to its compiled variants, and the disk cache that keeps them.

numba's own cache is told apart by the kernel's file alone: a helper edited in another file would go on running as stale
machine code. Here a variant's folder is named after the text of all kernel
sources and everything else that decides the machine code, and its file after the variant, one file for one variant. So
nothing stale can be found, and processes that compile at the same time write the same bytes to the same names.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import caching, config
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from .linking import KernelCompiler
from .lowlevel import OPTIONS, accumulator

_SOURCES = Path(__file__).parent

_SOURCE = b"".join(f.read_bytes() for f in (_SOURCES.parent / "__init__.py", *sorted(_SOURCES.glob("*.py"))))
"""The text of all kernel sources, read when they are imported: a file edited later is not what will be compiled."""

_KEEP_DAYS = 7

compiled: list[str] = []
"""Names of what was compiled or loaded so far in this process, in order."""

_dispatchers: dict[str, Any] = {}
_compiling = threading.Lock()
"""Kernels by module and name, and what is held while one is made: the caches in front let all threads through that make
the same first call, and each would compile it, one after the other."""


class Kernel(NamedTuple):
    """A kernel: the factory of its compiled variants, and which there are."""

    variant: Callable[..., Any]
    others: int
    """How many dtypes it asks for besides that of the data."""
    plain: bool
    """Whether it is for small calls, of dtypes that kernels see as they are."""


kernels: dict[str, Kernel] = {}
"""Every kernel by module and name, such as "rows.forward"."""


def array_in(dtype: Any, ndim: int) -> types.Array:
    """The type of an input: read-only, which takes writable arrays as well and saves a second compilation."""
    return types.Array(dtype, ndim, "C", readonly=True)


def array_out(dtype: Any, ndim: int) -> types.Array:
    """The type of an output."""
    return types.Array(dtype, ndim, "C")


def compile_kernel(source: Callable[..., Any], name: str, signature: Any, parallel: bool = False) -> Any:
    """A source under that name, compiled for one signature or loaded from the disk cache."""
    title = f"{source.__module__}.{name}"
    with _compiling:
        if title not in _dispatchers:
            kernel = FunctionType(source.__code__, source.__globals__, name)
            kernel.__qualname__ = name
            compiled.append(title)
            dispatcher = numba.njit(parallel=parallel, pipeline_class=KernelCompiler, **OPTIONS)(kernel)
            dispatcher._cache = _Cache(kernel)
            dispatcher.compile(signature)
            dispatcher.disable_compile()
            _dispatchers[title] = dispatcher
        return _dispatchers[title]


def variants(signature: Callable[..., Any], name: str = "", plain: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Turn a kernel's source into a cached factory of its compiled variants.

    `signature(T, A, *others)` gives the numba signature for data of type T computed in type A, and arrays of other
    types. Call the result with the dtype of the data and the other dtypes. `name` is that of the source unless one
    source makes several kernels, and `plain` is told of in `Kernel`.
    """

    def decorate(source: Callable[..., Any]) -> Any:
        title = name or source.__name__

        @functools.cache
        def variant(dtype: np.dtype, *others: np.dtype) -> Any:
            data = numba.from_dtype(dtype)
            expected = signature(data, accumulator(data), *map(numba.from_dtype, others))
            return compile_kernel(source, "-".join((title, dtype.name, *(d.name for d in others))), expected)

        module, others = source.__module__.rpartition(".")[2], len(inspect.signature(signature).parameters) - 2
        variant.signature, variant.others = signature, others  # type: ignore[attr-defined]
        kernels[f"{module}.{title.lstrip('_')}"] = Kernel(variant, others, plain)
        return variant

    return decorate


@functools.cache
def address(kernel: Any) -> int:
    """Where the machine code of a compiled kernel begins, for `lowlevel.calling` and `tasks.launch`."""
    [compiled] = kernel.overloads.values()
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, beside the sources, or in the user's cache folder."""
    name = f"normnumba-{_fingerprint()}"
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR) / name
    beside = _SOURCES / "__pycache__"
    if os.access(_SOURCES if not beside.exists() else beside, os.W_OK):
        _forget_old(beside)
        return beside / name
    return Path(caching.AppDirs(appname="numba", appauthor=False).user_cache_dir) / name


def _fingerprint() -> str:
    """A hash of everything that decides the machine code of a variant."""
    target = repr((sys.version_info[:2], platform.machine(), cpu_target.target_context.codegen().magic_tuple()))
    versions = f"{numba.__version__} {llvmlite.__version__} {np.__version__}"
    return hashlib.sha256(_SOURCE + target.encode() + versions.encode()).hexdigest()[:16]


def _forget_old(parent: Path) -> None:
    """Remove the folders of earlier sources that nobody compiled into for a week."""
    for folder in parent.glob("normnumba-*"):
        if folder.name != f"normnumba-{_fingerprint()}" and folder.stat().st_mtime < time.time() - _KEEP_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


class _Locator(caching._CacheLocator):
    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return cache_folder().name

    def get_disambiguator(self) -> str:
        return "kernel"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls()


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar = [_Locator]


class _Cache(caching.FunctionCache):
    """numba's function cache in our folder. One that cannot be read or written means compiling again, not failing."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """As numba's, without importing all that a compilation may need first, SciPy included: 0.05 s, not 0.25."""
        try:
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file may raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()
