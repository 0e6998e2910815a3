"""Fixtures and settings that every test shares."""

import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import numpy as np
import pytest

# A first call may compile for seconds, and a failure has to be seen again on the next run.
hypothesis.settings.register_profile("normnumba", deadline=None, derandomize=True)
hypothesis.settings.load_profile("normnumba")

WHOLE = 2000
"""Tests from which nearly all kernels are needed."""

KERNELS = (
    ("--dtype", "float32"),
    *(("--dtype", dtype, "--serial-only") for dtype in ("float64", "bfloat16", "float16")),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run of all tests leaves out because of the time that it takes."""
    every = "build every variant of the CUDA kernels for every architecture, not one of each kind"
    parser.addoption("--every-variant", action="store_true", help=every)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before a whole run, fill the disk cache with what the tests would compile one after the other, on all cores."""
    if len(session.items) < WHOLE or session.config.option.collectonly:
        return

    def compile_kernels(options: tuple[str, ...]) -> None:
        # A failure here is seen by the tests that need the kernel.
        subprocess.run([sys.executable, "-m", "normnumba", "compile", *options], capture_output=True, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_kernels, KERNELS))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name and parameters: the same draws alone, in any order, every time."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
