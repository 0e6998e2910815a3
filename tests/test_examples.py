"""The examples run, learn, keep what they learned on disk, and differentiate their networks rightly."""

import importlib.util

import numpy as np
import pytest

from tests.helpers import ROOT

pytest.importorskip("sklearn")

EVERY_NETWORK = [(model, norm) for model in ("mlp", "cnn") for norm in ("batch", "layer", "group")]


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("model", "norm"), EVERY_NETWORK)
def test_digits_are_learned(model, norm, digits, capsys):
    accuracy = digits.main(["--model", model, "--norm", norm, "--epochs", "4"])
    *epochs, last = capsys.readouterr().out.splitlines()
    losses = [float(line.split("loss ")[1]) for line in epochs]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert last == f"test accuracy: {accuracy:.1%}"
    assert accuracy > 0.94  # 0.1 by chance, 0.97 and more after the default ten epochs


def test_the_same_seed_gives_the_same_network_and_another_does_not(digits, capsys):
    printed = []
    for seed in (1, 1, 2):
        digits.main(["--epochs", "1", "--seed", str(seed)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


@pytest.mark.parametrize(("model", "norm"), EVERY_NETWORK)
def test_saved_weights_are_the_trained_ones(model, norm, digits, tmp_path):
    settings, path = ["--model", model, "--norm", norm], str(tmp_path / "digits.npz")
    trained = digits.main([*settings, "--epochs", "1", "--save-to", path])
    assert digits.main([*settings, "--epochs", "0", "--load-from", path]) == trained
    assert digits.main([*settings, "--epochs", "0"]) != trained


def test_testing_is_evaluation(digits, rng):
    """It leaves the running statistics alone, and an image's label does not depend on the others."""
    network = digits.make_network("cnn", "batch", rng)
    images, labels, *_ = digits.load_data("cnn", rng)
    digits.train_epoch(network, digits.Momentum(), images[:300], labels[:300], rng)
    before = {name: value.copy() for name, value in network.state_dict().items()}
    one_by_one = [digits.accuracy(network, images[i : i + 1], labels[i : i + 1]) for i in range(50)]
    assert digits.accuracy(network, images[:50], labels[:50]) == np.mean(one_by_one)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(("model", "norm"), EVERY_NETWORK)
def test_gradients_are_slopes(model, norm, digits, rng):
    network = digits.make_network(model, norm, rng, np.float64)
    for value in network.parameters().values():
        value += rng.standard_normal(value.shape) * 0.1
    x, labels = rng.standard_normal((6, 64) if model == "mlp" else (6, 8, 8, 1)), rng.integers(0, 10, 6)

    def loss():
        return digits.cross_entropy(network(x), labels)[0]

    dx = network.backward(digits.cross_entropy(network(x), labels)[1])
    parameters, gradients = network.parameters(), network.gradients()
    assert gradients.keys() == parameters.keys()
    for array, gradient in [(x, dx), *((parameters[name], gradients[name]) for name in parameters)]:
        assert gradient.shape == array.shape
        for place in zip(*(rng.integers(0, n, 5) for n in array.shape), strict=True):
            value, step = array[place], 1e-6
            array[place] = value + step
            above = loss()
            array[place] = value - step
            below = loss()
            array[place] = value
            # The difference rounds to 1e-16 / 2e-6, and its third-order term is step^2 times a moderate number.
            np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)
