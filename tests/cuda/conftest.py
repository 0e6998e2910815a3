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


@pytest.fixture
def hold(monkeypatch):
    """Lets registers hold rows of so many elements for each thread."""

    def change(elements):
        from tests.cuda import emulation

        emulation.hold(monkeypatch, elements)

    return change
