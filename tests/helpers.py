"""What the tests of the public functions share: arguments of the table's ops, and comparing results."""

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import normnumba
from benchmarks.cases import DTYPES, OPS, RAGGED, accumulator, data_of, dtype_of
from normnumba import reference
from tests.tolerances import assert_close, natural_scale

ROOT = Path(__file__).parents[1]

BY_NAME = {op.name: op for op in OPS}

WIDE = ("float32", "float64")
"""Where magnitudes, layouts and threads are tested: halves differ from float32 in their loads and stores alone."""

ROWS = ("layer_norm", "rms_norm")


def shared(rows, channels):
    """The same value for all families of a kind."""
    return {**dict.fromkeys(ROWS, rows), **dict.fromkeys(("batch_norm", "group_norm", "instance_norm"), channels)}


def is_tested(op, dtype):
    """float16 differs from bfloat16 in its conversions alone, which are tested by themselves, and so has rows alone."""
    return dtype != "float16" or op.family in ROWS


EVERY_CASE = [
    (op, geometry, dtype) for op in OPS for geometry in RAGGED[op.family] for dtype in DTYPES if is_tested(op, dtype)
]
EVERY_OP = [(op, dtype) for op in OPS for dtype in WIDE]


def name_of(value):
    """A readable test id for an op, a geometry or a shape."""
    return getattr(value, "name", None) or str(value)


def arguments_of(op, geometry, dtype, rng):
    """The table's arguments of an op."""
    return op.arguments(geometry, dtype_of(dtype), rng)


def x_sized(op):
    """The names of the inputs that `out` may be: x, or x and dy; of a norm of a sum, the sum and dy."""
    if op.direction in ("forward", "inference") or op.name == "batch_moments":
        return ("x",)
    return ("summed", "dy") if op.name.startswith("add_") else ("x", "dy")


def parameters_of(op):
    """The names of an op's arguments."""
    return inspect.signature(getattr(normnumba, op.function)).parameters


def takes_out(op):
    return op.outputs[0] in ("y", "dx")


def terms(arguments, expected):
    """How many elements of x were added up for each element of a result."""
    return max(data_of(arguments).size // max(np.size(expected), 1), 1)


def assert_matches(op, arguments, got, *, slack=1, note=""):
    """`got`, what normnumba made of `arguments`, is what the reference makes of them."""
    given = {k: v for k, v in arguments.items() if k != "out"}
    x = data_of(given)
    dtype = np.dtype(x.dtype)
    expected = op(reference, given)
    assert len(got) == len(expected) == len(op.outputs)
    for name, a, e in zip(op.outputs, got, expected, strict=True):
        n = terms(given, e) if e is not None else 1
        scale = slack * natural_scale(name, given, n) if x.size else 0.0
        assert_close(name, a, e, dtype, reduced=n, scale=scale, note=note)


def check(op, arguments, note=""):
    """Run an op and compare it with the reference; returns what it returned."""
    got = op(normnumba, arguments)
    assert_matches(op, arguments, got, note=note)
    return got


def assert_identical(got, expected, note=""):
    """Same bits, dtypes and shapes."""
    assert len(got) == len(expected)
    for a, e in zip(got, expected, strict=True):
        if not isinstance(e, np.ndarray):
            assert a == e, note
            continue
        assert (a.dtype, a.shape) == (e.dtype, e.shape), note
        assert a.tobytes() == e.tobytes(), f"{note}: {np.count_nonzero(a != e)} of {a.size} elements differ"


def data_type_of(name, x):
    """The dtype that the contract gives an output when parameters are in the accumulator's type."""
    kind = np.dtype(x.dtype)
    if name in ("y", "dx", "summed", "dresidual"):
        return kind
    if name in ("sum_dy", "sum_dy_xhat", "var"):
        return np.dtype(np.float64)
    return accumulator(kind)


def output_shapes(op, geometry):
    """The shapes that the contract gives the outputs of an op."""
    shape, axes = geometry.shape, geometry.axes
    inside, outside = (tuple(n for a, n in enumerate(shape) if (a in axes) == side) for side in (True, False))
    statistic, parameter = (outside, inside) if op.family in ROWS else (inside, inside)
    if op.family in ("group_norm", "instance_norm"):
        groups = math.gcd(32, *inside) if op.family == "group_norm" else inside[0]
        statistic = (shape[0], groups)
    shapes = dict.fromkeys(("y", "dx", "summed", "dresidual"), shape)
    shapes |= {"count": (), "mean": statistic, "rstd": statistic}
    return [shapes.get(name, parameter) for name in op.outputs]


def run_python(code, *arguments, timeout=120, **environment):
    """Run a script in a process of its own and return what it printed; the process has to exit with 0."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=environment.pop("cwd", ROOT),
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
