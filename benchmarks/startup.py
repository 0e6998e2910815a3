"""asv: what a new process pays before its first result. Each sample is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import normnumba

# Written out rather than taken from the table: this text runs in a bare process.
_INPUTS = """
import numpy as np
x = np.random.default_rng(0).standard_normal((512, 1024), dtype=np.float32)
"""
_CALL = "normnumba.layer_norm_forward(x)"
# The folder must exist before numba is imported, and must be empty; the object removes it when the process ends.
_EMPTY_CACHE = """
import os, tempfile
cache = tempfile.TemporaryDirectory(prefix="numba-cache-")
os.environ["NUMBA_CACHE_DIR"] = cache.name
"""


class _Once:
    version = "1"
    rounds = 1
    number = 1
    warmup_time = 0.0
    timeout = 120.0


class Import(_Once):
    repeat = 5

    def timeraw_import(self) -> str:
        return "import normnumba"


class FirstCall(_Once):
    """Layer norm of float32 512x1024: compiled from nothing, then from numba's cache on the disk."""

    repeat = 3

    def setup(self) -> None:
        if not hasattr(normnumba, "layer_norm_forward"):
            raise NotImplementedError("this commit has no layer_norm_forward")

    def timeraw_compile_512x1024(self) -> tuple[str, str]:
        return _CALL, f"{_EMPTY_CACHE}\nimport normnumba\n{_INPUTS}"

    def timeraw_cached_512x1024(self) -> tuple[str, str]:
        fill_cache()
        return _CALL, f"import normnumba\n{_INPUTS}"


@lru_cache(maxsize=1)
def fill_cache() -> None:
    """Make the call once in a process of its own, untimed, so that the disk cache holds it."""
    subprocess.run([sys.executable, "-c", f"import normnumba\n{_INPUTS}\n{_CALL}"], check=True)
