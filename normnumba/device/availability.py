"""Whether kernels can run on a CUDA device here. Nothing of CUDA is imported before somebody asks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from types import ModuleType

OLDEST = (8, 0)

INSTALL = 'python -m pip install "normnumba[cuda]"'


@functools.cache
def why_not() -> str | None:
    """Why CUDA cannot be used, or None if it can."""
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed; {INSTALL}"
    with contextlib.suppress(ImportError):
        # Puts numba-cuda in the place of numba.cuda, as its .pth file does unless pip was given --target.
        importlib.import_module("_numba_cuda_redirector")
    return _why_no_device(importlib.import_module("numba.cuda"))


def _why_no_device(cuda: ModuleType) -> str | None:
    if getattr(cuda, "implementation", None) != "NVIDIA":
        return f"numba.cuda is numba's own here, not NVIDIA's numba-cuda, which knows bfloat16; {INSTALL}"
    if not cuda.is_available():
        error = cuda.cuda_error()
        if error:
            return f"there is no working CUDA driver: {' '.join(str(error).split())}"
        return f"the parts of the CUDA toolkit that compile kernels (NVVM) are missing; {INSTALL}"
    if not len(cuda.gpus):
        return "the CUDA driver finds no device"
    newest = max(gpu.compute_capability for gpu in cuda.gpus)
    if newest < OLDEST:  # whose assembler rounds pairs of halves
        return f"the device has compute capability {newest[0]}.{newest[1]}, and {OLDEST[0]}.{OLDEST[1]} is needed"
    return None


@functools.cache
def kernels() -> ModuleType:
    """The kernels for devices."""
    return importlib.import_module("normnumba.kernels.cuda")
