"""What is fused with a norm: activations, residuals, masks, sums, and the fold into a linear map."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import normnumba
from benchmarks.cases import Geometry, dtype_of
from normnumba import reference
from normnumba.kernels.cpu import launching
from normnumba.ops import masks
from normnumba.ops.checks import ACTIVATIONS
from normnumba.views import as_channels
from tests.helpers import BY_NAME, WIDE, arguments_of, assert_identical, assert_matches, check
from tests.tolerances import assert_close

HALVES = ("float16", "bfloat16")
SMOOTH = [a for a in ACTIVATIONS if a not in (None, "relu")]
BATCH = [BY_NAME[f"batch_norm_{way}"] for way in ("forward", "backward", "inference", "inference_backward")]
GROUP = [BY_NAME[f"group_norm_{way}"] for way in ("forward", "backward")]
GEOMETRIES = [Geometry((3, 8, 7, 9), 1), Geometry((3, 7, 9, 8), -1), Geometry((2, 4, 65, 67), 1), Geometry((67, 40), 1)]
ADD = [BY_NAME[f"add_{norm}_norm_{way}"] for norm, way in itertools.product(("layer", "rms"), ("forward", "backward"))]


def fused(op, geometry, dtype, rng, activation, residual=False):
    """Arguments with an activation, and dy without what a rounding could flip: that of z beside relu's kink."""
    arguments = arguments_of(op, geometry, dtype, rng)
    if residual:
        arguments["residual"] = rng.standard_normal(geometry.shape).astype(dtype_of(dtype))
    if activation == "relu" and "dy" in arguments:
        forward = {k: v for k, v in arguments.items() if k not in ("dy", "rstd")}
        if "rstd" in arguments:
            del forward["mean"]
        name = "batch_norm_inference" if "var" in arguments else op.family
        arguments["dy"][np.abs(getattr(reference, name)(**forward)) < 1e-3] = 0
    return {**arguments, "activation": activation}


# --- activations -----------------------------------------------------------------------------------------------------


def through(z, activation):
    """activation(z) and activation'(z), by a norm that changes nothing."""
    column, zero, one = z[:, None], np.zeros(1), np.ones(1)
    options = {"eps": 0.0, "activation": activation}
    y = normnumba.batch_norm_inference(column, zero, one, **options)
    dx = normnumba.batch_norm_inference_backward(np.ones_like(column), column, zero, one, **options)[0]
    return y[:, 0], dx[:, 0]


def exactly(z, activation):
    """The same by the reference, in float64."""
    column, zero, one = z[:, None].astype(np.float64), np.zeros(1), np.ones(1)
    options = {"eps": 0.0, "activation": activation}
    y = reference.batch_norm_inference(column, zero, one, **options)
    dx = reference.batch_norm_inference_backward(np.ones_like(column), column, zero, one, **options)[0]
    return y[:, 0], dx[:, 0]


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("dtype", WIDE)
def test_activations_to_the_last_digits(dtype, activation):
    tiny = np.logspace(-35, 4, 4001)
    z = np.concatenate([np.linspace(-40, 40, 40001), tiny, -tiny]).astype(dtype)
    for actual, expected in zip(through(z, activation), exactly(z, activation), strict=True):
        error = np.abs(actual - expected) / np.maximum(np.abs(expected), 1)
        assert error.max() <= 3 * np.finfo(dtype).eps, z[np.argmax(error)]


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("dtype", WIDE)
def test_activations_below_zero_keep_their_relative_error(dtype, activation):
    """1 + erf(-6 / sqrt(2)) has no digit left in float32; what these compute has all but the last bits."""
    z = -np.logspace(-3, np.log10(6), 20001).astype(dtype)
    actual, expected = through(z, activation)[0], exactly(z, activation)[0]
    error = np.abs(actual / expected - 1)
    assert error.max() <= 64 * np.finfo(dtype).eps, z[np.argmax(error)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", HALVES)
def test_activations_of_every_half(dtype, activation):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))
    z = every[np.abs(every.astype(np.float64)) < 1e4]
    eps = float(ml_dtypes.finfo(z.dtype).eps)
    for actual, expected in zip(through(z, activation), exactly(z, activation), strict=True):
        error = np.abs(actual.astype(np.float64) - expected)
        assert (error <= 0.51 * eps * np.abs(expected) + 1e-7).all(), "rounded once, from float32"


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_nan_and_inf(activation, dtype):
    """What torch has in float64: NaN stays NaN, +Inf passes, and -Inf is 0 after relu and 0 * Inf after the others."""
    torch = pytest.importorskip("torch")
    functions = {None: torch.clone, "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh")}
    values = np.array([np.nan, np.inf, -np.inf, 0.0], dtype)
    theirs = functions.get(activation) or getattr(torch.nn.functional, str(activation))
    np.testing.assert_array_equal(
        through(values, activation)[0], theirs(torch.tensor(values.astype(np.float64))).numpy()
    )


@pytest.mark.parametrize(("activation", "residual"), list(itertools.product(ACTIVATIONS, (False, True)))[1:])
@pytest.mark.parametrize("dtype", [*WIDE, *HALVES])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("op", BATCH, ids=lambda op: op.name)
def test_batch_norm_with_an_activation(op, geometry, dtype, activation, residual, rng):
    check(op, fused(op, geometry, dtype, rng, activation, residual))


@pytest.mark.parametrize("activation", list(ACTIVATIONS)[1:])
@pytest.mark.parametrize("dtype", [*WIDE, *HALVES])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("op", GROUP, ids=lambda op: op.name)
def test_group_norm_with_an_activation(op, geometry, dtype, activation, rng):
    check(op, fused(op, geometry, dtype, rng, activation))


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=str)
@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_an_activation_behind_a_large_mean(name, geometry, rng):
    """A float32 mean of 1e4 is a twentieth of a standard deviation off, and z with it."""
    x, dy = (rng.standard_normal(geometry.shape) for _ in range(2))
    arguments = {"x": (x * 1e-2 + 1e4).astype(np.float32), "activation": "silu", "channel_axis": geometry.axis}
    arguments |= {"num_groups": 4} if name == "group_norm" else {}
    _, mean, rstd = check(BY_NAME[f"{name}_forward"], {**arguments, "eps": 1e-12})
    check(BY_NAME[f"{name}_backward"], {**arguments, "dy": dy.astype(np.float32), "mean": mean, "rstd": rstd})


@pytest.mark.parametrize("change", ["nan", "far"])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize(
    ("name", "shape"), [("batch_norm", (512, 4)), ("batch_norm", (8, 4, 60)), ("group_norm", (3, 60, 4))], ids=str
)
def test_no_channel_or_sample_depends_on_another(name, shape, activation, change, rng):
    """Not even on whether another one has a mean that must be known exactly, or a NaN for it."""
    x, dy = (rng.standard_normal(shape) * 1e-2 + 1e4).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    options = {"activation": activation, "channel_axis": 1}
    options |= {"num_groups": 2, "channel_axis": -1} if name == "group_norm" else {}
    if change == "far":
        x -= np.float32(1e4)
    hit = (0,) if name == "group_norm" else (slice(None), 0)

    def others(x):
        y, mean, rstd = getattr(normnumba, f"{name}_forward")(x, **options)
        dx = getattr(normnumba, f"{name}_backward")(dy, x, mean, rstd, **options)[0]
        return np.delete(y, 0, len(hit) - 1), np.delete(dx, 0, len(hit) - 1)

    changed = x.copy()
    changed[hit] += np.float32(100 if change == "far" else np.nan)
    assert_identical(others(changed), others(x))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("geometry", [Geometry((5, 8, 47, 43), 1), Geometry((5, 47, 43, 8), -1)], ids=str)
@pytest.mark.parametrize("op", [*BATCH, *GROUP], ids=lambda op: op.name)
def test_threads_give_the_bits_of_one_task_after_the_other(op, geometry, activation, rng, monkeypatch):
    arguments = fused(op, geometry, "float32", rng, activation, residual=op in BATCH)
    results = []
    for parallel_from in (0, 1 << 62):
        monkeypatch.setattr(launching, "PARALLEL_FROM", parallel_from)
        results.append(op(normnumba, arguments))
    assert_identical(*results)


@pytest.mark.parametrize("op", [*BATCH, *GROUP], ids=lambda op: op.name)
@pytest.mark.parametrize("name", ["swish", "RELU", "", 1, ["relu"]])
def test_unknown_activations_are_refused(op, name, rng):
    arguments = arguments_of(op, GEOMETRIES[0], "float32", rng)
    with pytest.raises(ValueError, match=r"activation must be one of None, 'relu'.*got"):
        getattr(normnumba, op.function)(**arguments, activation=name)


# --- a residual ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [BATCH[1], BATCH[3]], ids=lambda op: op.name)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_dresidual(op, activation, rng):
    arguments = fused(op, GEOMETRIES[0], "float32", rng, activation, residual=True)
    everything = op(normnumba, arguments)
    dresidual = everything[3]
    assert not any(np.shares_memory(dresidual, a) for a in (arguments["dy"], everything[0]))
    if activation is None:
        assert_identical([dresidual], [arguments["dy"]])
    for mask in itertools.product((True, False), repeat=4):
        got = op(normnumba, {**arguments, "output_mask": mask})
        assert_identical(got, [a if wanted else None for a, wanted in zip(everything, mask, strict=True)], f"{mask}")
    for name in ("dy", "x"):
        inputs = {**arguments, name: arguments[name].copy()}
        assert_identical(op(normnumba, {**inputs, "out": inputs[name]}), everything, f"out={name}")


@pytest.mark.parametrize("op", BATCH, ids=lambda op: op.name)
def test_a_residual_in_another_layout(op, rng):
    arguments = fused(op, GEOMETRIES[1], "float32", rng, "silu", residual=True)
    expected = op(normnumba, arguments)
    residual = arguments["residual"]
    strided = np.stack([residual, residual], -1)[..., 0]
    for other in (np.asfortranarray(residual), strided):
        assert_identical(op(normnumba, {**arguments, "residual": other}), expected)


@pytest.mark.parametrize("op", BATCH, ids=lambda op: op.name)
def test_residuals_that_do_not_fit(op, rng):
    arguments = fused(op, GEOMETRIES[0], "float32", rng, None, residual=True)
    residual, f = arguments.pop("residual"), getattr(normnumba, op.function)
    with pytest.raises(ValueError, match=r"residual must have x's shape \(3, 8, 7, 9\), got \(3, 8, 7\)"):
        f(**arguments, residual=residual[..., 0])
    with pytest.raises(TypeError, match="residual must have x's dtype float32, got float64"):
        f(**arguments, residual=residual.astype(np.float64))
    with pytest.raises(ValueError, match="out shares memory"):
        f(**arguments, residual=residual, out=residual)


# --- a mask ----------------------------------------------------------------------------------------------------------

MASKED = [Geometry((6, 5, 9), 1), Geometry((6, 9, 5), -1), Geometry((4, 5, 6, 7), 1), Geometry((40, 5), 1)]


def mask_of(geometry, rng, kind="random"):
    shape = tuple(n for a, n in enumerate(geometry.shape) if a not in geometry.axes)
    if kind == "padding" and len(shape) > 1:
        lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
        return np.arange(shape[-1]) < lengths[..., None]
    return rng.random(shape) < 0.6


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", [*WIDE, *HALVES])
@pytest.mark.parametrize("kind", ["random", "padding"])
@pytest.mark.parametrize("geometry", MASKED, ids=str)
def test_masked_batch_norm(geometry, kind, dtype, activation, rng):
    forward = fused(BATCH[0], geometry, dtype, rng, activation, residual=activation is not None)
    forward["mask"] = mask = mask_of(geometry, rng, kind)
    running = [np.zeros(5), np.ones(5)]
    exact = [r.copy() for r in running]
    y, mean, rstd = check(BATCH[0], forward)
    dy = rng.standard_normal(geometry.shape).astype(y.dtype)
    backward = {**forward, "dy": dy, "mean": mean, "rstd": rstd}
    expected = check(BATCH[1], backward)
    for name in ("dy", "x"):
        inputs = {**backward, name: backward[name].copy()}
        assert_identical(BATCH[1](normnumba, {**inputs, "out": inputs[name]}), expected, f"out={name}")
    options = {"channel_axis": geometry.axis, "mask": mask}
    normnumba.batch_norm(forward["x"], running_mean=running[0], running_var=running[1], momentum=0.3, **options)
    reference.batch_norm(forward["x"], running_mean=exact[0], running_var=exact[1], momentum=0.3, **options)
    np.testing.assert_allclose(running, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("geometry", MASKED, ids=str)
def test_masked_parts_make_the_whole(geometry, rng):
    arguments = arguments_of(BATCH[1], geometry, "float32", rng)
    x, dy, weight, options = *(arguments[k] for k in ("x", "dy", "weight")), {"channel_axis": geometry.axis}
    options["mask"] = mask_of(geometry, rng)
    count, mean, var = normnumba.batch_moments(x, **options)
    exact = reference.batch_moments(x, **options)
    assert type(count) is int
    assert count == exact[0] == np.count_nonzero(options["mask"])
    assert_close("mean", mean, exact[1], x.dtype, scale=np.sqrt(exact[2]))
    assert_close("var", var, exact[2], x.dtype)
    rstd = 1 / np.sqrt(var + 1e-5)
    sums = normnumba.batch_norm_backward_sums(dy, x, mean, rstd, **options)
    dx = normnumba.batch_norm_backward_apply(dy, x, mean, rstd, weight, *sums, count, **options)
    whole = normnumba.batch_norm_backward(dy, x, mean, rstd, weight, **options)
    assert_identical([dx], whole[:1])
    expected = reference.batch_norm_backward(dy, x, mean, rstd, weight, **options)
    assert_close("dx", dx, expected[0], x.dtype, scale=np.max(rstd) * np.max(np.abs(weight)))


@pytest.mark.parametrize("block", [1, 7, 40, 100])
@pytest.mark.parametrize("geometry", MASKED, ids=str)
def test_a_mask_is_taken_block_by_block(geometry, block, rng, monkeypatch):
    """Every kind of block: samples, channels of a sample, parts of a channel; rows; some of them counted throughout."""
    forward = fused(BATCH[0], geometry, "float32", rng, "silu", residual=True)
    forward["mask"] = mask_of(geometry, rng)
    forward["mask"][:2], forward["mask"][-2:] = True, False
    y, mean, rstd = BATCH[0](normnumba, forward)
    backward = {**forward, "dy": np.cos(y), "mean": mean, "rstd": rstd}
    whole = BATCH[1](normnumba, backward)
    monkeypatch.setattr(masks, "BLOCK", block)
    check(BATCH[0], forward)
    for out in (None, "dy", "x"):
        inputs = {**backward, "dy": backward["dy"].copy(), "x": backward["x"].copy()}
        got = BATCH[1](normnumba, {**inputs, "out": inputs.get(out)})
        assert_matches(BATCH[1], backward, got, note=f"out={out}")
        for name, a, e in zip(BATCH[1].outputs, got, whole, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("geometry", [Geometry((2, 3, 257, 259), 1), Geometry((50021, 5), 1)], ids=str)
def test_threads_do_not_change_masked_bits(geometry, rng, monkeypatch):
    forward = {**arguments_of(BATCH[0], geometry, "float32", rng), "mask": mask_of(geometry, rng)}
    results = []
    for parallel_from in (0, 1 << 62):
        monkeypatch.setattr(launching, "PARALLEL_FROM", parallel_from)
        y, mean, rstd = BATCH[0](normnumba, forward)
        backward = {**forward, "dy": np.cos(y), "mean": mean, "rstd": rstd}
        results.append([y, mean, rstd, *BATCH[1](normnumba, backward)[:3]])
    assert_identical(*results)


def test_an_infinity_that_counts_stays_one(rng, monkeypatch):
    x = rng.standard_normal((40, 5)).astype(np.float32)
    x[3, 1], x[32, 2], x[4, 3], x[31, 3] = np.inf, -np.inf, np.inf, -np.inf
    for block in (10, 1000):
        monkeypatch.setattr(masks, "BLOCK", block)
        _, mean, var = normnumba.batch_moments(x, mask=np.arange(40) % 5 > 0)
        assert np.isfinite([mean[::4], var[::4]]).all()
        np.testing.assert_array_equal(mean[1:4], [np.inf, -np.inf, np.nan])
        assert np.isnan(var[1:4]).all()


def test_masks_broadcast_and_a_full_one_changes_nothing(rng):
    x = rng.standard_normal((6, 5, 4, 7)).astype(np.float32)
    narrow = rng.random((6, 1, 1)) < 0.5
    narrow[:2] = True
    wide = np.broadcast_to(narrow, (6, 4, 7)).copy()
    assert_identical(normnumba.batch_norm_forward(x, mask=narrow), normnumba.batch_norm_forward(x, mask=wide))
    y, mean, rstd = normnumba.batch_norm_forward(x, mask=np.ones(7, bool))
    plain = normnumba.batch_norm_forward(x)
    for name, a, e in zip(("y", "mean", "rstd"), (y, mean, rstd), plain, strict=True):
        assert_close(name, a, e, x.dtype, scale=1.0)


@pytest.mark.parametrize("geometry", MASKED, ids=str)
def test_what_does_not_count_may_be_anything(geometry, rng):
    """Padding is often NaN. It stays where it is in y, and keeps out of everything else of the forward."""
    arguments = {**arguments_of(BATCH[0], geometry, "float32", rng), "mask": mask_of(geometry, rng)}
    clean = BATCH[0](normnumba, arguments)
    inside = np.broadcast_to(np.expand_dims(arguments["mask"], geometry.axes), geometry.shape)
    x = np.where(inside, arguments["x"], np.float32(np.nan))
    y, *statistics = BATCH[0](normnumba, {**arguments, "x": x})
    assert_identical(statistics, clean[1:])
    assert_identical([y[inside]], [clean[0][inside]])
    assert np.isnan(y[~inside]).all()


def test_a_mask_that_counts_nothing(rng):
    x, dy = rng.standard_normal((2, 6, 5, 7)).astype(np.float32)
    running, mask = [np.full(5, 3.0), np.full(5, 4.0)], np.zeros((6, 7), bool)
    y, mean, rstd = normnumba.batch_norm_forward(
        x, mask=mask, running_mean=running[0], running_var=running[1], eps=0.25, momentum=1.0
    )
    assert_identical(running, [np.full(5, 3.0), np.full(5, 4.0)])
    assert not mean.any()
    assert (rstd == 2).all()
    np.testing.assert_array_equal(y, 2 * x)
    dx, *_ = normnumba.batch_norm_backward(dy, x, mean, rstd, mask=mask)
    np.testing.assert_array_equal(dx, 2 * dy)
    count, mean, var = normnumba.batch_moments(x, mask=mask)
    assert (count, mean.tolist(), var.tolist()) == (0, [0] * 5, [0] * 5)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (np.ones((6, 7)), TypeError, "mask must be of dtype bool.*got float64"),
        (np.ones((6, 5), bool), ValueError, r"without its channel axis 1, that is to \(6, 7\), got shape \(6, 5\)"),
        (np.ones((1, 6, 7), bool), ValueError, r"got shape \(1, 6, 7\)"),
        ([[True]], TypeError, "numpy.ndarray"),
    ],
)
def test_masks_that_do_not_fit(mask, error, match, rng):
    x = rng.standard_normal((6, 5, 7)).astype(np.float32)
    one = np.ones(5, np.float32)
    for call in (
        lambda: normnumba.batch_norm_forward(x, mask=mask),
        lambda: normnumba.batch_norm_backward(x, x, one, one, mask=mask),
        lambda: normnumba.batch_moments(x, mask=mask),
        lambda: normnumba.batch_norm_backward_sums(x, x, one, one, mask=mask),
        lambda: normnumba.batch_norm_backward_apply(x, x, one, one, one, one, one, 9, mask=mask),
    ):
        with pytest.raises(error, match=match):
            call()


def test_one_counted_value_is_refused_in_training():
    mask = np.zeros((6, 7), bool)
    mask[2, 3] = True
    with pytest.raises(ValueError, match=r"one value that counts per channel on axis 1.*at least two"):
        normnumba.batch_norm(np.ones((6, 5, 7), np.float32), mask=mask)


def test_masked_positions_are_picked_in_memory_order(rng):
    """Whatever the order of x's axes in memory."""
    x = rng.standard_normal((4, 6, 5, 3)).astype(np.float32)
    mask = rng.random((4, 6, 3)) < 0.5
    for order in itertools.permutations(range(4)):
        moved = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        count, mean, _ = normnumba.batch_moments(moved, channel_axis=2, mask=mask)
        assert count == mask.sum()
        np.testing.assert_allclose(
            mean, x.transpose(0, 1, 3, 2)[mask].mean(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-7
        )
        assert as_channels(moved, 2).positions(mask).sum() == count


# --- a sum -----------------------------------------------------------------------------------------------------------

MIXED = [("float16", "float32"), ("bfloat16", "float32"), ("float16", "bfloat16"), ("float32", "float64")]


def added(kind, other, rng, shape=(37, 300)):
    x, residual = rng.standard_normal(shape).astype(dtype_of(kind)), rng.standard_normal(shape).astype(dtype_of(other))
    weight, bias = rng.standard_normal((2, shape[-1])).astype(np.float32)
    return x, residual, weight, bias


@pytest.mark.parametrize("shape", [(37, 300), (5003, 64)])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("kind", [*WIDE, *HALVES])
def test_a_sum_then_a_norm_gives_the_same_bits(kind, norm, shape, rng):
    """Of many narrow rows, too, which a norm alone takes several at a time."""
    x, residual, weight, _ = added(kind, kind, rng, shape)
    total = x + residual
    y, summed, *statistics = getattr(normnumba, f"add_{norm}_norm_forward")(x, residual, weight)
    assert_identical([summed, y, *statistics], [total, *getattr(normnumba, f"{norm}_norm_forward")(total, weight)])
    dy = y[::-1].copy()
    dx, dresidual, dweight, *_ = getattr(normnumba, f"add_{norm}_norm_backward")(dy, None, summed, *statistics, weight)
    assert dx is dresidual
    plain = getattr(normnumba, f"{norm}_norm_backward")(dy, total, *statistics, weight)
    assert_identical([dx, dweight], plain[:2])


@pytest.mark.parametrize(("kind", "other"), [*MIXED, ("float32", "bfloat16"), ("float64", "float32")])
def test_the_residual_stream_keeps_the_wider_dtype(kind, other, rng):
    x, residual, weight, bias = added(kind, other, rng)
    y, summed, mean, rstd = normnumba.add_layer_norm_forward(x, residual, weight, bias)
    wide = np.dtype(np.float64 if "float64" in (kind, other) else np.float32)
    assert (y.dtype, summed.dtype, mean.dtype, rstd.dtype) == (x.dtype, wide, wide, wide)
    expected = reference.add_layer_norm_forward(x, residual, weight, bias)
    scales = {"y": 4.0, "mean": 1.0}
    for name, a, e in zip(("y", "summed", "mean", "rstd"), (y, summed, mean, rstd), expected, strict=True):
        assert_close(name, a, e, a.dtype if name == "y" else wide, scale=scales.get(name))
    dsummed = rng.standard_normal(x.shape).astype(wide)
    got = normnumba.add_layer_norm_backward(y, dsummed, summed, mean, rstd, weight, bias, x_dtype=x.dtype)
    wanted = reference.add_layer_norm_backward(y, dsummed, summed, mean, rstd, weight, bias)
    assert (got[0].dtype, got[1].dtype) == (x.dtype, wide)
    assert (got[0] is got[1]) == (x.dtype == wide)
    for name, a, e in zip(("dx", "dresidual", "dweight", "dbias"), got, wanted, strict=True):
        assert_close(name, a, e, a.dtype, reduced=37, scale=20.0)


@pytest.mark.parametrize("casting", ["float32", "input"])
def test_a_sum_is_rounded_to_x_before_the_weight(casting, rng):
    x, residual, weight, _ = added("bfloat16", "float32", rng)
    options = {"casting": casting, "weight_offset": 1.0}
    y, summed, rstd = normnumba.add_rms_norm_forward(x, residual, weight, **options)
    expected = reference.add_rms_norm_forward(x, residual, weight, **options)
    assert_close("y", y, expected[0], x.dtype, scale=4.0 if casting == "float32" else 2.0**14)
    got = normnumba.add_rms_norm_backward(y, None, summed, rstd, weight, **options, x_dtype=x.dtype)
    wanted = reference.add_rms_norm_backward(y, None, summed, rstd, weight, **options, x_dtype=x.dtype)
    assert_close("dresidual", got[1], wanted[1], np.float32, scale=10.0)
    y2, *_ = normnumba.add_rms_norm_forward(x, residual, weight, **{**options, "casting": "float32"})
    assert np.array_equal(y, y2) == (casting == "float32")


@pytest.mark.parametrize("op", ADD, ids=lambda op: op.name)
def test_sums_in_any_layout(op, rng):
    arguments = arguments_of(op, Geometry((4, 6, 10), -1), "float32", rng)
    for layout in (np.asfortranarray, lambda a: np.stack([a, a], -1)[..., 0]):
        check(op, {k: layout(v) if np.ndim(v) == 3 else v for k, v in arguments.items()})


@pytest.mark.parametrize("mask", list(itertools.product((True, False), repeat=4)), ids=str)
def test_output_mask_of_a_sum_that_is_wider(mask, rng):
    x, residual, weight, bias = added("float16", "float32", rng)
    y, summed, mean, rstd = normnumba.add_layer_norm_forward(x, residual, weight, bias)
    call = (y, summed, summed, mean, rstd, weight, bias)
    everything = normnumba.add_layer_norm_backward(*call, x_dtype=x.dtype)
    got = normnumba.add_layer_norm_backward(*call, x_dtype=x.dtype, output_mask=mask)
    assert_identical(got, [a if wanted else None for a, wanted in zip(everything, mask, strict=True)])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_sums_of_nothing(shape):
    x = np.empty(shape, np.float16)
    wide = x.astype(np.float32)
    y, summed, mean, rstd = normnumba.add_layer_norm_forward(x, wide, eps=0.25)
    assert (y.shape, summed.shape, mean.shape) == (shape, shape, shape[:1])
    assert (y.dtype, summed.dtype) == (x.dtype, wide.dtype)
    assert (rstd == 2).all()
    dx, dresidual, dweight, dbias = normnumba.add_layer_norm_backward(y, None, summed, mean, rstd, x_dtype=x.dtype)
    assert (dx.shape, dresidual.shape, dweight.tolist(), dbias.tolist()) == (
        shape,
        shape,
        [0] * shape[1],
        [0] * shape[1],
    )


def test_sums_that_do_not_fit(rng):
    x, residual, weight, _ = added("float16", "float32", rng, (3, 8))
    y, summed, mean, rstd = normnumba.add_layer_norm_forward(x, residual)
    with pytest.raises(ValueError, match=r"residual must have x's shape \(3, 8\), got \(3, 7\)"):
        normnumba.add_layer_norm_forward(x, residual[:, :7])
    with pytest.raises(TypeError, match=r"must have one of the dtypes.*int32"):
        normnumba.add_rms_norm_forward(x, residual.astype(np.int32))
    with pytest.raises(TypeError, match="dy must have x's dtype, or else x_dtype must be given: float32, got float16"):
        normnumba.add_layer_norm_backward(y, None, summed, mean, rstd)
    with pytest.raises(TypeError, match="dsummed must have summed's dtype float32, got float16"):
        normnumba.add_layer_norm_backward(y, y, summed, mean, rstd, x_dtype=x.dtype)
    with pytest.raises(ValueError, match="out shares memory"):
        normnumba.add_layer_norm_forward(residual, residual.copy(), out=residual[:, ::-1])
    with pytest.raises(ValueError, match="weight must have shape"):
        normnumba.add_rms_norm_forward(x, residual, weight[:3])
    with pytest.raises(ValueError, match="x_dtype must be that of x, no wider than summed's float32, got float64"):
        normnumba.add_layer_norm_backward(y.astype(np.float64), None, summed, mean, rstd, x_dtype=np.float64)
    with pytest.raises(TypeError, match="residual must be an ndarray like x, got None"):
        normnumba.add_layer_norm_forward(x, None)


# --- folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", list(itertools.product((True, False), repeat=3)), ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((4, 6), -1), ((6, 4, 3, 3), 0), ((4, 6, 3), 1)])
def test_folding_is_the_network_that_was_not_folded(shape, axis, parameters, rng):
    weight, (mean, bias, bn_weight, bn_bias) = rng.standard_normal(shape), rng.standard_normal((4, 6))
    var = rng.uniform(0.1, 3, 6)
    bias, bn_weight, bn_bias = (
        p if wanted else None for p, wanted in zip((bias, bn_weight, bn_bias), parameters, strict=True)
    )
    folded, shift = normnumba.fold_batch_norm(weight, bias, mean, var, bn_weight, bn_bias, eps=1e-3, axis=axis)
    x = rng.standard_normal((5, *np.delete(shape, axis % len(shape))))

    def linear(w):
        """Every output channel is a sum over all the inputs: a linear layer, or one position of a convolution."""
        return np.moveaxis(w, axis, 0).reshape(6, -1) @ x.reshape(5, -1).T

    before = linear(weight).T + (0 if bias is None else bias)
    after = normnumba.batch_norm_inference(before, mean, var, bn_weight, bn_bias, eps=1e-3)
    np.testing.assert_allclose(linear(folded).T + shift, after, rtol=1e-12, atol=1e-12)


def test_folding_keeps_dtypes_and_its_arguments(rng):
    weight, bias = rng.standard_normal((6, 4)).astype(np.float16), rng.standard_normal(6).astype(np.float32)
    before = weight.copy()
    folded, shift = normnumba.fold_batch_norm(weight, bias, np.zeros(6), np.ones(6), np.full(6, 2))
    assert (folded.dtype, shift.dtype) == (np.float16, np.float32)
    assert normnumba.fold_batch_norm(weight, None, np.zeros(6), np.ones(6))[1].dtype == np.float16
    np.testing.assert_array_equal(weight, before)


def test_folding_refuses_what_does_not_fit():
    weight, one = np.ones((6, 4), np.float32), np.ones(6, np.float32)
    for name in ("bias", "mean", "var", "bn_weight", "bn_bias"):
        arguments = {"bias": one, "mean": one, "var": one, "bn_weight": one, "bn_bias": one, name: one[:5]}
        with pytest.raises(ValueError, match=rf"{name} must have shape \(6,\).*got \(5,\)"):
            normnumba.fold_batch_norm(weight, **arguments)
    with pytest.raises(ValueError, match=r"axis=2 is not an axis of an array of shape \(6, 4\)"):
        normnumba.fold_batch_norm(weight, one, one, one, axis=2)
    with pytest.raises(TypeError, match=r"weight must have one of the dtypes.*got int64"):
        normnumba.fold_batch_norm(np.ones((6, 4), np.int64), None, one, one)
