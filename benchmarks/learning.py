"""asv: how many steps small nets need to a training loss of 0.1, with a norm and without.

Two of the claims study's experiments. The steps are counted, so only another result of the kernels can change them: one
that hurts training shows in the history as a step up.
"""

from __future__ import annotations

import statistics
from typing import Any

SEEDS = range(5)

NETS: dict[str, dict[str, Any]] = {
    "mlp none": {"norm": "none", "rate": 0.03},
    "mlp batch": {"norm": "batch", "rate": 0.1},
    "mlp layer": {"norm": "layer", "rate": 0.03},
    "rnn none": {"norm": "none", "rate": 0.003, "model": "rnn", "task": "digit rows", "optimizer": "adam"},
    "rnn layer": {"norm": "layer", "rate": 0.003, "model": "rnn", "task": "digit rows", "optimizer": "adam"},
}
"""Each at the learning rate that was best for it in a pilot."""


class Learning:
    version = "1"
    params = tuple(NETS)
    param_names = ("net",)
    unit = "steps"
    timeout = 120.0

    def setup(self, net: str) -> None:
        try:
            import sklearn.datasets  # noqa: F401 - where the digits are
            import threadpoolctl  # noqa: F401

            import normnumba.layers  # noqa: F401
        except ImportError as error:
            raise NotImplementedError(f"needs {error.name}") from error

    def track_steps(self, net: str) -> float:
        from threadpoolctl import threadpool_limits

        from benchmarks.claims.runs import Run
        from benchmarks.claims.speed import to_target
        from benchmarks.claims.training import train

        with threadpool_limits(1, "blas"):
            return statistics.mean(to_target(train(Run(seed=seed, **NETS[net]))) for seed in SEEDS)
