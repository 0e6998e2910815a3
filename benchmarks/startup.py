"""asv: what a new process pays before its first result. Each sample is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
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


KERNELS = (
    "tasks.spread",
    "channels.forward",
    "channels.backward",
    "channels.moments",
    "channels.sums",
    "columns.forward_sample",
    "columns.forward_own",
    "columns.backward_sample",
    "columns.backward_own",
    "groups.forward",
    "groups.backward",
    "plain.channels_forward",
    "plain.channels_inference",
    "plain.channels_backward",
    "plain.channels_apply",
    "plain.columns_forward",
    "plain.columns_inference",
    "plain.columns_backward",
    "plain.columns_apply",
    "plain.groups_forward",
    "plain.groups_backward",
    "plain.add_rows_forward",
    "plain.add_rows_backward",
    "plain.rows_forward",
    "plain.rows_backward",
    "rows.forward",
    "rows.add_forward",
    "rows.backward",
    "rows.add_backward",
    "strips.forward",
    "strips.backward",
)
"""Written out, because an older commit, which may lack some, has to be given the same parameters."""

# One process for all: the first to need a helper is the one that compiles it. Older commits have a twin of each kernel
# for threads, later ones a launcher that serves them all.
_EVERY_KERNEL = """
import inspect, json, sys, time
import numpy as np
import normnumba
from normnumba.kernels.cpu import launching
from normnumba.kernels.cpu.compiling import kernels
seconds, dtype = {}, np.dtype(np.float32)
for name in sys.argv[1:]:
    start = time.perf_counter()
    if name in kernels:
        variant, others, *plain = kernels[name]
        kinds = [()]
        if "parallel" in inspect.signature(variant).parameters:
            kinds = [(False,)] if any(plain) else [(False,), (True,)]
        for kind in kinds:
            variant(dtype, *kind, *[dtype] * others)
    elif name == "tasks.spread" and hasattr(launching, "spread_tasks"):
        launching.spread_tasks()
    else:
        continue
    seconds[name] = time.perf_counter() - start
print(json.dumps(seconds))
"""


Seconds = dict[str, dict[str, float]]
"""By step, compile or load, and kernel."""


class _Compiled:
    version = "1"
    timeout = 300.0
    unit = "seconds"

    def setup_cache(self) -> Seconds:
        return kernel_seconds()

    setup_cache.timeout = 600.0


class CompileKernel(_Compiled):
    """float32 from nothing, on older commits serial and parallel together."""

    params = (KERNELS,)
    param_names = ("kernel",)

    def setup(self, seconds: Seconds, kernel: str) -> None:
        if kernel not in seconds["compile"]:
            raise NotImplementedError(f"this commit has no {kernel} to be compiled by name")

    def track_compile(self, seconds: Seconds, kernel: str) -> float:
        return seconds["compile"][kernel]


class EveryKernel(_Compiled):
    """All kernels of float32 in one process: compiled from nothing, then loaded from the disk cache."""

    def setup(self, seconds: Seconds) -> None:
        if not seconds["compile"]:
            raise NotImplementedError("this commit does not know its kernels by name")

    def track_compile(self, seconds: Seconds) -> float:
        return sum(seconds["compile"].values())

    def track_load(self, seconds: Seconds) -> float:
        return sum(seconds["load"].values())


def kernel_seconds(names: tuple[str, ...] = KERNELS) -> Seconds:
    """What each kernel takes to compile, and to load; nothing on commits that do not know their kernels by name."""
    try:
        from normnumba.kernels.cpu.compiling import kernels  # noqa: F401
    except ImportError:
        return {"compile": {}, "load": {}}
    with tempfile.TemporaryDirectory(prefix="numba-cache-") as cache:
        return {step: _timed_in_a_process(names, cache) for step in ("compile", "load")}


def _timed_in_a_process(names: tuple[str, ...], cache: str) -> dict[str, float]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", _EVERY_KERNEL, *names]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
