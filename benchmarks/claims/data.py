"""The tasks: real data that scikit-learn brings along, split by the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = Any


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean of -log softmax(logits)[label], and its gradient."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    p /= total
    p[rows, labels] -= 1
    p /= len(labels)
    return float(loss), p


def squared_error(outputs: Array, targets: Array) -> tuple[float, Array]:
    """The mean of (output - target)^2 / 2, and its gradient."""
    difference = outputs[:, 0] - targets
    return float(np.mean(difference**2) / 2), difference[:, None] / difference.dtype.type(len(targets))


def accuracy(outputs: Array, labels: Array) -> float:
    """The percentage of labels that are the largest output's place."""
    return float(100 * np.mean(outputs.argmax(axis=1) == labels))


def explained(outputs: Array, targets: Array) -> float:
    """The percentage of the targets' variance that is explained, not below 0."""
    if not np.all(np.isfinite(outputs)):
        return 0.0
    rest = np.mean((outputs[:, 0].astype(np.float64) - targets) ** 2)
    return float(max(0.0, 100 * (1 - rest / np.var(targets, dtype=np.float64))))


@dataclass(frozen=True)
class Task:
    """How a data set is read, and what its outputs are worth."""

    read: Callable[[], tuple[Array, Array]]
    outputs: int
    shape: tuple[int, ...]
    """Of one input."""
    loss: Callable[[Array, Array], tuple[float, Array]] = cross_entropy
    score: Callable[[Array, Array], float] = accuracy
    training: int | None = None
    """How many samples to train on; by default all but the fifth that is for testing."""
    standardize: bool = False


@dataclass(frozen=True)
class Data:
    """A task's samples for one seed."""

    x: Array
    target: Array
    test_x: Array
    test_target: Array


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return x / 16, labels


def _ink() -> tuple[Array, Array]:
    """Images of digits in random brightness; the target is the sum of the pixels, standardized."""
    x, _ = _digits()
    x = x * np.random.default_rng(0).uniform(0.25, 1, (len(x), 1))
    total = x.sum(axis=1)
    return x, (total - total.mean()) / total.std()


def _wine() -> tuple[Array, Array]:
    from sklearn.datasets import load_wine

    return load_wine(return_X_y=True)


def _cancer() -> tuple[Array, Array]:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


TASKS = {
    # Images of 8 x 8 pixels from 0 to 1: 1438 to train on, 359 to test.
    "digits": Task(_digits, 10, (64,)),
    "few digits": Task(_digits, 10, (64,), training=200),
    "digit images": Task(_digits, 10, (8, 8, 1)),
    "digit rows": Task(_digits, 10, (8, 8)),
    "ink": Task(_ink, 1, (64,), squared_error, explained),
    "wine": Task(_wine, 3, (13,), standardize=True),
    "cancer": Task(_cancer, 2, (30,), standardize=True),
}

_read = lru_cache(maxsize=None)(lambda task: TASKS[task].read())


def load(task: str, rng: np.random.Generator, scale: float = 1.0, dtype: type = np.float32) -> Data:
    """Split a task's samples in random order: a fifth for testing, the others, or as many as it says, for training.

    All inputs are multiplied by `scale`.
    """
    x, target = _read(task)
    order = rng.permutation(len(target))
    test, rest = np.split(order, [len(order) // 5])
    training = rest[: TASKS[task].training]
    if TASKS[task].standardize:
        x = (x - x[training].mean(axis=0)) / x[training].std(axis=0)
    x = (scale * x).astype(dtype).reshape(-1, *TASKS[task].shape)
    target = target.astype(dtype if TASKS[task].loss is squared_error else np.intp)
    return Data(x[training], target[training], x[test], target[test])
