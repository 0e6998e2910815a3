"""The numbers of the CUDA kernels, in the emulator: threads in lock step, poisoned memory, no access out of bounds."""

import inspect
import re

import numpy as np
import pytest

import normnumba
from benchmarks.cases import DTYPES, OPS, RAGGED, Geometry, data_of
from normnumba import reference
from tests.helpers import (
    BY_NAME,
    ROOT,
    arguments_of,
    assert_identical,
    assert_matches,
    data_type_of,
    name_of,
    output_shapes,
    parameters_of,
    shared,
    takes_out,
    x_sized,
)
from tests.pretend import Torch
from tests.test_hostile import both_ways
from tests.tolerances import assert_close

pytestmark = pytest.mark.cuda_offline

LARGEST = 500
"""Elements of the largest ragged shape that is emulated for each op."""

FEW = shared(
    rows=(Geometry((3, 40), -1), Geometry((5, 33), -1), Geometry((2, 5, 17), 1)),
    channels=(Geometry((3, 4, 24), 1), Geometry((3, 5, 7, 3), -1), Geometry((9, 6), 1)),
)
"""Every geometry, in 16-byte accesses and in single ones."""

CASES = [(op, g, "float32") for op in OPS for g in RAGGED[op.family] if g.size <= LARGEST]
CASES += [(op, g, "float32") for op in OPS for g in FEW[op.family]]
CASES += [(op, FEW[op.family][i], dtype) for op in OPS for i, dtype in enumerate(DTYPES[1:])]

UNITS = [
    ("layer_norm", Geometry((3, 150), -1), 32),
    ("layer_norm", Geometry((3, 150), -1), 0),
    ("layer_norm", Geometry((2, 40, 3), 1), 0),
    ("batch_norm", Geometry((4, 3, 37), 1), 0),
    ("batch_norm", Geometry((60, 3), 1), 0),
]
"""Statistics of rows in registers, along lines and across them, in one part and in more."""

HOSTILE = [pytest.param(family, g, held, id=f"{family}-{g}-{held}") for family, g, held in UNITS]


def test_both_backends_have_the_same_signatures():
    pytest.importorskip("cuda", reason="needs the extra cuda or cuda-offline")
    from normnumba.kernels import cpu, cuda

    for name in cpu.__all__:
        assert str(inspect.signature(getattr(cuda, name))) == str(inspect.signature(getattr(cpu, name))), name


def test_emulates_the_kernels_for_devices(library, rng):
    library.layer_norm_forward(x=rng.standard_normal((3, 8)))
    assert library.launched == {"row_forward"}


@pytest.mark.parametrize(("op", "geometry", "dtype"), CASES, ids=name_of)
def test_matches_the_reference(op, geometry, dtype, library, rng):
    arguments = arguments_of(op, geometry, dtype, rng)
    before = {k: np.copy(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    got = op(library, arguments)
    assert_matches(op, arguments, got)
    assert_identical([arguments[k] for k in before], list(before.values()), "inputs")
    for name, a, shape in zip(op.outputs, got, output_shapes(op, geometry), strict=True):
        if isinstance(a, np.ndarray):
            kind = np.float64 if op.name == "batch_moments" else data_type_of(name, data_of(arguments))
            assert (a.dtype, a.shape) == (kind, shape), name


@pytest.mark.parametrize(("op", "geometry"), [(op, FEW[op.family][0]) for op in OPS], ids=name_of)
def test_threads_may_run_in_any_order(op, geometry, library, rng):
    arguments = arguments_of(op, geometry, "float32", rng)
    expected = op(library, arguments)
    library.emulation.order = "reversed"
    assert_identical(op(library, arguments), expected)


ROWS = [op for op in OPS if op.family in ("layer_norm", "rms_norm")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ROWS, ids=name_of)
def test_rows_that_registers_do_not_hold(op, dtype, library, hold, rng):
    hold(0)
    for geometry in (Geometry((3, 40), -1), Geometry((1, 1), -1), Geometry((2, 213), -1)):
        arguments = arguments_of(op, geometry, dtype, rng)
        assert_matches(op, arguments, op(library, arguments))
    assert not library.launched & {"row_forward", "row_backward"}


@pytest.mark.parametrize("casting", ["float32", "input"])
@pytest.mark.parametrize("held", [8, 0])
@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("bfloat16", "float64"), ("float16", "bfloat16")])
def test_residuals_of_another_dtype(dtypes, held, casting, library, hold, rng):
    hold(held)
    forward, backward = BY_NAME["add_rms_norm_forward"], BY_NAME["add_rms_norm_backward"]
    given = arguments_of(forward, Geometry((5, 24), -1), dtypes[0], rng) | {"casting": casting}
    given["residual"] = arguments_of(forward, Geometry((5, 24), -1), dtypes[1], rng)["residual"]
    got, expected = forward(library, given), forward(normnumba, given)
    assert_identical(got[1:2], expected[1:2], "the sum")
    for name, a, e in zip(forward.outputs, got, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(name, a, e, dtypes[0] if name == "y" else e.dtype, note="as on the host")
    dy = rng.standard_normal((5, 24)).astype(got[0].dtype)
    back = {"dy": dy, "dsummed": got[1], "summed": got[1], "rstd": got[2], "weight": given["weight"], "axis": -1}
    back |= {"x_dtype": dy.dtype, "casting": casting}
    for name, a, e in zip(backward.outputs, backward(library, back), backward(normnumba, back), strict=True):
        assert a.dtype == e.dtype
        assert_close(name, a, e, e.dtype, scale=8, note="as on the host")


@pytest.mark.parametrize(
    ("dtype", "mean", "std"), [("float32", 1e4, 1e-2), ("float32", -3e6, 4.0), ("float64", 1e8, 1e-4)]
)
@pytest.mark.parametrize(("family", "geometry", "held"), HOSTILE)
def test_large_mean(held, family, geometry, dtype, mean, std, library, hold, rng):
    hold(held)
    x = (rng.standard_normal(geometry.shape) * std + mean).astype(dtype)
    both_ways(family, geometry, x, rng, eps=1e-12, library=library)


@pytest.mark.parametrize("value", [1e4 / 3, -1e30, 1e-40])
@pytest.mark.parametrize(("family", "geometry", "held"), HOSTILE)
def test_constant_data_gives_exactly_the_bias(held, family, geometry, value, library, hold, rng):
    hold(held)
    op = BY_NAME[f"{family}_forward"]
    given = arguments_of(op, geometry, "float32", rng) | {"x": np.full(geometry.shape, value, np.float32)}
    y, mean, _ = op(library, given)
    expected = op(reference, given)[0]
    np.testing.assert_array_equal(y, expected.astype(np.float32))
    assert (mean == np.float32(value)).all()


@pytest.mark.parametrize("outlier", [1e4, -1e8])
@pytest.mark.parametrize(("family", "geometry", "held"), HOSTILE)
def test_first_element_is_an_outlier(held, family, geometry, outlier, library, hold, rng):
    hold(held)
    x = rng.standard_normal(geometry.shape).astype(np.float32)
    first = (slice(None), 0) if family == "layer_norm" else (0, slice(None), 0)[: x.ndim]
    x[first] = outlier
    both_ways(family, geometry, x, rng, outliers=True, library=library)


@pytest.mark.parametrize("value", [1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("family", "geometry", "held"), HOSTILE)
def test_huge_and_not_finite(held, family, geometry, value, library, hold, rng):
    hold(held)
    op = BY_NAME[f"{family}_forward"]
    given = arguments_of(op, geometry, "float32", rng)
    if np.isfinite(value):
        given["x"] = (given["x"] * value).astype(np.float32)
    else:
        given["x"].flat[7] = value
    for name, a, e in zip(op.outputs, op(library, given), op(reference, given), strict=True):
        assert_close(name, a, e, np.float32)


@pytest.mark.parametrize(("family", "geometry", "held"), HOSTILE)
@pytest.mark.parametrize("size", [1e155, 1e200, 1e300])
def test_float64_whose_squares_do_not_fit(size, held, family, geometry, library, hold, rng):
    hold(held)
    op = BY_NAME[f"{family}_forward"]
    given = arguments_of(op, geometry, "float64", rng) | {"eps": 0.0}
    unscaled = op(reference, given)
    given["x"] = given["x"] * size
    y, mean, rstd = op(library, given)
    assert_close("y", y, unscaled[0], np.float64)
    assert_close("mean", mean / size, unscaled[1], np.float64, scale=np.max(1 / unscaled[2]))
    assert_close("rstd", rstd * size, unscaled[2], np.float64)


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_arrays_between_elements_are_refused(name, library, rng):
    op = BY_NAME["layer_norm_forward"]
    given = arguments_of(op, Geometry((3, 8), -1), "float32", rng)
    between = np.zeros(given[name].nbytes + 1, np.uint8)[1:].view(np.float32)[: given[name].size]
    with pytest.raises(ValueError, match="no multiple of its elements' 4 bytes"):
        op(library, given | {name: between.reshape(given[name].shape)})


@pytest.mark.parametrize("value", [1e19, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("geometry", [Geometry((60, 3), 1), Geometry((2, 7, 5, 3), -1)], ids=str)
def test_a_column_leaves_its_neighbours_alone(geometry, value, library, rng):
    op = BY_NAME["batch_norm_forward"]
    x = (rng.standard_normal(geometry.shape) * 1e-2 + 1e4).astype(np.float32)
    arguments = {"x": x, "eps": 1e-12, "channel_axis": -1}
    expected = op(library, arguments)
    x[..., 0] *= np.float32(value)
    got = op(library, {**arguments, "x": x})
    assert_identical(
        [got[0][..., 1:], *(a[1:] for a in got[1:])], [expected[0][..., 1:], *(a[1:] for a in expected[1:])]
    )


@pytest.mark.parametrize("padding", [1e8, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("geometry", FEW["batch_norm"], ids=str)
def test_what_does_not_count_is_not_there(geometry, padding, library, rng):
    op = BY_NAME["batch_moments"]
    kept = [n for a, n in enumerate(geometry.shape) if a not in geometry.axes]
    mask = rng.random(kept) < 0.5
    mask[0] = False
    mask[-1] = True
    given = arguments_of(op, geometry, "float64", rng) | {"mask": mask}
    given["x"] = given["x"] * 1e-4 + 1e6
    expected = op(reference, given)
    given["x"][~np.broadcast_to(np.expand_dims(mask, geometry.axes[0]), geometry.shape)] = padding
    for name, a, e in zip(op.outputs, op(library, given), expected, strict=True):
        assert_close(name, a, e, np.float64, scale=1e-4)


@pytest.mark.parametrize("held", [32, 0])
def test_the_largest_float32(held, library, hold, rng):
    hold(held)
    x = rng.choice(np.array([-3.4e38, 3.4e38], np.float32), (3, 40))
    x[0] = -3e38
    x[0, 0] = 3e38
    for name, axis in (("layer_norm_forward", {"axis": -1}), ("batch_norm_forward", {"channel_axis": 1})):
        op = BY_NAME[name]
        given = {"x": x if name[0] == "l" else x.T.copy(), **axis}
        for output, a, e in zip(op.outputs, op(library, given), op(reference, given), strict=True):
            assert_close(output, a, e, np.float32, scale=np.max(np.abs(e)))


def test_relu_stops_what_is_not_finite(library):
    x = np.array([[-1.0, 2.0], [1.0, -2.0]], np.float32)
    given = {"x": x, "mean": np.zeros(2, np.float32), "rstd": np.ones(2, np.float32), "activation": "relu"}
    dy = np.where(x > 0, 1, np.nan).astype(np.float32)
    assert_identical(library.batch_norm_backward(dy=dy, **given)[2:3], [np.ones(2, np.float32)])


def test_largest_halves(library, rng):
    x = (rng.choice([-6e4, 6e4], (3, 40))).astype(np.float16)
    for family in ("layer_norm", "rms_norm"):
        op = BY_NAME[f"{family}_forward"]
        assert_matches(op, {"x": x, "axis": -1}, op(library, {"x": x, "axis": -1}))


@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("geometry", FEW["batch_norm"], ids=str)
def test_masks_and_running_statistics(geometry, masked, library, rng):
    forward, backward = BY_NAME["batch_norm_forward+relu"], BY_NAME["batch_norm_backward+relu"]
    given, back = (arguments_of(op, geometry, "float32", rng) for op in (forward, backward))
    mask = rng.random([n for a, n in enumerate(geometry.shape) if a not in geometry.axes]) >= masked
    running = {k: rng.random(given["weight"].shape).astype(np.float16) for k in ("running_mean", "running_var")}
    expected = {k: np.copy(v) for k, v in running.items()}
    given["mask"] = back["mask"] = mask
    assert_matches(forward, given, forward(library, given | running))
    forward(reference, given | expected)
    assert_identical(list(running.values()), list(expected.values()), "running statistics")
    assert_matches(backward, back, backward(library, back))


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_in_place_and_unaligned(op, library, rng):
    for geometry in FEW[op.family]:
        arguments = arguments_of(op, geometry, "float32", rng)
        for name in x_sized(op):
            if name == "summed" and "x_dtype" in arguments:
                continue
            given = {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
            shifted = np.zeros(given[name].size + 1, np.float32)[1:].reshape(given[name].shape)
            shifted[...] = given[name]
            given |= {name: shifted, "out": shifted}
            device = {k: library.put(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
            device["out"] = device[name]
            got = op(normnumba, device)
            assert got[0] is device["out"]
            assert_matches(op, arguments, tuple(map(library.get, got)))


@pytest.mark.parametrize("op", [op for op in OPS if "output_mask" in parameters_of(op)], ids=name_of)
def test_output_masks(op, library, rng):
    arguments = arguments_of(op, FEW[op.family][1], "float32", rng)
    everything = op(library, arguments)
    for k in range(len(op.outputs)):
        wanted = tuple(i == k for i in range(len(op.outputs)))
        got = op(library, {**arguments, "output_mask": wanted})
        assert_identical([got[k]], [everything[k]], op.outputs[k])
        assert [a is None for a in got] == [not w or e is None for w, e in zip(wanted, everything, strict=True)]


@pytest.mark.parametrize("held", [32, 0])
@pytest.mark.parametrize("family", ["layer_norm", "rms_norm"])
def test_a_row_has_the_same_bits_alone(family, held, library, hold, rng):
    hold(held)
    forward, backward = BY_NAME[f"{family}_forward"], BY_NAME[f"{family}_backward"]
    given = arguments_of(backward, Geometry((5, 204), -1), "float32", rng)
    alone = {k: v[3:4] if np.ndim(v) and len(v) == 5 else v for k, v in given.items()}
    assert_identical(backward(library, alone)[:1], [backward(library, given)[0][3:4]], "dx")
    given, alone = ({k: v for k, v in g.items() if k in parameters_of(forward)} for g in (given, alone))
    assert_identical(forward(library, alone)[:1], [forward(library, given)[0][3:4]], "y")


def test_the_example_of_the_docs(library, monkeypatch, capsys):
    pytest.importorskip("torch")
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8"), re.DOTALL)
    Torch(monkeypatch)
    for text, smaller in ((', device="cuda"', ""), ("512, 1024", "5, 64"), ("1024", "64")):
        assert text in code
        code = code.replace(text, smaller)
    exec(compile(code, "<docs/cuda.md>", "exec"), {})
    assert capsys.readouterr().out == "True torch.bfloat16 torch.float32 torch.Size([64])\n"
    assert library.launched == {"row_forward", "row_backward", "sum_rows_of"}
