"""Claims about the accuracy on data that was not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.claims.common import (
    FACTOR,
    HALF,
    RATE_AXIS,
    RATES,
    SCORE,
    SWEEP,
    UNTUNED,
    WHY_HALF,
    WRONG,
    Record,
    against_plain,
    by,
    last_score,
    lines,
    tested,
    wrong,
)
from benchmarks.claims.decide import Test
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.study import Findings, Line, Plot, Results, claim

FEW_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
DROPOUTS = (0.0, 0.1, 0.3, 0.5)
DECAYS = (0.0, 0.001, 0.01)
FEW = Tuned(Grid(task="few digits", norm=NORMS, rate=FEW_RATES), last_score)
"""200 digits to train on, which every net learns by heart."""


def test_loss(record: Record) -> float:
    """In evaluation, and 10 at most: nets that diverge have one of any size, or none."""
    return float(min(np.nan_to_num(record["test_loss"], nan=10.0, posinf=10.0), 10.0))


@claim(
    "less-overfitting",
    says="Normalization reduces overfitting: the gap between training and test accuracy is smaller.",
    tests={"batch": HALF, "layer": HALF},
    why_smallest=WHY_HALF,
    grids={"few": FEW},
)
def less_overfitting(results: Results) -> Findings:
    """The nets of converges-faster with 200 digits to train on instead of 1438, which all of them learn by heart in
    300 steps. The gap is the score on the training digits at the end minus the test score, each net at the learning
    rate of five with its best test score. The effect is the plain net's gap minus the normalized one's.
    """
    scores = results.each("few", last_score)
    training = results.each("few", lambda record: record["train_score"])
    gap = training - scores
    curves = results.each("few", lambda record: record["score"])
    return Findings(
        effects=against_plain(-gap),
        metrics={
            "gap in points, tuned": by(NORMS, gap),
            "training score in %": by(NORMS, training),
            "test score in %": by(NORMS, scores),
        },
        plots=[
            Plot(
                "steps",
                f"{WRONG}, 200 to train on",
                [Line(norm, tested(curves), wrong(curves[i])) for i, norm in enumerate(NORMS)],
                log_y=True,
            )
        ],
    )


@claim(
    "better-generalization",
    says="Normalization generalizes better: the validation accuracy rises, from 85 % to 91 %, say.",
    tests={"batch": HALF, "layer": HALF},
    why_smallest=WHY_HALF + " The text that gives numbers claims six points.",
    grids={"tuned": Tuned(SWEEP, last_score), "few": FEW, "untuned": UNTUNED},
)
def better_generalization(results: Results) -> Findings:
    """The nets of converges-faster, and the test score after 300 steps, each net at the best of twelve learning rates.
    The effect is the normalized net's score minus the plain one's. Beside it: all at 0.03, the plain net's best rate
    in a pilot; and, tuned again, with 200 digits to train on.
    """
    scores, sweep = results.each("tuned", last_score), results.sweep("tuned", last_score)
    curves = results.each("tuned", lambda record: record["score"])
    return Findings(
        effects=against_plain(scores),
        metrics={
            "score in %, tuned": by(NORMS, scores),
            "score in %, all at 0.03": by(NORMS, results.each("untuned", last_score)),
            "score in %, 200 to train on, tuned": by(NORMS, results.each("few", last_score)),
        },
        plots=[
            Plot(
                "steps",
                f"{WRONG}, each net at its best rate",
                [Line(norm, tested(curves), wrong(curves[i])) for i, norm in enumerate(NORMS)],
                log_y=True,
            ),
            Plot(RATE_AXIS, SCORE, lines(NORMS, RATES, sweep), log_x=True),
        ],
    )


LESS = Test("doublings", FACTOR)


@claim(
    "acts-as-regularizer",
    says="Batch norm acts as a regularizer: the test loss is lower, and dropout is needed less.",
    tests={"lower test loss": LESS, "dropout gains less": LESS},
    why_smallest="A factor of 1.1 in the test loss.",
    grids={
        "each": Tuned(Grid(task="few digits", norm=NORMS, dropout=DROPOUTS, rate=FEW_RATES), test_loss, least=True),
        "best": Tuned(
            Grid(task="few digits", norm=NORMS, dropout=DROPOUTS[1:], rate=FEW_RATES), test_loss, least=True, over=2
        ),
    },
)
def acts_as_regularizer(results: Results) -> Findings:
    """The nets of less-overfitting, trained on 200 digits, without dropout and with rates of 0.1, 0.3 and 0.5 after
    each activation. Test losses after 300 steps, each net at the best of five learning rates, and the best dropout for
    it. The effects: log2(plain net's / batch norm's test loss) without dropout; and how much more the plain net gains
    by dropout than the one with batch norm, where a gain is log2(loss without / loss with).
    """
    losses = results.each("each", test_loss)  # (norm, dropout, seed)
    without, with_dropout = losses[:, 0], results.each("best", test_loss)
    gain = np.log2(without / with_dropout)
    return Findings(
        effects={"lower test loss": np.log2(without[0] / without[1]), "dropout gains less": gain[0] - gain[1]},
        metrics={
            "test loss without dropout": by(NORMS, without),
            "test loss with dropout": by(NORMS, with_dropout),
            "gain by dropout in doublings": by(NORMS, gain),
        },
        plots=[
            Plot(
                "dropout",
                "test loss, each at its best rate",
                lines(NORMS, DROPOUTS, losses),
                log_y=True,
            )
        ],
    )


def _regularized(dropout: Any, decay: Any, over: int) -> Tuned:
    grid = Grid(task="few digits", norm="batch", dropout=dropout, decay=decay, rate=FEW_RATES)
    return Tuned(grid, last_score, over=over)


@claim(
    "not-a-replacement",
    says="Batch norm does not replace dropout and weight decay: they complement it.",
    tests={"dropout adds": HALF, "weight decay adds": HALF, "both add": HALF},
    why_smallest=WHY_HALF,
    grids={
        "each": _regularized(DROPOUTS, DECAYS, over=1),
        "dropout adds": _regularized(DROPOUTS[1:], 0.0, over=2),
        "weight decay adds": _regularized(0.0, DECAYS[1:], over=2),
        "both add": _regularized(DROPOUTS[1:], DECAYS[1:], over=3),
    },
)
def not_a_replacement(results: Results) -> Findings:
    """The net with batch norm of less-overfitting, trained on 200 digits, with dropout of 0, 0.1, 0.3 and 0.5 and
    weight decay of 0, 0.001 and 0.01. Each combination has the best of five learning rates, and each addition its best
    strength. The effects are the test score after 300 steps with dropout, with weight decay, and with both, minus that
    of batch norm alone.
    """
    scores = results.each("each", last_score)  # (dropout, decay, seed)
    alone = scores[0, 0]
    added = {label: results.each(label, last_score) for label in results.claim.tests}
    return Findings(
        effects={label: score - alone for label, score in added.items()},
        metrics={
            "score in %, batch norm alone": float(alone.mean()),
            "score in %": by(list(added), list(added.values())),
        },
        plots=[
            Plot(
                "dropout",
                f"{SCORE}, each at its best rate",
                lines([f"decay {decay:g}" for decay in DECAYS], DROPOUTS, np.swapaxes(scores, 0, 1)),
            )
        ],
    )


TASKS = ("wine", "cancer", "ink")
NO_GAIN = Test("points", 0.5, denies=True)


@claim(
    "not-always",
    says="Normalization is not always a gain: there are tasks where it makes no difference, or harms.",
    tests={f"{norm}, {task}": NO_GAIN for task in TASKS for norm in NORMS[1:]},
    why_smallest="Half a point, as for the digits; one test sample in one run is 2.9 points of wine and 0.9 of cancer.",
    grids={
        task: Tuned(Grid(task=task, norm=NORMS, depth=2, width=32, batch=32, steps=200, rate=FEW_RATES), last_score)
        for task in TASKS
    },
    every=False,
)
def not_always(results: Results) -> Findings:
    """Three small tasks and a net of two hidden layers of 32 relu units, batches of 32, 200 steps: the sort of a wine
    from 13 standardized measurements (143 to train on), whether a tumor is malignant from 30 (456), and the amount of
    ink of digits in random brightness, a sum of pixels (1438; the score is the explained share of the variance). Each
    net has the best of five learning rates. One task without a gain is enough. What is said denies an effect, which is
    the score minus the plain net's.
    """
    effects, scores, shown = {}, {}, []
    for task in TASKS:
        score, sweep = results.each(task, last_score), results.sweep(task, last_score)
        effects |= against_plain(score, f", {task}")
        scores[task] = by(NORMS, score)
        shown += lines([f"{norm}, {task}" for norm in NORMS], FEW_RATES, sweep)
    return Findings(effects, {"score in %, tuned": scores}, [Plot(RATE_AXIS, "test score, %", shown, log_x=True)])
