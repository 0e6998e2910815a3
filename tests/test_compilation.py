"""What is compiled, when, and that nothing stale is ever run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import normnumba
from normnumba.kernels.cpu import compiling
from tests.helpers import ROOT, run_python

MAX_VARIANTS = 150

HEADER = """
import time
start = time.perf_counter()
import numpy as np, normnumba as nn
def hashed(*arrays):
    import hashlib
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays if a is not None)).hexdigest()
x = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
"""
ROWS = f"{HEADER}print(hashed(*nn.layer_norm_forward(x)), time.perf_counter() - start)"
GROUPS = f"{HEADER}print(hashed(nn.group_norm(x, 7, np.full(7, 2), activation='silu')))"


@pytest.fixture(scope="session")
def budget():
    """Looks at all that the whole run has compiled, when it ends."""
    yield
    assert len(compiling.compiled) <= MAX_VARIANTS, "every variant costs a second to compile: see which are too many"


@pytest.fixture(scope="session")
def cold(tmp_path_factory):
    """A cache folder, and what the process printed that filled it."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run_python(ROWS, NUMBA_CACHE_DIR=cache).split()


def test_each_variant_is_compiled_once(budget, rng):
    for n in (1, 2, 3):
        normnumba.layer_norm(rng.standard_normal((n, 5)))
    assert len(set(compiling.compiled)) == len(compiling.compiled)


def test_threads_compile_a_variant_once(cold):
    code = f"""{HEADER}
import threading
from normnumba.kernels.cpu import compiling
barrier = threading.Barrier(4)
threads = [threading.Thread(target=lambda: (barrier.wait(), nn.layer_norm_forward(x))) for _ in range(4)]
for step in (threading.Thread.start, threading.Thread.join):
    for thread in threads:
        step(thread)
print(len(compiling.compiled) - len(set(compiling.compiled)), len(compiling.compiled) > 0)
"""
    assert run_python(code, NUMBA_CACHE_DIR=cold[0]).split() == ["0", "True"]


def test_array_flags_make_no_variants(rng):
    x = rng.standard_normal((6, 5))
    normnumba.layer_norm(x)
    before = list(compiling.compiled)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (frozen, x.T, x[::2, ::2], x[:, ::-1], x[:1], x[:, :1]):
        normnumba.layer_norm(other, out=None)
        normnumba.layer_norm(other, other[0], other[0])
    assert compiling.compiled == before


# --- the disk cache --------------------------------------------------------------------------------------------------


def test_a_cached_first_call_is_quick(cold):
    cache, (result, seconds) = cold
    files = sorted((f.name, f.stat().st_mtime_ns) for f in cache.rglob("*"))
    again = [run_python(ROWS, NUMBA_CACHE_DIR=cache).split() for _ in range(2)]
    assert {r for r, _ in again} == {result}
    best = min(float(s) for _, s in again)
    assert best < 2.5, "import, load a kernel, call it: 0.5 s on a quiet machine"
    assert best < float(seconds), "the cache is no faster than compiling"
    assert files == sorted((f.name, f.stat().st_mtime_ns) for f in cache.rglob("*")), "a warm process writes nothing"


def test_a_loaded_kernel_needs_no_compiler(cold):
    """numba's compiler imports its linear algebra, and that SciPy: 0.2 s of the 0.25 that a first call would take."""
    cache, (result, _) = cold
    code = f"import sys\n{ROWS}\nprint('numba.np.linalg' in sys.modules)"
    assert run_python(code, NUMBA_CACHE_DIR=cache).split()[::2] == [result, "False"]


def test_arrays_in_host_memory_need_no_cuda(cold):
    """Installed or not: its import takes half a second."""
    cache, (result, _) = cold
    code = f"import sys\n{ROWS}\nprint(*[m for m in sys.modules if f'{{m}}.'.startswith(('cuda.', 'numba.cuda.'))])"
    assert run_python(code, NUMBA_CACHE_DIR=cache).split()[::2] == [result]


def test_one_kernel_serves_with_threads_and_without(tmp_path):
    code = """
import numpy as np, normnumba as nn
from normnumba.kernels.cpu import launching
for launching.PARALLEL_FROM in (0, 1 << 60):
    nn.layer_norm(np.ones((4, 4), np.float32))
"""
    for _ in range(2):
        run_python(code, NUMBA_CACHE_DIR=tmp_path, NUMBA_NUM_THREADS=2)
        data = {f.name.split("-")[0]: f.read_bytes() for f in tmp_path.rglob("*.nbc")}
        assert set(data) == {"rows._forward", "plain._rows_forward", "tasks.spread"}
        for name, machine_code in data.items():
            assert (b"numba_parallel_for" in machine_code) == (name == "tasks.spread"), name


def test_helpers_of_kernels_have_no_machine_code_of_their_own(tmp_path):
    """Others than the kernel's would be found by name, in place of those that were linked into it: see `linking`."""
    code = """
import numpy as np
from numba.core.codegen import JITCPUCodegen
from normnumba.kernels.cpu.compiling import kernels
names, add = [], JITCPUCodegen._add_module
JITCPUCodegen._add_module = lambda self, module: (names.append(module.name), add(self, module))[1]
kernels["rows.backward"].variant(np.dtype(np.float32))
print(*names)
"""
    names = run_python(code, NUMBA_CACHE_DIR=tmp_path).split()
    assert "kernel" in names
    assert not [name for name in names if name in ("helper", "stream", "_differentiate_some", "_row_terms")]


def copy_of_the_package(folder):
    shutil.copytree(ROOT / "normnumba", folder / "normnumba", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_copy(code, folder):
    """Run on a copy of the package, with a cache beside it."""
    printed = run_python(
        f"{code}\nassert nn.__file__.startswith({str(folder)!r})", cwd=folder, NUMBA_CACHE_DIR=folder / "cache"
    )
    return printed.split()


def edit(file, pattern, replacement):
    text = file.read_text(encoding="utf-8")
    edited, count = re.subn(pattern, replacement, text, count=1, flags=re.S)
    assert count == 1, f"{file.name} has changed, and this test has to follow"
    stamp = file.stat()
    file.write_text(edited, encoding="utf-8")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # an edit within the clock's resolution, or by git


def test_an_edited_helper_is_compiled_anew(tmp_path):
    folder = copy_of_the_package(tmp_path)
    y = run_copy(GROUPS, folder)
    assert run_copy(GROUPS, folder) == y
    spans = folder / "normnumba" / "kernels" / "cpu" / "spans.py"
    formula = r"(def element\(x, residual.*?load\(scale, c\))"
    edit(spans, formula, r"\1 * load(scale, c)")
    assert run_copy(GROUPS, folder) != y, "stale machine code"
    edit(spans, formula + r" \* load\(scale, c\)", r"\1")
    assert run_copy(GROUPS, folder) == y


def test_an_edited_constant_is_compiled_anew(tmp_path):
    """Constants that kernels share with their callers are part of the machine code."""
    folder = copy_of_the_package(tmp_path)
    y = run_copy(GROUPS, folder)
    edit(
        folder / "normnumba" / "kernels" / "__init__.py",
        "NONE, RELU, GELU, GELU_TANH, SILU = 0, 1, 2, 3, 4",
        "NONE, RELU, GELU, GELU_TANH, SILU = 0, 1, 4, 3, 2",
    )
    assert run_copy(GROUPS, folder) == y, "kernels and their callers disagree about a constant"


def test_processes_race_for_an_empty_cache(tmp_path, cold):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    racing = [
        subprocess.Popen([sys.executable, "-c", ROWS], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120)[0].split()[0] for process in racing]
    assert [process.returncode for process in racing] == [0] * 2
    assert set(results) == {cold[1][0]}
    assert run_python(ROWS, NUMBA_CACHE_DIR=tmp_path).split()[0] == results[0]


def unusable(kind, folder):
    if kind == "file":
        (folder / "file").write_text("in the way")
        return folder / "file"
    if kind == "read-only":
        if getattr(os, "geteuid", lambda: 1)() == 0:  # nothing is read-only for root
            pytest.skip("nothing is read-only for root")
        folder.chmod(0o555)
        return folder
    return folder


@pytest.mark.parametrize("kind", ["file", "read-only", "damaged", "truncated"])
def test_an_unusable_cache_breaks_nothing(kind, tmp_path, cold):
    folder = unusable(kind, tmp_path)
    if kind in ("damaged", "truncated"):
        shutil.copytree(cold[0], folder, dirs_exist_ok=True)
        for file in folder.rglob("*.nb?"):
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2] if kind == "truncated" else b"?" * len(data))
    assert run_python(ROWS, NUMBA_CACHE_DIR=folder).split()[0] == cold[1][0]


def test_cache_folder_without_a_setting(tmp_path):
    """Beside the sources, or in the user's folder where those cannot be written."""
    folder = copy_of_the_package(tmp_path)
    code = "import normnumba as nn\nfrom normnumba.kernels.cpu.compiling import cache_folder\nprint(cache_folder())"
    found = Path(run_python(code, cwd=folder, NUMBA_CACHE_DIR="").strip())
    assert found.parent == folder / "normnumba" / "kernels" / "cpu" / "__pycache__"
    assert found.name.startswith("normnumba-")


def test_old_caches_beside_the_sources_are_forgotten(tmp_path):
    folder = copy_of_the_package(tmp_path)
    beside = folder / "normnumba" / "kernels" / "cpu" / "__pycache__"
    for name in ("normnumba-old", "normnumba-new", "other-old"):
        (beside / name).mkdir(parents=True)
        if name.endswith("old"):
            os.utime(beside / name, (0, 0))
    code = "from normnumba.kernels.cpu.compiling import cache_folder\ncache_folder()"
    run_python(code, cwd=folder, NUMBA_CACHE_DIR="")
    assert {f.name for f in beside.iterdir() if f.is_dir()} == {"normnumba-new", "other-old"}


# --- import ------------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = """
import sys, threading
import numpy, numba, ml_dtypes
def threads():
    try:
        import os
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()
def packages():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
modules, running = packages(), threads()
import normnumba
from normnumba.kernels.cpu import compiling, launching
assert packages() - modules == {"normnumba"}, packages() - modules
assert not {"torch", "tbb"} & packages()
assert threads() == running
assert not compiling.compiled
assert not launching.layer.cache_info().currsize
try:
    numba.threading_layer()
except ValueError:
    print("no threads yet")
"""
    assert run_python(code) == "no threads yet\n"


def test_small_calls_start_no_threads():
    code = """
import numpy, numba, normnumba
normnumba.layer_norm(numpy.ones((4, 4), numpy.float32))
try:
    numba.threading_layer()
except ValueError:
    print("no threads yet")
"""
    assert run_python(code) == "no threads yet\n"
