"""No op needs memory of x's size beyond its outputs: measured for the whole table, where the system tells.

Linux keeps the most memory that a process had resident (VmHWM) and resets it on request, which sees every allocation,
NumPy's and kernels', to some hundred KiB. tracemalloc would miss those of kernels, getrusage's maximum never falls.
malloc is told to give large blocks back at once, lest a temporary hide in what an earlier one left, and NumPy not to
ask for huge pages, which make more resident than an array has.
"""

import json
import sys

import pytest

from benchmarks.cases import OPS
from tests.helpers import run_python

LIMIT = 2 << 20


MEASURE = """
import json, sys
import numpy as np
import normnumba
from benchmarks.cases import OPS, Geometry
from tests.helpers import takes_out, x_sized

LAYOUTS = {
    "rows": (Geometry((2048, 1024), -1), Geometry((8, 256, 32, 32), 1)),
    "channels": (Geometry((8, 256, 32, 32), 1), Geometry((8, 32, 32, 256), -1), Geometry((1, 2, 1024, 1024), 1)),
}

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def reset():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError as error:
        sys.exit(print(json.dumps(["skipped", str(error), 0])))

def extra(op, arguments):
    op(normnumba, arguments)  # loads kernels, starts threads
    reset()
    before = status("VmRSS")
    results = op(normnumba, arguments)
    peak = status("VmHWM")
    fresh = {id(a): a.nbytes for a in results if isinstance(a, np.ndarray) and a is not arguments.get("out")}
    return peak - before - sum(fresh.values())

def calls(op, geometry, arguments):
    yield "allocating", {}
    if takes_out(op):
        given = arguments[x_sized(op)[0]]
        yield "into another array", {"out": np.zeros_like(given)}
        yield "in place", {"out": given}
    if op.function.startswith("batch_") and "inference" not in op.name:
        shape = tuple(np.delete(geometry.shape, geometry.axes))
        yield "random mask", {"mask": np.random.default_rng(1).random(shape) < 0.6}
        yield "padding mask", {"mask": np.arange(np.prod(shape)).reshape(shape) < 0.6 * np.prod(shape)}
        if takes_out(op):
            yield "mask in place", {"mask": np.random.default_rng(1).random(shape) < 0.6, "out": given}

assert status("VmHWM")
reset()
kept, before = np.ones(1 << 22), status("VmRSS")
reset()
assert status("VmHWM") - before < 1 << 20
del kept
for op in OPS:
    family = "rows" if op.family in ("layer_norm", "rms_norm") else "channels"
    for geometry in LAYOUTS[family]:
        if op.name.startswith("add_") and geometry.axis == 1:
            continue  # has no kernel for strips: documented to copy
        arguments = op.arguments(geometry, np.dtype(np.float32), np.random.default_rng(0))
        for how, more in calls(op, geometry, arguments):
            print(json.dumps([op.name, f"{geometry}, {how}", extra(op, {**arguments, **more})]), flush=True)
print(json.dumps(["a temporary", "", extra(lambda library, x: (x["x"] + 1,) * 0, {"x": np.zeros(1 << 22)})]))
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="session")
def extras():
    """Bytes that each call needed beyond its outputs, by op."""
    settings = {"NUMPY_MADVISE_HUGEPAGE": 0, "MALLOC_MMAP_THRESHOLD_": 1 << 16, "MALLOC_TRIM_THRESHOLD_": 1 << 16}
    measured = {}
    for name, how, extra in map(json.loads, run_python(MEASURE, **settings).splitlines()):
        measured.setdefault(name, {})[how] = extra
    if "skipped" in measured:
        pytest.skip(f"the peak cannot be reset: {measured['skipped']}")
    return measured


def test_a_temporary_is_seen(extras):
    assert extras["a temporary"][""] > (1 << 22) * 8 - LIMIT


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_memory_beyond_the_outputs(op, extras):
    too_much = {how: f"{extra / 2**20:.1f} MiB" for how, extra in extras[op.name].items() if extra > LIMIT}
    assert not too_much


ALLOCATIONS = """
import numpy as np
import normnumba
from benchmarks.cases import OPS, RAGGED
from numba.core.runtime import rtsys

def call_all():
    for op in OPS:
        for geometry in RAGGED[op.family]:
            if geometry.size < 5000:
                op(normnumba, op.arguments(geometry, np.dtype(np.float32), np.random.default_rng(0)))

call_all()
before = rtsys.get_allocation_stats()
call_all()
after = rtsys.get_allocation_stats()
print(after.alloc - before.alloc, after.free - before.free)
"""


def test_what_kernels_allocate_is_freed_once():
    """Helpers count no references: one that made or returned an array would lose it, or free it twice."""
    made, freed = map(int, run_python(ALLOCATIONS, NUMBA_NRT_STATS=1).split())
    assert 0 < made == freed
