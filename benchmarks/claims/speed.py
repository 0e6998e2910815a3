"""Claims about how fast training goes."""

from __future__ import annotations

import numpy as np

from benchmarks.claims.common import (
    FASTER,
    RATE_AXIS,
    RATES,
    SWEEP,
    UNTUNED,
    WHY_FASTER,
    WINDOW,
    WRONG,
    Record,
    by,
    doublings,
    last_score,
    lines,
    smooth_loss,
    steps_to_loss,
    tested,
    to_score,
    to_target,
    wrong,
)
from benchmarks.claims.decide import Test
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.study import Findings, Line, Plot, Results, claim


@claim(
    "converges-faster",
    says="With normalization a network converges faster: it needs fewer steps to a given loss.",
    tests={"batch": FASTER, "layer": FASTER},
    why_smallest=WHY_FASTER,
    grids={"tuned": Tuned(SWEEP, to_target, least=True), "untuned": UNTUNED},
)
def converges_faster(results: Results) -> Findings:
    """Digits (8 x 8 pixels, 1438 to train on) and a net of four hidden layers of 64 relu units, 300 steps of SGD with
    momentum 0.9 on batches of 64. The nets differ in what stands between a linear layer and its activation: nothing,
    batch norm or layer norm. Counted are the steps until the training loss, averaged over ten batches, is at most 0.1;
    a run that does not get there counts as 300. Each net has the learning rate of twelve that is best for it. The
    effect is log2(steps of the plain net / steps of the normalized one). Untuned: all nets at 0.03, the plain net's
    best in a pilot.
    """
    steps, untuned = results.each("tuned", to_target), results.each("untuned", to_target)
    losses = results.each("tuned", smooth_loss)
    sweep = results.sweep("tuned", to_target)
    shown = 150
    return Findings(
        effects=doublings(steps),
        metrics={
            "steps, tuned": by(NORMS, steps, np.median),
            "steps, all at 0.03": by(NORMS, untuned, np.median),
            "tuned rate": {run.norm: run.rate for run in results.settings("tuned")},
            "doublings, all at 0.03": by(NORMS[1:], np.log2(untuned[0] / untuned[1:])),
        },
        plots=[
            Plot(
                "steps",
                "training loss, each net at its best rate",
                [
                    Line(norm, range(WINDOW, shown + 1), np.minimum(losses[i, :, : shown + 1 - WINDOW], 10))
                    for i, norm in enumerate(NORMS)
                ],
                log_y=True,
            ),
            Plot(
                RATE_AXIS,
                "steps to a loss of 0.1",
                lines(NORMS, RATES, sweep),
                log_x=True,
            ),
        ],
    )


@claim(
    "trains-in-less-time",
    says="With normalization training takes less time to a given accuracy, its own work included: "
    "900 s instead of 1200 s.",
    tests={"batch": FASTER, "layer": FASTER},
    why_smallest="A factor of 1.1 in time. The text that gives seconds claims 1.33.",
    grids={"tuned": Tuned(SWEEP, to_score, least=True)},
    timed={"nets": UNTUNED},
)
def trains_in_less_time(results: Results) -> Findings:
    """The nets of converges-faster. Counted are the steps until 95 % of the test digits are right (tested after every
    ten steps), each net at its best learning rate, times the seconds of one step of that net, which are measured for
    each seed before any net of the study is trained, the nets taking turns. NumPy and one thread: in these small nets
    the work of a norm weighs more than in large ones, see small-overhead. The effect is log2(time of the plain net /
    time of the normalized one).
    """
    steps = results.each("tuned", to_score)
    step = results.seconds("nets")
    seconds = steps * step
    scores = results.each("tuned", lambda record: record["score"])
    return Findings(
        effects=doublings(seconds),
        metrics={"steps to 95 %, tuned": by(NORMS, steps, np.median)},
        timings={
            "seconds of a step": by(NORMS, step, np.median),
            "seconds to 95 %": by(NORMS, seconds, np.median),
            "times as fast as plain": by(NORMS[1:], seconds[0] / seconds[1:], np.median),
        },
        plots=[
            Plot(
                "milliseconds",
                WRONG,
                [
                    Line(norm, 1e3 * np.median(step[i]) * tested(scores), wrong(scores[i]))
                    for i, norm in enumerate(NORMS)
                ],
                log_x=True,
                log_y=True,
                timed=True,
            )
        ],
    )


@claim(
    "higher-learning-rate",
    says="Normalization allows higher learning rates: the net stays trainable where the plain one diverges.",
    tests={norm: Test("decades of rate", np.log10(2)) for norm in NORMS[1:]},
    why_smallest="Twice the rate: from 0.01 on the grid's steps are a little smaller than that.",
    grids={"sweep": SWEEP},
)
def higher_learning_rate(results: Results) -> Findings:
    """The nets of converges-faster at twelve learning rates from 0.003 to 3. A net is trainable at a rate if it gets
    90 % of its training digits right after 300 steps; one that is so at no rate counts as 0.003, and one that is so at
    3 as 3. The effect is log10(highest rate at which the normalized net is trainable / that of the plain one).
    """
    score = results.each("sweep", lambda record: record["train_score"])
    rates = np.array(RATES)[:, None]
    highest = np.where(score >= 90, rates, rates[0]).max(axis=1)
    return Findings(
        effects={norm: np.log10(highest[i] / highest[0]) for i, norm in enumerate(NORMS) if i},
        metrics={"highest trainable rate": by(NORMS, highest, np.median)},
        plots=[
            Plot(
                "learning rate",
                "training digits right after 300 steps, %",
                lines(NORMS, RATES, score),
                log_x=True,
            )
        ],
    )


WIDTHS = (64, 128, 256, 512)
SMALL = 20.0
"""Percent of a step: "relatively small" is taken for less than a fifth."""
SHARE = Test(f"points below {SMALL:g} %", 0.0)


@claim(
    "small-overhead",
    says="The extra work of normalization is relatively small.",
    tests={f"{norm}, {net}": SHARE for net in ("mlp of width 256", "cnn") for norm in NORMS[1:]},
    why_smallest="'Relatively small' is taken for less than a fifth of a training step, and any side of that counts.",
    timed={
        "mlp": Grid(norm=NORMS, width=WIDTHS),
        "cnn": Grid(norm=NORMS, model="cnn", task="digit images"),
    },
)
def small_overhead(results: Results) -> Findings:
    """The share of a training step (forward, backward, update; batch 64) that the norms take, 1 - time of the plain
    net's step / time of the normalized one's, measured for each seed with the nets taking turns: nets of four hidden
    layers of 64 to 512 units, and a small convolutional net. NumPy with one thread, and normnumba's kernels: with less
    overhead elsewhere the share would be larger, with slower norms too. The seeds are repetitions on one machine
    within a minute, and tell nothing about others. The effect is 20 % - share, in points.
    """
    mlp, cnn = results.seconds("mlp"), results.seconds("cnn")
    shares = {"mlp": 100 * (1 - mlp[0] / mlp[1:]), "cnn": 100 * (1 - cnn[0] / cnn[1:])}
    wide = shares["mlp"][:, WIDTHS.index(256)]
    effects = {f"{norm}, mlp of width 256": SMALL - wide[i] for i, norm in enumerate(NORMS[1:])}
    effects |= {f"{norm}, cnn": SMALL - shares["cnn"][i] for i, norm in enumerate(NORMS[1:])}
    return Findings(
        effects=effects,
        metrics={"what counts as small, in %": SMALL},
        timings={
            "share of a step in %, mlp": {
                norm: by(WIDTHS, shares["mlp"][i], np.median) for i, norm in enumerate(NORMS[1:])
            },
            "share of a step in %, cnn": by(NORMS[1:], shares["cnn"], np.median),
        },
        plots=[
            Plot(
                "width of the hidden layers",
                "share of a step, %",
                lines(NORMS[1:], WIDTHS, shares["mlp"]),
                log_x=True,
                timed=True,
            )
        ],
    )


SHALLOW = (0.01, 0.03, 0.056, 0.1, 0.18, 0.3, 0.56, 1.0)


@claim(
    "shallow-nets-too",
    says="Shallow networks gain as well: one hidden layer is enough.",
    tests={"batch": FASTER, "layer": FASTER},
    why_smallest=WHY_FASTER,
    grids={
        "steps": Tuned(Grid(norm=NORMS, depth=1, rate=SHALLOW), to_target, least=True),
        "score": Tuned(Grid(norm=NORMS, depth=1, rate=SHALLOW), last_score),
    },
)
def shallow_nets_too(results: Results) -> Findings:
    """As converges-faster with one hidden layer instead of four: steps to a training loss of 0.1, each net at the best
    of eight learning rates. The effect is log2(steps of the plain net / steps of the normalized one).
    """
    steps, sweep = results.each("steps", to_target), results.sweep("steps", to_target)
    return Findings(
        effects=doublings(steps),
        metrics={
            "steps, tuned": by(NORMS, steps, np.median),
            "test score in %, tuned": by(NORMS, results.each("score", last_score)),
        },
        plots=[
            Plot(
                RATE_AXIS,
                "steps to a loss of 0.1",
                lines(NORMS, SHALLOW, sweep),
                log_x=True,
            )
        ],
    )


BENT = (0.01, 0.03, 0.1, 0.3, 1.0)
EASY_TARGET = 0.3
"""A training loss that nets of sigmoids reach as well in 300 steps."""
NAMES = ("relu", "sigmoid", "tanh")


def to_easy_target(record: Record) -> float:
    return steps_to_loss(record, EASY_TARGET)


@claim(
    "any-activation",
    says="Normalization helps with any activation: relu, sigmoid, tanh.",
    tests={f"{norm}, {name}": FASTER for name in NAMES for norm in NORMS[1:]},
    why_smallest=WHY_FASTER,
    grids={name: Tuned(Grid(activation=name, norm=NORMS, rate=BENT), to_easy_target, least=True) for name in NAMES},
)
def any_activation(results: Results) -> Findings:
    """As converges-faster with relu, sigmoid and tanh after the norm, and steps to a training loss of 0.3, which nets
    of sigmoids reach too; each net has the best of five learning rates, and a run that does not get there counts as
    300. The effect is log2(steps of the plain net / steps of the normalized one).
    """
    effects, steps_of, shown = {}, {}, []
    for name in NAMES:
        steps, sweep = results.each(name, to_easy_target), results.sweep(name, to_easy_target)
        effects |= doublings(steps, f", {name}")
        steps_of[name] = by(NORMS, steps, np.median)
        shown += lines([f"{norm}, {name}" for norm in NORMS], BENT, sweep)
    return Findings(effects, {"steps, tuned": steps_of}, [Plot(RATE_AXIS, "steps to a loss of 0.3", shown, log_x=True)])
