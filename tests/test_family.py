"""What only some of the norms have: halves, castings and offset of RMS norm, groups, strips."""

import ml_dtypes
import numpy as np
import pytest

import normnumba
from benchmarks.cases import Geometry, dtype_of
from normnumba import reference
from normnumba.views import as_rows
from tests.helpers import BY_NAME, arguments_of, assert_identical, check

HALVES = ("float16", "bfloat16")
RMS = (BY_NAME["rms_norm_forward"], BY_NAME["rms_norm_backward"])
GROUP = (BY_NAME["group_norm_forward"], BY_NAME["group_norm_backward"])


# --- halves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["layer_norm", "batch_norm"])
def test_float16_near_its_largest_value_does_not_overflow(family, rng):
    x = (rng.choice([-6e4, 6e4], (8, 300)) * rng.uniform(0.9, 1, (8, 300))).astype(np.float16)
    y, _, _ = check(BY_NAME[f"{family}_forward"], {"x": x})
    assert np.isfinite(y).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_rounded_to_even_and_keep_nan_and_inf(dtype):
    kind = dtype_of(dtype)
    every = np.arange(1 << 16, dtype=np.uint16).view(kind)
    x = every[np.isfinite(every.astype(np.float32))]
    y = normnumba.batch_norm_inference(x[:, None], np.zeros(1), np.ones(1), np.array([1 / 3]), eps=0.0)[:, 0]
    expected = (x.astype(np.float32) * np.float32(1 / 3)).astype(kind)
    assert_identical([y + kind.type(0)], [expected + kind.type(0)], "every value, times a third")
    special = np.array([[np.nan], [np.inf], [-np.inf]]).astype(kind)
    y = normnumba.batch_norm_inference(special, np.zeros(1), np.ones(1), eps=0.0)
    np.testing.assert_array_equal(y.astype(np.float32), special.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_have_float32_statistics_and_the_parameters_own_gradients(dtype, rng):
    kind = dtype_of(dtype)
    forward = arguments_of(BY_NAME["layer_norm_forward"], Geometry((5, 40), -1), dtype, rng)
    forward |= {name: forward[name].astype(kind) for name in ("weight", "bias")}
    y, mean, rstd = check(BY_NAME["layer_norm_forward"], forward)
    assert (y.dtype, mean.dtype, rstd.dtype) == (kind, np.float32, np.float32)
    backward = {"dy": y, "x": forward["x"], "mean": mean, "rstd": rstd, "weight": forward["weight"]}
    dx, dweight, dbias = check(BY_NAME["layer_norm_backward"], backward)
    assert (dx.dtype, dweight.dtype, dbias.dtype) == (kind, kind, np.float32)


# --- RMS norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("casting", ["float32", "input"])
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("op", RMS, ids=lambda op: op.name)
def test_rms_casting_and_offset(op, dtype, casting, offset, rng):
    arguments = arguments_of(op, Geometry((40, 129), -1), dtype, rng)
    arguments |= {"casting": casting, "weight_offset": offset}
    if casting == "float32" or dtype == "float32":
        check(op, arguments)
        return
    # An xhat within float32's rounding of a tie may go either way: then y is a whole step off, and seldom.
    for a, e in zip(op(normnumba, arguments), op(reference, arguments), strict=True):
        step = float(ml_dtypes.finfo(dtype_of(dtype)).eps) * (np.abs(e) + np.abs(e).mean())
        off = np.abs(a.astype(np.float64) - e) / step
        assert off.max() < 1.5
        assert np.mean(off > 0.51) < 0.01


@pytest.mark.parametrize("dtype", HALVES)
def test_rms_castings_differ_for_halves_alone(dtype, rng):
    for kind, same in ((dtype, False), ("float32", True)):
        arguments = arguments_of(RMS[0], Geometry((64, 100), -1), kind, rng)
        late, early = (normnumba.rms_norm(**arguments, casting=casting) for casting in ("float32", "input"))
        assert np.array_equal(late, early) == same


def test_rms_of_a_missing_weight_has_no_offset(rng):
    x = rng.standard_normal((3, 8))
    np.testing.assert_array_equal(normnumba.rms_norm(x, weight_offset=1.0), normnumba.rms_norm(x))


@pytest.mark.parametrize("name", ["rms_norm_forward", "rms_norm_backward"])
def test_rms_refuses_an_unknown_casting(name, rng):
    arguments = arguments_of(BY_NAME[name], Geometry((3, 8), -1), "float32", rng)
    with pytest.raises(ValueError, match="casting must be 'float32' or 'input', got 'half'"):
        getattr(normnumba, name)(**arguments, casting="half")


# --- strips: layer norm over axes that are not the last --------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "in_place"),
    [
        ((3, 5, 7, 9), 1, True),
        ((300, 33), 0, True),
        ((2, 3, 4, 5, 6), (1, 2), True),
        ((2, 3, 4, 5, 6), (1, 3), False),
        ((3, 5, 2, 7), 1, False),
    ],
)
def test_what_lies_before_wide_axes_is_normalized_in_place(shape, axis, in_place, rng):
    x = rng.standard_normal(shape)
    view = as_rows(x, axis)
    assert view.strips == in_place
    assert np.shares_memory(view.enter(x), x) == in_place


def test_reversed_rows_are_rows(rng):
    x = rng.standard_normal((40, 100)).astype(np.float32)
    assert_identical([normnumba.layer_norm(x[::-1])], [normnumba.layer_norm(x)[::-1].copy()])


def test_nan_stays_in_its_column(rng):
    x = rng.standard_normal((5, 9, 40)).astype(np.float32)
    clean = normnumba.layer_norm(x, axis=1)
    x[2, 4, 17] = np.nan
    y = normnumba.layer_norm(x, axis=1)
    assert np.isnan(y[2, :, 17]).all()
    y[2, :, 17] = clean[2, :, 17]
    assert_identical([y], [clean])


# --- group norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("op", GROUP, ids=lambda op: op.name)
def test_any_number_of_groups(op, groups, axis, rng):
    geometry = Geometry((3, 12, 5, 7) if axis == 1 else (3, 5, 7, 12), axis)
    forward = {**arguments_of(GROUP[0], geometry, "float32", rng), "num_groups": groups}
    _, mean, rstd = check(GROUP[0], forward)
    assert mean.shape == (3, groups)
    if op is GROUP[1]:
        check(op, {**forward, "dy": forward["x"][::-1].copy(), "mean": mean, "rstd": rstd})


@pytest.mark.parametrize("axis", [1, -1])
def test_group_norm_of_a_large_mean(axis, rng):
    shape = (2, 6, 400) if axis == 1 else (2, 400, 6)
    x = (rng.standard_normal(shape) * 1e-2 + 1e4).astype(np.float32)
    _, mean, rstd = check(GROUP[0], {"x": x, "num_groups": 2, "channel_axis": axis, "eps": 1e-12})
    dy = rng.standard_normal(shape).astype(np.float32)
    check(GROUP[1], {"dy": dy, "x": x, "num_groups": 2, "channel_axis": axis, "mean": mean, "rstd": rstd})


@pytest.mark.parametrize("axis", [1, -1])
def test_a_sample_alone_is_the_sample_in_a_batch(axis, rng):
    x = rng.standard_normal((9, 8, 50, 30) if axis == 1 else (9, 50, 30, 8), dtype=np.float32)
    together = normnumba.group_norm(x, 4, channel_axis=axis)
    alone = normnumba.group_norm(x[3:4], 4, channel_axis=axis)
    assert_identical([alone], [together[3:4].copy()])


@pytest.mark.parametrize(
    ("shape", "groups", "axis", "error", "match"),
    [
        ((2, 6, 4), 4, 1, ValueError, r"num_groups must divide the 6 channels.*\(2, 6, 4\), got 4"),
        ((2, 6, 4), 0, 1, ValueError, "got 0"),
        ((2, 6, 4), 2.0, 1, TypeError, "num_groups must be an int, got 2.0"),
        ((2, 6, 4), None, 1, TypeError, "num_groups must be an int, got None"),
        ((2, 6, 4), 2, 0, ValueError, "channel_axis=0 is that of the samples"),
        ((6,), 2, 0, ValueError, r"got shape \(6,\)"),
    ],
)
def test_group_norm_refuses(shape, groups, axis, error, match):
    with pytest.raises(error, match=match):
        normnumba.group_norm(np.ones(shape, np.float32), groups, channel_axis=axis)
