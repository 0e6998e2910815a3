"""What this machine is, and whether it is fit to measure on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_name

PACKAGES = ("normnumba", "numba", "llvmlite", "numpy", "ml_dtypes", "tbb", "torch", "jax", "onnxruntime", "asv")

DISTURBED = 0.15
"""Cores kept busy by others beyond which times say little."""

_CPU = Path("/sys/devices/system/cpu/cpu0")


def cpu_model() -> str:
    """The CPU's name for itself, and LLVM's for its microarchitecture: virtual machines say "AMD EPYC" of any."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    name = match.group(1).strip() if match else platform.processor() or platform.machine()
    return f"{name} ({get_host_cpu_name()})"


def asv_name() -> str:
    """The machine's name in asv's results: its CPU and its count of cores, never its host name."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{slug}-{os.cpu_count()}-cores"


def caches() -> dict[str, int]:
    """Bytes of each cache that cpu0 sees, by name ("L1 data", "L2", "L3"); empty where the system does not say."""
    found = {}
    for index in sorted((_CPU / "cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}" + (" data" if kind == "Data" else "")] = int(size.rstrip("K")) * 1024
    return found


def private_cache() -> int:
    """Bytes that one core can keep to itself, 1 MiB where the system does not say."""
    return caches().get("L2", 1 << 20)


@lru_cache(maxsize=1)
def last_level_cache() -> int:
    """Bytes of the largest cache, 32 MiB where the system does not say."""
    return max(caches().values(), default=1 << 25)


def governor() -> str | None:
    try:
        return (_CPU / "cpufreq" / "scaling_governor").read_text().strip()
    except OSError:
        return None


def version(package: str) -> str | None:
    """The version of a package, read without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numba_threads() -> tuple[int, str]:
    """How many threads numba uses, and its threading layer."""
    import numba

    from normnumba.kernels.cpu.launching import layer

    # The library's choice first: asking numba for its threads starts them, on a layer of numba's own choice.
    name = layer()
    return numba.get_num_threads(), name


def describe() -> dict[str, Any]:
    """Everything about the machine that a measured time depends on."""
    import psutil

    threads, layer = numba_threads()
    others = Others()
    time.sleep(0.5)
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "caches": caches(),
        "memory": psutil.virtual_memory().total,
        "governor": governor(),
        "others": round(others.cores(), 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "threading_layer": layer,
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Others:
    """How many cores others kept busy, on average, since this was made.

    A thread that waits at a barrier of OpenMP's while another process sits on its partner's core waits a whole time
    slice: a call of 7 us was seen to take 8 ms. Times taken then say nothing.
    """

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        """Wall time, and seconds that cores were busy with anything but this process."""
        import psutil

        cores = psutil.cpu_times()
        own = psutil.Process().cpu_times()
        # Guests are counted in user already; time stolen by another virtual machine is lost to us like any other.
        busy = cores.user + cores.system + sum(getattr(cores, k, 0.0) for k in ("nice", "irq", "softirq", "steal"))
        return time.monotonic(), busy - own.user - own.system

    def cores(self) -> float:
        wall, busy = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, busy / wall) if wall > 0 else 0.0


def doubts(machine: dict[str, Any]) -> list[str]:
    """What makes times on this machine less trustworthy, in words."""
    found = []
    cores = machine["logical_cores"]
    if machine["others"] > DISTURBED:
        found.append(f"other processes kept {machine['others']:.1f} of {cores} cores busy when the run began")
    if machine["governor"] not in (None, "performance"):
        found.append(f"the frequency governor is '{machine['governor']}', not 'performance'")
    if machine["threads"] < (machine["cores"] or cores):
        found.append(f"numba uses {machine['threads']} threads on {machine['cores'] or cores} cores")
    if machine["threading_layer"] == "workqueue":
        found.append("numba's workqueue threading layer is slow to launch: install tbb")
    return found
