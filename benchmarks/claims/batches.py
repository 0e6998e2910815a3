"""Claims about batches: how many samples, which statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import normnumba
from benchmarks.claims.common import HALF, POINT, SCORE, WHY_HALF, WHY_POINT, by, final_score, last_score, lines
from benchmarks.claims.decide import Test
from benchmarks.claims.probes import BATCHES, UPDATES
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.study import Findings, Line, Plot, Results, claim

SIZES = (2, 4, 8, 16, 64, 256)
IMAGES = 2876
"""What a run sees of the 1438 digits, all of them twice; more where that would be less than 150 steps."""


def _sized(size: int, norms: tuple[str, ...]) -> Tuned:
    rates = (0.0003, 0.001, 0.003, 0.01) if size <= 8 else (0.01, 0.03, 0.1, 0.3)
    return Tuned(Grid(norm=norms, depth=2, batch=size, steps=max(150, IMAGES // size), rate=rates), last_score)


@claim(
    "small-batches-hurt-batch-norm",
    says="Small batches hurt batch norm, and do not hurt layer norm.",
    tests={
        "batch norm loses": POINT,
        "layer norm does not": replace(POINT, denies=True),
    },
    why_smallest=WHY_POINT,
    grids={f"of {size}": _sized(size, NORMS) for size in SIZES} | {"of 1": _sized(1, ("none", "layer"))},
)
def small_batches(results: Results) -> Findings:
    """The digits and nets of converges-faster with two hidden layers, batches of 1 to 256 and as many steps as see
    every digit twice, but 150 at least. At each size each net has the best of four learning rates (0.0003 to 0.01 for
    batches of 8 and less, 0.01 to 0.3 for larger ones). The effect is what is lost from batches of 64 to batches of 2,
    test score minus test score, minus what the plain net loses: its gradients are noisier too, and it sees fewer
    digits. A batch of one is refused by batch norm in training, for its variance is 0; it is not part of the effect.
    """
    fair = np.array([results.each(f"of {size}", last_score) for size in SIZES])  # (size, norm, seed)
    single = results.each("of 1", last_score)
    lost = fair[SIZES.index(64)] - fair[SIZES.index(2)]
    alone = {"none": single[0], "layer": single[1]}
    shown = lines(NORMS, SIZES, np.swapaxes(fair, 0, 1))
    for norm, score in alone.items():
        known = shown[NORMS.index(norm)].values
        shown[NORMS.index(norm)] = Line(norm, (1, *SIZES), np.column_stack([score, known]))
    return Findings(
        effects={"batch norm loses": lost[1] - lost[0], "layer norm does not": lost[2] - lost[0]},
        metrics={
            "score in %, batches of 1": by(list(alone), list(alone.values())),
            **{f"score in %, batches of {size}": by(NORMS, fair[j]) for j, size in enumerate(SIZES)},
            "points lost from 64 to 2": by(NORMS, lost),
        },
        plots=[Plot("batch size", f"{SCORE}, each at its best rate", shown, log_x=True)],
    )


SHAPES = ((64, 10), (7, 768), (64, 1024), (3, 4097))


@claim(
    "layer-norm-single-sample",
    says="Layer norm does not depend on the batch: a sample alone gives what it gives in any batch.",
    tests={"output and gradient": Test("", 0.0, exact=True)},
    why_smallest="None: this is exact, not statistical.",
)
def layer_norm_single_sample(results: Results) -> Findings:
    """For each seed random batches of four shapes, (64, 10) to (3, 4097), in float32 and float64: the largest
    difference, over all samples, between layer norm's output for the sample alone and in the batch, and between the
    gradients of its input. It has to be 0: the same bits. Beside it what batch norm gives when one sample of the batch
    is replaced by another, for the samples that stay.
    """
    alone, moved = [], []
    for seed in results.seeds.study:
        rng = np.random.default_rng(seed)
        difference, change = 0.0, 0.0
        for shape in SHAPES:
            for dtype in (np.float32, np.float64):
                x, dy = rng.standard_normal((2, *shape)).astype(dtype)
                weight, bias = rng.standard_normal((2, shape[1])).astype(dtype)
                difference = np.maximum(difference, _apart(x, dy, weight, bias))  # NaN where one is
                other = x.copy()
                other[0] = rng.standard_normal(shape[1])
                kept = normnumba.batch_norm(x, weight, bias)[1:] - normnumba.batch_norm(other, weight, bias)[1:]
                change = np.maximum(change, np.abs(kept).max())
        alone.append(difference)
        moved.append(change)
    return Findings(
        effects={"output and gradient": np.array(alone)},
        metrics={
            "largest difference, layer norm": float(max(alone)),
            "largest change of batch norm's other outputs": float(max(moved)),
        },
        plots=[
            Plot(
                "seed",
                "largest difference",
                [
                    Line("layer", range(1, len(alone) + 1), np.array([alone])),
                    Line("batch", range(1, len(moved) + 1), np.array([moved])),
                ],
            )
        ],
    )


def _apart(x: np.ndarray, dy: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """How far a row's output and gradient are from those of the row alone, at most."""
    y, mean, rstd = normnumba.layer_norm_forward(x, weight, bias)
    dx, _, _ = normnumba.layer_norm_backward(dy, x, mean, rstd, weight, bias)
    worst = 0.0
    for i in range(len(x)):
        row = slice(i, i + 1)
        y1, mean1, rstd1 = normnumba.layer_norm_forward(x[row], weight, bias)
        dx1, _, _ = normnumba.layer_norm_backward(dy[row], x[row], mean1, rstd1, weight, bias)
        worst = np.max([worst, np.abs(y1 - y[row]).max(), np.abs(dx1 - dx[row]).max()])
    return float(worst)


@claim(
    "inference-uses-running-statistics",
    says="At inference batch norm uses running statistics: as good as a batch's own, if they have seen enough batches.",
    tests={
        "no worse than a large batch's own": replace(HALF, denies=True),
        "five updates are too few": HALF,
        "better than a batch of two's own": HALF,
    },
    why_smallest=WHY_HALF,
    grids={"trained": Grid(norm="batch", rate=0.1, watch="statistics")},
)
def running_statistics(results: Results) -> Findings:
    """The net with batch norm of converges-faster after 300 steps at a rate of 0.1, and its test score by which
    statistics it normalizes with: the running ones of training (PyTorch's momentum of 0.1); those of the test batch
    itself, of 2 to 128 digits or all 359; and running ones that start anew, with mean 0 and variance 1, and see 1 to
    100 batches. The effects: score by all test digits' own statistics minus that by the running ones, which is said
    not to be there; score by the running ones minus that after five updates; score by the running ones minus that in
    batches of two.
    """
    running = results.each("trained", final_score)  # of the very net that the others are of
    whole = results.each("trained", lambda record: record["whole"])
    updated = results.each("trained", lambda record: record["updated"])
    batched = results.each("trained", lambda record: record["batched"])
    return Findings(
        effects={
            "no worse than a large batch's own": whole - running,
            "five updates are too few": running - updated[:, UPDATES.index(5)],
            "better than a batch of two's own": running - batched[:, BATCHES.index(2)],
        },
        metrics={
            "score in %, running statistics": float(running.mean()),
            "score in %, all test digits' own": float(whole.mean()),
            "score in % by test batch": by(BATCHES, batched.T),
            "score in % by updates": by(UPDATES, updated.T),
        },
        plots=[
            Plot("updates of the running statistics", SCORE, [Line("batch", UPDATES, updated)], log_x=True),
            Plot("test batch whose own statistics are used", SCORE, [Line("batch", BATCHES, batched)], log_x=True),
        ],
    )
