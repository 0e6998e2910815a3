"""One training run: what is set, and the name it goes by."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

NORMS = ("none", "batch", "layer")


@dataclass(frozen=True)
class Run:
    """Everything that decides a run; two runs that are equal give the same bits."""

    seed: int = 0
    task: str = "digits"
    """A name in `data.TASKS`."""
    model: str = "mlp"
    """A name in `models.MODELS`."""
    norm: str = "none"
    """none, batch or layer."""
    place: str = "before"
    """Where the norm is: before the activation or after it, and besides "before+input" or "before+output"."""
    activation: str = "relu"
    depth: int = 4
    """Hidden layers."""
    width: int = 64
    """Units of a hidden layer."""
    init: float = 1.0
    """A factor of all initial weights."""
    scale: float = 1.0
    """A factor of all inputs."""
    optimizer: str = "sgd"
    """sgd with momentum 0.9, or adam."""
    rate: float = 0.1
    batch: int = 64
    steps: int = 300
    dropout: float = 0.0
    decay: float = 0.0
    """The weight decay: decay * w is added to the gradient of every weight matrix w."""
    shift: float = 0.0
    """The size of `layers.Shift` after each norm."""
    watch: str = ""
    """What else is recorded: a name in `probes.PROBES`."""

    def key(self) -> str:
        """What is not as usual, as JSON: the run's name on disk."""
        usual = asdict(Run())
        return json.dumps({name: value for name, value in asdict(self).items() if value != usual[name]})


class Grid:
    """Runs over all combinations of the fields given as tuples; the others are fixed.

    >>> Grid(norm=("none", "batch"), rate=0.1).runs(range(3))  # 6 runs
    """

    def __init__(self, **settings: Any) -> None:
        unknown = set(settings) - {field.name for field in fields(Run)}
        if unknown:
            raise TypeError(f"a Run has no {', '.join(sorted(unknown))}")
        self.axes = {name: value for name, value in settings.items() if isinstance(value, tuple)}
        self.base = Run(**{name: value for name, value in settings.items() if name not in self.axes})

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """In the order of the axes, the seeds varying fastest."""
        return [
            replace(self.base, **dict(zip(self.axes, values, strict=True)), seed=seed)
            for values in itertools.product(*self.axes.values())
            for seed in seeds
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())
