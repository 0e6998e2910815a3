"""What has to be right before anything is trained: gradients, and the kernels in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.claims.runs import NORMS, Run
from benchmarks.claims.training import Training
from normnumba import reference
from normnumba.layers import batch, groups, rows, tracking

NETS = (
    *(Run(norm=norm, activation=name) for norm in NORMS for name in ("relu", "tanh", "sigmoid")),
    *(Run(norm="batch", place=place) for place in ("before+input", "before+output")),
    *(Run(norm=norm, place="after") for norm in NORMS[1:]),
    Run(norm="batch", dropout=0.3, shift=0.5),
    *(Run(norm=norm, model="cnn", task="digit images") for norm in NORMS),
    *(Run(norm=norm, model="rnn", task="digit rows") for norm in NORMS),
    Run(norm="layer", task="ink", depth=1),
)
"""One net of every kind that is trained."""

STEPS = 20


@dataclass(frozen=True)
class Check:
    """Two ways to compute the same, and how far apart they may be."""

    what: str
    tolerance: float
    error: Callable[[], float]


def slope_error(run: Run) -> float:
    """How far backward is from central differences of the loss, in float64: the worst of parameters and inputs.

    Along random directions, relative to the length of the gradient that the direction could have met.
    """
    training = Training(replace(run, batch=16), np.float64)
    network, rng = training.network, np.random.default_rng(1)
    picked = next(training._batches)
    x, target = training.data.x[picked].copy(), training.data.target[picked]
    # Biases of 0 would leave the digits' empty pixels exactly at relu's kink.
    network.values += 0.1 * rng.standard_normal(network.values.shape)
    noisy = [layer for layer in network.layers if hasattr(layer, "rng")]

    def loss() -> tuple[float, Any]:
        for layer in noisy:
            layer.rng = np.random.default_rng(2)
        return training.task.loss(network(x), target)

    dx = network.backward(loss()[1])
    errors, step = [], 1e-6
    for variable, slope in ((network.values, network.slopes.copy()), (x, dx)):
        for _ in range(3):
            direction = rng.standard_normal(variable.shape)
            direction /= np.linalg.norm(direction)
            around = []
            for sign in (1, -2):  # to one side, then to the other
                variable += sign * step * direction
                around.append(loss()[0])
            variable += step * direction
            difference = (around[0] - around[1]) / (2 * step)
            errors.append(abs(difference - np.sum(slope * direction)) / np.linalg.norm(slope))
    return float(np.max(errors))  # NaN if one is


@contextmanager
def reference_kernels() -> Iterator[None]:
    """normnumba's layers on the NumPy reference, rounded to the input's dtype as kernels round."""

    def rounded(function: Any) -> Any:
        def call(first: Any, *arguments: Any, **settings: Any) -> Any:
            found = function(first, *arguments, **settings)
            return tuple(None if a is None else np.asarray(a).astype(first.dtype) for a in found)

        return call

    with ExitStack() as stack:
        for module in (batch, groups, rows, tracking):
            for name in vars(module):
                if name.endswith(("_norm_forward", "_norm_backward")):
                    stack.enter_context(patch.object(module, name, rounded(getattr(reference, name))))
        yield


def reference_error(run: Run, dtype: type) -> float:
    """How far the losses of the first `STEPS` steps are from those of the NumPy reference, relative to the loss."""

    def losses() -> Any:
        training = Training(run, dtype)
        return np.array([training.step() for _ in range(STEPS)])

    ours = losses()
    with reference_kernels():
        theirs = losses()
    return float(np.max(np.abs(ours - theirs) / theirs))


def every_check() -> list[Check]:
    """All of them; each takes some hundredths of a second."""
    # A step of 1e-6 leaves 1e-10 of rounding and of curvature each; a unit that passes relu's kink, 1e-7.
    found = [Check(f"gradient by finite differences: {run.key()}", 1e-6, partial(slope_error, run)) for run in NETS]
    for norm in NORMS[1:]:
        for model, task in (("mlp", "digits"), ("cnn", "digit images"), ("rnn", "digit rows")):
            run = Run(norm=norm, model=model, task=task, rate=0.03)
            # Rounding of 1e-16 and 6e-8 that grows from step to step; at this rate it hardly does.
            for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
                what = f"NumPy reference over {STEPS} steps: {model}, {norm}, {np.dtype(dtype)}"
                found.append(Check(what, tolerance, partial(reference_error, run, dtype)))
    return found
