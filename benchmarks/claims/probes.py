"""What some runs record besides losses and scores."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from normnumba.layers import BatchNorm

if TYPE_CHECKING:
    from benchmarks.claims.training import Training

Array = Any

SCALES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
"""Factors of inputs and of weights."""

UPDATES = (1, 2, 5, 10, 20, 50, 100)
"""How many batches the running statistics have seen."""

BATCHES = (2, 8, 32, 128)
"""Test batches whose own statistics are used."""


def filled(values: list[Any], count: int) -> list[Any]:
    """As many as a whole run has: one that diverged goes on with its last."""
    return values + values[-1:] * (count - len(values))


class Probe(Protocol):
    def __init__(self, training: Training) -> None: ...

    def after(self, step: int) -> None:
        """Called after each step."""

    def result(self) -> dict[str, Any]:
        """Called once after the last."""


class Gradients:
    """gradients: the norm of the loss's gradient by each weight matrix, in each step, from the first layer on."""

    def __init__(self, training: Training) -> None:
        self.layers, self.steps = training.network.linear(), training.run.steps
        self.norms: list[list[float]] = []

    def after(self, step: int) -> None:
        self.norms.append([float(np.linalg.norm(layer.dweight)) for layer in self.layers])

    def result(self) -> dict[str, Any]:
        return {"gradients": filled(self.norms, self.steps)}


class Drift:
    """drift: how far the distribution of each layer's input moves in `EVERY` steps of training, from the second layer.

    The layer's input is taken over 256 training images, normalized by their own statistics as in training. The move of
    a unit is that of its mean and standard deviation, sqrt(dmean^2 + dstd^2); a layer's drift is the root of the mean
    of its squares over units, divided by that of the units' deviations.
    """

    EVERY = 10

    def __init__(self, training: Training) -> None:
        self.network, self.x, self.steps = training.network, training.data.x[:256], training.run.steps
        self.moments: list[list[tuple[Array, Array]]] = [self._moments()]

    def _moments(self) -> list[tuple[Array, Array]]:
        network = copy.deepcopy(self.network)  # or this would go into the running statistics, and draw numbers
        inputs = [x.astype(np.float64) for x in network.inputs_of_linear(self.x)][1:]
        return [(x.mean(axis=0), x.std(axis=0)) for x in inputs]

    def after(self, step: int) -> None:
        if (step + 1) % self.EVERY == 0:
            self.moments.append(self._moments())

    def result(self) -> dict[str, Any]:
        drift = []
        for before, after in zip(self.moments[:-1], self.moments[1:], strict=True):
            moves = [
                np.sqrt(np.mean((m1 - m0) ** 2 + (s1 - s0) ** 2) / np.mean(s0**2))
                for (m0, s0), (m1, s1) in zip(before, after, strict=True)
            ]
            drift.append(float(np.mean(moves)))
        return {"drift": filled(drift, self.steps // self.EVERY)}


class AtTheEnd:
    """A probe of the trained net alone."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def after(self, step: int) -> None:
        pass


class Scales(AtTheEnd):
    """Test scores when all inputs, or all hidden weight matrices, are times `SCALES`.

    scaled_inputs: in evaluation. own_scaled_inputs, own_scaled_weights: by the statistics of the test data itself,
    which batch norm's invariance is about; running statistics are those of the inputs and weights that there were.
    """

    def result(self) -> dict[str, Any]:
        data, score = self.training.data, self.training.task.score
        network = copy.deepcopy(self.training.network)
        inputs = [network.predict(scale * data.test_x) for scale in SCALES]
        own_inputs = [network(scale * data.test_x) for scale in SCALES]
        hidden = network.linear()[:-1]
        kept, own_weights = [layer.weight.copy() for layer in hidden], []
        for scale in SCALES:
            for layer, weight in zip(hidden, kept, strict=True):
                layer.weight[...] = scale * weight
            own_weights.append(network(data.test_x))
        return {
            name: [score(outputs, data.test_target) for outputs in found]
            for name, found in (
                ("scaled_inputs", inputs),
                ("own_scaled_inputs", own_inputs),
                ("own_scaled_weights", own_weights),
            )
        }


class Statistics(AtTheEnd):
    """What a trained batch norm's statistics are worth.

    updated: test scores in evaluation after running statistics that start anew have seen `UPDATES` training batches.
    batched: test scores by the statistics of the test batch itself, of `BATCHES` samples. whole: of all test data.
    """

    def result(self) -> dict[str, Any]:
        data, score = self.training.data, self.training.task.score
        network = copy.deepcopy(self.training.network)
        batched = []
        for size in (*BATCHES, len(data.test_x)):
            parts = range(0, len(data.test_x) // size * size, size)
            outputs = np.concatenate([network(data.test_x[start : start + size]) for start in parts])
            batched.append(score(outputs, data.test_target[: len(outputs)]))
        for layer in network.layers:
            if isinstance(layer, BatchNorm):
                layer.running_mean[...], layer.running_var[...] = 0, 1
        updated, seen = [], 0
        for updates in UPDATES:
            for _ in range(updates - seen):
                network(data.x[next(self.training._batches)])
            seen = updates
            updated.append(score(network.predict(data.test_x), data.test_target))
        return {"updated": updated, "batched": batched[:-1], "whole": batched[-1]}


PROBES: dict[str, type[Probe]] = {
    "gradients": Gradients,
    "drift": Drift,
    "scales": Scales,
    "statistics": Statistics,
}
