"""Layers: gradients against finite differences, running statistics against NumPy, modes, states, files and errors."""

import copy
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

import normnumba
from normnumba import layers
from normnumba.layers import BatchNorm, BatchRenorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from tests.helpers import run_python
from tests.test_reference import assert_slopes, draw
from tests.tolerances import assert_close

F64 = {"dtype": np.float64}

EXACT = {"rtol": 1e-12, "atol": 1e-13}
"""Both sides in float64: what is left is the rounding of a few dozen operations."""


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def stir(layer, rng):
    """Parameters and running statistics that are not what a layer starts with."""
    for value in layer.parameters().values():
        value[...] = rng.standard_normal(value.shape) * 0.3 + 1
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean[...] = rng.standard_normal(layer.num_features)
        layer.running_var[...] = rng.uniform(0.5, 2, layer.num_features)
    return layer


# --- gradients -------------------------------------------------------------------------------------------------------

SLOPES = [
    pytest.param(LayerNorm(5, **F64), (3, 5), id="layer"),
    pytest.param(LayerNorm((3, 4), bias=False, eps=0.1, **F64), (2, 3, 4), id="layer-2axes"),
    pytest.param(LayerNorm((2, 4), axis=(2, 0), **F64), (2, 3, 4), id="layer-unordered"),
    pytest.param(LayerNorm(5, weight=False, **F64), (3, 5), id="layer-bias"),
    pytest.param(LayerNorm(5, elementwise_affine=False, **F64), (3, 5), id="layer-plain"),
    pytest.param(RMSNorm(5, eps=0.1, **F64), (3, 5), id="rms"),
    pytest.param(RMSNorm(3, axis=1, weight_offset=1.0, **F64), (2, 3, 4), id="rms-offset"),
    pytest.param(RMSNorm(5, elementwise_affine=False, **F64), (3, 5), id="rms-plain"),
    pytest.param(BatchNorm(3, eps=0.1, **F64), (4, 3, 2), id="batch"),
    pytest.param(BatchNorm(3, bias=False, channel_axis=-1, **F64), (4, 2, 3), id="batch-last"),
    pytest.param(BatchNorm(3, affine=False, **F64), (4, 3), id="batch-plain"),
    pytest.param(BatchNorm(3, activation="silu", **F64), (4, 3, 2), id="batch-silu"),
    pytest.param(BatchNorm(3, eps=0.1, **F64).eval(), (4, 3, 2), id="batch-frozen"),
    pytest.param(BatchNorm(3, activation="gelu", convention="keras", **F64).eval(), (4, 3), id="batch-frozen-gelu"),
    pytest.param(BatchNorm(3, track_running_stats=False, **F64).eval(), (4, 3), id="batch-untracked"),
    pytest.param(BatchRenorm(3, activation="silu", **F64).eval(), (4, 3), id="renorm-frozen"),
    pytest.param(GroupNorm(2, 6, eps=0.1, **F64), (2, 6, 3), id="group"),
    pytest.param(GroupNorm(3, 6, activation="silu", convention="flax", **F64), (2, 4, 6), id="group-last-silu"),
    pytest.param(GroupNorm(3, 6, affine=False, **F64), (2, 6), id="group-plain"),
    pytest.param(InstanceNorm(3, **F64), (2, 3, 4), id="instance-plain"),
    pytest.param(InstanceNorm(3, affine=True, activation="gelu_tanh", **F64), (2, 3, 4), id="instance-gelu"),
    pytest.param(InstanceNorm(3, affine=True, track_running_stats=True, **F64), (2, 3, 4), id="instance-tracked"),
    pytest.param(InstanceNorm(3, affine=True, track_running_stats=True, **F64).eval(), (2, 3, 4), id="instance-frozen"),
]


@pytest.mark.parametrize(("layer", "shape"), SLOPES)
def test_gradients_are_slopes(layer, shape, rng):
    layer = stir(copy.deepcopy(layer), rng)
    x, dy = draw(rng, shape, shape)
    y = layer(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    dx = layer.backward(dy)
    parameters, gradients = layer.parameters(), layer.gradients()
    assert gradients.keys() == parameters.keys()
    assert_slopes(lambda: np.sum(dy * layer(x)), (x, *parameters.values()), (dx, *gradients.values()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm])
def test_residual_and_mask_have_slopes(kind, training, rng):
    layer = stir(kind(3, activation="silu", **F64), rng).train(training)
    if kind is BatchRenorm:
        layer.rmax, layer.dmax = 1, 0  # r and d are constants, which a difference does not know
    x, residual, dy = draw(rng, *[(4, 3, 5)] * 3)
    given = {"residual": residual, "mask": np.arange(5) < rng.integers(2, 5, (4, 1))}
    y = layer(x, **given)
    assert not np.array_equal(y, layer(x, residual=residual)) or not training
    layer(x, **given)
    dx, dresidual = layer.backward(dy)
    inputs = (x, residual, layer.weight, layer.bias)
    gradients = (dx, dresidual, *(layer.gradients()[name] for name in ("weight", "bias")))
    assert_slopes(lambda: np.sum(dy * layer(x, **given)), inputs, gradients)


def test_backward_belongs_to_the_last_forward(rng):
    """The mode and the running statistics may change between the two, and a forward that fails leaves no trace."""
    layer = stir(BatchNorm(3, **F64), rng).eval()
    x, dy = draw(rng, (4, 3), (4, 3))
    layer(x)
    expected = layer.backward(dy)
    layer.train()
    layer.running_var += 1
    np.testing.assert_array_equal(layer.backward(dy), expected)
    for mode in (True, False):
        with pytest.raises(TypeError, match="dtype"):
            layer.train(mode)(x.astype(complex))
        np.testing.assert_array_equal(layer.backward(dy), expected)


def test_gradients_are_replaced_not_added_up(rng):
    layer = LayerNorm(5, **F64)
    x, dy = draw(rng, (3, 5), (3, 5))
    with pytest.raises(RuntimeError, match=r"LayerNorm has no gradients yet: call forward, then backward"):
        layer.gradients()
    with pytest.raises(RuntimeError, match=r"LayerNorm\.backward needs a forward before it: call the layer on x first"):
        layer.backward(dy)
    layer(x)
    layer.backward(dy)
    first = layer.gradients()
    kept = {name: gradient.copy() for name, gradient in first.items()}
    layer.backward(2 * dy)
    for name, gradient in layer.gradients().items():
        np.testing.assert_allclose(gradient, 2 * kept[name], **EXACT)
        np.testing.assert_array_equal(first[name], kept[name])


def test_parameters_are_live(rng):
    layer = BatchNorm(3, **F64)
    x = rng.standard_normal((8, 3))
    before = layer(x)
    assert layer.parameters()["weight"] is layer.weight
    layer.parameters()["bias"] += 2
    np.testing.assert_allclose(layer(x), before + 2, **EXACT)


# --- batch renormalization -------------------------------------------------------------------------------------------


def renormed(x, weight, bias, r, d, eps):
    """Algorithm 1 of the paper on (N, C, L), in float64 NumPy."""
    mean, var = x.mean(axis=(0, 2), keepdims=True), x.var(axis=(0, 2), keepdims=True)
    rows = [v[:, None] for v in (r, d, weight, bias)]
    return ((x - mean) / np.sqrt(var + eps) * rows[0] + rows[1]) * rows[2] + rows[3]


@pytest.mark.parametrize("parts", ["both", "weight", "bias", "neither"])
def test_renorm_and_its_slopes_with_r_and_d_constant(parts, rng):
    flags = {"weight": parts in ("both", "weight"), "bias": parts in ("both", "bias")}
    layer = stir(BatchRenorm(4, rmax=1.5, dmax=0.5, eps=0.1, **flags, **F64), rng)
    x, dy = draw(rng, (3, 4, 5), (3, 4, 5))
    layer.running_var[:2] = (0.1, 20)  # one clipped at each end, if the draw does not
    layer.running_mean[:2] = (-20, 20)
    running_sigma = np.sqrt(layer.running_var + 0.1)
    r = np.clip(np.sqrt(x.var(axis=(0, 2)) + 0.1) / running_sigma, 1 / 1.5, 1.5)
    d = np.clip((x.mean(axis=(0, 2)) - layer.running_mean) / running_sigma, -0.5, 0.5)
    assert {1 / 1.5, 1.5} <= set(r)
    assert {-0.5, 0.5} <= set(d)
    weight = np.ones(4) if layer.weight is None else layer.weight
    bias = np.zeros(4) if layer.bias is None else layer.bias

    y = layer(x)
    np.testing.assert_allclose(y, renormed(x, weight, bias, r, d, 0.1), **EXACT)
    dx = layer.backward(dy)
    live, gradients = layer.parameters(), layer.gradients()
    assert_slopes(
        lambda: np.sum(dy * renormed(x, weight, bias, r, d, 0.1)), (x, *live.values()), (dx, *gradients.values())
    )


@pytest.mark.parametrize("convention", layers.CONVENTIONS)
def test_renorm_without_correction_is_batch_norm(convention, rng):
    plain, renorm = BatchNorm(3, convention=convention), BatchRenorm(3, rmax=1, dmax=0, convention=convention)
    for _ in range(3):
        x, dy = (rng.standard_normal((6, 3, 3), dtype=np.float32) * 3 + 7 for _ in range(2))
        # The same formula in another order of operations, in float32.
        np.testing.assert_allclose(renorm(x), plain(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(renorm.backward(dy), plain.backward(dy), rtol=1e-5, atol=1e-5)
        for name, gradient in plain.gradients().items():
            np.testing.assert_allclose(renorm.gradients()[name], gradient, rtol=1e-5, atol=1e-5)
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(renorm.state_dict()[name], value, rtol=1e-6)


def test_renorm_without_clipping_trains_as_it_evaluates(rng):
    layer = stir(BatchRenorm(3, rmax=np.inf, dmax=np.inf, **F64), rng)
    x = draw(rng, (8, 3))[0]
    evaluated = layer.eval()(x)
    np.testing.assert_allclose(layer.train()(x), evaluated, **EXACT)
    assert not np.allclose(layer.eval()(x), evaluated)  # for now x is in the running statistics


def test_renorm_follows_a_schedule(rng):
    layer = stir(BatchRenorm(3, **F64), rng)
    assert (layer.rmax, layer.dmax) == (3, 5)
    x = draw(rng, (8, 3))[0] * 100
    ys = []
    for layer.rmax, layer.dmax in ((1, 0), (3, 0), (3, 5)):
        ys.append(layer(x))
    assert not np.allclose(ys[0], ys[1])
    assert not np.allclose(ys[1], ys[2])
    for rmax, dmax in ((0.5, 0), (1, -1), (np.nan, 0), (1, np.nan)):
        layer.rmax, layer.dmax = rmax, dmax
        with pytest.raises(ValueError, match="rmax must be at least 1 and dmax at least 0"):
            layer(x)


# --- running statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", layers.CONVENTIONS)
@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm])
@pytest.mark.parametrize("momentum", ["default", 0.3, None])
def test_running_statistics_by_convention(kind, convention, momentum, rng):
    given = {} if momentum == "default" else {"momentum": momentum}
    layer = kind(3, channel_axis=1, convention=convention, **given, **F64)
    mean, var = np.zeros(3), np.ones(3)
    for batch in range(1, 5):
        x = draw(rng, (7, 3, 4))[0]
        layer(x)
        if momentum is None:
            new = 1 / batch
        elif convention == "torch":
            new = 0.1 if momentum == "default" else momentum
        else:
            new = 1 - (0.99 if momentum == "default" else momentum)
        mean = (1 - new) * mean + new * x.mean(axis=(0, 2))
        var = (1 - new) * var + new * x.var(axis=(0, 2), ddof=convention == "torch")
    np.testing.assert_allclose((layer.running_mean, layer.running_var), (mean, var), **EXACT)
    assert layer.num_batches_tracked == 4


def test_running_statistics_round_once(rng):
    layer = stir(BatchNorm(64, momentum=0.3), rng)
    x = draw(rng, (2, 64))[0]
    mean, var = (running.astype(np.float64) for running in (layer.running_mean, layer.running_var))
    layer(x)
    np.testing.assert_array_equal(layer.running_mean, (0.7 * mean + 0.3 * x.mean(axis=0)).astype(np.float32))
    np.testing.assert_array_equal(layer.running_var, (0.7 * var + 0.3 * x.var(axis=0, ddof=1)).astype(np.float32))


@pytest.mark.parametrize("convention", layers.CONVENTIONS)
@pytest.mark.parametrize("channel_axis", [1, 2, -1])
def test_instance_norm_averages_over_samples(channel_axis, convention, rng):
    given = {"track_running_stats": True, "convention": convention}
    layer = InstanceNorm(3, momentum=0.3, channel_axis=channel_axis, **given, **F64)
    new = 0.3 if convention == "torch" else 0.7
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = draw(rng, (4, 3, 5, 2))[0]
        layer(np.moveaxis(x, 1, channel_axis))
        mean = (1 - new) * mean + new * x.mean(axis=(2, 3)).mean(axis=0)
        var = (1 - new) * var + new * x.var(axis=(2, 3), ddof=convention == "torch").mean(axis=0)
    np.testing.assert_allclose((layer.running_mean, layer.running_var), (mean, var), **EXACT)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm, InstanceNorm])
def test_running_statistics_keep_more_than_the_mean_and_rstd_of_a_forward(kind, rng):
    """Of float32 data far from zero, whose mean a float32 is too coarse for, and whose variance eps drowns in rstd."""
    layer = kind(3, momentum=None, track_running_stats=True, **F64)
    x = rng.standard_normal((7, 3, 64), dtype=np.float32) * 1e-4 + 100
    layer(x)
    wide = x.astype(np.float64)
    axes = 2 if kind is InstanceNorm else (0, 2)
    mean, var = wide.mean(axis=axes), wide.var(axis=axes, ddof=1)
    if kind is InstanceNorm:
        mean, var = mean.mean(axis=0), var.mean(axis=0)
    assert_close("mean", layer.running_mean, mean, np.float32, scale=1e-4)
    assert_close("var", layer.running_var, var, np.float32)


@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm])
def test_masked_statistics(kind, rng):
    x, mask = draw(rng, (4, 3, 5))[0], np.arange(5) < np.array([[5], [2], [1], [0]])
    counted = x.transpose(0, 2, 1)[mask]
    for convention in layers.CONVENTIONS:
        layer = kind(3, momentum=None, channel_axis=1, convention=convention, **F64)
        layer(x, mask=mask)
        np.testing.assert_allclose(layer.running_mean, counted.mean(axis=0), **EXACT)
        np.testing.assert_allclose(layer.running_var, counted.var(axis=0, ddof=convention == "torch"), **EXACT)
    layer(x, mask=np.array([True, True, False, True, True]))  # of fewer axes than x
    others = np.delete(x, 2, axis=2)
    mixed = [(getattr(counted, f)(axis=0) + getattr(others, f)(axis=(0, 2))) / 2 for f in ("mean", "var")]
    np.testing.assert_allclose((layer.running_mean, layer.running_var), mixed, **EXACT)


@pytest.mark.parametrize("kind", [BatchNorm, BatchRenorm, InstanceNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_counts_nothing_is_not_tracked(kind, momentum, rng):
    layer = stir(kind(3, momentum=momentum, track_running_stats=True, **F64), rng)
    before = layer.state_dict()
    assert layer(np.zeros((0, 3, 4))).shape == (0, 3, 4)
    assert layer(np.zeros((2, 3, 0))).shape == (2, 3, 0)
    if kind is not InstanceNorm:
        layer(np.ones((2, 3, 4)), mask=np.zeros((2, 4), bool))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    layer(rng.standard_normal((2, 3, 4)))
    assert layer.num_batches_tracked == 1
    assert not np.array_equal(layer.running_mean, before["running_mean"])


def test_a_running_average_does_not_stall_in_halves():
    layer = BatchNorm(1, momentum=1e-3, dtype=np.float16)
    x = np.array([[1], [3]], np.float16)
    for _ in range(1000):
        layer(x)
    assert layer.weight.dtype == np.float16
    assert layer.running_mean.dtype == layer.running_var.dtype == np.float32
    # float32 rounds 1000 times by up to half an ulp.
    np.testing.assert_allclose(layer.running_mean, 2 * (1 - 0.999**1000), rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"), [(BatchNorm(3), (1, 3)), (BatchRenorm(3), (1, 3, 1)), (BatchNorm(3, momentum=None), (1, 3))]
)
def test_one_value_per_channel_cannot_be_trained_on(layer, shape):
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"one value per channel on axis 1.*at least two"):
        layer.train()(np.ones(shape, np.float32))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    layer.eval()(np.ones(shape, np.float32))


def test_one_value_per_instance_cannot_be_tracked():
    x = np.ones((4, 3, 1), np.float32)
    InstanceNorm(3)(x)
    with pytest.raises(ValueError, match=r"one value per channel of a sample.*at least two"):
        InstanceNorm(3, track_running_stats=True)(x)
    InstanceNorm(3, track_running_stats=True).eval()(x)


# --- modes and settings ----------------------------------------------------------------------------------------------


def test_modes(rng):
    layer = stir(BatchNorm(3, **F64), rng)
    x = draw(rng, (6, 3))[0]
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    before = layer.state_dict()
    expected = (x - layer.running_mean) / np.sqrt(layer.running_var + 1e-5) * layer.weight + layer.bias
    np.testing.assert_allclose(layer(x), expected, **EXACT)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert layer.train() is layer
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * layer.weight + layer.bias
    np.testing.assert_allclose(layer(x), expected, **EXACT)


def test_layers_show_their_settings():
    assert repr(GroupNorm(2, 6, bias=False, convention="flax").eval()) == (
        "GroupNorm(num_groups=2, num_channels=6, convention=flax, dtype=float32, weight=(6,), bias=None, "
        "training=False, eps=1e-06, channel_axis=-1, activation=None)"
    )


def test_without_running_statistics_evaluation_is_training(rng):
    layer = BatchNorm(3, track_running_stats=False)
    assert set(layer.state_dict()) == {"weight", "bias"}
    x = rng.standard_normal((6, 3), dtype=np.float32)
    np.testing.assert_array_equal(layer(x), layer.eval()(x))
    np.testing.assert_array_equal(layer(x), normnumba.batch_norm(x))


@pytest.mark.parametrize(
    ("convention", "layer_eps", "rms_eps", "batch_eps", "group_eps", "axis", "affine"),
    [
        ("torch", 1e-5, 2.0**-23, 1e-5, 1e-5, 1, False),
        ("keras", 1e-3, 1e-6, 1e-3, 1e-3, -1, True),
        ("flax", 1e-6, 1e-6, 1e-5, 1e-6, -1, True),
    ],
)
def test_conventions(convention, layer_eps, rms_eps, batch_eps, group_eps, axis, affine, rng):
    """What a layer computes by default; that the frameworks do so too is in test_interop."""
    x = rng.standard_normal((4, 4, 4), dtype=np.float32) * 1e-2
    spread = np.linspace(0.5, 1.5, 4, dtype=np.float32)
    given, channels = {"convention": convention}, {"channel_axis": axis}
    pairs = [
        (LayerNorm(4, **given), normnumba.layer_norm, (), {"eps": layer_eps}),
        (RMSNorm(4, **given), normnumba.rms_norm, (), {"eps": rms_eps}),
        (BatchNorm(4, **given), normnumba.batch_norm, (), {"eps": batch_eps, **channels}),
        (GroupNorm(2, 4, **given), normnumba.group_norm, (2,), {"eps": group_eps, **channels}),
        (InstanceNorm(4, **given), normnumba.instance_norm, (), {"eps": group_eps, **channels}),
    ]
    for layer, function, sizes, settings in pairs:
        assert (layer.weight is not None) == (affine or not isinstance(layer, InstanceNorm))
        if layer.weight is not None:
            layer.weight[...] = spread
        np.testing.assert_array_equal(layer(x), function(x, *sizes, layer.weight, **settings))
    override = GroupNorm(2, 4, eps=0.5, channel_axis=2, **given)
    np.testing.assert_array_equal(override(x), normnumba.group_norm(x, 2, eps=0.5, channel_axis=2))
    assert InstanceNorm(4, affine=not affine, **given).parameters().keys() == (set() if affine else {"weight", "bias"})


def test_rms_norms_own_arguments(rng):
    x = (rng.standard_normal((3, 8)) * 1e-3).astype(np.float16)
    # The machine epsilon is that of the type in which x is computed.
    for dtype, eps in ((np.float16, 2.0**-23), (np.float32, 2.0**-23), (np.float64, 2.0**-52)):
        wide = x.astype(dtype)
        np.testing.assert_array_equal(RMSNorm(8)(wide), normnumba.rms_norm(wide, eps=eps))
    gemma = RMSNorm(8, weight_offset=1.0)
    assert not gemma.weight.any()
    gemma.weight[...] = weight = np.linspace(-0.3, 0.7, 8, dtype=np.float32)
    given = {"eps": 2.0**-23, "weight_offset": 1.0}
    np.testing.assert_array_equal(gemma(x), normnumba.rms_norm(x, weight, **given))
    llama = RMSNorm(8, casting="input")
    llama.weight[...] = weight
    rounded = normnumba.rms_norm(x, weight, eps=2.0**-23, casting="input")
    np.testing.assert_array_equal(llama(x), rounded)
    assert not np.array_equal(rounded, normnumba.rms_norm(x, weight, eps=2.0**-23))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("data", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(data, dtype, rng):
    """y and dx are like x, parameters and gradients of the layer's dtype, whatever x is."""
    x = rng.standard_normal((4, 6, 3)).astype(np.dtype(data))
    for layer in (
        LayerNorm(3, dtype=dtype),
        RMSNorm(3, dtype=dtype),
        BatchNorm(6, dtype=dtype),
        BatchRenorm(6, dtype=dtype),
        GroupNorm(2, 6, dtype=dtype),
        InstanceNorm(6, affine=True, track_running_stats=True, dtype=dtype),
    ):
        assert layer(x).dtype == x.dtype
        assert layer.backward(x).dtype == x.dtype
        for values in (layer.parameters(), layer.gradients()):
            assert {value.dtype.name for value in values.values()} == {dtype}


# --- state -----------------------------------------------------------------------------------------------------------

FULL = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (LayerNorm((2, 3)), FULL[:2]),
        (LayerNorm(3, elementwise_affine=False), []),
        (RMSNorm(3), FULL[:1]),
        (BatchNorm(3), FULL),
        (BatchRenorm(3), FULL),
        (BatchNorm(3, bias=False), [FULL[0], *FULL[2:]]),
        (GroupNorm(1, 3), FULL[:2]),
        (InstanceNorm(3), []),
        (InstanceNorm(3, track_running_stats=True), FULL[2:]),
    ],
)
def test_states_are_copies(layer, names):
    layer = copy.deepcopy(layer)
    state = layer.state_dict()
    assert list(state) == names
    for value in state.values():
        value += 1
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, state[name] - 1)
    live = layer.parameters()
    layer.load_state_dict(state)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    assert all(layer.parameters()[name] is value for name, value in live.items())
    for value in state.values():
        value += 1
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, state[name] - 1)


def test_load_state_dict_converts():
    layer = BatchNorm(2, dtype=np.float16)
    state = {name: value.astype(np.float64) for name, value in layer.state_dict().items()}
    state |= {"num_batches_tracked": np.int32(7), "weight": np.array([0.5, 3]), "bias": [1, 2]}
    state["running_var"] = np.array([2, 3], ml_dtypes.bfloat16)
    layer.load_state_dict(state)
    assert {v.dtype for v in layer.parameters().values()} == {np.dtype(np.float16)}
    assert (layer.weight.tolist(), layer.bias.tolist(), layer.running_var.tolist()) == ([0.5, 3], [1, 2], [2, 3])
    assert layer.num_batches_tracked == 7
    assert layer.num_batches_tracked.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, ValueError, r"this BatchNorm has the names \['weight',.*\['bias'\] are missing, \[\] are"),
        ({"gamma": np.ones(3)}, ValueError, r"\[\] are missing, \['gamma'\] are unexpected"),
        ({"running_var": np.ones(4)}, ValueError, r"running_var must have shape \(3,\), got \(4,\)"),
        ({"num_batches_tracked": np.zeros(1, int)}, ValueError, r"shape \(\), got \(1,\)"),
        ({"num_batches_tracked": np.zeros(())}, TypeError, "tracked must be of an integer dtype, got float64"),
        ({"running_var": np.ones(3, complex)}, TypeError, "running_var must be of a real dtype, got complex128"),
        ({"running_var": np.ones(3, object)}, TypeError, "real dtype, got object"),
    ],
)
def test_load_state_dict_is_strict_and_changes_nothing(change, error, message):
    layer = BatchNorm(3)
    state = {name: value + 1 for name, value in layer.state_dict().items()} | change
    state = {name: value for name, value in state.items() if value is not None}
    before = layer.state_dict()
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[".npz", ".safetensors"])
def file(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"state{request.param}"


def test_files_hold_what_was_saved(file, rng):
    values = rng.standard_normal((3, 4)) * 100
    state = {
        **BatchNorm(3).state_dict(),
        **{f"block.0/{kind}": values.astype(np.dtype(kind)) for kind in ("float16", "bfloat16", "float32", "int8")},
        "file": np.arange(6.0).reshape(2, 3).T,  # a name that np.savez cannot take, and an order that is not C's
        "strided": np.arange(10)[::3],
        "swapped": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 2), ml_dtypes.bfloat16),
        "scalar": np.array(1.5, ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
    }
    layers.save(file, state)
    loaded = layers.load(str(file))
    assert loaded.keys() == state.keys()
    for name, value in loaded.items():
        assert value.dtype == state[name].dtype.newbyteorder("=")
        assert value.shape == state[name].shape
        assert value.astype(np.float64).tobytes() == state[name].astype(np.float64).tobytes()
        value[...] = 0  # writable


def test_a_layer_through_a_file(file, rng):
    layer = stir(BatchNorm(3, dtype="bfloat16"), rng)
    x = rng.standard_normal((5, 3), dtype=np.float32)
    layer(x)
    layers.save(file, layer.state_dict())
    other = BatchNorm(3, dtype="bfloat16")
    other.load_state_dict(layers.load(file))
    np.testing.assert_array_equal(other.eval()(x), layer.eval()(x))
    assert other.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.array([None, 1]), "object"),
        (np.array(["a"]), "<U1"),
        (np.ones(2, complex), "complex128"),
        (np.ones(2, ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (np.ones(2, np.longdouble), np.dtype(np.longdouble).name),
    ],
)
def test_what_cannot_be_saved_leaves_the_file_alone(file, value, kind):
    if value.dtype == np.float64:
        pytest.skip("long double is double here")
    file.write_bytes(b"precious")
    with pytest.raises(TypeError, match=f"w has dtype {kind}; only bool, integers, float16"):
        layers.save(file, {"weight": np.ones(2), "w": value})
    with pytest.raises(TypeError, match="names must be str, got 3"):
        layers.save(file, {3: np.ones(2)})
    assert file.read_bytes() == b"precious"


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "trap.npz", weight=np.array([Trap()], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        layers.load(tmp_path / "trap.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([Trap()]))
    with pytest.raises(ValueError, match="pickle"):
        layers.load(tmp_path / "pickle.npz")


@pytest.mark.parametrize("name", ["a.npy", "a\0b", "__metadata__"])
def test_names_that_a_format_has_another_use_for(name, tmp_path):
    with pytest.raises(ValueError, match="means something else"):
        layers.save(tmp_path / "state.npz", {name: np.ones(1)})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state.pt", "state", "state.npz.bak", "npz"])
def test_suffixes(name, tmp_path):
    for call in (lambda: layers.save(tmp_path / name, {}), lambda: layers.load(tmp_path / name)):
        with pytest.raises(ValueError, match=rf"must end in \.safetensors or \.npz, got '.*{name}'"):
            call()
    assert not list(tmp_path.iterdir())


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: layers.save(tmp_path / "a.safetensors", {}), lambda: layers.load(tmp_path / "a.safetensors")):
        with pytest.raises(ImportError, match=r"pip install 'normnumba\[safetensors\]', or use \.npz"):
            call()
    layers.save(tmp_path / "a.npz", {"a": np.ones(2)})
    assert layers.load(tmp_path / "a.npz").keys() == {"a"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LayerNorm(3, convention="jax"), ValueError, "must be one of 'torch', 'keras', 'flax', got 'jax'"),
        (lambda: LayerNorm(3.0), TypeError, r"normalized_shape must be an int, got 3\.0"),
        (lambda: LayerNorm(3, axis=1.0), TypeError, r"axis must be an int, got 1\.0"),
        (lambda: BatchNorm(3, channel_axis="last"), TypeError, "channel_axis must be an int, got 'last'"),
        (lambda: LayerNorm((3, -1)), ValueError, "normalized_shape must not be negative, got -1"),
        (lambda: LayerNorm(()), ValueError, r"a length for each axis, and axis none twice, got \(\) for axis \(\)"),
        (
            lambda: LayerNorm((3, 4), axis=1),
            ValueError,
            r"a length for each axis, and axis none twice, got \(3, 4\) for axis \(1,\)",
        ),
        (lambda: LayerNorm(3, eps=np.inf), ValueError, "eps must be finite"),
        (lambda: LayerNorm(3, dtype=int), TypeError, "dtype must be one of float32, float64, .*, got int64"),
        (lambda: BatchNorm("3"), TypeError, "num_features must be an int, got '3'"),
        (lambda: BatchNorm(3, momentum="fast"), TypeError, "momentum must be a float, got 'fast'"),
        (lambda: BatchRenorm(3, track_running_stats=False), ValueError, "cannot do without; use BatchNorm"),
        (lambda: GroupNorm(4, 6), ValueError, "num_groups must divide num_channels, got 4 groups of 6 channels"),
        (lambda: GroupNorm(0, 6), ValueError, "got 0 groups"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda **a: LayerNorm((3, 4), **a), (4, 3), r"this LayerNorm takes x with \(3, 4\) on axes \(-2, -1\), got"),
        (lambda **a: LayerNorm((3, 4), **a), (4,), r"\(3, 4\) on axes \(-2, -1\), got x of shape \(4,\)"),
        (lambda **a: BatchNorm(3, **a), (3, 4), r"this BatchNorm takes x with 3 on axis 1, got x of shape \(3, 4\)"),
        (lambda **a: BatchNorm(3, **a).eval(), (3, 4), "3 on axis 1"),
        (lambda **a: BatchNorm(3, **a), (3,), r"3 on axis 1, got x of shape \(3,\)"),
        (lambda **a: GroupNorm(2, 4, convention="keras", **a), (2, 4, 6), "this GroupNorm takes x with 4 on axis -1"),
        (lambda **a: InstanceNorm(3, **a), (2, 4, 6), "this InstanceNorm takes x with 3 on axis 1"),
    ],
)
def test_x_has_to_fit(make, shape, message, affine):
    flag = "elementwise_affine" if "LayerNorm" in message or "axes" in message else "affine"
    layer = make(**{flag: affine})
    before = layer.state_dict()
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, np.float32))
    with pytest.raises(TypeError, match=r"x must be a numpy\.ndarray, got builtins\.list; convert"):
        layer(np.ones(shape).tolist())
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_wrong_dy_leaves_gradients_alone(rng):
    layer = BatchNorm(3, **F64)
    x = rng.standard_normal((4, 3))
    layer(x)
    layer.backward(x)
    before = layer.gradients()
    with pytest.raises(ValueError, match=r"dy must have x's shape \(4, 3\), got \(3, 4\)"):
        layer.backward(x.T)
    for name, value in layer.gradients().items():
        assert value is before[name]


def test_frameworks_are_imported_when_they_are_needed():
    run_python(
        "import sys, normnumba, normnumba.layers, normnumba.interop.torch, normnumba.interop.keras\n"
        "assert not {'torch', 'keras', 'jax', 'flax', 'safetensors', 'tensorflow'} & set(sys.modules)\n"
    )
