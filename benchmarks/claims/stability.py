"""Claims about what training withstands: initial weights, depth, scales, and what happens inside."""

from __future__ import annotations

import numpy as np

from benchmarks.claims.common import (
    FACTOR,
    FASTER,
    POINT,
    RATE_AXIS,
    RATES,
    SCORE,
    SWEEP,
    WHY_FASTER,
    WHY_POINT,
    against_plain,
    by,
    last_score,
    lines,
    to_score,
)
from benchmarks.claims.decide import Test
from benchmarks.claims.probes import SCALES, Drift
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.study import Findings, Line, Plot, Results, claim

INITS = (0.1, 0.3, 1.0, 3.0, 10.0)
INIT_RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@claim(
    "robust-to-initialization",
    says="Normalization makes training less sensitive to how the weights are initialized.",
    tests={"batch": POINT, "layer": POINT},
    why_smallest=WHY_POINT,
    grids={
        "tuned": Tuned(Grid(norm=NORMS, init=INITS, rate=INIT_RATES), last_score),
        "untuned": Grid(norm=NORMS, init=INITS, rate=0.03),
    },
)
def robust_to_initialization(results: Results) -> Findings:
    """The nets of converges-faster with all initial weights times 0.1, 0.3, 1, 3 and 10 (1 is He's initialization).
    Each net has, at each of these scales, the best of eight learning rates from 0.0001 to 0.3. The effect is the test
    score after 300 steps, averaged over the scales, minus that of the plain net: a norm that is better at every scale
    gains by that too.
    """
    fair = results.each("tuned", last_score)  # (norm, scale, seed)
    mean = fair.mean(axis=1)
    return Findings(
        effects=against_plain(mean),
        metrics={
            "mean score in %, tuned": by(NORMS, mean),
            "mean score in %, all at 0.03": by(NORMS, results.each("untuned", last_score).mean(axis=1)),
            "score in % by scale, tuned": {norm: by(INITS, fair[i]) for i, norm in enumerate(NORMS)},
        },
        plots=[
            Plot(
                "scale of the initial weights",
                f"{SCORE}, each at its best rate",
                lines(NORMS, INITS, fair),
                log_x=True,
            )
        ],
    )


WATCHED = 100
LEVEL = Test("doublings", FACTOR)


@claim(
    "stable-gradients",
    says="Normalization stabilizes the gradients: they fluctuate less, and neither vanish nor explode.",
    tests={
        f"{norm}, {what}": LEVEL
        for norm in NORMS[1:]
        for what in ("fluctuates less over steps", "differs less between layers")
    },
    why_smallest="A factor of 1.1.",
    grids={"deep": Grid(norm=NORMS, depth=16, rate=0.01, steps=WATCHED, watch="gradients")},
)
def stable_gradients(results: Results) -> Findings:
    """Nets of sixteen hidden layers of 64 relu units, all at a rate of 0.01 (the plain net's best in a pilot), and the
    norm of the loss's gradient by each hidden weight matrix in each of 100 steps. Over steps: the mean of |log2(norm /
    norm one step before)| over steps and layers. Between layers: log2(largest / smallest norm of the sixteen),
    averaged over steps. The effects are log2(plain net's / normalized net's) of the one, and the plain net's minus the
    normalized one's of the other. A net that is dead would count as the steadiest of all.
    """
    gradients = results.each("deep", lambda record: np.array(record["gradients"])[:, :16])
    # Of a net that is dead or has diverged: log2 needs a number.
    gradients = np.clip(np.nan_to_num(gradients, nan=1e30), 1e-30, 1e30)
    logs = np.log2(gradients)  # (norm, seed, step, layer)
    over_steps = np.maximum(np.abs(np.diff(logs, axis=2)).mean(axis=(2, 3)), 1e-9)
    between = (logs.max(axis=3) - logs.min(axis=3)).mean(axis=2)
    effects = {}
    for i, norm in enumerate(NORMS[1:], 1):
        effects[f"{norm}, fluctuates less over steps"] = np.log2(over_steps[0] / over_steps[i])
        effects[f"{norm}, differs less between layers"] = between[0] - between[i]
    first = gradients[:, :, 0]
    return Findings(
        effects=effects,
        metrics={
            "mean |log2 change| per step": by(NORMS, over_steps),
            "log2(largest / smallest layer)": by(NORMS, between),
            "first layer / last, in step 1 (median)": by(NORMS, first[..., 0] / first[..., -1], np.median),
        },
        plots=[
            Plot(
                "layer",
                "gradient's norm in step 1",
                [Line(norm, range(1, 17), first[i]) for i, norm in enumerate(NORMS)],
                log_y=True,
            ),
            Plot(
                "step",
                "gradient's norm, first layer",
                [Line(norm, range(1, WATCHED + 1), gradients[i, :, :, 0]) for i, norm in enumerate(NORMS)],
                log_y=True,
            ),
        ],
    )


FACTORS = (0.01, 0.1, 10.0, 100.0)
SAME = Test("points", 1.0, denies=True)


@claim(
    "scale-invariance",
    says="Normalization makes a net indifferent to the scale of its inputs and of its weights.",
    tests={
        f"{norm}, {what}": SAME
        for norm in NORMS[1:]
        for what in ("trained on rescaled inputs", "tested on rescaled inputs", "weights rescaled")
    },
    why_smallest=WHY_POINT + " Less than that lost on average is taken for indifference.",
    grids={
        "trained": Grid(norm=NORMS, rate=0.03, watch="scales"),
        "rescaled": Grid(norm=NORMS, rate=0.03, scale=FACTORS),
    },
)
def scale_invariance(results: Results) -> Findings:
    """The nets of converges-faster at a rate of 0.03. Trained on rescaled inputs: training and test digits times 0.01,
    0.1, 10 or 100. Tested on rescaled inputs: the trained net gets test digits times 0.1 to 10, in evaluation, where
    batch norm has the running statistics of digits that were not rescaled. Weights rescaled: the trained net's hidden
    weight matrices, and not the biases, times 0.1 to 10, with batch norm by the statistics of the test digits
    themselves, for the running ones are those of the weights that there were. What is said denies an effect, which is
    the test score without rescaling minus the mean score with it. Beside it: tested on rescaled inputs, batch norm by
    their own statistics.
    """
    same = SCALES.index(1.0)
    others = [i for i in range(len(SCALES)) if i != same]
    scores = {
        name: results.each("trained", lambda record, name=name: record[name])
        for name in ("scaled_inputs", "own_scaled_inputs", "own_scaled_weights")
    }
    usual, trained = results.each("trained", last_score), results.each("rescaled", last_score)
    lost = {
        "trained on rescaled inputs": usual - trained.mean(axis=1),
        **{
            what: scores[name][..., same] - scores[name][..., others].mean(axis=-1)
            for what, name in (
                ("tested on rescaled inputs", "scaled_inputs"),
                ("weights rescaled", "own_scaled_weights"),
                ("tested on rescaled inputs, by their own statistics", "own_scaled_inputs"),
            )
        },
    }
    every_factor = sorted((*FACTORS, 1.0))
    everywhere = np.insert(trained, every_factor.index(1.0), usual, axis=1)
    effects = {f"{norm}, {what}": loss[i] for i, norm in enumerate(NORMS) if i for what, loss in lost.items()}
    return Findings(
        effects={label: effects[label] for label in results.claim.tests},
        metrics={f"points lost, {what}": by(NORMS, loss) for what, loss in lost.items()},
        plots=[
            Plot(x, SCORE, [Line(norm, at, values[i]) for i, norm in enumerate(NORMS)], log_x=True)
            for x, at, values in (
                ("scale of all inputs, in training too", every_factor, np.swapaxes(everywhere, 1, 2)),
                ("scale of the test inputs", SCALES, scores["scaled_inputs"]),
                ("scale of the hidden weights", SCALES, scores["own_scaled_weights"]),
            )
        ],
    )


DEPTHS = (2, 4, 8, 16, 32)


@claim(
    "deeper-networks",
    says="Normalization makes deeper networks trainable.",
    tests={"batch": POINT, "layer": POINT},
    why_smallest=WHY_POINT,
    grids={
        "2, 4, 8": Tuned(Grid(norm=NORMS, depth=(2, 4, 8), rate=(0.01, 0.03, 0.1, 0.3)), last_score),
        "16": Tuned(Grid(norm=NORMS, depth=(16,), rate=(0.001, 0.003, 0.01, 0.03)), last_score),
        "32": Tuned(Grid(norm=NORMS, depth=(32,), rate=(0.0003, 0.001, 0.003, 0.01)), last_score),
    },
)
def deeper_networks(results: Results) -> Findings:
    """The nets of converges-faster with 2, 4, 8, 16 and 32 hidden layers. Each net has, at each depth, the best of
    four learning rates: from 0.01 to 0.3, with 16 layers from 0.001 to 0.03, with 32 from 0.0003 to 0.01. The effect
    is the test score after 300 steps, averaged over 16 and 32 layers, minus that of the plain net, which starts from
    He's initialization.
    """
    fair = np.concatenate([results.each(grid, last_score) for grid in results.claim.grids], axis=1)
    deep = fair[:, DEPTHS.index(16) :].mean(axis=1)
    return Findings(
        effects=against_plain(deep),
        metrics={"score in % by depth, tuned": {norm: by(DEPTHS, fair[i]) for i, norm in enumerate(NORMS)}},
        plots=[
            Plot(
                "hidden layers",
                f"{SCORE}, each at its best rate",
                lines(NORMS, DEPTHS, fair),
                log_x=True,
            )
        ],
    )


@claim(
    "reduces-covariate-shift",
    says="Normalization reduces internal covariate shift, the drift of each layer's inputs during training, "
    "and that is why it helps.",
    tests={"batch, drifts less": LEVEL, "layer, drifts less": LEVEL, "batch, drift is why": FASTER},
    why_smallest="A factor of 1.1 in drift. In speed " + WHY_FASTER[0].lower() + WHY_FASTER[1:],
    grids={
        "drift": Grid(norm=NORMS, rate=0.03, watch="drift"),
        "shifted drift": Grid(norm="batch", shift=0.5, rate=0.03, watch="drift"),
        "tuned": Tuned(SWEEP, to_score, least=True),
        "shifted": Tuned(Grid(norm="batch", shift=0.5, rate=RATES), to_score, least=True),
    },
)
def reduces_covariate_shift(results: Results) -> Findings:
    """The nets of converges-faster. Drifts less: how far the mean and deviation of each unit of a layer's input (over
    256 training images, from the second layer with weights on) move in ten steps, as a root mean square over units
    relative to their deviation, averaged over layers and 300 steps, all nets at a rate of 0.03; the effect is
    log2(plain net's / normalized net's). Drift is why: after each batch norm every unit is scaled and shifted by
    random numbers that change in every step (deviation 0.5), so that the shift returns. This net drifts more than the
    plain one, as its figure beside the others' shows; if the drift were why batch norm helps, it would have to be
    slower than the plain one. The effect is log2(steps to 95 % of this net / of the plain net), each at its best rate.
    """
    drift = results.each("drift", lambda record: record["drift"])
    shifted_drift = results.each("shifted drift", lambda record: record["drift"])
    mean = drift.mean(axis=2)
    steps, shifted = results.each("tuned", to_score), results.each("shifted", to_score)
    at = range(Drift.EVERY, drift.shape[2] * Drift.EVERY + 1, Drift.EVERY)
    with_shifts = "batch with shifts"
    return Findings(
        effects={
            "batch, drifts less": np.log2(mean[0] / mean[1]),
            "layer, drifts less": np.log2(mean[0] / mean[2]),
            "batch, drift is why": np.log2(shifted / steps[0]),
        },
        metrics={
            "drift in ten steps": {**by(NORMS, mean), with_shifts: float(shifted_drift.mean())},
            "steps to 95 %, tuned": {**by(NORMS, steps, np.median), with_shifts: float(np.median(shifted))},
            "doublings of speed, batch norm": float(np.log2(steps[0] / steps[1]).mean()),
            "doublings of speed, batch norm with shifts": float(np.log2(steps[0] / shifted).mean()),
        },
        plots=[
            Plot(
                "steps",
                "drift in ten steps",
                [*(Line(norm, at, drift[i]) for i, norm in enumerate(NORMS)), Line(with_shifts, at, shifted_drift)],
                log_y=True,
            ),
            Plot(
                RATE_AXIS,
                "steps to 95 % right",
                [
                    *lines(NORMS, RATES, results.sweep("tuned", to_score)),
                    Line(with_shifts, RATES, results.sweep("shifted", to_score).T),
                ],
                log_x=True,
            ),
        ],
    )
