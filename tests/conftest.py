"""Fixtures and settings that every test shares."""

import gc
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# A first call may compile for seconds, and a failure has to be seen again on the next run.
hypothesis.settings.register_profile("normnumba", deadline=None, derandomize=True)
hypothesis.settings.load_profile("normnumba")

WHOLE = 2000
"""Tests from which nearly all kernels are needed."""

WAIT = 300
"""Seconds that a worker waits for the first one to compile."""

KERNELS = (
    ("--dtype", "float32", "--op", "*backward*"),
    ("--dtype", "float32", "--op", "*norm", "*forward", "*inference", "*moments"),
    *(("--dtype", dtype) for dtype in ("float64", "bfloat16")),
    ("--dtype", "float16", "--op", "*layer_norm*", "*rms_norm*"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run of all tests leaves out because of the time that it takes."""
    every = "build every variant of the CUDA kernels for every architecture, not one of each kind"
    parser.addoption("--every-variant", action="store_true", help=every)
    part = "float32 alone, every third case of what has several, and no test that compiles kernels again"
    parser.addoption("--part", action="store_true", help=part)


COMPILING = ("test_codegen.py", "test_compilation.py", "test_compile_command.py", "test_other_cpus.py")
"""Tests that compile for other processors, or edited sources, or again what is in the cache."""

DTYPES = re.compile("float(16|64)")
"""Those whose kernels a part of the tests does without."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a part of the tests does not have: the same ones every time."""
    if config.option.part:
        kept = {item for item in items if item.path.name not in COMPILING and _is_kept(item.nodeid)}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _is_kept(nodeid: str) -> bool:
    return "[" not in nodeid or (not DTYPES.search(nodeid) and zlib.crc32(nodeid.encode()) % 3 == 0)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before a whole run, fill the disk cache with what the tests would compile one after the other, on all cores.

    Of several workers of pytest-xdist the first does so, and the others wait.
    """
    gc.freeze()  # thousands of tests are there to stay: looking through them took collections two seconds each
    if len(session.items) < (WHOLE // 3 if session.config.option.part else WHOLE) or session.config.option.collectonly:
        return
    worker, done = _worker(session.config)
    if worker == "gw0":
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            wanted = [k for k in KERNELS if not (session.config.option.part and DTYPES.search(k[1]))]
            list(pool.map(_compile_kernels, wanted))
        done.touch()
    for _ in range(WAIT):
        if done.exists():
            return
        time.sleep(1)  # no longer than that: the first worker may have died, and then each compiles what it needs


def _compile_kernels(options: tuple[str, ...]) -> None:
    # A failure here is seen by the tests that need the kernel.
    subprocess.run([sys.executable, "-m", "normnumba", "compile", *options], capture_output=True, check=False)


def _worker(config: pytest.Config) -> tuple[str, Path]:
    """Which one this is, and the file that says that the first has compiled."""
    worker = getattr(config, "workerinput", {"workerid": "gw0", "testrunuid": str(os.getpid())})
    return worker["workerid"], Path(tempfile.gettempdir(), f"normnumba-compiled-{worker['testrunuid']}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that file, which nobody waits for any more."""
    worker, done = _worker(config)
    if worker == "gw0":
        done.unlink(missing_ok=True)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name and parameters: the same draws alone, in any order, every time."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
