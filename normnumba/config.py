"""What this installation runs on."""

from __future__ import annotations

import platform

import llvmlite
import ml_dtypes
import numba
import numpy as np

from .dispatch import backends
from .kernels.cpu.compiling import cache_folder
from .kernels.cpu.launching import layer


def show_config() -> None:
    """Print the versions, threads, compilation cache and backends in use: what a bug report should begin with."""
    from . import __version__

    threads = layer()  # before numba is asked for its threads, which starts them
    print(f"normnumba   {__version__}")
    print(f"python      {platform.python_version()} on {platform.platform()}")
    print(f"numpy       {np.__version__}, ml_dtypes {ml_dtypes.__version__}")
    print(f"numba       {numba.__version__}, llvmlite {llvmlite.__version__}")
    print(f"processor   {llvmlite.binding.get_host_cpu_name()}")
    print(f"threads     {numba.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}, layer {threads}")
    print(f"cache       {cache_folder()}")
    for name, reason in backends().items():
        print(f"{name:<12}{reason or 'available'}")
