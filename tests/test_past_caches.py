"""Large results, which are streamed, by the line or through a buffer: the same bits as of parts that are not.

And gradients of few wide rows, which threads share.
"""

import numpy as np
import pytest

import normnumba
from benchmarks.cases import Geometry, data_of, dtype_of
from normnumba.kernels.cpu import launching
from normnumba.kernels.cpu.lowlevel import LINE, STREAM_FROM
from tests.helpers import BY_NAME, ROWS, arguments_of, assert_identical, check

ROW_SHAPE, FIRST, LAST = (1027,), (4, 241, 251), (61, 67, 29)
"""What follows the first axis: lines begin anywhere in rows, in planes, and in the columns of channels last."""

ROUNDED = {"casting": "input"}
"""Of halves xhat is rounded, for other dtypes it is as without."""

PIECEWISE = [
    *((f"{family}_{way}", ROW_SHAPE, -1) for family in ROWS for way in ("forward", "backward")),
    *((f"add_{family}_{way}", ROW_SHAPE, -1) for family in ROWS for way in ("forward", "backward")),
    *((f"group_norm_{way}", *layout) for way in ("forward", "backward") for layout in ((FIRST, 1), (LAST, -1))),
    *((f"instance_norm_{way}", FIRST, 1) for way in ("forward", "backward")),
    *((f"batch_norm_{way}", *layout) for way in ("inference", "inference+silu") for layout in ((FIRST, 1), (LAST, -1))),
    *(("batch_norm_inference_backward", *layout) for layout in ((FIRST, 1), (LAST, -1))),
]
"""Ops whose samples or rows do not know of each other, but for the gradients of parameters."""


def large(op, shape, axis, dtype, rng):
    """Arguments with an x beyond the size from which results are streamed."""
    samples = STREAM_FROM // (dtype_of(dtype).itemsize * int(np.prod(shape))) + 2
    return arguments_of(op, Geometry((samples, *shape), axis), dtype, rng)


def beside_guards(x, begin):
    """An array like x that begins so many elements behind the start of a cache line, between others that are 7."""
    lanes = LINE // x.itemsize
    room = np.full(x.size + 3 * lanes, 7, x.dtype)
    first = lanes + -(room.ctypes.data // x.itemsize) % lanes + begin
    return room[first : first + x.size].reshape(x.shape), (room[:first], room[first + x.size :])


def parts_of(arguments, part):
    """The arguments of some samples."""
    samples = len(data_of(arguments))
    return {
        name: a[part] if isinstance(a, np.ndarray) and a.shape[:1] == (samples,) else a for name, a in arguments.items()
    }


def written(op, arguments, begin):
    """The results of an op, the large one at such a place and nothing beside it."""
    out, guards = beside_guards(data_of(arguments), begin)
    results = op(normnumba, {**arguments, "out": out})
    assert results[0] is out
    for guard in guards:
        assert np.all(guard == 7)
    return results


def compare_with_parts(op, arguments, begin=3):
    x, whole = data_of(arguments), written(op, arguments, begin)
    for part in (slice(0, 3), slice(len(x) // 2, len(x) // 2 + 2), slice(len(x) - 1, len(x))):
        alone = op(normnumba, parts_of(arguments, part))
        own = [i for i, a in enumerate(whole) if a is not None and a.shape[:1] == x.shape[:1]]
        assert_identical([alone[i] for i in own], [whole[i][part] for i in own], part)


def is_tested(name, dtype):
    """Loads and stores of other dtypes show in rows, and in what makes results of columns."""
    return dtype == "float32" or name.startswith("layer_norm") or (dtype, name) == ("bfloat16", "batch_norm_inference")


CASES = [
    (*case, dtype)
    for case in PIECEWISE
    for dtype in ("float32", "float64", "float16", "bfloat16")
    if is_tested(case[0], dtype)
]


@pytest.mark.parametrize(("name", "shape", "axis", "dtype"), CASES)
def test_results_are_those_of_their_parts(name, shape, axis, dtype, rng):
    op = BY_NAME[name]
    compare_with_parts(op, large(op, shape, axis, dtype, rng))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("cols", [16, 33, 64, 250, 256, 257, 511])
def test_rows_are_those_of_their_parts(cols, dtype, rng):
    """They leave by the line, in which one row may end and the next begin, at each lane in turn."""
    for name, casting in (("layer_norm_forward", {}), ("rms_norm_forward", {}), ("rms_norm_forward", ROUNDED)):
        arguments = {**large(BY_NAME[name], (cols,), -1, dtype, rng), **casting}
        x = data_of(arguments)
        x[1], x[2, 0], x[-1, -1] = 3, 1e4, np.inf  # a constant, a head that is no sample, an Inf
        for begin in (0, 1, 4):
            compare_with_parts(BY_NAME[name], arguments, begin)


@pytest.mark.parametrize("kinds", [("float32", "float32"), ("float16", "float64"), ("float32", "float16")], ids=str)
@pytest.mark.parametrize("cols", [96, 127, 300, 1024, 4163, 140_001])
def test_sums_of_rows_are_those_of_their_parts(cols, kinds, rng):
    """Both results leave by lines of their own; sums of the widest are too long to be kept."""
    for name, casting in (("add_layer_norm_forward", {}), ("add_rms_norm_forward", ROUNDED)):
        op = BY_NAME[name]
        arguments = {**large(op, (cols,), -1, kinds[0], rng), **casting}
        arguments["residual"] = arguments["residual"].astype(kinds[1])
        x = data_of(arguments)
        x[1], x[2, 0], x[-1, -1] = 3, 1e4, np.inf
        for begin in (0, 1, 4):
            compare_with_parts(op, arguments, begin)
        first, again = written(op, arguments, 0), x.copy()
        assert_identical(first, op(normnumba, {**arguments, "x": again, "out": again}), "in place")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("cols", [17, 32, 33, 250, 511])
def test_gradients_of_narrow_rows_have_the_same_bits_wherever_they_are_written(cols, dtype, rng):
    """Those of one line may belong to two rows, and their products to sums of the last columns and of the first."""
    names = ("layer_norm_backward", "rms_norm_backward", "add_layer_norm_backward", "add_rms_norm_backward")
    for name, casting in zip(names, ({}, {}, {}, ROUNDED), strict=True):
        op, arguments = BY_NAME[name], {**large(BY_NAME[name], (cols,), -1, dtype, rng), **casting}
        arguments["dy"][3], arguments["dy"][64] = np.inf, 0
        first = written(op, arguments, 0)
        for begin in (1, 4):
            assert_identical(first, written(op, arguments, begin), begin)
        compare_with_parts(op, arguments)
        again = arguments["dy"].copy()  # written over, gradients go through a buffer
        assert_identical(first, op(normnumba, {**arguments, "dy": again, "out": again}), "in place")
        if not casting:  # a float64 xhat may be rounded to the next half
            arguments["dy"][3] = 1
            check(op, arguments)


CHAINED = (40, 41, 54)
"""More channels than tasks: a core writes one while it adds up the next. Where a plane does not begin a line, fewer of
its lines are whole than the next one has pairs, and the rest is added up behind them."""


@pytest.mark.parametrize(
    "name",
    [f"batch_norm_forward{fused}" for fused in ("", "+relu", "+residual+relu")]
    + ["group_norm_forward", "instance_norm_forward"],
)
def test_channels_in_turn_have_the_same_bits_wherever_they_are_written(name, rng, monkeypatch):
    op = BY_NAME[name]
    arguments = large(op, CHAINED, 1, "float32", rng)
    arguments["x"][0, 3] += 1000
    arguments["x"][0, 3, 0] += 1e5  # where the pivot is from
    arguments["x"][1, 5] = np.inf
    first = written(op, arguments, 0)
    for begin in (4, 15):
        assert_identical(first, written(op, arguments, begin), begin)
    monkeypatch.setattr(launching, "PARALLEL_FROM", 1 << 62)
    assert_identical(first, written(op, arguments, 0), "serial")
    arguments["x"][1, 5] = 0
    check(op, arguments)


@pytest.mark.parametrize(
    "name",
    [f"batch_norm_backward{fused}" for fused in ("", "+relu", "+residual+relu")]
    + ["batch_norm_backward_apply", "batch_norm_inference_backward", "group_norm_backward", "group_norm_backward+silu"],
)
@pytest.mark.parametrize(("shape", "axis"), [(CHAINED, 1), (LAST, -1)])
def test_gradients_have_the_same_bits_wherever_they_are_written(name, shape, axis, rng, monkeypatch):
    """A residual's gradient, in memory of the library, has its lines elsewhere than dx of such a place has."""
    op = BY_NAME[name]
    arguments = large(op, shape, axis, "float32", rng)
    first = written(op, arguments, 0)
    for begin in (4, 15):
        assert_identical(first, written(op, arguments, begin), begin)
    monkeypatch.setattr(launching, "PARALLEL_FROM", 1 << 62)
    assert_identical(first, written(op, arguments, 0), "serial")
    check(op, arguments)


@pytest.mark.parametrize(("shape", "axis"), [(FIRST, 1), (LAST, -1)])
def test_residuals_and_floors_are_those_of_their_parts(shape, axis, rng):
    op = BY_NAME["batch_norm_inference"]
    arguments = large(op, shape, axis, "float32", rng)
    residual = rng.standard_normal(arguments["x"].shape, dtype=np.float32)
    compare_with_parts(op, {**arguments, "residual": residual, "activation": "relu"})


@pytest.mark.parametrize("name", ["batch_norm_forward", "batch_norm_forward+relu", "batch_norm_forward+residual+relu"])
@pytest.mark.parametrize(("shape", "axis"), [(FIRST, 1), (LAST, -1)])
def test_batches_match_the_reference(name, shape, axis, rng):
    check(BY_NAME[name], large(BY_NAME[name], shape, axis, "float32", rng))


@pytest.mark.parametrize("shape", [(1, 300_007), (7, 50_001), (63, 4_163), (70, 131_073)])
@pytest.mark.parametrize("family", ROWS)
def test_few_wide_rows_match_the_reference(family, shape, rng):
    """Threads share them by strips of columns."""
    check(
        BY_NAME[f"{family}_backward"], arguments_of(BY_NAME[f"{family}_backward"], Geometry(shape, -1), "float32", rng)
    )


@pytest.mark.parametrize("kinds", [("float32", "float32"), ("float16", "float32"), ("float32", "float64")], ids=str)
@pytest.mark.parametrize("cols", [33, 250, 512, 1027])
def test_gradients_of_sums_have_the_bits_of_those_that_are_not_streamed(cols, kinds, rng):
    """Those of x alone are, unless they are written over an input or that of the residual is wanted too."""
    narrow, wide = map(dtype_of, kinds)
    shape = STREAM_FROM // (narrow.itemsize * cols) + 2, cols
    dy = rng.standard_normal(shape).astype(narrow)
    dsummed, summed = rng.standard_normal((2, *shape)).astype(wide)
    weight = rng.standard_normal(cols).astype(wide)
    _, mean, rstd = normnumba.layer_norm_forward(summed)

    def gradients(dy, mask, **out):
        call = dy, dsummed, summed, mean, rstd, weight
        return normnumba.add_layer_norm_backward(*call, x_dtype=narrow, output_mask=mask, **out)

    mask = (True, False, True, True)
    streamed, both = gradients(dy, mask), gradients(dy, (True,) * 4)
    assert_identical([streamed[0], *streamed[2:]], [both[0], *both[2:]])
    assert_identical(gradients(dy, (True, False, False, False))[0], both[0])
    again = dy.copy()
    assert_identical(gradients(again, mask, out=again), streamed, "in place")
