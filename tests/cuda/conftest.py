"""What the tests of CUDA kernels share."""

import pytest


@pytest.fixture
def library(monkeypatch):
    """normnumba on a device that is emulated, with small blocks."""
    pytest.importorskip("greenlet")
    pytest.importorskip("numba_cuda")
    from tests.cuda import emulation

    emulation.shrink(monkeypatch)
    return emulation.Library(monkeypatch)
