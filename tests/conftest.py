"""Fixtures and settings that every test shares."""

import zlib

import hypothesis
import numpy as np
import pytest

# A first call may compile for seconds, and a failure has to be seen again on the next run.
hypothesis.settings.register_profile("normnumba", deadline=None, derandomize=True)
hypothesis.settings.load_profile("normnumba")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name and parameters: the same draws alone, in any order, every time."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
