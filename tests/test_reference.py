"""The reference against finite differences, hand-made values and torch; the tolerances against wrong kernels."""

import ml_dtypes
import numpy as np
import pytest

from normnumba import reference
from tests.tolerances import assert_close

LAYER = [
    pytest.param((7,), 0, id="rank1"),
    pytest.param((3, 5), -1, id="last"),
    pytest.param((3, 5), 0, id="first"),
    pytest.param((2, 3, 4), (1, 2), id="trailing"),
    pytest.param((2, 3, 4), (0, 2), id="split"),
    pytest.param((2, 3, 4), (-1, 0), id="unordered"),
    pytest.param((2, 3, 4), 1, id="middle"),
    pytest.param((2, 3), (0, 1), id="all"),
]
BATCH = [
    pytest.param((6, 3), 1, id="NC"),
    pytest.param((4, 3, 5), 1, id="NCL"),
    pytest.param((3, 2, 4, 3), 1, id="NCHW"),
    pytest.param((3, 2, 4, 3), -1, id="NHWC"),
    pytest.param((3, 5), 0, id="CN"),
]
GROUP = [
    pytest.param((2, 6), 1, 3, id="NC"),
    pytest.param((2, 6, 3), 1, 2, id="NCL"),
    pytest.param((2, 3, 2, 4), -1, 2, id="NHWC"),
    pytest.param((2, 3, 4, 2), 2, 4, id="one channel each"),
]
ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]


def slope(f, a, step=1e-5):
    """The gradient of the scalar f() with respect to the array `a`, by changing one element of `a` at a time."""
    gradient = np.empty_like(a)
    for i in np.ndindex(a.shape):
        old = a[i]
        a[i] = old + step
        above = f()
        a[i] = old - step
        gradient[i] = (above - f()) / (2 * step)
        a[i] = old
    return gradient


def assert_slopes(f, inputs, gradients):
    for a, gradient in zip(inputs, gradients, strict=True):
        assert gradient.shape == a.shape
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(gradient, slope(f, a), rtol=1e-7, atol=1e-8)


def draw(rng, *shapes):
    return [rng.standard_normal(shape) * 1.5 + 0.5 for shape in shapes]


def past_kinks(dy, z):
    """`dy` without the elements that relu's kink is too close to for a difference to be a slope."""
    return np.where(np.abs(z) < 1e-3, 0.0, dy)


def normalized_shape(shape, axis):
    axes = sorted(a % len(shape) for a in np.atleast_1d(axis))
    return tuple(shape[a] for a in axes)


# --- layer norm ------------------------------------------------------------------------------------------------------


def test_layer_norm_of_known_rows():
    x = np.array([[1, 2, 3, 6], [5, 5, 5, 5]], dtype=np.float32)
    y, mean, rstd = reference.layer_norm_forward(x, eps=0.5)
    assert y.dtype == mean.dtype == rstd.dtype == np.float64
    np.testing.assert_allclose(mean, [3, 5], rtol=1e-15)
    np.testing.assert_allclose(rstd, [0.5, 2**0.5], rtol=1e-15)
    np.testing.assert_allclose(y, [[-1, -0.5, 0, 1.5], [0, 0, 0, 0]], rtol=1e-15)


def test_layer_norm_parameters_follow_increasing_axes(rng):
    x, weight, bias = draw(rng, (2, 3, 4), (2, 4), (2, 4))
    y, mean, rstd = reference.layer_norm_forward(x, weight, bias, axis=(2, 0))
    one = x[:, 1, :]
    expected = (one - one.mean()) / np.sqrt(one.var() + 1e-5) * weight + bias
    np.testing.assert_allclose(y[:, 1, :], expected, rtol=1e-12)
    assert mean.shape == rstd.shape == (3,)
    np.testing.assert_array_equal(reference.layer_norm(x, weight, bias, axis=(2, 0)), y)


@pytest.mark.parametrize(("shape", "axis"), LAYER)
def test_layer_norm_gradients_are_slopes(shape, axis, rng):
    x, dy, weight, bias = draw(rng, shape, shape, normalized_shape(shape, axis), normalized_shape(shape, axis))
    _, mean, rstd = reference.layer_norm_forward(x, weight, bias, axis=axis, eps=1e-2)
    assert mean.ndim == len(shape) - np.size(axis)
    gradients = reference.layer_norm_backward(dy, x, mean, rstd, weight, bias, axis=axis)
    assert_slopes(
        lambda: np.sum(dy * reference.layer_norm(x, weight, bias, axis=axis, eps=1e-2)), (x, weight, bias), gradients
    )


def test_layer_norm_gradients_of_implicit_parameters(rng):
    x, dy = draw(rng, (3, 5), (3, 5))
    _, mean, rstd = reference.layer_norm_forward(x)
    implicit = reference.layer_norm_backward(dy, x, mean, rstd)
    explicit = reference.layer_norm_backward(dy, x, mean, rstd, np.ones(5), np.zeros(5))
    for one, other in zip(implicit, explicit, strict=True):
        np.testing.assert_array_equal(one, other)
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, mean, rstd, output_mask=(False, True, False))
    assert dx is None
    assert dbias is None
    np.testing.assert_array_equal(dweight, implicit[1])


def test_backward_does_not_inherit_a_coarse_mean(rng):
    x, dy = rng.standard_normal((64, 32)) * 1e-2 + 1e4, rng.standard_normal((64, 32))
    _, mean, rstd = reference.layer_norm_forward(x)
    coarse = mean.astype(np.float32)
    assert np.max(np.abs(coarse - mean) * rstd) > 1e-3
    for exact, given in zip(
        reference.layer_norm_backward(dy, x, mean, rstd),
        reference.layer_norm_backward(dy, x, coarse, rstd),
        strict=True,
    ):
        np.testing.assert_array_equal(exact, given)
    _, mean, rstd = reference.batch_norm_forward(x)
    exact = reference.batch_norm_backward(dy, x, mean, rstd)
    given = reference.batch_norm_backward(dy, x, mean.astype(np.float32), rstd)
    np.testing.assert_array_equal(exact[0], given[0])
    np.testing.assert_array_equal(exact[1], given[1])


# --- batch norm ------------------------------------------------------------------------------------------------------


def test_batch_norm_of_known_channels_and_running_statistics():
    x = np.array([[1, 0], [2, 4], [3, 0], [6, 4]], dtype=np.float32)
    running_mean, running_var = np.array([1, 2], np.float32), np.array([1, 1], np.float32)
    running = {"running_mean": running_mean, "running_var": running_var, "momentum": 0.25}
    y, mean, rstd = reference.batch_norm_forward(x, [2, 1], [0, 1], **running, eps=0.5)
    np.testing.assert_allclose(mean, [3, 2], rtol=1e-15)
    np.testing.assert_allclose(rstd, [0.5, 4.5**-0.5], rtol=1e-15)
    np.testing.assert_allclose(y[:, 0], [-2, -1, 0, 3], rtol=1e-15)
    np.testing.assert_allclose(y[:, 1], 1 + np.array([-2, 2, -2, 2]) * 4.5**-0.5, rtol=1e-14)
    np.testing.assert_allclose(running_mean, [1.5, 2], rtol=1e-7)
    np.testing.assert_allclose(running_var, [0.75 + 0.25 * 14 / 3, 0.75 + 0.25 * 16 / 3], rtol=1e-7)

    again = np.array([1, 2], np.float32), np.array([1, 1], np.float32)
    same = reference.batch_norm(x, [2, 1], [0, 1], running_mean=again[0], running_var=again[1], momentum=0.25, eps=0.5)
    np.testing.assert_array_equal(same, y)
    np.testing.assert_array_equal(again, (running_mean, running_var))


def test_empty_batch():
    running_mean, running_var = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    x = np.empty((0, 2, 3))
    y, mean, rstd = reference.batch_norm_forward(x, running_mean=running_mean, running_var=running_var, eps=0.25)
    assert y.shape == x.shape
    assert (mean.tolist(), rstd.tolist()) == ([0, 0], [2, 2])
    assert (running_mean.tolist(), running_var.tolist()) == ([1, 2], [3, 4])
    count, mean, var = reference.batch_moments(x)
    assert (count, mean.tolist(), var.tolist()) == (0, [0, 0], [0, 0])
    dx, dweight, dbias, dresidual = reference.batch_norm_backward(x, x, mean, rstd)
    assert (dx.shape, dweight.tolist(), dbias.tolist(), dresidual) == (x.shape, [0, 0], [0, 0], None)
    assert reference.batch_norm_backward_apply(x, x, mean, rstd, None, mean, mean, 0).shape == x.shape


def test_empty_rows():
    y, mean, rstd = reference.layer_norm_forward(np.empty((2, 0)), eps=0.25)
    assert (y.shape, mean.tolist(), rstd.tolist()) == ((2, 0), [0, 0], [2, 2])
    y, mean, rstd = reference.layer_norm_forward(np.empty((0, 3)))
    assert (y.shape, mean.shape, rstd.shape) == ((0, 3), (0,), (0,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("shape", "channel_axis"), BATCH)
def test_batch_norm_gradients_are_slopes(shape, channel_axis, added, activation, rng):
    channels = (shape[channel_axis],)
    x, dy, weight, bias, residual = draw(rng, shape, shape, channels, channels, shape)
    options = {"channel_axis": channel_axis, "residual": residual if added else None}
    z, mean, rstd = reference.batch_norm_forward(x, weight, bias, eps=1e-2, **options)
    dy, options["activation"] = past_kinks(dy, z), activation
    gradients = reference.batch_norm_backward(dy, x, mean, rstd, weight, bias, **options)
    assert (gradients[3] is not None) == added
    assert_slopes(
        lambda: np.sum(dy * reference.batch_norm(x, weight, bias, eps=1e-2, **options)),
        (x, weight, bias, residual)[: 3 + added],
        gradients[: 3 + added],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("shape", "channel_axis"), BATCH)
def test_inference_gradients_are_slopes(shape, channel_axis, added, activation, rng):
    channels = (shape[channel_axis],)
    x, dy, weight, bias, mean, var, residual = draw(rng, shape, shape, *[channels] * 4, shape)
    given = {"mean": mean, "var": np.abs(var) + 0.1, "channel_axis": channel_axis, "eps": 1e-2}
    given["residual"] = residual if added else None
    dy = past_kinks(dy, reference.batch_norm_inference(x, weight=weight, bias=bias, **given))
    given["activation"] = activation
    gradients = reference.batch_norm_inference_backward(dy, x, weight=weight, bias=bias, **given)
    assert (gradients[3] is not None) == added
    assert_slopes(
        lambda: np.sum(dy * reference.batch_norm_inference(x, weight=weight, bias=bias, **given)),
        (x, weight, bias, residual)[: 3 + added],
        gradients[: 3 + added],
    )


def test_inference_with_the_batch_statistics_is_training(rng):
    x, weight, bias = draw(rng, (4, 3, 5), 3, 3)
    _, mean, var = reference.batch_moments(x)
    inferred = reference.batch_norm_inference(x, mean, var, weight, bias, eps=1e-3)
    np.testing.assert_allclose(inferred, reference.batch_norm(x, weight, bias, eps=1e-3), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backward", ["batch_norm_backward", "batch_norm_inference_backward"])
def test_batch_norm_output_mask(backward, rng):
    x, dy = draw(rng, (4, 3), (4, 3))
    f = getattr(reference, backward)
    everything = f(dy, x, np.zeros(3), np.ones(3))
    dx, dweight, dbias, dresidual = f(dy, x, np.zeros(3), np.ones(3), output_mask=(True, False, True, False))
    assert dweight is None
    assert dresidual is None
    np.testing.assert_array_equal(dx, everything[0])
    np.testing.assert_array_equal(dbias, everything[2])


def test_moments_of_known_channels():
    count, mean, var = reference.batch_moments(np.array([[[1, 2], [10, 10]], [[3, 6], [10, 10]]], dtype=np.float16))
    assert type(count) is int
    assert (count, mean.tolist(), var.tolist()) == (4, [3, 10], [3.5, 0])


@pytest.mark.parametrize("weighted", [True, False])
def test_sums_and_apply_over_two_halves_are_the_whole_backward(weighted, rng):
    x, dy, weight = draw(rng, (6, 4, 3), (6, 4, 3), 3)
    weight, options = weight if weighted else None, {"channel_axis": -1}
    count, mean, var = reference.batch_moments(x, **options)
    rstd = 1 / np.sqrt(var + 1e-5)
    dx, dweight, dbias, _ = reference.batch_norm_backward(dy, x, mean, rstd, weight, **options)

    halves = [(dy[:2], x[:2]), (dy[2:], x[2:])]
    sums = [reference.batch_norm_backward_sums(*half, mean, rstd, **options) for half in halves]
    sum_dy, sum_dy_xhat = (one + other for one, other in zip(*sums, strict=True))
    applied = [
        reference.batch_norm_backward_apply(*half, mean, rstd, weight, sum_dy, sum_dy_xhat, count, **options)
        for half in halves
    ]
    np.testing.assert_allclose(np.concatenate(applied), dx, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(sum_dy, dbias, rtol=1e-12)
    np.testing.assert_allclose(sum_dy_xhat, dweight, rtol=1e-12)


def test_sums_use_the_given_mean():
    dy, x = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])
    sum_dy, sum_dy_xhat = reference.batch_norm_backward_sums(dy, x, [2.0], [0.5])
    assert (sum_dy.tolist(), sum_dy_xhat.tolist()) == ([3.0], [3.5])


def test_statistics_survive_a_large_mean(rng):
    deviations = rng.integers(-500, 500, (4096, 2)) / 4.0
    _, mean, var = reference.batch_moments(deviations + 2.0**40)
    np.testing.assert_allclose(var, np.var(deviations, axis=0), rtol=1e-14)
    np.testing.assert_allclose(mean - 2.0**40, np.mean(deviations, axis=0), atol=2.0**-12)


# --- masks -----------------------------------------------------------------------------------------------------------

MASKED = [
    pytest.param((6, 3), 1, (6,), id="rows"),
    pytest.param((4, 3, 5), 1, (4, 5), id="every position"),
    pytest.param((4, 3, 5), 1, (5,), id="broadcast"),
    pytest.param((3, 4, 5, 2), -1, (3, 1, 5), id="channels last"),
    pytest.param((3, 7), 0, (7,), id="CN"),
]


def masked(rng, shape, channel_axis, mask_shape):
    """x, a mask that lets some positions count, and these positions alone as (count, C)."""
    (x,) = draw(rng, shape)
    mask = rng.permutation(np.arange(np.prod(mask_shape)) % 3 > 0).reshape(mask_shape)
    last = np.moveaxis(x, channel_axis, -1)
    return x, mask, last[np.broadcast_to(mask, last.shape[:-1])]


@pytest.mark.parametrize(("shape", "channel_axis", "mask_shape"), MASKED)
def test_masked_statistics_are_those_of_the_counted_positions(shape, channel_axis, mask_shape, rng):
    x, mask, selected = masked(rng, shape, channel_axis, mask_shape)
    options = {"channel_axis": channel_axis, "mask": mask}
    channels = selected.shape[1]
    weight, bias = draw(rng, channels, channels)
    running, expected = ([np.zeros(channels), np.ones(channels)] for _ in range(2))
    y, mean, rstd = reference.batch_norm_forward(
        x, weight, bias, running_mean=running[0], running_var=running[1], momentum=0.3, **options
    )
    _, *statistics = reference.batch_norm_forward(
        selected, running_mean=expected[0], running_var=expected[1], momentum=0.3
    )
    np.testing.assert_allclose([mean, rstd, *running], [*statistics, *expected], rtol=1e-13, atol=1e-15)
    count, mean, var = reference.batch_moments(x, **options)
    assert count == len(selected)
    np.testing.assert_allclose([mean, var], reference.batch_moments(selected)[1:], rtol=1e-13, atol=1e-15)
    inferred = reference.batch_norm_inference(x, mean, var, weight, bias, channel_axis=channel_axis)
    np.testing.assert_allclose(y, inferred, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(reference.batch_norm(x, weight, bias, **options), y)


@pytest.mark.parametrize(("shape", "channel_axis", "mask_shape"), MASKED)
def test_what_does_not_count_does_not_reach_the_statistics(shape, channel_axis, mask_shape, rng):
    x, mask, _ = masked(rng, shape, channel_axis, mask_shape)
    options = {"channel_axis": channel_axis, "mask": mask}
    counted = np.expand_dims(np.broadcast_to(mask, np.delete(shape, channel_axis)), channel_axis)
    y, *statistics = reference.batch_norm_forward(x, **options)
    poisoned = reference.batch_norm_forward(np.where(counted, x, np.nan), **options)
    np.testing.assert_array_equal(poisoned[0], np.where(counted, y, np.nan))
    np.testing.assert_array_equal(poisoned[1:], statistics)
    moments = reference.batch_moments(np.where(counted, x, np.inf), **options)
    np.testing.assert_array_equal(moments[1:], reference.batch_moments(x, **options)[1:])


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize(("shape", "channel_axis", "mask_shape"), MASKED)
def test_masked_gradients_are_slopes(shape, channel_axis, mask_shape, activation, rng):
    x, mask, selected = masked(rng, shape, channel_axis, mask_shape)
    channels = (selected.shape[1],)
    dy, weight, bias, residual = draw(rng, shape, channels, channels, shape)
    options = {"channel_axis": channel_axis, "mask": mask, "residual": residual}
    z, mean, rstd = reference.batch_norm_forward(x, weight, bias, eps=1e-2, **options)
    dy, options["activation"] = past_kinks(dy, z), activation
    gradients = reference.batch_norm_backward(dy, x, mean, rstd, weight, bias, **options)
    assert_slopes(
        lambda: np.sum(dy * reference.batch_norm(x, weight, bias, eps=1e-2, **options)),
        (x, weight, bias, residual),
        gradients,
    )


@pytest.mark.parametrize(("shape", "channel_axis", "mask_shape"), MASKED)
def test_masked_sums_and_apply_are_the_masked_backward(shape, channel_axis, mask_shape, rng):
    x, mask, selected = masked(rng, shape, channel_axis, mask_shape)
    dy, weight = draw(rng, shape, selected.shape[1])
    options = {"channel_axis": channel_axis, "mask": mask}
    count, mean, var = reference.batch_moments(x, **options)
    rstd = 1 / np.sqrt(var + 1e-5)
    dx, dweight, dbias, _ = reference.batch_norm_backward(dy, x, mean, rstd, weight, **options)
    sums = reference.batch_norm_backward_sums(dy, x, mean, rstd, **options)
    np.testing.assert_allclose(sums, (dbias, dweight), rtol=1e-12, atol=1e-13)
    applied = reference.batch_norm_backward_apply(dy, x, mean, rstd, weight, *sums, count, **options)
    np.testing.assert_allclose(applied, dx, rtol=1e-11, atol=1e-13)


def test_a_mask_that_counts_nothing(rng):
    x, dy = draw(rng, (4, 2), (4, 2))
    mask, running = np.zeros(4, bool), np.array([[1.0, 2.0], [3.0, 4.0]])
    y, mean, rstd = reference.batch_norm_forward(
        x, running_mean=running[0], running_var=running[1], eps=0.25, mask=mask
    )
    assert (mean.tolist(), rstd.tolist(), running.tolist()) == ([0, 0], [2, 2], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(y, 2 * x)
    count, mean, var = reference.batch_moments(x, mask=mask)
    assert (count, mean.tolist(), var.tolist()) == (0, [0, 0], [0, 0])
    dx, dweight, dbias, _ = reference.batch_norm_backward(dy, x, mean, rstd, mask=mask)
    np.testing.assert_array_equal(dx, 2 * dy)
    applied = reference.batch_norm_backward_apply(dy, x, mean, rstd, None, dbias, dweight, 0, mask=mask)
    np.testing.assert_array_equal(applied, dx)


# --- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "z", "expected"),
    [
        ("relu", [-2, 0, 3], [0, 0, 3]),
        ("gelu", [-10, 0, 1, 40], [-7.6198530241605261e-23, 0, 0.84134474606854295, 40]),
        ("gelu_tanh", [-10, 0, 1, 40], [-1.2040923482098060e-37, 0, 0.84119199060827670, 40]),
        ("silu", [-700, 0, 1, 800], [-6.9017735806318396e-302, 0, 0.73105857863000488, 800]),
    ],
)
def test_activations_of_known_values(activation, z, expected):
    """To the last digits, also where 1 + erf or 1 + tanh has none left."""
    y = reference.batch_norm_inference(np.float64(z)[:, None], [0], [1], eps=0, activation=activation)
    np.testing.assert_allclose(y[:, 0], expected, rtol=2e-14)


def test_relu_passes_nothing_at_zero():
    x, dy = np.array([[-1.0], [0.0], [2.0]]), np.array([[np.nan], [5.0], [7.0]])
    dx, dweight, dbias, dresidual = reference.batch_norm_inference_backward(
        dy, x, [0], [1], eps=0, residual=0 * x, activation="relu"
    )
    assert (dx.T.tolist(), dresidual.T.tolist()) == ([[0, 0, 7]],) * 2
    assert (dweight.tolist(), dbias.tolist()) == ([14], [7])


# --- group norm, instance norm and RMS norm --------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["group_norm", "instance_norm"])
@pytest.mark.parametrize(("shape", "channel_axis", "groups"), GROUP)
def test_group_norm_gradients_are_slopes(shape, channel_axis, groups, name, activation, rng):
    y_alone, forward, backward = (getattr(reference, name + way) for way in ("", "_forward", "_backward"))
    channels = (shape[channel_axis],)
    x, dy, weight, bias = draw(rng, shape, shape, channels, channels)
    options = {"channel_axis": channel_axis, **({"num_groups": groups} if name == "group_norm" else {})}
    z, mean, rstd = forward(x, weight=weight, bias=bias, eps=1e-2, **options)
    dy, options["activation"] = past_kinks(dy, z), activation
    gradients = backward(dy, x, mean, rstd, weight=weight, bias=bias, **options)
    assert_slopes(
        lambda: np.sum(dy * y_alone(x, weight=weight, bias=bias, eps=1e-2, **options)), (x, weight, bias), gradients
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("shape", "axis"), LAYER)
def test_rms_norm_gradients_are_slopes(shape, axis, offset, rng):
    x, dy, weight = draw(rng, shape, shape, normalized_shape(shape, axis))
    options = {"axis": axis, "weight_offset": offset}
    _, rstd = reference.rms_norm_forward(x, weight, eps=1e-2, **options)
    gradients = reference.rms_norm_backward(dy, x, rstd, weight, **options)
    assert_slopes(lambda: np.sum(dy * reference.rms_norm(x, weight, eps=1e-2, **options)), (x, weight), gradients)


# --- norms of a sum --------------------------------------------------------------------------------------------------

SUMS = [("add_layer_norm", ("weight", "bias")), ("add_rms_norm", ("weight",))]


def backward_of_sum(name, dy, dsummed, outputs, affine, **options):
    """The gradients of `outputs`, those of the forward."""
    _, summed, *statistics = outputs
    saved = dict(zip(("mean", "rstd")[-len(statistics) :], statistics, strict=True))
    return getattr(reference, f"{name}_backward")(dy, dsummed, summed, **saved, **affine, **options)


@pytest.mark.parametrize("used", [True, False], ids=["sum used", "sum not used"])
@pytest.mark.parametrize(("name", "parameters"), SUMS)
@pytest.mark.parametrize(("shape", "axis"), LAYER)
def test_gradients_of_norms_of_a_sum_are_slopes(shape, axis, name, parameters, used, rng):
    x, residual, dy, dsummed = draw(rng, *[shape] * 4)
    affine = dict(zip(parameters, draw(rng, *[normalized_shape(shape, axis)] * len(parameters)), strict=True))
    forward = getattr(reference, f"{name}_forward")

    def loss():
        y, summed, *_ = forward(x, residual, **affine, axis=axis, eps=1e-2)
        return np.sum(dy * y) + np.sum(dsummed * summed) * used

    outputs = forward(x, residual, **affine, axis=axis, eps=1e-2)
    gradients = backward_of_sum(name, dy, dsummed if used else None, outputs, affine, axis=axis)
    assert_slopes(loss, (x, residual, *affine.values()), gradients)
    wanted = (True, False) * 2
    some = backward_of_sum(
        name, dy, dsummed if used else None, outputs, affine, axis=axis, output_mask=wanted[: len(gradients)]
    )
    assert [a is not None for a in some] == list(wanted[: len(gradients)])


@pytest.mark.parametrize(
    ("dtype", "other", "wider"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float64", "float16", "float64"),
        ("bfloat16", "float16", "float32"),
        ("float16", "bfloat16", "float32"),
    ],
)
def test_the_norm_is_that_of_the_rounded_sum(dtype, other, wider, rng):
    kinds = [np.dtype(getattr(ml_dtypes, name, name)) for name in (dtype, other, wider)]
    x, residual = (a.astype(kind) for a, kind in zip(draw(rng, (5, 40), (5, 40)), kinds, strict=False))
    rounded = (x.astype(np.float64) + residual.astype(np.float64)).astype(kinds[2])
    y, summed, mean, rstd = reference.add_layer_norm_forward(x, residual)
    np.testing.assert_array_equal(summed, rounded.astype(np.float64))
    for one, other in zip((y, mean, rstd), reference.layer_norm_forward(rounded), strict=True):
        np.testing.assert_array_equal(one, other)
    options = {"weight": np.linspace(0, 1, 40), "weight_offset": 1.0}
    y, summed, rstd = reference.add_rms_norm_forward(x, residual, **options)
    np.testing.assert_array_equal(summed, rounded.astype(np.float64))
    early, *_ = reference.add_rms_norm_forward(x, residual, **options, casting="input")
    plain = reference.rms_norm_forward(rounded)[0].astype(kinds[0]).astype(np.float64)
    np.testing.assert_array_equal(early, plain * (1 + options["weight"]), "rounded to x's dtype, not the sum's")
    for one, other in zip((y, rstd), reference.rms_norm_forward(rounded, **options), strict=True):
        np.testing.assert_array_equal(one, other)
    dy, saved = rng.standard_normal((5, 40)), {"rstd": rstd, **options}
    gradients = reference.add_rms_norm_backward(dy, None, rounded, **saved)
    expected = reference.rms_norm_backward(dy, rounded, **saved)
    for one, other in zip(gradients, (expected[0], *expected), strict=True):
        np.testing.assert_array_equal(one, other)
    early = reference.add_rms_norm_backward(dy, None, rounded, **saved, casting="input", x_dtype=kinds[0])
    np.testing.assert_allclose(early[2], np.sum(dy * plain, axis=0), rtol=1e-12, atol=1e-12)


# --- torch -----------------------------------------------------------------------------------------------------------


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5), -1), ((2, 3, 4), (1, 2)), ((7,), 0)])
def test_layer_norm_is_torchs(shape, axis, rng):
    torch = pytest.importorskip("torch")
    inside = normalized_shape(shape, axis)
    x, dy, weight, bias = draw(rng, shape, shape, inside, inside)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    theirs = torch.nn.functional.layer_norm(leaves[0], inside, *leaves[1:])
    theirs.backward(torch.tensor(dy))
    y, mean, rstd = reference.layer_norm_forward(x, weight, bias, axis=axis)
    assert_same(y, theirs)
    for ours, leaf in zip(reference.layer_norm_backward(dy, x, mean, rstd, weight, axis=axis), leaves, strict=True):
        assert_same(ours, leaf.grad)


def activated(torch, z, activation):
    functional = torch.nn.functional
    if activation is None:
        return z
    if activation == "gelu_tanh":
        return functional.gelu(z, approximate="tanh")
    return getattr(functional, activation)(z)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_batch_norm_is_torchs(shape, training, added, activation, rng):
    torch = pytest.importorskip("torch")
    x, dy, weight, bias, running_mean, running_var, residual = draw(rng, shape, shape, 3, 3, 3, 3, shape)
    running_var = np.abs(running_var) + 0.1
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias, residual)]
    running = torch.tensor(running_mean), torch.tensor(running_var)
    options = {"training": training, "momentum": 0.3, "eps": 1e-3}
    z = torch.nn.functional.batch_norm(leaves[0], *running, *leaves[1:3], **options)
    theirs = activated(torch, z + leaves[3] if added else z, activation)
    theirs.backward(torch.tensor(dy))
    tail = {"residual": residual if added else None, "activation": activation}
    if training:
        statistics = {"running_mean": running_mean, "running_var": running_var, "momentum": 0.3}
        y, mean, rstd = reference.batch_norm_forward(x, weight, bias, **statistics, eps=1e-3, **tail)
        gradients = reference.batch_norm_backward(dy, x, mean, rstd, weight, bias, **tail)
    else:
        given = {"mean": running_mean, "var": running_var, "weight": weight, "bias": bias, "eps": 1e-3, **tail}
        y = reference.batch_norm_inference(x, **given)
        gradients = reference.batch_norm_inference_backward(dy, x, **given)
    assert_same(y, theirs)
    assert_same(running_mean, running[0])
    assert_same(running_var, running[1])
    for ours, leaf in zip(gradients[: 3 + added], leaves[: 3 + added], strict=True):
        assert_same(ours, leaf.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["group_norm", "instance_norm"])
def test_group_norm_is_torchs(name, activation, rng):
    torch = pytest.importorskip("torch")
    x, dy, weight, bias = draw(rng, (2, 6, 3, 4), (2, 6, 3, 4), 6, 6)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    groups = {"num_groups": 3} if name == "group_norm" else {}
    theirs = getattr(torch.nn.functional, name)(leaves[0], **groups, weight=leaves[1], bias=leaves[2], eps=1e-3)
    theirs = activated(torch, theirs, activation)
    theirs.backward(torch.tensor(dy))
    forward, backward = (getattr(reference, f"{name}_{way}") for way in ("forward", "backward"))
    affine = {"weight": weight, "bias": bias, "activation": activation, **groups}
    y, mean, rstd = forward(x, **affine, eps=1e-3)
    assert_same(y, theirs)
    for ours, leaf in zip(backward(dy, x, mean, rstd, **affine), leaves, strict=True):
        assert_same(ours, leaf.grad)


@pytest.mark.parametrize(("name", "parameters"), SUMS)
def test_norms_of_a_sum_are_torchs(name, parameters, rng):
    torch = pytest.importorskip("torch")
    x, residual, dy, dsummed = draw(rng, *[(3, 4, 5)] * 4)
    affine = dict(zip(parameters, draw(rng, *[(4, 5)] * len(parameters)), strict=True))
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, residual, *affine.values())]
    summed = leaves[0] + leaves[1]
    function = getattr(torch.nn.functional, name.removeprefix("add_"))
    theirs = function(summed, (4, 5), *leaves[2:], eps=1e-3)
    torch.autograd.backward((theirs, summed), (torch.tensor(dy), torch.tensor(dsummed)))
    outputs = getattr(reference, f"{name}_forward")(x, residual, **affine, axis=(1, 2), eps=1e-3)
    assert_same(outputs[0], theirs)
    assert_same(outputs[1], summed)
    gradients = backward_of_sum(name, dy, dsummed, outputs, affine, axis=(1, 2))
    for ours, leaf in zip(gradients, leaves, strict=True):
        assert_same(ours, leaf.grad)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("name", "shape", "weight_shape", "axis"),
    [
        ("linear", (7, 4), (5, 4), 0),
        ("conv1d", (2, 4, 9), (5, 4, 3), 0),
        ("conv2d", (2, 4, 6, 7), (5, 4, 3, 2), 0),
        ("conv_transpose2d", (2, 4, 3, 4), (4, 5, 2, 3), 1),
        ("conv_transpose2d", (2, 4, 3, 4), (4, 5, 2, 3), -3),
    ],
)
def test_a_folded_batch_norm_is_the_map_and_the_norm(name, shape, weight_shape, axis, affine, biased, rng):
    torch = pytest.importorskip("torch")
    x, weight, bias, mean, var, bn_weight, bn_bias = draw(rng, shape, weight_shape, 5, 5, 5, 5, 5)
    var = np.abs(var) + 0.1
    bias, bn_weight, bn_bias = bias if biased else None, bn_weight if affine else None, bn_bias if affine else None
    tensors = [None if a is None else torch.tensor(a) for a in (weight, bias, mean, var, bn_weight, bn_bias)]
    linear = getattr(torch.nn.functional, name)
    theirs = torch.nn.functional.batch_norm(linear(torch.tensor(x), *tensors[:2]), *tensors[2:], eps=1e-3)
    folded = reference.fold_batch_norm(weight, bias, mean, var, bn_weight, bn_bias, eps=1e-3, axis=axis)
    assert folded[1].shape == (5,)
    assert_same(linear(torch.tensor(x), *map(torch.tensor, folded)), theirs)


# --- the tolerances --------------------------------------------------------------------------------------------------


def rows_in_float32(x, centre, variance):
    """LayerNorm of rows with its mean and variance computed in float32 by the given functions."""
    centred = centre(x)
    return centred / np.sqrt(variance(x, centred) + np.float32(1e-5))


def shifted(x):
    deviations = x - x[:, :1]
    return deviations - deviations.mean(axis=1, keepdims=True)


def two_pass(x, centred):
    return (centred**2).mean(axis=1, keepdims=True)


def naive(x, centred):
    return np.abs((x**2).mean(axis=1, keepdims=True) - x.mean(axis=1, keepdims=True) ** 2)


@pytest.mark.parametrize(
    ("centre", "variance", "good"),
    [
        pytest.param(shifted, two_pass, True, id="shifted"),
        pytest.param(shifted, naive, False, id="naive variance"),
        pytest.param(lambda x: x - x.mean(axis=1, keepdims=True), two_pass, False, id="float32 mean"),
    ],
)
def test_tolerance_tells_a_good_kernel_from_a_naive_one(centre, variance, good, rng):
    x = (rng.standard_normal((16, 777)) * 1e-2 + 1e4).astype(np.float32)
    y, expected = rows_in_float32(x, centre, variance), reference.layer_norm(x)
    if good:
        assert_close("y", y, expected, x.dtype)
    else:
        with pytest.raises(AssertionError, match=r"y \(float32\): element \(\d+, \d+\) is .* error .* allowed"):
            assert_close("y", y, expected, x.dtype)


def test_tolerance_rejects_a_running_sum(rng):
    dy = rng.standard_normal((400_000, 8)).astype(np.float32)
    expected = dy.sum(axis=0, dtype=np.float64)
    in_blocks = dy.reshape(-1, 100, 8).sum(axis=1).astype(np.float64).sum(axis=0).astype(np.float32)
    one_by_one = np.cumsum(dy, axis=0, dtype=np.float32)[-1]
    assert_close("dbias", in_blocks, expected, "float32", reduced=len(dy))
    with pytest.raises(AssertionError, match="dbias"):
        assert_close("dbias", one_by_one, expected, "float32", reduced=len(dy))


@pytest.mark.parametrize(
    "actual", [[np.nan, 1, 2], [np.inf, 1, np.nan], [-np.inf, 1, 2], [0, 1, 2], [np.inf, np.inf, 2]]
)
def test_tolerance_wants_nan_and_inf_where_they_belong(actual):
    assert_close("y", np.float32([np.inf, 1, 2]), [1e39, 1, 2], "float32")
    assert_close("y", np.float32([np.nan, 1]), [np.nan, 1], "float32")
    with pytest.raises(AssertionError, match="NaN and Inf have to match"):
        assert_close("y", np.float32(actual), [np.inf, 1, 2], "float32")


def test_tolerance_wants_the_same_shape_and_type():
    with pytest.raises(AssertionError, match="shape"):
        assert_close("mean", np.zeros(1, np.float32), np.zeros((1, 1)), "float32")
    with pytest.raises(AssertionError, match="ndarray"):
        assert_close("dx", np.zeros(1, np.float32), None, "float32")
    with pytest.raises(AssertionError, match="count"):
        assert_close("count", 3, 4, "float32")
