"""What the claims study trains is right: data, gradients, kernels, layers, networks, the loop, and what is watched."""

import dataclasses
import functools
import math
import re
import types

import numpy as np
import pytest

from benchmarks.claims import checks, command, data, layers, models, probes, study
from benchmarks.claims.runs import NORMS, Run, Tuned
from benchmarks.claims.training import Training, train
from tests.claims_helpers import bits, shapes, tiny
from tests.test_layers import EXACT

pytest.importorskip("sklearn")
signal = pytest.importorskip("scipy.signal")

MLP = Run(depth=2)
CNN = Run(model="cnn", task="digit images")
RNN = Run(model="rnn", task="digit rows")
EVERY_MODEL = pytest.mark.parametrize("net", [MLP, CNN, RNN], ids=lambda net: net.model)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", data.TASKS)
def test_data_are_split_by_the_seed(task):
    first, again, other = (data.load(task, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.test_target, again.test_target)
    assert not np.array_equal(first.test_x, other.test_x)
    x, target = data.TASKS[task].read()
    samples, tests = len(x), len(x) // 5
    assert first.test_x.shape == (tests, *data.TASKS[task].shape)
    assert len(first.x) == (data.TASKS[task].training or samples - tests)
    assert first.x.dtype == first.test_x.dtype == np.float32
    if data.TASKS[task].training is None:  # every sample is on one side
        np.testing.assert_allclose(np.sort(np.concatenate([first.target, first.test_target])), np.sort(target))
    if data.TASKS[task].standardize:
        # A mean of float32 numbers of size 1.
        np.testing.assert_allclose(first.x.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(first.x.std(axis=0, dtype=np.float64), 1, atol=1e-6)
    scaled = data.load(task, np.random.default_rng(0), scale=0.25)
    np.testing.assert_array_equal(scaled.x, 0.25 * first.x)
    np.testing.assert_array_equal(scaled.test_x, 0.25 * first.test_x)


def test_losses_and_scores(rng):
    from scipy.special import log_softmax

    logits, labels = rng.standard_normal((6, 4)) * 5 + 1000, rng.integers(0, 4, 6)
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(6), labels])
    assert data.cross_entropy(logits, labels)[0] == pytest.approx(expected, rel=1e-12)
    outputs, targets = np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 4.0, 4.0])
    assert data.squared_error(outputs, targets)[0] == pytest.approx(8 / 6, rel=1e-15)
    assert data.accuracy(np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 2, 0])) == 75.0
    assert data.explained(targets[:, None], targets) == 100.0
    assert data.explained(np.array([[1.0], [3.0], [4.0]]), targets) == pytest.approx(100 * (1 - 1 / 6))
    assert data.explained(-outputs, targets) == data.explained(np.full((3, 1), np.nan), targets) == 0.0


# --- gradients and kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", checks.every_check(), ids=lambda check: check.what)
def test_every_check_passes(check):
    assert check.error() <= check.tolerance


def test_a_net_of_every_kind_is_checked():
    def kinds(runs):
        return {
            *((run.model, run.norm) for run in runs),
            *((run.model, run.activation) for run in runs),
            *((run.norm, run.place) for run in runs),
            *(data.TASKS[run.task].loss for run in runs),
            *(name for run in runs for name in ("dropout", "shift") if getattr(run, name)),
        }

    seeds = command.QUICK_SEEDS
    first = [study.Results(claim, seeds, {}, {}).first() for claim in study.CLAIMS.values()]
    assert kinds([run for runs in first for run in runs if run.seed in (0, seeds.tuning[0])]) <= kinds(checks.NETS)


def tolerance_of_gradients():
    (tolerance,) = {check.tolerance for check in checks.every_check() if check.what.startswith("gradient")}
    return tolerance


LAYERS = {
    layers.Linear: Run(),
    layers.Conv: CNN,
    layers.Average: CNN,
    layers.Recurrent: RNN,
    layers.Relu: Run(),
    layers.Tanh: Run(activation="tanh"),
    layers.Sigmoid: Run(activation="sigmoid"),
    layers.Dropout: Run(dropout=0.3),
    layers.Shift: Run(norm="batch", shift=0.5),
    models.BatchNorm: Run(norm="batch"),
    models.LayerNorm: Run(norm="layer"),
    models.GroupNorm: dataclasses.replace(CNN, norm="layer"),
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_gradient_that_is_wrong_fails_the_check(layer, monkeypatch):
    backward = layer.backward
    monkeypatch.setattr(layer, "backward", lambda self, dy: 1.001 * backward(self, dy))
    assert checks.slope_error(LAYERS[layer]) > tolerance_of_gradients()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((layer, name) for layer in (layers.Linear, layers.Conv) for name in ("dweight", "dbias")),
        *((layers.Recurrent, name) for name in ("dweight_x", "dweight_h", "dbias", "dnorm_weight", "dnorm_bias")),
    ],
)
def test_a_parameters_gradient_that_is_wrong_fails_the_check(layer, name, monkeypatch):
    backward = layer.backward

    def wrong(self, dy):
        dx = backward(self, dy)
        setattr(self, name, 1.01 * getattr(self, name))
        return dx

    monkeypatch.setattr(layer, "backward", wrong)
    run = LAYERS[layer]
    normed = dataclasses.replace(run, norm="layer") if name.startswith("dnorm") else run
    assert checks.slope_error(normed) > tolerance_of_gradients()


@pytest.mark.parametrize(
    ("module", "kernel", "run"),
    [
        (checks.batch, "batch_norm_forward", Run(norm="batch", rate=0.03)),
        (checks.batch, "batch_norm_backward", Run(norm="batch", rate=0.03)),
        (checks.rows, "layer_norm_forward", Run(norm="layer", rate=0.03)),
        (checks.rows, "layer_norm_backward", Run(norm="layer", rate=0.03)),
        (checks.groups, "group_norm_forward", dataclasses.replace(CNN, norm="layer", rate=0.03)),
        (checks.groups, "group_norm_backward", dataclasses.replace(CNN, norm="layer", rate=0.03)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_that_is_wrong_fails_the_check(module, kernel, run, monkeypatch):
    original = getattr(module, kernel)

    def wrong(*arguments, **settings):
        first, *others = original(*arguments, **settings)
        return (first + first.dtype.type(1e-3), *others)

    monkeypatch.setattr(module, kernel, wrong)
    worst = max(check.tolerance for check in checks.every_check() if check.what.startswith("NumPy reference"))
    assert checks.reference_error(run, np.float32) > worst


# --- layers and networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (5, 6)])
def test_convolution_is_the_direct_one(size, stride, rng):
    conv = layers.Conv(3, 4, rng, stride=stride)
    conv.bias += rng.standard_normal(4)
    x, weight = rng.standard_normal((2, *size, 3)), conv.weight.reshape(3, 3, 3, 4)
    direct = [
        [sum(signal.correlate2d(image[..., c], weight[c, ..., o], "same") for c in range(3)) for o in range(4)]
        for image in x
    ]
    expected = np.moveaxis(direct, 1, -1)[:, ::stride, ::stride] + conv.bias
    np.testing.assert_allclose(conv(x), expected, **EXACT)


@pytest.mark.parametrize("norm", NORMS)
def test_recurrent_net_is_a_loop_over_time(norm, rng):
    def normalize(z, weight, bias):
        axis = {"batch": 0, "layer": 1}[norm]
        mean, var = z.mean(axis, keepdims=True), z.var(axis, keepdims=True)
        return (z - mean) / np.sqrt(var + 1e-5) * weight + bias

    net = layers.Recurrent(3, 5, 4, lambda: models.make_norm(norm, 5, dtype=np.float64), rng)
    for name in net.names:
        getattr(net, name)[...] += rng.standard_normal(getattr(net, name).shape)
    x, h = rng.standard_normal((6, 4, 3)), np.zeros((6, 5))
    for t in range(4):
        z = x[:, t] @ net.weight_x + h @ net.weight_h + net.bias
        h = np.tanh(z if norm == "none" else normalize(z, net.norm_weight, net.norm_bias))
    np.testing.assert_allclose(net(x), h, **EXACT)
    if norm == "batch":  # each step of time has running statistics of its own
        means = np.array([each.running_mean for each in net.norms])
        assert len(np.unique(means, axis=0)) == 4


def test_dropout_keeps_the_mean_and_is_off_in_evaluation(rng):
    dropout, x = layers.Dropout(0.3, rng), np.ones((100, 100), np.float32)
    y = dropout(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs(y.mean() - 1) < 4 * math.sqrt(0.3 / 0.7 / x.size)  # four deviations
    assert dropout.train(False)(x) is x


def test_shift_moves_all_samples_alike_and_is_off_in_evaluation(rng):
    shift, x = layers.Shift(0.5, rng), rng.standard_normal((6, 4))
    first, second = shift(x), shift(x)
    assert not np.array_equal(first, second)
    factor = (first[1:] - first[0]) / (x[1:] - x[0])
    np.testing.assert_allclose(factor, factor[:1].repeat(5, axis=0), rtol=1e-9)  # the differences cancel a few digits
    assert shift.train(False)(x) is x


@pytest.mark.parametrize("noise", [layers.Dropout, layers.Shift])
def test_gradients_of_noise_are_those_of_what_was_drawn(noise, rng):
    layer = noise(0.5, rng)
    x, dy, moved = rng.standard_normal((3, 6, 4))
    kept = rng.bit_generator.state
    y = layer(x)
    dx = layer.backward(dy)
    rng.bit_generator.state = kept  # the same numbers once more
    # Noise is linear in x: differences of any size are exact but for rounding.
    np.testing.assert_allclose(np.sum(dy * (layer(x + moved) - y)), np.sum(dx * moved), rtol=1e-9)
    assert layer.train(False)(x) is x
    assert layer.backward(dy) is dy


def weights_of(network):
    """The initial weight matrices, which no norm has."""
    return network.values[network.decayed > 0]


@pytest.mark.parametrize(
    "run",
    [
        *(dataclasses.replace(MLP, place=place) for place in models.PLACES),
        *(dataclasses.replace(CNN, place=place) for place in ("before", "after")),
        RNN,
    ],
    ids=lambda run: f"{run.model}-{run.place}",
)
def test_nets_of_one_seed_differ_in_their_norms_alone(run):
    plain, *normed = (Training(dataclasses.replace(run, norm=norm)) for norm in NORMS)
    other = Training(dataclasses.replace(run, seed=1))
    picked = [next(plain._batches) for _ in range(30)]  # more than an epoch
    assert not np.array_equal(picked[0], next(other._batches))
    assert not np.array_equal(weights_of(plain.network), weights_of(other.network))
    for training in normed:
        assert len(training.network.values) > len(plain.network.values)
        np.testing.assert_array_equal(weights_of(training.network), weights_of(plain.network))
        np.testing.assert_array_equal(training.data.x, plain.data.x)
        np.testing.assert_array_equal([next(training._batches) for _ in range(30)], picked)


def test_an_epoch_has_each_sample_once():
    training = Training(Run(batch=64))
    epoch = np.concatenate([next(training._batches) for _ in range(1438 // 64)])
    assert len(np.unique(epoch)) == len(epoch) == 22 * 64


@pytest.mark.parametrize("norm", NORMS)
@EVERY_MODEL
def test_parameters_stay_views_of_one_vector(net, norm):
    training = Training(dataclasses.replace(net, norm=norm))
    network = training.network
    before = network.values.copy()
    for _ in range(2):
        training.step()
    assert not np.array_equal(network.values, before)
    for flat, arrays in ((network.values, "parameters"), (network.slopes, "gradients")):
        owned = [value.ravel() for layer in network.layers for value in getattr(layer, arrays)().values()]
        np.testing.assert_array_equal(np.concatenate(owned), flat)
    for layer in network.layers:
        for value in layer.parameters().values():
            assert np.shares_memory(value, network.values)


def test_norms_are_before_or_after_the_activation():
    def kinds(**settings):
        network = Training(Run(norm="batch", depth=1, **settings)).network
        return [type(layer).__name__ for layer in network.layers]

    assert kinds(dropout=0.1, shift=0.1) == ["Linear", "BatchNorm", "Shift", "Relu", "Dropout", "Linear"]
    assert kinds(place="after", shift=0.1) == ["Linear", "Relu", "BatchNorm", "Shift", "Linear"]
    assert kinds(place="before+input") == ["BatchNorm", "Linear", "BatchNorm", "Relu", "Linear"]
    assert kinds(place="before+output") == ["Linear", "BatchNorm", "Relu", "Linear", "BatchNorm"]


CHANGED = {
    **{"norm": "layer", "place": "after", "activation": "tanh", "depth": 3, "width": 32},
    **{"init": 0.5, "dropout": 0.3, "shift": 0.5},
}
"""Another value than the nets of these tests have, for all that a network is made by."""


@EVERY_MODEL
def test_what_a_model_has_no_use_for_is_what_changes_nothing(net, monkeypatch):
    def losses(**settings):
        training = Training(dataclasses.replace(net, **{"norm": "batch", **settings}))
        return [training.step() for _ in range(2)]

    monkeypatch.setattr(models, "_check", lambda run: None)
    usual = losses()
    unchanged = {field for field, value in CHANGED.items() if losses(**{field: value}) == usual}
    assert unchanged == set(models.IGNORED[net.model])


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (Run(norm="bacth"), "no norm is called 'bacth'; there are none, batch, layer"),
        (Run(norm=""), "no norm is called ''; there are none, batch, layer"),
        (Run(place="input"), "no place is called 'input'; there are before, after, before+input, before+output"),
        (Run(model="lstm"), "no model is called 'lstm'; there are mlp, cnn, rnn"),
        (Run(activation="gelu"), "no activation is called 'gelu'; there are relu, tanh, sigmoid"),
        (dataclasses.replace(CNN, depth=3), "cnn has no use for depth: it must be 4, got 3"),
        (dataclasses.replace(CNN, width=32), "cnn has no use for width: it must be 64, got 32"),
        (dataclasses.replace(RNN, depth=1), "rnn has no use for depth: it must be 4, got 1"),
        (dataclasses.replace(RNN, activation="tanh"), "rnn has no use for activation: it must be 'relu', got 'tanh'"),
        (dataclasses.replace(RNN, place="after"), "rnn has no use for place: it must be 'before', got 'after'"),
        (dataclasses.replace(RNN, dropout=0.3), "rnn has no use for dropout: it must be 0.0, got 0.3"),
        (dataclasses.replace(RNN, shift=0.5), "rnn has no use for shift: it must be 0.0, got 0.5"),
        *(
            (
                dataclasses.replace(CNN, place=place),
                f"cnn has its norms before or after the activation, got '{place}'",
            )
            for place in ("before+input", "before+output")
        ),
    ],
    ids=lambda value: value.key() if isinstance(value, Run) else "",
)
def test_a_run_that_would_be_trained_as_another_is_refused(run, says):
    with pytest.raises(ValueError, match=f"{re.escape(says)}$"):
        train(run)


@pytest.mark.parametrize("seeds", [command.QUICK_SEEDS, command.SEEDS], ids=["quick", "full"])
def test_no_run_of_the_study_is_refused(seeds):
    grids = [grid for claim in study.CLAIMS.values() for grid in (*claim.grids.values(), *claim.timed.values())]
    for grid in grids:
        for run in (grid.grid if isinstance(grid, Tuned) else grid).runs([*seeds.study, *seeds.tuning]):
            models._check(run)


def test_no_net_that_is_checked_is_refused():
    for run in checks.NETS:
        models._check(run)


def two_steps(optimizer, slopes):
    """Where two steps at a rate of 0.1 take a parameter that is 1."""
    network = types.SimpleNamespace(values=np.ones(1), slopes=np.zeros(1))
    made, found = models.OPTIMIZERS[optimizer](network, 0.1), []
    for slope in slopes:
        network.slopes[...] = slope
        made.step()
        found.append(network.values[0])
    return found


def test_momentum():
    np.testing.assert_allclose(two_steps("sgd", (1, 2)), [1 - 0.1, 1 - 0.1 - 0.1 * (0.9 + 2)], **EXACT)


def test_adam():
    # After the first slope m = 0.1 * 2 and v = 0.001 * 4, corrected 2 and 4; after the second:
    m, v = 0.9 * 0.2 - 0.1, 0.999 * 0.004 + 0.001
    first = 1 - 0.1 * 2 / (2 + 1e-8)
    second = first - 0.1 * (m / (1 - 0.9**2)) / (math.sqrt(v / (1 - 0.999**2)) + 1e-8)
    # 1 - 0.999^2 cancels three digits.
    np.testing.assert_allclose(two_steps("adam", (2, -1)), [first, second], rtol=1e-11)


@EVERY_MODEL
def test_weights_decay_and_nothing_else_does(net):
    run = dataclasses.replace(net, norm="batch")
    plain, decayed = Training(run, np.float64), Training(dataclasses.replace(run, decay=0.5), np.float64)
    initial = plain.network.values.copy()
    assert plain.step() == decayed.step()
    matrices = [
        np.full(value.size, value.ndim > 1) for layer in plain.network.layers for value in layer.parameters().values()
    ]
    expected = plain.network.slopes + 0.5 * initial * np.concatenate(matrices)
    np.testing.assert_allclose(decayed.network.slopes, expected, **EXACT)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        tiny(norm="batch", dropout=0.3, shift=0.5, watch="statistics"),
        dataclasses.replace(CNN, norm="layer", steps=3),
        dataclasses.replace(RNN, norm="batch", width=8, steps=20, optimizer="adam"),
    ],
    ids=lambda run: run.model,
)
def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(run):
    first, again, other = train(run), train(run), train(dataclasses.replace(run, seed=1))
    assert bits(first) == bits(again) != bits(other)
    assert first["loss"] != other["loss"]


def test_training_learns():
    record = train(Run(norm="batch", depth=1, steps=60))
    assert np.mean(record["loss"][-10:]) < 0.3 < record["loss"][0]
    assert record["score"][-1] > 85  # 10 by chance
    assert record["train_score"] > 85
    assert record["test_loss"] < 0.5


def test_what_a_record_has_is_of_the_net_at_the_end():
    run = tiny(norm="batch", dropout=0.2)
    training = Training(run)
    losses = [training.step() for _ in range(run.steps)]
    network, task, split = training.network, training.task, training.data
    record = train(run)
    assert record["loss"] == losses
    assert record["score"][-1] == training.test() == task.score(network.predict(split.test_x), split.test_target)
    assert record["train_score"] == task.score(network.predict(split.x), split.target)
    assert record["test_loss"] == task.loss(network.predict(split.test_x), split.test_target)[0]


def test_a_run_that_diverges_ends_there(monkeypatch):
    taken, step = [], Training.step
    monkeypatch.setattr(Training, "step", lambda self: taken.append(step(self)) or taken[-1])
    run = tiny(rate=1e30, steps=55)
    record = train(run)
    assert 1 < len(taken) < 10
    assert not math.isfinite(taken[-1])
    assert np.all(np.isfinite(taken[:-1]))
    np.testing.assert_array_equal(record["loss"], [*taken, *[math.nan] * (55 - len(taken))])
    assert len(record["score"]) == 5
    assert len(set(record["score"])) == 1
    assert shapes(record) == shapes(train(dataclasses.replace(run, rate=0.1)))


def test_batch_norm_refuses_batches_of_one():
    with pytest.raises(ValueError, match="Training needs at least two"):
        train(tiny(norm="batch", batch=1))
    train(tiny(norm="layer", batch=1))


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watch", probes.PROBES)
def test_probes_leave_training_as_it_is(watch):
    run = tiny(norm="batch", depth=2, dropout=0.2, shift=0.2)
    watched = train(dataclasses.replace(run, watch=watch))
    assert bits({name: watched[name] for name in train(run)}) == bits(train(run))


def trained(watch, **settings):
    """A training that has taken its steps, and its probe."""
    training = Training(tiny(norm="batch", depth=2, watch=watch, **settings))
    probe = probes.PROBES[watch](training)
    for step in range(training.run.steps):
        training.step()
        probe.after(step)
    return training, probe


def test_gradients_are_those_of_the_weight_matrices():
    training, probe = trained("gradients")
    found = probe.result()["gradients"]
    assert np.shape(found) == (20, 3)
    # float32 sums of a few hundred squares.
    assert math.hypot(*found[-1]) == pytest.approx(
        np.linalg.norm(training.network.slopes[training.network.decayed > 0]), rel=1e-5
    )


def test_drift_is_how_far_the_inputs_of_layers_move():
    training, probe = trained("drift", rate=0.0)
    np.testing.assert_array_equal(probe.result()["drift"], [0, 0])
    # All but the first layer's inputs are by batch norms: doubling their parameters doubles means and deviations.
    for layer in training.network.layers:
        if isinstance(layer, models.BatchNorm):
            layer.weight[...] *= 2
            layer.bias[...] *= 2
    probe.after(9)
    moves = [math.sqrt(np.mean(m**2 + s**2) / np.mean(s**2)) for m, s in probe.moments[-2]]
    assert len(moves) == 2
    # The second norm's eps, of 1e-5, is less beside a variance four times as large.
    assert probe.result()["drift"][-1] == pytest.approx(np.mean(moves), rel=1e-4)


def test_scales_are_of_inputs_and_of_hidden_weights():
    training, probe = trained("scales")
    network, split, usual = training.network, training.data, training.test()
    before, score = network.values.copy(), functools.partial(data.accuracy, labels=split.test_target)
    found = probe.result()
    np.testing.assert_array_equal(network.values, before)
    assert training.test() == usual  # the running statistics are as they were
    one, ten = probes.SCALES.index(1.0), probes.SCALES.index(10.0)
    assert found["scaled_inputs"][one] == usual
    assert found["scaled_inputs"][ten] == score(network.predict(10 * split.test_x)) != usual
    own = score(network(split.test_x))
    assert found["own_scaled_inputs"][one] == found["own_scaled_weights"][one] == own
    assert found["own_scaled_inputs"][ten] == score(network(10 * split.test_x))
    for layer in network.linear()[:-1]:
        layer.weight *= 0.1
    assert found["own_scaled_weights"][probes.SCALES.index(0.1)] == score(network(split.test_x))


def test_statistics_are_those_of_batches_or_start_anew():
    training, probe = trained("statistics")
    network, split = training.network, training.data
    running, score = training.test(), functools.partial(data.accuracy, labels=split.test_target)
    found = probe.result()
    assert training.test() == running  # its own copy saw the batches
    norms = [layer for layer in network.layers if isinstance(layer, models.BatchNorm)]
    kept = [(norm.running_mean.copy(), norm.running_var.copy()) for norm in norms]
    assert found["whole"] == score(network(split.test_x))
    pairs = np.concatenate([network(split.test_x[i : i + 2]) for i in range(0, 358, 2)])
    assert found["batched"][probes.BATCHES.index(2)] == data.accuracy(pairs, split.test_target[:358])
    for norm in norms:
        norm.running_mean[...], norm.running_var[...] = 0, 1
    again = Training(training.run)
    for _ in range(training.run.steps):
        next(again._batches)
    network(split.x[next(again._batches)])
    assert found["updated"][probes.UPDATES.index(1)] == training.test()
    assert any(not np.array_equal(norm.running_mean, mean) for norm, (mean, _) in zip(norms, kept, strict=True))
