"""Layers against those of PyTorch, Keras and Flax: what they compute, and their conversions."""

import importlib.util
import os

import ml_dtypes
import numpy as np
import pytest

from normnumba import layers
from normnumba.interop import keras as from_keras
from normnumba.interop import torch as from_torch
from normnumba.layers import BatchNorm, BatchRenorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm

# Said of tensors by NumPy 2 when Keras on torch converts them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DOUBLE = {"rtol": 1e-10, "atol": 1e-11}
"""Two float64 computations of the same, in other orders of operations."""

SINGLE = {"rtol": 1e-5, "atol": 1e-5}
"""The same in float32, of values around 1; Flax takes the variance for E[x^2] - E[x]^2."""


def same_states(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[name]), err_msg=name)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


MODULES = [
    pytest.param("LayerNorm", (5,), {}, (3, 5), None, id="layer"),
    pytest.param("LayerNorm", ((3, 4),), {"bias": False, "eps": 0.1}, (2, 3, 4), None, id="layer-2axes"),
    pytest.param("LayerNorm", (5,), {"elementwise_affine": False}, (3, 5), None, id="layer-plain"),
    pytest.param("RMSNorm", (5,), {}, (3, 5), None, id="rms"),
    pytest.param("RMSNorm", ((3, 4),), {"eps": 0.1}, (2, 3, 4), None, id="rms-2axes"),
    pytest.param("RMSNorm", (5,), {"elementwise_affine": False}, (3, 5), None, id="rms-plain"),
    pytest.param("BatchNorm1d", (3,), {}, (4, 3), 2, id="batch1d-2"),
    pytest.param("BatchNorm1d", (3,), {"momentum": None}, (4, 3, 5), 3, id="batch1d-3-cumulative"),
    pytest.param("BatchNorm2d", (3,), {"momentum": 0.3, "eps": 0.1}, (4, 3, 2, 5), 4, id="batch2d"),
    pytest.param("BatchNorm2d", (3,), {"affine": False}, (4, 3, 2, 5), 4, id="batch2d-plain"),
    pytest.param("BatchNorm3d", (3,), {"track_running_stats": False}, (4, 3, 2, 5, 2), 5, id="batch3d-untracked"),
    pytest.param("GroupNorm", (2, 6), {}, (3, 6, 4), None, id="group"),
    pytest.param("GroupNorm", (3, 6), {"affine": False, "eps": 0.1}, (3, 6, 2, 2), None, id="group-plain"),
    pytest.param("InstanceNorm1d", (3,), {}, (2, 3, 5), 3, id="instance1d"),
    pytest.param("InstanceNorm2d", (3,), {"affine": True}, (2, 3, 5, 2), 4, id="instance2d"),
    pytest.param(
        "InstanceNorm3d",
        (3,),
        {"affine": True, "track_running_stats": True},
        (4, 3, 5, 2, 2),
        5,
        id="instance3d",
    ),
]


def made(torch, name, sizes, settings, dtype="float64"):
    """A module of which nothing is as it starts."""
    module = getattr(torch.nn, name)(*sizes, **settings).to(getattr(torch, dtype))
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor += torch.rand_like(tensor)
    return module


def run_module(torch, module, x, dy):
    """y and the gradients of x and of the parameters."""
    leaf = torch.tensor(x, requires_grad=True)
    module.zero_grad()
    y = module(leaf)
    y.backward(torch.tensor(dy))
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return y.detach().numpy(), leaf.grad.numpy(), gradients


@pytest.mark.parametrize(("name", "sizes", "settings", "shape", "ndim"), MODULES)
def test_torch_modules(name, sizes, settings, shape, ndim, torch, rng):
    """Forward, backward and running statistics in training and evaluation, and the way back."""
    module = made(torch, name, sizes, settings)
    layer = from_torch.from_module(module)
    assert layer.dtype == (np.float64 if layer.state_dict() else np.float32)
    for training in (True, True, True, False):
        module.train(training)
        layer.train(training)
        x, dy = rng.standard_normal((2, *shape)) * 2 + 1
        y, dx, gradients = run_module(torch, module, x, dy)
        np.testing.assert_allclose(layer(x), y, **DOUBLE)
        np.testing.assert_allclose(layer.backward(dy), dx, **DOUBLE)
        assert layer.gradients().keys() == gradients.keys()
        for key, gradient in gradients.items():
            np.testing.assert_allclose(layer.gradients()[key], gradient, **DOUBLE)
        state = layer.state_dict()
        assert state.keys() == module.state_dict().keys()
        for key, tensor in module.state_dict().items():
            if key == "num_batches_tracked" and name.startswith("Instance"):
                continue  # which PyTorch never counts
            np.testing.assert_allclose(state[key], tensor, **DOUBLE)

    again = from_torch.to_module(layer, ndim=ndim)
    assert repr(again) == repr(module)
    assert again.training == from_torch.from_module(module).training == module.training
    same_states(again.state_dict(), layer.state_dict())
    np.testing.assert_allclose(again(torch.tensor(x)).detach(), y, **DOUBLE)
    copied = from_torch.from_module(module.train()).train(False)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    copied.load_state_dict(module.state_dict())
    same_states(copied.state_dict(), layer.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch_dtypes(dtype, torch):
    for name, sizes, ndim in (("LayerNorm", (3,), None), ("RMSNorm", (3,), None), ("BatchNorm2d", (3,), 4)):
        module = made(torch, name, sizes, {}, dtype)
        layer = from_torch.from_module(module)
        assert {p.dtype.name for p in layer.parameters().values()} == {dtype}
        again = from_torch.to_module(layer, ndim=ndim)
        for key, tensor in module.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor)
            assert again.state_dict()[key].dtype == tensor.dtype
        layer.weight += 1  # a copy
        assert torch.equal(again.weight, module.weight)
    plain = torch.nn.InstanceNorm2d(3, track_running_stats=True).double()
    assert from_torch.from_module(plain).dtype == np.float64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_rms_norm_of_small_values(dtype, torch, rng):
    """Which machine epsilon stands for eps=None is seen where x is small."""
    x = (rng.standard_normal((4, 8)) * 1e-4).astype(np.dtype(dtype))
    module = torch.nn.RMSNorm(8, elementwise_affine=False)
    theirs = module(torch.tensor(x.astype(np.float64)).to(getattr(torch, dtype))).double()
    ours = from_torch.from_module(module)(x).astype(np.float64)
    np.testing.assert_allclose(ours, theirs, rtol=2 * float(ml_dtypes.finfo(dtype).eps))  # an ulp on either side


def test_torch_residual_and_activation(torch, rng):
    """The tail of a ResNet's block as one layer."""
    module = made(torch, "BatchNorm2d", (3,), {})
    layer = BatchNorm(3, activation="relu", dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    for training in (True, False):
        x, residual, dy = rng.standard_normal((3, 4, 3, 2, 5))
        leaves = [torch.tensor(a, requires_grad=True) for a in (x, residual)]
        module.train(training).zero_grad()
        theirs = torch.relu(module(leaves[0]) + leaves[1])
        theirs.backward(torch.tensor(dy))
        np.testing.assert_allclose(layer.train(training)(x, residual=residual), theirs.detach(), **DOUBLE)
        for ours, leaf in zip(layer.backward(dy), leaves, strict=True):
            np.testing.assert_allclose(ours, leaf.grad, **DOUBLE)
        for key, parameter in module.named_parameters():
            np.testing.assert_allclose(layer.gradients()[key], parameter.grad, **DOUBLE)


def test_torch_defaults(torch):
    """The table's row is what PyTorch's constructors say."""
    nn, row = torch.nn, layers.CONVENTIONS["torch"]
    assert row.layer_eps == nn.LayerNorm(2).eps
    assert row.rms_eps is nn.RMSNorm(2).eps is None
    assert row.group_eps == nn.GroupNorm(1, 2).eps == nn.InstanceNorm1d(2).eps
    assert (row.batch_eps, row.momentum) == (nn.BatchNorm1d(2).eps, nn.BatchNorm1d(2).momentum)
    assert row.momentum == nn.InstanceNorm1d(2).momentum
    assert row.instance_affine == nn.InstanceNorm1d(2).affine


def test_torch_modules_that_have_no_layer(torch):
    mine = type("LayerNorm", (torch.nn.LayerNorm,), {"forward": lambda self, x: x})

    def mixed(module):
        module.bias.data = module.bias.data.double()
        return module

    def changed(module):
        module.track_running_stats = False
        return module

    nn = torch.nn
    for module, error, message in (
        (nn.Linear(2, 2), TypeError, r"torch\.nn\.modules\.linear\.Linear is none of LayerNorm, RMSNorm, GroupNorm"),
        (mine(2), TypeError, r"test_interop\.LayerNorm is none of LayerNorm, .* of torch\.nn"),
        (nn.SyncBatchNorm(2), TypeError, "SyncBatchNorm is none of"),
        (nn.LayerNorm(2, dtype=torch.complex64), TypeError, "one dtype of float32, float64, .*, got complex64"),
        (mixed(nn.LayerNorm(2)), TypeError, "got float32, float64"),
        (
            changed(nn.BatchNorm1d(2)),
            ValueError,
            "BatchNorm1d cannot be converted: its track_running",
        ),
        (nn.InstanceNorm1d(2, momentum=None, track_running_stats=True), ValueError, "PyTorch never updates"),
    ):
        with pytest.raises(error, match=message):
            from_torch.from_module(module)


@pytest.mark.parametrize(
    ("layer", "ndim", "error", "message"),
    [
        (BatchRenorm(3), 4, TypeError, r"PyTorch has no module for normnumba\.layers\.batch\.BatchRenorm"),
        (BatchNorm(3), None, ValueError, r"pass ndim, the number of x's axes, one of \[2, 3, 4, 5\], got None"),
        (InstanceNorm(3), 2, ValueError, r"one of \[3, 4, 5\], got 2"),
        (BatchNorm(3, channel_axis=-1), 4, ValueError, "PyTorch has channels on axis 1, not -1"),
        (GroupNorm(1, 3, convention="keras"), None, ValueError, "PyTorch has channels on axis 1, not -1"),
        (BatchNorm(3, weight=False), 4, ValueError, "no bias without a weight"),
        (BatchNorm(3, activation="relu"), 4, ValueError, "no norm with the activation 'relu'"),
        (GroupNorm(1, 3, activation="silu"), None, ValueError, "no norm with the activation 'silu'"),
        (
            BatchNorm(3, convention="flax", channel_axis=1),
            4,
            ValueError,
            "the unbiased running variance, conv.*'flax'",
        ),
        (InstanceNorm(3, momentum=None, track_running_stats=True), 4, ValueError, "PyTorch never updates"),
        (LayerNorm(3, axis=1), None, ValueError, r"PyTorch normalizes over the last axes, not \(1,\)"),
        (RMSNorm(3, axis=0), None, ValueError, r"PyTorch normalizes over the last axes, not \(0,\)"),
        (RMSNorm(3, weight_offset=1.0), None, ValueError, "no weight_offset"),
        (RMSNorm(3, casting="input"), None, ValueError, "casting='float32' does, not 'input'"),
    ],
)
def test_layers_that_have_no_torch_module(layer, ndim, error, message, torch):
    with pytest.raises(error, match=message):
        from_torch.to_module(layer, ndim=ndim)


def test_layers_of_other_conventions_as_torch_modules(torch, rng):
    """Where they mean the same: by eps, the last axis, and without running statistics."""
    x = rng.standard_normal((4, 3))
    settings = {"dtype": np.float64, "convention": "keras", "bias": False}
    for layer in (LayerNorm(3, **settings), BatchNorm(3, track_running_stats=False, **settings)):
        module = from_torch.to_module(layer, ndim=2)
        assert module.bias is None
        assert module.eps == 1e-3
        np.testing.assert_allclose(module(torch.tensor(x)).detach(), layer(x), **DOUBLE)


# --- Keras -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras 3 on whichever backend is installed; it writes a file of settings into its home."""
    installed = [name for name in ("jax", "torch", "tensorflow") if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip("Keras has no backend here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", installed[0]))
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        keras = pytest.importorskip("keras", minversion="3.9")  # which has RMSNormalization
    return keras


BATCH_1 = {"axis": 1, "momentum": 0.7, "epsilon": 0.1}

KERAS = [
    pytest.param("LayerNormalization", {}, (4, 5), LayerNorm, id="layer"),
    pytest.param("LayerNormalization", {"axis": [1, 2], "epsilon": 0.1}, (4, 3, 5), LayerNorm, id="layer-2axes"),
    pytest.param("LayerNormalization", {"scale": False}, (4, 5), LayerNorm, id="layer-bias"),
    pytest.param("LayerNormalization", {"scale": False, "center": False}, (4, 5), LayerNorm, id="layer-plain"),
    pytest.param("RMSNormalization", {}, (4, 5), RMSNorm, id="rms"),
    pytest.param("RMSNormalization", {"axis": -1, "epsilon": 0.1}, (4, 3, 5), RMSNorm, id="rms-eps"),
    pytest.param("BatchNormalization", {}, (4, 5), BatchNorm, id="batch"),
    pytest.param("BatchNormalization", BATCH_1, (4, 3, 5), BatchNorm, id="batch-1"),
    pytest.param("BatchNormalization", {"scale": False}, (4, 2, 5), BatchNorm, id="batch-bias"),
    pytest.param("BatchNormalization", {"center": False}, (4, 2, 5), BatchNorm, id="batch-weight"),
    pytest.param("GroupNormalization", {"groups": 3}, (4, 5, 6), GroupNorm, id="group"),
    pytest.param("GroupNormalization", {"groups": 2, "axis": 1, "epsilon": 0.1}, (4, 6, 5), GroupNorm, id="group-1"),
    pytest.param("GroupNormalization", {"groups": 3, "scale": False}, (4, 6), GroupNorm, id="group-bias"),
    pytest.param("GroupNormalization", {"groups": -1}, (4, 5, 3), InstanceNorm, id="instance"),
    pytest.param("GroupNormalization", {"groups": -1, "center": False}, (4, 5, 3), InstanceNorm, id="instance-weight"),
]


def run_keras(keras, layer, x, training):
    # Only a batch norm knows the two apart.
    given = {"training": training} if type(layer).__name__ == "BatchNormalization" else {}
    return keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x), **given))


@pytest.mark.parametrize(("name", "settings", "shape", "kind"), KERAS)
def test_keras_layers(name, settings, shape, kind, keras, rng):
    """Forward and moving statistics in training and evaluation, and the way back."""
    theirs = getattr(keras.layers, name)(**settings)
    theirs.build(shape)
    for variable in theirs.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    layer = from_keras.from_layer(theirs)
    assert type(layer) is kind
    assert layer.training
    assert layer.convention.name == "keras"
    for training in (True, True, False):
        x = rng.standard_normal(shape, dtype=np.float32)
        y = run_keras(keras, theirs, x, training)
        np.testing.assert_allclose(layer.train(training)(x), y, **SINGLE)
    again = from_keras.to_layer(layer, ndim=len(shape))
    assert again.built
    state = layer.state_dict()
    for mine, own in zip(again.variables, theirs.variables, strict=True):
        assert mine.name == own.name
        pair = [keras.ops.convert_to_numpy(variable.value) for variable in (mine, own)]
        np.testing.assert_allclose(*pair, **SINGLE)
    expected, got = ({k: v for k, v in a.get_config().items() if k != "name"} for a in (theirs, again))
    if settings.get("groups") == -1:
        assert got.pop("groups") == expected.pop("groups") == shape[-1]
    expected["axis"], got["axis"] = np.ravel(expected["axis"]).tolist(), np.ravel(got["axis"]).tolist()
    assert got == expected
    np.testing.assert_allclose(run_keras(keras, again, x, False), y, **SINGLE)
    state.pop("num_batches_tracked", None)
    fresh = from_keras.from_layer(again).state_dict()
    fresh.pop("num_batches_tracked", None)
    same_states(fresh, state)


def test_keras_axes_that_are_not_the_last(keras, rng):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras on torch normalizes over the last axis whatever axis says")
    theirs = keras.layers.LayerNormalization(axis=1)
    theirs.build((2, 3, 4))
    theirs.variables[0].assign(rng.uniform(0.5, 1.5, 3))
    layer = from_keras.from_layer(theirs)
    x = rng.standard_normal((2, 3, 4), dtype=np.float32)
    np.testing.assert_allclose(layer(x), run_keras(keras, theirs, x, True), **SINGLE)
    assert from_keras.to_layer(layer).variables[0].shape == (3,)


def test_keras_defaults(keras):
    row, made = layers.CONVENTIONS["keras"], keras.layers
    assert row.layer_eps == made.LayerNormalization().epsilon
    assert row.rms_eps == made.RMSNormalization().epsilon
    assert row.group_eps == made.GroupNormalization().epsilon
    batch = made.BatchNormalization()
    assert (row.batch_eps, row.momentum, row.channel_axis) == (batch.epsilon, batch.momentum, batch.axis)
    assert row.channel_axis == made.GroupNormalization().axis
    assert row.instance_affine == made.GroupNormalization().scale


def test_keras_dtypes_and_frozen_layers(keras):
    theirs = keras.layers.BatchNormalization(dtype="bfloat16")
    theirs.build((None, 3))
    layer = from_keras.from_layer(theirs)
    assert layer.weight.dtype == ml_dtypes.bfloat16
    assert from_keras.to_layer(layer, ndim=2).variable_dtype == "bfloat16"
    theirs.trainable = False
    assert not from_keras.from_layer(theirs).training


def test_keras_layers_that_have_no_layer(keras):
    mine = type("LayerNormalization", (keras.layers.LayerNormalization,), {"call": lambda self, x: x})

    def built(layer, shape=(2, 3)):
        layer.build(shape)
        return layer

    made = keras.layers
    for layer, error, message in (
        (made.Dense(3), TypeError, "Dense is none of LayerNormalization, RMSNormalization"),
        (mine(), TypeError, r"test_interop\.LayerNormalization is none of LayerNormalization, .* of keras\.layers"),
        (made.LayerNormalization(), ValueError, r"LayerNormalization cannot be converted: it has no variables yet"),
        (
            built(made.LayerNormalization(gamma_regularizer="l2")),
            ValueError,
            "its gamma_regularizer has no",
        ),
        (
            built(made.BatchNormalization(beta_constraint="non_neg")),
            ValueError,
            "its beta_constraint has no",
        ),
        (built(made.BatchNormalization(renorm=True)), ValueError, "with renorm it keeps statistics that"),
        (built(made.LayerNormalization(axis=[1, -2]), (2, 3, 4, 5)), ValueError, "not in the order in which they lie"),
        (built(made.RMSNormalization(axis=1), (2, 3, 4)), ValueError, "multiplies the last axes by its scale"),
    ):
        with pytest.raises(error, match=message):
            from_keras.from_layer(layer)


@pytest.mark.parametrize(
    ("layer", "ndim", "error", "message"),
    [
        (
            BatchRenorm(3, convention="keras"),
            2,
            TypeError,
            r"Keras has no layer for normnumba.*\.BatchRenorm",
        ),
        (BatchNorm(3, convention="keras"), None, ValueError, "pass ndim, the number of x's axes, for a BatchNorm"),
        (GroupNorm(1, 3), None, ValueError, "pass ndim, the number of x's axes, for a GroupNorm"),
        (GroupNorm(1, 3, channel_axis=2), 2, ValueError, r"x with ndim=2 has not all of the axes \(2,\)"),
        (BatchNorm(3), 2, ValueError, "biased moving variance, convention='torch' the unbiased one"),
        (BatchNorm(3, convention="keras", track_running_stats=False), 2, ValueError, "always has moving statistics"),
        (BatchNorm(3, convention="keras", momentum=None), 2, ValueError, "no average over all batches"),
        (BatchNorm(3, convention="keras", activation="relu"), 2, ValueError, "no norm with the activation 'relu'"),
        (InstanceNorm(3, track_running_stats=True), 3, ValueError, "no instance norm with moving statistics"),
        (RMSNorm(3), None, ValueError, "its eps depends on the dtype of x"),
        (RMSNorm(3, eps=1e-6, elementwise_affine=False), None, ValueError, "Keras always has a scale"),
        (RMSNorm(3, eps=1e-6, axis=1), None, ValueError, "multiplies the last axes by its scale"),
        (RMSNorm(3, eps=1e-6, weight_offset=1.0), None, ValueError, "no weight_offset"),
        (RMSNorm(3, eps=1e-6, casting="input"), None, ValueError, "casting='float32' does, not 'input'"),
    ],
)
def test_layers_that_have_no_keras_layer(layer, ndim, error, message, keras):
    with pytest.raises(error, match=message):
        from_keras.to_layer(layer, ndim=ndim)


# --- Flax ------------------------------------------------------------------------------------------------------------

FLAX = [
    pytest.param("LayerNorm", {}, LayerNorm, (5,), (4, 5), id="layer"),
    pytest.param("RMSNorm", {}, RMSNorm, (5,), (4, 5), id="rms"),
    pytest.param("BatchNorm", {}, BatchNorm, (5,), (4, 3, 5), id="batch"),
    pytest.param("BatchNorm", {"momentum": 0.7, "use_bias": False}, BatchNorm, (5,), (4, 5), id="batch-momentum"),
    pytest.param("GroupNorm", {"num_groups": 3}, GroupNorm, (3, 6), (4, 5, 6), id="group"),
    pytest.param("InstanceNorm", {}, InstanceNorm, (3,), (4, 5, 3), id="instance"),
]


@pytest.fixture(scope="module")
def nnx():
    pytest.importorskip("flax")
    return pytest.importorskip("flax.nnx")


@pytest.mark.parametrize(("name", "settings", "kind", "sizes", "shape"), FLAX)
def test_flax_layers(name, settings, kind, sizes, shape, nnx, rng):
    """Forward and running statistics in training and evaluation, with Flax's defaults from the table."""
    theirs = getattr(nnx, name)(num_features=sizes[-1], rngs=nnx.Rngs(0), **settings)
    given = {"bias": False} if "use_bias" in settings else {}
    given |= {"momentum": settings["momentum"]} if "momentum" in settings else {}
    layer = kind(*sizes, convention="flax", **given)
    pairs = {"weight": "scale", "bias": "bias"}
    for key, value in layer.parameters().items():
        value[...] = rng.uniform(0.5, 1.5, value.shape)
        getattr(theirs, pairs[key])[...] = value
    for training in (True, True, False):
        # Small, so that eps is seen, around 0, for Flax squares before it subtracts.
        x = rng.standard_normal(shape, dtype=np.float32) * 1e-2
        arguments = {"use_running_average": not training} if name == "BatchNorm" else {}
        np.testing.assert_allclose(layer.train(training)(x), theirs(x, **arguments), **SINGLE)
        if name == "BatchNorm":
            np.testing.assert_allclose(layer.running_mean, theirs.mean[...], rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(layer.running_var, theirs.var[...], rtol=1e-5)


def test_flax_defaults(nnx):
    row, rngs = layers.CONVENTIONS["flax"], {"rngs": nnx.Rngs(0)}
    assert row.layer_eps == nnx.LayerNorm(2, **rngs).epsilon
    assert row.rms_eps == nnx.RMSNorm(2, **rngs).epsilon
    assert row.group_eps == nnx.GroupNorm(2, num_groups=1, **rngs).epsilon == nnx.InstanceNorm(2, **rngs).epsilon
    batch = nnx.BatchNorm(2, **rngs)
    assert (row.batch_eps, row.momentum, row.channel_axis) == (batch.epsilon, batch.momentum, batch.axis)
    assert row.instance_affine == nnx.InstanceNorm(2, **rngs).use_scale
