"""Data that breaks naive kernels, and memory that breaks naive views."""

import threading

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, Geometry
from normnumba import reference
from tests.helpers import (
    BY_NAME,
    WIDE,
    arguments_of,
    assert_identical,
    assert_matches,
    check,
    name_of,
    shared,
    takes_out,
    x_sized,
)
from tests.tolerances import TABLE, assert_close

LAYER, LAYER_BACK = BY_NAME["layer_norm_forward"], BY_NAME["layer_norm_backward"]
BATCH, BATCH_BACK = BY_NAME["batch_norm_forward"], BY_NAME["batch_norm_backward"]

GEOMETRIES = [
    ("layer_norm", Geometry((9, 777), -1)),
    ("layer_norm", Geometry((2, 9001), -1)),
    ("layer_norm", Geometry((5, 9, 40), 1)),
    ("batch_norm", Geometry((40, 3, 37), 1)),
    ("batch_norm", Geometry((2, 3, 5001), 1)),
    ("batch_norm", Geometry((300, 3), 1)),
    ("batch_norm", Geometry((430, 150), 1)),
]
"""Every kernel, in one block of elements and in more."""

HOSTILE = [pytest.param(family, g, id=f"{family}-{g}") for family, g in GEOMETRIES]


@pytest.fixture
def library():
    """What the ops are taken from; tests on devices call some tests from here with another."""
    return normnumba


def both_ways(family, geometry, x, rng, eps=1e-5, outliers=False, library=normnumba):
    """Check forward and then backward, given what forward returned, on this x.

    `outliers`: x has elements that make up most of a sum of squares. Those added after one are rounded to its size, 64
    in a lane of a block, and that reaches y through rstd.
    """
    forward, backward = BY_NAME[f"{family}_forward"], BY_NAME[f"{family}_backward"]
    axis = {"axis" if family == "layer_norm" else "channel_axis": geometry.axis}
    arguments = {"x": x, "eps": eps, **axis}
    y, mean, rstd = forward(library, arguments)
    expected = forward(reference, arguments)
    slack = [4 * np.abs(e).max() if outliers else None for e in expected]
    assert_close("y", y, expected[0], x.dtype, scale=slack[0])
    # The statistics come back in x's dtype; the pivot makes them exact to half an ulp of that, in any case.
    spread = np.nanmax(1 / expected[2]) if expected[2].size else 0
    assert_close("mean", mean, expected[1], x.dtype, scale=spread)
    assert_close("y" if outliers else "rstd", rstd, expected[2], x.dtype, scale=slack[2], note="rstd")
    dy = rng.standard_normal(x.shape).astype(x.dtype)
    given = {"dy": dy, "x": x, "mean": mean, "rstd": rstd, **axis}
    assert_matches(backward, given, backward(library, given), slack=4 if outliers else 1)  # xhat is dozens there


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "mean", "std"),
    [("float32", 1e4, 1e-2), ("float32", -3e6, 4.0), ("float64", 1e8, 1e-4), ("float64", 1e4, 1e-2)],
)
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_large_mean(family, geometry, dtype, mean, std, rng, library):
    x = (rng.standard_normal(geometry.shape) * std + mean).astype(dtype)
    both_ways(family, geometry, x, rng, eps=1e-12, library=library)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_constant_data_gives_exactly_the_bias(family, geometry, dtype, rng, library):
    forward = arguments_of(BY_NAME[f"{family}_forward"], geometry, dtype, rng)
    for value in (0.1, 1e4 / 3, -1e30, 1e-40):
        x = np.full(geometry.shape, value, dtype)
        y, mean, rstd = BY_NAME[f"{family}_forward"](library, {**forward, "x": x})
        expected = np.broadcast_to(forward["bias"] if x.ndim == 2 else forward["bias"][:, None], x.shape)
        np.testing.assert_array_equal(y, expected.astype(dtype))
        assert (mean == x.flat[0]).all()
        np.testing.assert_allclose(rstd, 1e5**0.5, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_first_element_is_an_outlier(family, geometry, dtype, rng, library):
    for outlier in (1e4, -1e8):
        x = rng.standard_normal(geometry.shape).astype(dtype)
        first = (slice(None), 0) if family == "layer_norm" else (0, slice(None), 0)[: x.ndim]
        x[first] = outlier
        both_ways(family, geometry, x, rng, outliers=True, library=library)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(
    ("family", "shape"), [("layer_norm", (3, 200_001)), ("batch_norm", (2, 3, 100_003)), ("batch_norm", (200_001, 3))]
)
def test_first_block_is_no_sample_of_the_rest(family, shape, dtype, rng, library):
    for noise in (0.0, 1e-2):
        x = (rng.standard_normal(shape) * noise).astype(dtype)
        first = (0, slice(None), slice(5000)) if len(shape) == 3 else (slice(None), slice(5000))
        x[first if family == "layer_norm" or len(shape) == 3 else slice(5000)] += np.dtype(dtype).type(1e4)
        both_ways(family, Geometry(shape, 1), x, rng, outliers=True, library=library)


def test_first_rows_are_no_sample_of_the_rest(rng):
    """Sums about a pivot far from the mean cancel, a thousandfold here."""
    x = rng.standard_normal((20_000, 129)).astype(np.float32)
    x[:16] += np.float32(1e4)
    both_ways("batch_norm", Geometry(x.shape, 1), x, rng, outliers=True)


@pytest.mark.parametrize("size", [1e19, 1e30, 1e37])
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_squares_that_overflow(family, geometry, size, rng, library):
    x = (rng.standard_normal(geometry.shape) * size + size).astype(np.float32)
    both_ways(family, geometry, x, rng, library=library)


@pytest.mark.parametrize("geometry", [g for family, g in GEOMETRIES if family == "batch_norm"], ids=str)
def test_moments_of_data_whose_squares_overflow(geometry, rng):
    x = (rng.standard_normal(geometry.shape) * 1e30).astype(np.float32)
    check(BY_NAME["batch_moments"], {"x": x, "channel_axis": geometry.axis})


@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
@pytest.mark.parametrize("dtype", WIDE)
def test_large_gradients(family, geometry, dtype, rng, library):
    backward = BY_NAME[f"{family}_backward"]
    arguments = arguments_of(backward, geometry, dtype, rng)
    for size in (1e30, 1e-30):
        given = {**arguments, "dy": arguments["dy"] * np.dtype(dtype).type(size)}
        assert_matches(backward, given, backward(library, given))


@pytest.mark.parametrize("exponent", [-60, -20, 20, 60, 90])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_scale_invariance_without_eps(family, geometry, dtype, exponent, rng):
    """In float64 this is also the test of squares that overflow, which the reference cannot follow."""
    exponent *= 1 if dtype == "float32" else 8
    x = rng.standard_normal(geometry.shape).astype(dtype) + np.dtype(dtype).type(0.5)
    dy = rng.standard_normal(geometry.shape).astype(dtype)
    axis = {"axis" if family == "layer_norm" else "channel_axis": geometry.axis}
    forward, backward = (getattr(normnumba, f"{family}_{way}") for way in ("forward", "backward"))

    def run(x):
        y, mean, rstd = forward(x, eps=0, **axis)
        return y, *backward(dy, x, mean, rstd, **axis)[:3]

    y, dx, dweight, dbias = run(x)
    scaled = in_time(lambda: run(np.ldexp(x, exponent)))
    # The data are summed about another pivot where their squares overflow: the same up to a few dozen roundings.
    for a, e in zip(scaled, (y, np.ldexp(dx, -exponent), dweight, dbias), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=64 * np.finfo(dtype).eps * np.abs(e).max())


def in_time(f, seconds=60):
    """f() in a thread that can be given up on: a loop that never ends in compiled code cannot be interrupted."""
    results = []
    thread = threading.Thread(target=lambda: results.append(f()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still running after {seconds} s"
    return results[0]


@pytest.mark.parametrize(("dtype", "size"), [("float32", s) for s in (1e-18, 1e-25, 1e-40)] + [("float64", 1e-310)])
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_tiny_data(family, geometry, dtype, size, rng):
    """Their squares underflow."""
    x = (rng.standard_normal(geometry.shape) * size).astype(dtype)
    for shift in (0, 2 * size, 1000 * size):
        in_time(lambda shift=shift: both_ways(family, geometry, (x + shift).astype(dtype), rng))


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("family", "geometry"), HOSTILE)
def test_nearly_constant_data(family, geometry, dtype, rng):
    """Values one unit in the last place apart, around a power of two where that unit changes."""
    kind = np.dtype(dtype).type
    for value in (kind(1024), np.nextafter(kind(1024), kind(0)), kind(1e4 / 3)):
        for share in (0.001, 0.1, 0.5, 0.95):
            above = rng.random(geometry.shape) < share
            x = np.where(above, np.nextafter(value, kind(1e9)), value)
            arguments = {"x": x, "axis" if family == "layer_norm" else "channel_axis": geometry.axis, "eps": 1e-20}
            y = in_time(lambda arguments=arguments: BY_NAME[f"{family}_forward"](normnumba, arguments)[0])
            expected = BY_NAME[f"{family}_forward"](reference, arguments)[0]
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(
    ("family", "geometry"), [p for p in HOSTILE if p.values[1].axis != 1 or "batch" in p.values[0]]
)
def test_nan_and_inf_stay_where_they_are(family, geometry, dtype, bad, rng, library):
    forward, backward = BY_NAME[f"{family}_forward"], BY_NAME[f"{family}_backward"]
    clean = arguments_of(forward, geometry, dtype, rng)
    x = clean["x"].copy()
    hit = (1,) if family == "layer_norm" else (slice(None), 1)
    x[(1, 17) if family == "layer_norm" else (1, 1, 17)[: x.ndim]] = bad
    others = np.ones(x.shape, bool)
    others[hit] = False

    y, mean, rstd = forward(library, {**clean, "x": x})
    expected = forward(library, clean)
    assert np.isnan(y[hit]).all()
    assert np.isnan(rstd[1])
    assert not np.isfinite(mean[1])
    assert_identical([y[others]], [expected[0][others]])
    assert_identical([np.delete(a, 1) for a in (mean, rstd)], [np.delete(a, 1) for a in expected[1:]])

    given = arguments_of(backward, geometry, dtype, rng)
    for name in ("x", "dy"):
        poisoned = {**given, name: given[name].copy()}
        poisoned[name][(1, 17) if family == "layer_norm" else (1, 1, 17)[: x.ndim]] = bad
        dx = backward(library, poisoned)[0]
        assert_identical([dx[others]], [backward(library, given)[0][others]])
        assert np.array_equal(np.isfinite(dx), np.isfinite(backward(reference, poisoned)[0]))
        for a, e in zip(backward(library, poisoned)[1:3], backward(reference, poisoned)[1:3], strict=True):
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e))


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("cols", [7, 100, 700, 5000])
def test_infinite_mean_squares_make_zeros(cols, axis, rng):
    """But for the Inf itself; a NaN is the whole row's."""
    x = rng.standard_normal((9, cols), dtype=np.float32)
    x[2, 3], x[4, 0], x[5, -1], x[6, 1] = np.inf, -np.inf, np.nan, 1e30
    x[7, :2] = np.inf, -np.inf
    x = np.ascontiguousarray(x) if axis == -1 else np.ascontiguousarray(np.stack([x, x], -1))
    y, rstd = normnumba.rms_norm_forward(x, axis=axis)
    expected_y, expected_rstd = reference.rms_norm_forward(x, axis=axis)
    np.testing.assert_allclose(rstd, expected_rstd, rtol=1e-6)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_in_inference(bad, rng):
    for geometry in (Geometry((40, 3, 37), 1), Geometry((300, 3), 1)):
        for op in OPS:
            if op.name not in ("batch_norm_inference", "batch_norm_inference_backward", "batch_norm_backward_sums"):
                continue
            arguments = arguments_of(op, geometry, "float32", rng)
            for key in {"x", "dy"} & set(arguments):
                poisoned = {**arguments, key: arguments[key].copy()}
                poisoned[key][(1, 1, 17)[: len(geometry.shape)]] = bad
                for name, a, e in zip(op.outputs, op(normnumba, poisoned), op(reference, poisoned), strict=True):
                    if e is not None:
                        assert np.array_equal(np.isfinite(a), np.isfinite(e)), f"{op.name}: {name} with {bad} in {key}"


def test_nan_statistics_reach_running_statistics_and_y():
    x = np.ones((4, 2), np.float32)
    x[1, 1] = np.nan
    running = np.zeros(2, np.float32), np.ones(2, np.float32)
    y = normnumba.batch_norm(x, running_mean=running[0], running_var=running[1])
    assert np.array_equal(np.isnan(y), [[False, True]] * 4)
    assert [np.isnan(r).tolist() for r in running] == [[False, True]] * 2


# --- memory ----------------------------------------------------------------------------------------------------------


def unaligned(a):
    """A copy of `a` one byte off."""
    raw = np.empty(a.nbytes + 1, np.uint8)
    copy = raw[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    assert not copy.flags.aligned
    return copy


def from_record(a):
    """A field of a packed record: unaligned and strided."""
    records = np.empty(a.shape, np.dtype([("flag", "u1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def sliced(a):
    wide = np.zeros(tuple(2 * n + 1 for n in a.shape), a.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def odd_unit_strides(a):
    """Axes of length one with strides that mean nothing."""
    strides = tuple(s if n > 1 else 12345 * a.itemsize for n, s in zip(a.shape, a.strides, strict=True))
    return np.lib.stride_tricks.as_strided(a, a.shape, strides)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "one negative stride": lambda a: a[..., ::-1].copy()[..., ::-1],
    "sliced": sliced,
    "channels last memory": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "rolled axes": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0),
    "unaligned": unaligned,
    "record": from_record,
    "read-only": read_only,
    "odd unit strides": odd_unit_strides,
    "subclass": lambda a: a.view(type("Array", (np.ndarray,), {})),
}

LAYOUT_SHAPES = shared(
    rows=(Geometry((6, 5, 40), -1), Geometry((1, 6, 1, 40), (1, 2)), Geometry((4, 5, 1), 0)),
    channels=(Geometry((6, 5, 40), 1), Geometry((1, 6, 1, 40), 1), Geometry((6, 5, 4), -1), Geometry((6, 5), 0)),
)
for family in ("group_norm", "instance_norm"):  # axis 0 is that of the samples
    LAYOUT_SHAPES[family] = LAYOUT_SHAPES[family][:3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_layouts(op, dtype, layout, rng):
    change = LAYOUTS[layout]
    for geometry in LAYOUT_SHAPES[op.family]:
        plain = arguments_of(op, geometry, dtype, rng)
        for changed in ({name} for name in x_sized(op)):
            arguments = {k: change(v) if k in changed else v for k, v in plain.items()}
            before = {k: np.array(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
            got = check(op, arguments, f"{layout} {changed}")
            assert_identical([np.array(arguments[k]) for k in before], list(before.values()))
            if takes_out(op) and changed == {"x"}:
                assert got[0].strides == np.empty_like(arguments["x"], subok=False).strides
                assert type(got[0]) is np.ndarray
        everything = {k: change(v) if np.ndim(v) == len(geometry.shape) else v for k, v in plain.items()}
        check(op, everything, f"{layout} everything")


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_channels_last_memory_is_kept(op, rng):
    geometry = Geometry((2, 3, 5, 7), 1)
    arguments = arguments_of(op, geometry, "float32", rng)
    name = x_sized(op)[0]
    x = np.moveaxis(np.ascontiguousarray(np.moveaxis(arguments[name], 1, -1)), -1, 1)
    got = check(op, {**arguments, name: x})[0]
    assert got.strides == x.strides


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_broadcast_inputs(op, rng):
    for geometry in LAYOUT_SHAPES[op.family]:
        arguments = arguments_of(op, geometry, "float32", rng)
        for index in ((slice(0, 1),), (..., slice(0, 1))):
            flat = {k: np.broadcast_to(arguments[k][index], geometry.shape) for k in x_sized(op)}
            if op.function.endswith("norm_backward") and {"x", "mean", "rstd"} <= set(arguments):  # those of x
                forward = {k: v for k, v in {**arguments, **flat}.items() if k not in ("dy", "mean", "rstd")}
                statistics = getattr(reference, op.function.replace("backward", "forward"))(**forward)[1:]
                flat |= {k: v.astype(np.float32) for k, v in zip(("mean", "rstd"), statistics, strict=True)}
            check(op, {**arguments, **flat}, f"0 strides, {geometry}")


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_hostile_parameters(op, rng):
    geometry = LAYOUT_SHAPES[op.family][0]
    arguments = arguments_of(op, geometry, "float32", rng)
    for layout in ("negative strides", "sliced", "unaligned", "record", "read-only", "subclass"):
        change = LAYOUTS[layout]
        check(op, {k: change(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}, layout)


@pytest.mark.parametrize("dtype", WIDE)
def test_unaligned_and_strided_out(dtype, rng):
    x = rng.standard_normal((6, 5, 40)).astype(dtype)
    for op in (LAYER, BATCH):
        expected = op(normnumba, {"x": x})
        for make in (unaligned, from_record, sliced):
            out = make(np.zeros_like(x))
            assert op(normnumba, {"x": x, "out": out})[0] is out
            assert_identical([np.array(out)], expected[:1])


def test_memory_maps(tmp_path, rng):
    x = rng.standard_normal((300, 257)).astype(np.float32)
    mapped, out = (np.memmap(tmp_path / name, np.float32, "w+", shape=x.shape) for name in ("x", "y"))
    mapped[:] = x
    source = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    for op in (LAYER, BATCH):
        got = op(normnumba, {"x": source, "out": out})
        assert got[0] is out
        assert_identical([np.array(a) for a in got], op(normnumba, {"x": x}))
        assert type(op(normnumba, {"x": source})[0]) is np.ndarray
    out.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "y", np.float32).reshape(x.shape), got[0])


def test_from_a_buffer(rng):
    data = rng.standard_normal(5 * 31).astype(np.float32)
    x = np.frombuffer(b"?" + data.tobytes(), np.float32, offset=1).reshape(5, 31)
    assert_identical(normnumba.layer_norm_forward(x), normnumba.layer_norm_forward(data.reshape(5, 31)))


# --- sizes -----------------------------------------------------------------------------------------------------------


EXTREME = [
    ("layer_norm", (200_000, 8)),
    ("layer_norm", (70_000, 3)),
    ("layer_norm", (3, 65_537)),
    ("layer_norm", (2, 1_048_576)),
    ("batch_norm", (200_000, 8)),
    ("batch_norm", (70_000, 3)),
    ("batch_norm", (70_000, 2, 3)),
    ("batch_norm", (1, 70_000, 3)),
    ("batch_norm", (3, 70_000)),
]


@pytest.mark.parametrize(("family", "shape"), EXTREME)
def test_extreme_sizes(family, shape, rng, library):
    geometry = Geometry(shape, 1)
    backward = arguments_of(BY_NAME[f"{family}_backward"], geometry, "float32", rng)
    forward = {k: v for k, v in backward.items() if k not in ("dy", "mean", "rstd")}
    for way, given in (("forward", forward), ("backward", backward)):
        op = BY_NAME[f"{family}_{way}"]
        assert_matches(op, given, op(library, given))


@pytest.mark.parametrize("family", ["layer_norm", "batch_norm"])
def test_long_sums_of_one_sign(family, rng, library):
    """Rounding errors of a running sum of equal terms do not cancel."""
    backward = BY_NAME[f"{family}_backward"]
    arguments = arguments_of(backward, Geometry((200_000, 8), 1), "float32", rng)
    arguments["dy"] = np.full_like(arguments["dy"], 0.1)
    dbias = backward(library, arguments)[2]
    limit = TABLE["dbias"].absolute * np.finfo(np.float32).eps
    np.testing.assert_allclose(dbias, 200_000 * np.float64(np.float32(0.1)), rtol=limit)
