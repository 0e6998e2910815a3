"""Kernels compiled for other processors than this one: NUMBA_CPU_NAME, as images for many machines set it."""

import platform
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding
import pytest

from tests.helpers import run_python

FEATURES = llvmlite.binding.get_host_cpu_features()
RUNS_V3 = platform.machine() in ("x86_64", "AMD64") and all(FEATURES.get(f) for f in ("avx2", "bmi2", "f16c", "fma"))

CPUS = ["generic", pytest.param("x86-64-v3", marks=pytest.mark.skipif(not RUNS_V3, reason="needs AVX2"))]

OPS = """
import numpy as np
from numba.core.registry import cpu_target
import normnumba
from benchmarks.cases import Geometry
from tests.helpers import BY_NAME, arguments_of, check

rows = Geometry((1, 7), -1), Geometry((5, 67), -1), Geometry((3, 4097), -1)
channels = Geometry((3, 5, 7, 9), 1), Geometry((3, 7, 9, 5), 1)
CASES = {
    "layer_norm_forward": (rows, ("float32", "float16")),
    "layer_norm_backward": (rows, ("float32",)),
    "batch_norm_forward": (channels, ("float32",)),
}
rng = np.random.default_rng(0)
for name, (geometries, dtypes) in CASES.items():
    for geometry in geometries:
        for dtype in dtypes:
            check(BY_NAME[name], arguments_of(BY_NAME[name], geometry, dtype, rng))
print(cpu_target.target_context.codegen().magic_tuple()[1])
"""

CONVERSIONS = """
import numba
import numpy as np
from numba import types
from normnumba.kernels.cpu import halves
from normnumba.kernels.cpu.compiling import array_in, array_out
from normnumba.kernels.cpu.lowlevel import OPTIONS, load, store

def copy(x, y):
    for i in range(x.size):
        store(y, i, load(x, i))

def compiled(source, target):
    return numba.njit(types.void(array_in(source, 1), array_out(target, 1)), **OPTIONS)(copy)

def assert_same(got, expected):
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert got[~nan].tobytes() == expected[~nan].tobytes()

every = np.arange(1 << 16, dtype=np.uint16)
wide = np.empty(every.size, np.float32)
compiled(types.uint16, types.float32)(every, wide)
assert_same(wide, every.view(np.float16).astype(np.float32))

near = (wide.view(np.uint32).astype(np.int64) + np.array([[-1, 0, 1, 0xFFF, 0x1000, 0x1001]]).T).astype(np.uint32)
random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 19, dtype=np.uint32)
x = np.concatenate([near.ravel(), random]).view(np.float32)
narrow = np.empty(x.size, np.uint16)
compiled(types.float32, types.uint16)(x, narrow)
with np.errstate(all="ignore"):
    assert_same(narrow.view(np.float16), x.astype(np.float16))
print(halves._has_instructions())
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each processor's run of the ops prints, at the same time: each compiles its own."""

    def run(cpu):
        folder = tmp_path_factory.mktemp(cpu)
        return run_python(OPS, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=folder)

    with ThreadPoolExecutor() as pool:
        return {cpu: pool.submit(run, cpu) for cpu in ("generic", *(["x86-64-v3"] if RUNS_V3 else []))}


@pytest.mark.parametrize("cpu", CPUS)
def test_ops_on_another_cpu(cpu, runs):
    assert runs[cpu].result().split() == [cpu], "numba has not taken the setting"


@pytest.mark.parametrize("cpu", CPUS)
def test_every_float16_is_converted_as_numpy_does(cpu, tmp_path):
    """Where the processor has no instructions for it, numba has no functions for it either."""
    printed = run_python(CONVERSIONS, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    if platform.machine() in ("x86_64", "AMD64"):
        assert printed.split() == [str(cpu == "x86-64-v3")]
