"""The training loop: one run from its seed to its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.claims.data import TASKS, Data, load
from benchmarks.claims.models import OPTIMIZERS, Network, make_network
from benchmarks.claims.probes import PROBES
from benchmarks.claims.runs import Run

EVERY = 10
"""Steps between two tests."""


class Training:
    """A network in training.

    The seed gives one stream of random numbers each to the split of the data, the initial weights, the order of the
    samples and all other noise. So runs that differ in the norm have the same data, weights and batches.
    """

    def __init__(self, run: Run, dtype: type = np.float32) -> None:
        split, weights, order, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(run.seed).spawn(4))
        self.run = run
        self.task = TASKS[run.task]
        self.data: Data = load(run.task, split, run.scale, dtype)
        self.network: Network = make_network(run, weights, noise, dtype)
        self.optimizer = OPTIMIZERS[run.optimizer](self.network, run.rate)
        self._batches = self._shuffled(order)

    def _shuffled(self, order: np.random.Generator) -> Iterator[Any]:
        """Batches of one size for ever; what an epoch leaves over is left out."""
        samples = len(self.data.target)
        if self.run.batch > samples:
            raise ValueError(
                f"{self.run.task} has {samples} samples to train on, fewer than a batch of {self.run.batch}"
            )
        while True:
            shuffled = order.permutation(samples)
            for start in range(0, samples - self.run.batch + 1, self.run.batch):
                yield shuffled[start : start + self.run.batch]

    def step(self) -> float:
        """Take one step and return the batch's loss before it."""
        network, picked = self.network, next(self._batches)
        loss, slope = self.task.loss(network(self.data.x[picked]), self.data.target[picked])
        network.backward(slope)
        if self.run.decay:
            network.slopes += self.run.decay * network.decayed * network.values
        self.optimizer.step()
        return loss

    def test(self) -> float:
        """The score in evaluation, in percent."""
        return self.task.score(self.network.predict(self.data.test_x), self.data.test_target)


def train(run: Run) -> dict[str, Any]:
    """Train as `run` says, and return what was seen on the way.

    Returns
    -------
    dict
        loss: of each step's batch; score: of the test data in percent, after every `EVERY` steps; at the end
        train_score, and test_loss in evaluation; and what the run's probe adds. A run whose loss is no
        longer finite ends there: the losses that it does not have are NaN, the scores stay what the last one was.
    """
    training = Training(run)
    probe = PROBES[run.watch](training) if run.watch else None
    losses, scores = np.full(run.steps, np.nan), []
    with np.errstate(all="ignore"):  # some runs are meant to diverge
        for step in range(run.steps):
            losses[step] = training.step()
            if probe:
                probe.after(step)
            if (step + 1) % EVERY == 0:
                scores.append(training.test())
            if not np.isfinite(losses[step]):
                break
        scores += [training.test()] * (run.steps // EVERY - len(scores))
        data, task, network = training.data, training.task, training.network
        outputs, test_outputs = network.predict(data.x), network.predict(data.test_x)
        return {
            "loss": losses.tolist(),
            "score": scores,
            "train_score": task.score(outputs, data.target),
            "test_loss": task.loss(test_outputs, data.test_target)[0],
            **(probe.result() if probe else {}),
        }
