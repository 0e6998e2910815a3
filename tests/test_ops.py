"""Every op of the table against the float64 reference and against torch, with every argument that it takes."""

import itertools

import numpy as np
import pytest

import normnumba
from benchmarks.cases import OPS, Geometry, data_of
from normnumba import reference
from tests.helpers import (
    BY_NAME,
    EVERY_CASE,
    WIDE,
    arguments_of,
    assert_identical,
    assert_matches,
    check,
    data_type_of,
    name_of,
    output_shapes,
    parameters_of,
    shared,
    takes_out,
    x_sized,
)
from tests.tolerances import assert_close

TYPICAL = shared(
    rows=(Geometry((67, 1023), -1), Geometry((4, 6, 10), (0, 2))),
    channels=(Geometry((3, 5, 7, 33), 1), Geometry((3, 5, 7, 33), -1)),
)
"""One shape that is normalized where it lies and one that is not, or a shape of each geometry."""

LARGE = shared(rows=Geometry((1025, 2051), -1), channels=Geometry((3, 5, 400, 401), 1))
"""Past the size from which outputs bypass the caches (8 MiB of float32), with ends that are no whole cache line."""

TYPICAL_CASES = [(op, g, dtype) for op in OPS for g in TYPICAL[op.family] for dtype in WIDE]
WITH_OUT = [(op, g, dtype) for op, g, dtype in TYPICAL_CASES if takes_out(op)]
AFFINE = {op.name: tuple(name for name in ("weight", "bias") if name in parameters_of(op)) for op in OPS}
WITHOUT = [
    (*case, missing)
    for case in TYPICAL_CASES
    for n in range(1, 3)
    for missing in itertools.combinations(AFFINE[case[0].name], n)
]
WITH_EPS = [op for op in OPS if "eps" in parameters_of(op)]
BACKWARDS = [op for op in OPS if op.function.endswith(("norm_backward", "inference_backward"))]


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "geometry", "dtype"), EVERY_CASE, ids=name_of)
def test_matches_the_reference(op, geometry, dtype, rng):
    arguments = arguments_of(op, geometry, dtype, rng)
    before = {k: np.copy(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    got = check(op, arguments)
    assert_identical([arguments[k] for k in before], list(before.values()), "inputs")
    for name, a, shape in zip(op.outputs, got, output_shapes(op, geometry), strict=True):
        if name == "count":
            assert type(a) is int
        elif a is not None:
            assert type(a) is np.ndarray
            kind = np.float64 if op.name == "batch_moments" else data_type_of(name, data_of(arguments))
            assert a.dtype == kind, name
            assert a.shape == shape, name
            assert a.flags.writeable
            assert not any(np.shares_memory(a, v) for v in arguments.values() if isinstance(v, np.ndarray)), name


@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (1, 1, 2)])
@pytest.mark.parametrize("name", ["layer_norm_forward", "rms_norm_forward"])
def test_all_axes_of_a_small_array(name, shape, rng):
    check(BY_NAME[name], arguments_of(BY_NAME[name], Geometry(shape, tuple(range(len(shape)))), "float32", rng))


@pytest.mark.parametrize("op", OPS, ids=name_of)
def test_large_outputs(op, rng):
    check(op, arguments_of(op, LARGE[op.family], "float32", rng))


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_large_outputs_at_every_alignment(op, rng):
    arguments = arguments_of(op, LARGE[op.family], "float32", rng)
    expected = op(normnumba, arguments)
    for offset in (1, 5, 15):
        out = np.full(data_of(arguments).size + offset + 16, 7, np.float32)
        target = out[offset:-16].reshape(data_of(arguments).shape)
        assert_identical(op(normnumba, {**arguments, "out": target}), expected, f"offset {offset}")
        assert (out[:offset] == 7).all()
        assert (out[-16:] == 7).all()


@pytest.mark.parametrize(("op", "geometry", "dtype", "missing"), WITHOUT, ids=name_of)
def test_without_parameters(op, geometry, dtype, missing, rng):
    arguments = arguments_of(op, geometry, dtype, rng)
    implicit = {**arguments, **dict.fromkeys(missing)}
    got = check(op, implicit)
    values = {"weight": np.ones_like, "bias": np.zeros_like}
    explicit = {**arguments, **{name: values[name](arguments[name]) for name in missing}}
    assert_identical(got, op(normnumba, explicit), "None is ones and zeros")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "uint64", "bool"])
@pytest.mark.parametrize("op", [op for op in OPS if AFFINE[op.name]], ids=name_of)
def test_parameters_of_any_real_dtype_and_stride(op, kind, rng):
    geometry, dtype = TYPICAL[op.family][1], "float32"
    arguments = arguments_of(op, geometry, dtype, rng)
    given, kinds = {}, {"weight": kind, "bias": "float16" if kind == "float32" else kind}
    for name in ("weight", "bias"):
        if name in arguments:
            values = np.round(np.abs(arguments[name]) * 2).astype(kinds[name])
            given[name] = np.stack([values, values], -1)[..., 0][::-1]
            assert not given[name].flags.c_contiguous
    assert tuple(given) == AFFINE[op.name]
    got = check(op, {**arguments, **given})
    for name, a in zip(op.outputs, got, strict=True):
        if name in ("dweight", "dbias"):
            own = np.dtype(kinds[name[1:]])
            assert a.dtype == (own if own.kind == "f" else dtype), f"{name} for a parameter of dtype {own}"
            assert a.shape == arguments["weight"].shape


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("op", WITH_EPS, ids=name_of)
def test_any_eps(op, dtype, rng):
    arguments = arguments_of(op, TYPICAL[op.family][0], dtype, rng)
    results = [check(op, {**arguments, "eps": eps}, f"eps {eps}")[0] for eps in (0, 1e-12, 1e-5, 0.5, np.float32(3))]
    assert not np.array_equal(results[0], results[-1])


# --- output_mask and out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry_index", [0, 1])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("op", BACKWARDS, ids=name_of)
def test_output_mask(op, dtype, geometry_index, rng):
    compare_masks(op, arguments_of(op, TYPICAL[op.family][geometry_index], dtype, rng))


@pytest.mark.parametrize("op", BACKWARDS, ids=name_of)
def test_output_mask_of_large_arrays(op, rng):
    """Enough rows for sums of several groups, and of several blocks."""
    compare_masks(op, arguments_of(op, Geometry((6900, 320), -1), "float32", rng))


def compare_masks(op, arguments):
    everything = op(normnumba, arguments)
    for mask in itertools.product((True, False), repeat=len(op.outputs)):
        got = op(normnumba, {**arguments, "output_mask": mask})
        assert_identical(got, [a if wanted else None for a, wanted in zip(everything, mask, strict=True)], f"{mask}")


@pytest.mark.parametrize(("op", "geometry", "dtype"), WITH_OUT, ids=name_of)
def test_out(op, geometry, dtype, rng):
    arguments = arguments_of(op, geometry, dtype, rng)
    expected = op(normnumba, arguments)
    for kind in ("fresh", "fortran", "strided", *x_sized(op)):
        inputs = {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        if kind in inputs:
            out = inputs[kind]
        elif kind == "strided":
            out = np.full((*geometry.shape, 3), np.nan, dtype)[..., 1]
        else:
            out = np.full(geometry.shape, np.nan, dtype, order=kind[0].upper() if kind == "fortran" else "C")
        got = op(normnumba, {**inputs, "out": out})
        assert got[0] is out
        assert_identical(got, expected, f"out={kind}")
        untouched = [k for k, v in arguments.items() if isinstance(v, np.ndarray) and k != kind]
        assert_identical([inputs[k] for k in untouched], [arguments[k] for k in untouched], f"inputs with out={kind}")


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_out_is_a_large_input(op, rng):
    arguments = arguments_of(op, LARGE[op.family], "float32", rng)
    expected = op(normnumba, arguments)
    for name in x_sized(op):
        inputs = {**arguments, name: arguments[name].copy()}
        assert_identical(op(normnumba, {**inputs, "out": inputs[name]}), expected, f"out={name}")


@pytest.mark.parametrize("op", [op for op in OPS if takes_out(op)], ids=name_of)
def test_out_is_an_input_in_another_layout(op, rng):
    arguments = arguments_of(op, TYPICAL[op.family][0], "float32", rng)
    expected = op(normnumba, arguments)
    for name in x_sized(op):
        for layout in (np.asfortranarray, lambda a: np.stack([a, a], -1)[..., 0], lambda a: np.flip(np.flip(a).copy())):
            inputs = {**arguments, name: layout(arguments[name])}
            got = op(normnumba, {**inputs, "out": inputs[name]})
            assert got[0] is inputs[name]
            assert_matches(op, arguments, got, note=f"out={name}")
            assert got[0].shape == expected[0].shape


def test_one_array_may_be_x_dy_and_out(rng):
    x = rng.standard_normal((70, 30)).astype(np.float32)
    _, mean, rstd = normnumba.layer_norm_forward(x)
    expected = normnumba.layer_norm_backward(x, x, mean, rstd)
    assert_identical(normnumba.layer_norm_backward(x, x, mean, rstd, out=x), expected)


# --- running statistics ----------------------------------------------------------------------------------------------


def running_in(kind):
    """Running mean and variance of five channels."""
    values = np.linspace(-1, 1, 5), np.linspace(0.5, 2, 5)
    if kind == "strided":
        return [np.stack([v, v], -1).astype(np.float32)[::-1, 0] for v in values]
    return [v.astype(kind) for v in values]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, 1])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "strided"])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_running_statistics(channel_axis, dtype, kind, momentum, rng):
    x = (rng.standard_normal((3, 5, 4, 5)) * 2 + 1).astype(dtype)
    options = {"channel_axis": channel_axis, "momentum": momentum}
    expected = [r.astype(np.float64) for r in running_in(kind)]
    reference.batch_norm_forward(x, running_mean=expected[0], running_var=expected[1], **options)
    both, mean_only, var_only = running_in(kind), running_in(kind), running_in(kind)
    plain = normnumba.batch_norm_forward(x, **options)
    got = normnumba.batch_norm_forward(x, running_mean=both[0], running_var=both[1], **options)
    assert_identical(got, plain, "the outputs do not depend on running statistics")
    normnumba.batch_norm(x, running_mean=mean_only[0], **options)
    normnumba.batch_norm(x, running_var=var_only[1], **options)
    assert_identical([mean_only[0], var_only[1]], both)
    precision = max(np.finfo(both[0].dtype).eps, np.finfo(dtype).eps)
    for actual, wanted in zip(both, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=4 * precision, atol=4 * precision)
    if momentum == 0:
        assert_identical(both, running_in(kind))


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)])
def test_running_statistics_of_an_empty_batch(shape):
    running = running_in("float32")
    normnumba.batch_norm(np.empty(shape, np.float32), running_mean=running[0], running_var=running[1], momentum=1.0)
    assert_identical(running, running_in("float32"))


def test_running_statistics_can_be_large(rng):
    """A float64 running mean keeps what a float32 mean would lose."""
    x = (rng.standard_normal((512, 3)) * 1e-2 + 1e4).astype(np.float32)
    running = np.zeros(3), np.zeros(3)
    normnumba.batch_norm(x, running_mean=running[0], running_var=running[1], momentum=1.0)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(running[0], wide.mean(axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(running[1], wide.var(axis=0, ddof=1), rtol=1e-5)


# --- shorthands, blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE)
def test_shorthands_are_y_alone(dtype, rng):
    layer = arguments_of(BY_NAME["layer_norm_forward"], Geometry((4, 6, 10), (0, 2)), dtype, rng)
    batch = arguments_of(BY_NAME["batch_norm_forward"], Geometry((3, 5, 7), 2), dtype, rng)
    running = [{"running_mean": np.zeros(7), "running_var": np.ones(7), "momentum": 0.3} for _ in range(2)]
    for name, arguments, more in (("layer_norm", layer, [{}, {}]), ("batch_norm", batch, running)):
        arguments = {**arguments, "eps": 0.1}
        y = getattr(normnumba, name)(**arguments, **more[0])
        full = getattr(normnumba, f"{name}_forward")(**arguments, **more[1])
        assert_identical([y], full[:1])
        out = np.empty_like(y)
        assert getattr(normnumba, name)(**arguments, **more[0], out=out) is out
    normnumba.batch_norm(**{**batch, "eps": 0.1}, **running[1])  # `out` above was one more update
    assert_identical(list(running[0].values()), list(running[1].values()))


def merge(one, other):
    """Chan's formula for the moments of two blocks."""
    (n, mean, var), (m, mean2, var2) = one, other
    d, total = mean2 - mean, n + m
    return total, mean + d * m / total, (n * var + m * var2) / total + d * d * n * m / total**2


@pytest.mark.parametrize(("dtype", "hard"), [("float32", False), ("float32", True), ("float64", False)])
@pytest.mark.parametrize(
    "geometry", [Geometry((20, 3, 50), 1), Geometry((20, 50, 3), -1), Geometry((20, 70), 1)], ids=str
)
def test_blocks_merge_into_the_whole(geometry, dtype, hard, rng):
    backward = BY_NAME["batch_norm_backward"]
    whole = arguments_of(backward, geometry, dtype, rng)
    if hard:
        whole["x"] = (whole["x"].astype(np.float64) * 1e-2 + 1e4).astype(dtype)
    axis, split = {"channel_axis": geometry.axis}, 7
    x, dy, weight = whole["x"], whole["dy"], whole["weight"]
    count, mean, var = merge(normnumba.batch_moments(x[:split], **axis), normnumba.batch_moments(x[split:], **axis))
    exact = reference.batch_moments(x, **axis)
    assert count == exact[0]
    assert_close("mean", mean, exact[1], dtype, scale=np.sqrt(exact[2]))
    assert_close("var", var, exact[2], dtype)

    rstd = 1 / np.sqrt(var + 1e-5)
    blocks = [(dy[:split], x[:split], mean, rstd), (dy[split:], x[split:], mean, rstd)]
    sums = [normnumba.batch_norm_backward_sums(*block, **axis) for block in blocks]
    sum_dy, sum_dy_xhat = (a + b for a, b in zip(*sums, strict=True))
    dx = [normnumba.batch_norm_backward_apply(*b, weight, sum_dy, sum_dy_xhat, count, **axis) for b in blocks]
    statistics = {"mean": mean, "rstd": rstd}
    got = np.concatenate(dx), sum_dy_xhat, sum_dy, None
    assert_matches(backward, {**whole, **statistics}, got, note="blocks")
    assert_matches(backward, {**whole, **statistics}, backward(normnumba, {**whole, **statistics}), note="whole")


@pytest.mark.parametrize("dtype", WIDE)
def test_a_float64_mean_keeps_its_digits_in_inference(dtype, rng):
    x = (rng.standard_normal((50, 3, 20)) * 1e-2 + 1e4).astype(dtype)
    for axis in (1, 2):
        _, mean, var = reference.batch_moments(x, channel_axis=axis)
        arguments = {"x": x, "mean": mean, "var": var, "channel_axis": axis}
        expected = reference.batch_norm_inference(**arguments)
        assert_close("y", normnumba.batch_norm_inference(**arguments), expected, dtype)
        dy = rng.standard_normal(x.shape).astype(dtype)
        got = normnumba.batch_norm_inference_backward(dy, **arguments)
        wanted = reference.batch_norm_inference_backward(dy, **arguments)
        for name, a, e in zip(("dx", "dweight", "dbias"), got, wanted, strict=False):
            assert_close(name, a, e, dtype, reduced=1000, scale=np.sqrt(1000) * (100 if name == "dx" else 1))


# --- nothing to do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((0, 3), -1), ((3, 0), -1), ((0, 0), -1), ((0,), 0), ((2, 0, 4), (1, 2)), ((2, 0, 4), 0), ((0, 3, 4), (0, 1))],
)
@pytest.mark.parametrize("dtype", WIDE)
def test_layer_norm_of_nothing(shape, axis, dtype):
    geometry = Geometry(shape, axis)
    inside = tuple(shape[a] for a in geometry.axes)
    x, weight = np.empty(shape, dtype), np.ones(inside)
    y, mean, rstd = normnumba.layer_norm_forward(x, weight, weight, axis=axis, eps=0.25)
    shapes = output_shapes(BY_NAME["layer_norm_forward"], geometry)
    assert [a.shape for a in (y, mean, rstd)] == shapes
    assert (mean == 0).all()
    assert (rstd == 2).all()
    dx, dweight, dbias = normnumba.layer_norm_backward(x, x, mean, rstd, weight, weight, axis=axis)
    assert (dx.shape, dweight.shape, dbias.shape) == (shape, inside, inside)
    assert not dweight.any()
    assert not dbias.any()
    out = np.empty_like(x)
    assert normnumba.layer_norm(x, axis=axis, out=out) is out


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 0), (0, 0), (0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 3, 2, 2)])
@pytest.mark.parametrize("dtype", WIDE)
def test_batch_norm_of_nothing(shape, channel_axis, dtype):
    channels, axis = shape[channel_axis], {"channel_axis": channel_axis}
    x, weight = np.empty(shape, dtype), np.ones(channels)
    y, mean, rstd = normnumba.batch_norm_forward(x, weight, weight, eps=0.25, **axis)
    assert (y.shape, mean.shape, rstd.shape) == (shape, (channels,), (channels,))
    assert (mean == 0).all()
    assert (rstd == 2).all()
    dx, dweight, dbias, _ = normnumba.batch_norm_backward(x, x, mean, rstd, weight, weight, **axis)
    assert (dx.shape, dweight.tolist(), dbias.tolist()) == (shape, [0] * channels, [0] * channels)
    assert normnumba.batch_norm_inference(x, mean, rstd, **axis).shape == shape
    assert normnumba.batch_norm_inference_backward(x, x, mean, rstd, **axis)[0].shape == shape
    count, mean, var = normnumba.batch_moments(x, **axis)
    assert (mean.tolist(), var.tolist()) == ([0] * channels, [0] * channels)
    sums = normnumba.batch_norm_backward_sums(x, x, mean, rstd, **axis)
    assert [s.tolist() for s in sums] == [[0] * channels] * 2
    assert normnumba.batch_norm_backward_apply(x, x, mean, rstd, None, *sums, count, **axis).shape == shape


# --- torch -----------------------------------------------------------------------------------------------------------


def tensors(torch, *arrays):
    return [None if a is None else torch.tensor(a, requires_grad=True) for a in arrays]


def assert_torch(ours, theirs, dtype, scale=1.0):
    for a, t in zip(ours, theirs, strict=True):
        t = t.detach().numpy()
        assert (a.dtype, a.shape) == (t.dtype, t.shape)
        precision = 64 * np.finfo(dtype).eps
        np.testing.assert_allclose(a, t, rtol=precision, atol=precision * scale)


@pytest.mark.parametrize("parameters", ["weight", "bias", "both", "neither"])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((67, 130), -1), ((2, 3, 4, 5), (-2, -1)), ((0, 4), -1)])
def test_layer_norm_is_torchs(shape, axis, dtype, parameters, rng):
    torch = pytest.importorskip("torch")
    inside = tuple(shape[a] for a in Geometry(shape, axis).axes)
    x, dy, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, shape, inside, inside))
    w, b = w if parameters in ("weight", "both") else None, b if parameters in ("bias", "both") else None
    leaves = tensors(torch, x, w, b)
    theirs = torch.nn.functional.layer_norm(leaves[0], inside, leaves[1], leaves[2], 1e-3)
    theirs.backward(torch.tensor(dy))
    y, mean, rstd = normnumba.layer_norm_forward(x, w, b, axis=axis, eps=1e-3)
    assert_torch([y], [theirs], dtype)
    gradients = normnumba.layer_norm_backward(dy, x, mean, rstd, w, b, axis=axis)
    pairs = [(g, leaf.grad) for g, leaf in zip(gradients, leaves, strict=True) if leaf is not None]
    assert_torch(*zip(*pairs, strict=True), dtype, scale=10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters", ["weight", "bias", "both", "neither"])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [(6, 3), (40, 3, 5), (2, 3, 16, 17), (0, 3, 2)])
def test_batch_norm_is_torchs(shape, dtype, parameters, training, rng):
    torch = pytest.importorskip("torch")
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    w, b, running_mean, running_var = (rng.standard_normal(3).astype(dtype) for _ in range(4))
    running_var = np.abs(running_var) + 1
    w, b = w if parameters in ("weight", "both") else None, b if parameters in ("bias", "both") else None
    leaves, running = tensors(torch, x, w, b), [torch.tensor(running_mean), torch.tensor(running_var)]
    options = {"training": training, "momentum": 0.3, "eps": 1e-3}
    theirs = torch.nn.functional.batch_norm(leaves[0], *running, *leaves[1:], **options)
    theirs.backward(torch.tensor(dy))
    if training:
        statistics = {"running_mean": running_mean, "running_var": running_var, "momentum": 0.3}
        y, mean, rstd = normnumba.batch_norm_forward(x, w, b, **statistics, eps=1e-3)
        gradients = normnumba.batch_norm_backward(dy, x, mean, rstd, w, b)
    else:
        y = normnumba.batch_norm_inference(x, running_mean, running_var, w, b, eps=1e-3)
        gradients = normnumba.batch_norm_inference_backward(dy, x, running_mean, running_var, w, b, eps=1e-3)
    assert_torch([y], [theirs], dtype)
    assert_torch([running_mean, running_var], running, dtype)
    pairs = [(g, leaf.grad) for g, leaf in zip(gradients, leaves, strict=False) if leaf is not None]
    assert_torch(*zip(*pairs, strict=True), dtype, scale=10)
