"""How long a step of training takes, one net beside the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby

from benchmarks import measure
from benchmarks.claims.runs import Run
from benchmarks.claims.training import Training

EFFORT = measure.Effort(rounds=5, block=0.01)


def step_seconds(runs: Iterable[Run], done: Callable[[str], None] = lambda name: None) -> dict[Run, float]:
    """The median time of a step for each run, in one thread; the runs of one seed and model take turns in blocks."""
    from threadpoolctl import threadpool_limits

    seconds: dict[Run, float] = {}
    same = {run: replace(run, norm="", rate=0.0) for run in dict.fromkeys(runs)}
    with threadpool_limits(1, "blas"):
        for _, group in groupby(sorted(same, key=lambda run: (same[run].key(), run.norm)), key=same.__getitem__):
            members = list(group)
            steps = {run.key(): Training(run).step for run in members}
            timings = measure.side_by_side(steps, EFFORT)
            for run in members:
                seconds[run] = timings[run.key()].seconds
                done(run.key())
    return seconds
