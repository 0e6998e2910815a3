"""Claims about which norm belongs in which network, and where."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.claims.common import HALF, RATE_AXIS, SCORE, WHY_HALF, by, last_score, lines, to_target
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.study import Findings, Plot, Results, claim


def _both(**settings: Any) -> dict[str, Tuned]:
    """A grid tuned for the test score, and for the steps to a loss of 0.1."""
    grid = Grid(**settings)
    return {"score": Tuned(grid, last_score), "steps": Tuned(grid, to_target, least=True)}


RNN_RATES = (0.001, 0.003, 0.01, 0.03)


@claim(
    "layer-norm-for-rnn",
    says="In recurrent networks layer norm is the one to use, better than batch norm and than none.",
    tests={"layer over none": HALF, "layer over batch": HALF},
    why_smallest=WHY_HALF,
    grids=_both(model="rnn", task="digit rows", optimizer="adam", norm=NORMS, rate=RNN_RATES),
)
def layer_norm_for_rnn(results: Results) -> Findings:
    """Digits read row by row by a recurrent net of 64 tanh units, h = tanh(norm(x A + h B + b)), and a linear layer on
    the last state; 300 steps of Adam on batches of 64. Batch norm has running statistics of its own for each row, and
    weight and bias in common; its weight starts at 1 as everywhere here (Cooijmans et al. advise 0.1). Each net has
    the best of four learning rates from 0.001 to 0.03. The effect is the test score with layer norm minus that with
    batch norm, or with none.
    """
    scores, steps = results.each("score", last_score), results.each("steps", to_target)
    sweep = results.sweep("score", last_score)
    return Findings(
        effects={"layer over none": scores[2] - scores[0], "layer over batch": scores[2] - scores[1]},
        metrics={"score in %, tuned": by(NORMS, scores), "steps to a loss of 0.1, tuned": by(NORMS, steps, np.median)},
        plots=[Plot(RATE_AXIS, SCORE, lines(NORMS, RNN_RATES, sweep), log_x=True)],
    )


CNN_RATES = (0.03, 0.1, 0.3, 1.0)


@claim(
    "batch-norm-for-cnn",
    says="In convolutional networks batch norm is the one to use, better than layer norm.",
    tests={"batch over layer": HALF},
    why_smallest=WHY_HALF,
    grids=_both(model="cnn", task="digit images", norm=NORMS, rate=CNN_RATES, steps=200),
)
def batch_norm_for_cnn(results: Results) -> Findings:
    """Digits, three convolutions of 3 x 3 with 8, 16 and 32 channels, the second and third with stride 2, relu, the
    mean over the image and a linear layer; 200 steps of SGD with momentum on batches of 64. Layer norm is over height,
    width and channels with a weight for each channel. Each net has the best of four learning rates from 0.03 to 1. The
    effect is the test score with batch norm minus that with layer norm.
    """
    scores, steps = results.each("score", last_score), results.each("steps", to_target)
    sweep = results.sweep("score", last_score)
    return Findings(
        effects={"batch over layer": scores[1] - scores[2]},
        metrics={"score in %, tuned": by(NORMS, scores), "steps to a loss of 0.1, tuned": by(NORMS, steps, np.median)},
        plots=[Plot(RATE_AXIS, SCORE, lines(NORMS, CNN_RATES, sweep), log_x=True)],
    )


PLACE_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
PLACES = ("before", "before+input", "before+output")


@claim(
    "not-on-input-or-output",
    says="Batch norm should not be applied to the input layer or to the output layer: it hurts there.",
    tests={"on the input": HALF, "on the output": HALF},
    why_smallest=WHY_HALF,
    grids={"score": Tuned(Grid(norm="batch", place=PLACES, rate=PLACE_RATES), last_score)},
)
def not_on_input_or_output(results: Results) -> Findings:
    """The net with batch norm of converges-faster, with one more batch norm on the pixels, or on the ten outputs
    before softmax. Each net has the best of five learning rates. The effect is the test score after 300 steps without
    the addition minus that with it.
    """
    scores, sweep = results.each("score", last_score), results.sweep("score", last_score)
    names = ("hidden layers only", "and the input", "and the output")
    return Findings(
        effects={"on the input": scores[0] - scores[1], "on the output": scores[0] - scores[2]},
        metrics={"score in %, tuned": by(names, scores)},
        plots=[Plot(RATE_AXIS, SCORE, lines(names, PLACE_RATES, sweep), log_x=True)],
    )


@claim(
    "before-or-after-activation",
    says="Batch norm belongs before the activation (one text; another puts it after).",
    tests={"batch, before over after": HALF},
    why_smallest=WHY_HALF + " That after is better, or no different, contradicts the one text.",
    grids=_both(norm=NORMS[1:], place=("before", "after"), rate=PLACE_RATES),
)
def before_or_after(results: Results) -> Findings:
    """The net with batch norm of converges-faster, with the norm between each linear layer and its relu, or after the
    relu. Each net has the best of five learning rates. The effect is the test score after 300 steps with the norm
    before minus that with it after. Layer norm is beside it.
    """
    scores, steps = results.each("score", last_score), results.each("steps", to_target)  # (norm, place, seed)
    sweep = results.sweep("score", last_score)
    names = [f"{norm}, {place}" for norm in NORMS[1:] for place in ("before", "after")]
    return Findings(
        effects={"batch, before over after": scores[0, 0] - scores[0, 1]},
        metrics={
            "score in %, tuned": by(names, scores.reshape(4, -1)),
            "steps to a loss of 0.1, tuned": by(names, steps.reshape(4, -1), np.median),
        },
        plots=[
            Plot(
                RATE_AXIS,
                SCORE,
                lines(names, PLACE_RATES, sweep.reshape(4, *sweep.shape[2:])),
                log_x=True,
            )
        ],
    )
