"""Bugs that are planted into the kernels, of every kind that kernels for devices have: the tests must find them."""

import importlib
import inspect
import pkgutil
import types

import numpy as np
import pytest

from benchmarks.cases import Geometry
from tests.helpers import BY_NAME, arguments_of, assert_matches

pytestmark = pytest.mark.cuda_offline

ROWS, COLUMNS, CHANNELS = Geometry((5, 33), -1), Geometry((60, 6), 1), Geometry((7, 3, 40), 1)

PLANTED = {
    "no barrier before shared sums are read": (
        ("reductions", "        cuda.syncthreads()\n        a, b, c = number(0)", "        a, b, c = number(0)"),
        ("batch_norm_backward", CHANNELS, 1, "RaceError"),
    ),
    "no barrier before shared parts are written again": (
        ("reductions", "cuda.syncthreads()  # the parts of an earlier merge may still be read", "pass"),
        ("batch_norm_forward", CHANNELS, 1e30, "RaceError"),
    ),
    "a barrier that only some threads reach": (
        (
            "products",
            "            cuda.syncthreads()\n            for j",
            "            if y:\n                cuda.syncthreads()\n            for j",
        ),
        ("batch_norm_backward", COLUMNS, 1, "BarrierError"),
    ),
    "a shuffle that reaches another row": (
        (
            "reductions",
            "offset = lanes >> 1\n        while offset:\n            a +=",
            "offset = lanes\n        while offset:\n            a +=",
        ),
        ("layer_norm_backward", ROWS, 1, "AssertionError"),
    ),
    "a tail that is read": (
        (
            "rows",
            "            if i < cols:\n                load_vector(dy",
            "            if True:\n                load_vector(dy",
        ),
        ("layer_norm_backward", ROWS, 1, "OutOfBounds"),
    ),
    "a tail that is added up": (
        ("rows", "if k // width * threads * width + lane + k % width < cols:", "if True:"),
        ("layer_norm_forward", ROWS, 1, "AssertionError"),
    ),
    "a last row that no block takes": (
        ("rows", "launch(kernel, (-(-rows // teams),)", "launch(kernel, (rows // teams,)"),
        ("layer_norm_forward", Geometry((35, 33), -1), 1, "AssertionError"),
    ),
    "a share that begins where another does": (
        ("moments", "        own, stop = line + cuda", "        own, stop = last - spacing + cuda"),
        ("batch_norm_forward", CHANNELS, 1, "AssertionError"),
    ),
    "a merge that forgets parts": (
        ("merging", "            k += WARP\n        sum_g", "            k += 2 * WARP\n        sum_g"),
        ("group_norm_backward", Geometry((2, 32, 300), 1), 1, "AssertionError"),
    ),
    "an access at no multiple of its size": (
        ("launching", "aligned = all(", "aligned = True or all("),
        ("layer_norm_forward", "unaligned", 1, "ValueError"),
    ),
}


def modules():
    """Of all kernels."""
    import normnumba.kernels.cuda as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def forget():
    """All variants that were made: they go on with what their helpers were."""
    for module in modules().values():
        for value in vars(module).values():
            getattr(value, "cache_clear", lambda: None)()


@pytest.fixture
def plant(library, monkeypatch):
    """Changes the text of a module of the kernels, for all modules that use what is defined there."""

    def change(name, old, new):
        module = modules()[name]
        source = inspect.getsource(module)
        assert old in source, "the kernels have changed: plant this bug elsewhere"
        own, changed = dict(vars(module)), types.ModuleType(module.__name__)
        changed.__package__ = module.__package__
        exec(compile(source.replace(old, new), module.__file__, "exec"), vars(changed))
        for other in modules().values():
            for attribute, value in list(vars(other).items()):
                here = value is own.get(attribute) and getattr(value, "__module__", "") == module.__name__
                if here and _code(value) != _code(vars(changed).get(attribute)):
                    monkeypatch.setattr(other, attribute, vars(changed)[attribute])
        forget()

    yield change
    monkeypatch.undo()
    forget()


def _code(value):
    return getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None


def run(library, name, geometry, factor):
    op, rng = BY_NAME[name], np.random.default_rng(7)
    shape = ROWS if geometry == "unaligned" else geometry
    arguments = arguments_of(op, shape, "float32", rng)
    arguments["x"] = (arguments["x"] * factor).astype(np.float32)
    if geometry == "unaligned":
        arguments["x"] = np.append(np.float32(0), rng.standard_normal(64).astype(np.float32))[1:].reshape(2, 32)
        arguments = {"x": arguments["x"], "axis": -1}
    assert_matches(op, arguments, op(library, arguments))


@pytest.mark.parametrize("bug", PLANTED)
def test_is_found(bug, plant, library):
    change, (name, geometry, factor, error) = PLANTED[bug]
    run(library, name, geometry, factor)
    plant(*change)
    with pytest.raises((AssertionError, Exception)) as caught:
        run(library, name, geometry, factor)
    assert caught.type.__name__ == error, caught.value


def test_too_little_room_for_parts_is_found(library, monkeypatch):
    from normnumba.kernels.cuda import sharing

    run(library, "batch_norm_forward", CHANNELS, 1)
    parts = sharing.Shares.parts
    monkeypatch.setattr(sharing.Shares, "parts", lambda s, like, n: parts(s._replace(total=s.total // 2), like, n))
    with pytest.raises(Exception, match=r"has .* elements"):
        run(library, "batch_norm_forward", CHANNELS, 1)
