"""The networks, which differ in their norms and in nothing else, and the optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.claims.data import TASKS
from benchmarks.claims.layers import ACTIVATIONS, Average, Conv, Dropout, Layer, Linear, Recurrent, Shift
from benchmarks.claims.runs import NORMS, Run
from normnumba.layers import BatchNorm, GroupNorm, LayerNorm

Array = Any


class Network:
    """Layers one after the other, with all parameters in one vector so that an optimizer's step is a few operations.

    Attributes
    ----------
    values, slopes : ndarray
        The parameters, and their gradients once `backward` has run. The layers' own arrays are views of `values`.
    decayed : ndarray
        1 for the elements of weight matrices, 0 for biases and the norms' parameters.
    """

    def __init__(self, layers: Iterable[Layer], dtype: type = np.float32) -> None:
        self.layers: list[Any] = list(layers)
        owned = [(layer, name, value) for layer in self.layers for name, value in layer.parameters().items()]
        ends = np.cumsum([0, *(value.size for _, _, value in owned)])
        self.values, self.slopes, self.decayed = (np.zeros(ends[-1], dtype) for _ in range(3))
        self._slopes: list[tuple[Any, str, Array]] = []
        for (layer, name, value), start, end in zip(owned, ends[:-1], ends[1:], strict=True):
            view = self.values[start:end].reshape(value.shape)
            view[...] = value
            setattr(layer, name, view)
            self.decayed[start:end] = value.ndim > 1
            self._slopes.append((layer, name, self.slopes[start:end].reshape(value.shape)))

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        for layer, name, slope in self._slopes:
            slope[...] = layer.gradients()[name]
        return dy

    def train(self, mode: bool = True) -> Network:
        for layer in self.layers:
            layer.train(mode)
        return self

    def predict(self, x: Array) -> Array:
        """The outputs in evaluation."""
        y = self.train(False)(x)
        self.train()
        return y

    def linear(self) -> list[Linear]:
        """The layers with weight matrices, convolutions among them."""
        return [layer for layer in self.layers if isinstance(layer, Linear)]

    def inputs_of_linear(self, x: Array) -> Iterator[Array]:
        """What the layers with weight matrices get, from the first on, in the mode that is set."""
        for layer in self.layers:
            if isinstance(layer, Linear):
                yield x
            x = layer(x)


def make_norm(kind: str, channels: int, images: bool = False, dtype: type = np.float32) -> Layer | None:
    """The norm of a layer with its channels on the last axis.

    Layer norm of images takes the mean over height, width and channels, and has a weight for each channel: it is the
    group norm of one group (Wu and He, 2018, arXiv:1803.08494).
    """
    if kind == "none":
        return None
    if kind == "batch":
        return BatchNorm(channels, channel_axis=-1, dtype=dtype)
    return GroupNorm(1, channels, channel_axis=-1, dtype=dtype) if images else LayerNorm(channels, dtype=dtype)


def _block(run: Run, linear: Layer, channels: int, noise: np.random.Generator, dtype: type) -> list[Any]:
    """A layer with weights and what follows it: norm and activation in the run's order."""
    norm = make_norm(run.norm, channels, isinstance(linear, Conv), dtype)
    normed = [norm, Shift(run.shift, noise) if run.shift else None]
    activation = ACTIVATIONS[run.activation]()
    ordered = [activation, *normed] if run.place == "after" else [*normed, activation]
    return [linear, *ordered, Dropout(run.dropout, noise) if run.dropout else None]


def _mlp(run: Run, rng: np.random.Generator, noise: np.random.Generator, dtype: type) -> list[Any]:
    task = TASKS[run.task]
    gain = run.init * ACTIVATIONS[run.activation].gain
    widths = [*task.shape, *[run.width] * run.depth]
    layers: list[Any] = [make_norm(run.norm, widths[0], dtype=dtype)] if run.place == "before+input" else []
    for inputs, outputs in pairwise(widths):
        layers += _block(run, Linear(inputs, outputs, rng, gain), outputs, noise, dtype)
    layers.append(Linear(widths[-1], task.outputs, rng, run.init))
    if run.place == "before+output":
        layers.append(make_norm(run.norm, task.outputs, dtype=dtype))
    return layers


def _cnn(run: Run, rng: np.random.Generator, noise: np.random.Generator, dtype: type) -> list[Any]:
    gain = run.init * ACTIVATIONS[run.activation].gain
    layers: list[Any] = []
    for inputs, outputs, stride in ((1, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += _block(run, Conv(inputs, outputs, rng, gain, stride), outputs, noise, dtype)
    return [*layers, Average(), Linear(32, TASKS[run.task].outputs, rng, run.init)]


def _rnn(run: Run, rng: np.random.Generator, noise: np.random.Generator, dtype: type) -> list[Any]:
    task = TASKS[run.task]
    steps, inputs = task.shape
    recurrent = Recurrent(inputs, run.width, steps, lambda: make_norm(run.norm, run.width, dtype=dtype), rng, run.init)
    return [recurrent, Linear(run.width, task.outputs, rng, run.init)]


MODELS = {"mlp": _mlp, "cnn": _cnn, "rnn": _rnn}
PLACES = ("before", "after", "before+input", "before+output")
IGNORED = {
    "mlp": (),
    "cnn": ("depth", "width"),
    "rnn": ("depth", "activation", "place", "dropout", "shift"),
}
"""What a model has no use for."""


def _check(run: Run) -> None:
    """Refuse a run that would be trained as another: by a misspelled name, or by what its model does not have.

    Raises
    ------
    ValueError
        Which names the field, and what it may be.
    """
    for field, known in (("norm", NORMS), ("place", PLACES), ("model", MODELS), ("activation", ACTIVATIONS)):
        value = getattr(run, field)
        if value not in known:
            raise ValueError(f"no {field} is called {value!r}; there are {', '.join(known)}")
    for field in IGNORED[run.model]:
        value, usual = getattr(run, field), getattr(Run(), field)
        if value != usual:
            raise ValueError(f"a {run.model} has no use for {field}: it must be {usual!r}, got {value!r}")
    if run.model == "cnn" and "+" in run.place:
        raise ValueError(f"a cnn has its norms before or after the activation, got {run.place!r}")


def make_network(run: Run, rng: np.random.Generator, noise: np.random.Generator, dtype: type = np.float32) -> Network:
    """The run's network. Its initial weights come from `rng` and do not depend on the norm."""
    _check(run)
    return Network((layer for layer in MODELS[run.model](run, rng, noise, dtype) if layer is not None), dtype)


class Momentum:
    """v = 0.9 v + g and w = w - rate v."""

    def __init__(self, network: Network, rate: float) -> None:
        self.network, self.rate = network, network.values.dtype.type(rate)
        self.velocity = np.zeros_like(network.values)

    def step(self) -> None:
        self.velocity *= 0.9
        self.velocity += self.network.slopes
        self.network.values -= self.rate * self.velocity


class Adam:
    """Kingma and Ba, 2014 (arXiv:1412.6980), with beta 0.9 and 0.999 and eps 1e-8."""

    def __init__(self, network: Network, rate: float) -> None:
        self.network, self.rate, self.time = network, rate, 0
        self.mean, self.square = np.zeros_like(network.values), np.zeros_like(network.values)

    def step(self) -> None:
        slopes, dtype = self.network.slopes, self.network.values.dtype.type
        self.time += 1
        self.mean += dtype(0.1) * (slopes - self.mean)
        self.square += dtype(0.001) * (slopes * slopes - self.square)
        rate, correction = dtype(self.rate / (1 - 0.9**self.time)), dtype(1 / (1 - 0.999**self.time))
        self.network.values -= rate * self.mean / (np.sqrt(self.square * correction) + dtype(1e-8))


OPTIMIZERS = {"sgd": Momentum, "adam": Adam}
