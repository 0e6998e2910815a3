"""One training run: what is set, and the name it goes by."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        given = {name: type(usual[name])(value) for name, value in asdict(self).items()}  # 1 and 1.0 are one run
        return json.dumps({name: value for name, value in given.items() if value != usual[name]})


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

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())

    def settings(self) -> list[Run]:
        """All combinations, the last axis varying fastest."""
        return [
            replace(self.base, **dict(zip(self.axes, values, strict=True)))
            for values in itertools.product(*self.axes.values())
        ]

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """Every combination with every seed, the seeds varying fastest."""
        return seeded(self.settings(), seeds)


@dataclass(frozen=True)
class Tuned:
    """A grid whose last axes are set to what is best for each combination of the others, on seeds for that alone.

    So every net has a fair chance, and what is chosen tells nothing about the seeds that decide.
    """

    grid: Grid
    metric: Callable[[Mapping[str, Any]], float]
    """Of a run's record: the best setting has the highest mean over the seeds."""
    least: bool = False
    """Or the lowest."""
    over: int = 1
    """How many of the last axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape[: -self.over]

    def best(self, records: Mapping[Run, Mapping[str, Any]], seeds: Sequence[int]) -> list[Run]:
        """The settings that are best on these seeds, one for each combination of the other axes."""
        means = {
            run: statistics.mean(self.metric(records[again]) for again in seeded([run], seeds))
            for run in self.grid.settings()
        }
        settings, choices = list(means), math.prod(self.grid.shape[-self.over :])
        groups = [settings[first : first + choices] for first in range(0, len(settings), choices)]
        return [(min if self.least else max)(group, key=means.__getitem__) for group in groups]


def seeded(settings: Iterable[Run], seeds: Iterable[int]) -> list[Run]:
    """Each of the settings with each of the seeds, which vary fastest."""
    return [replace(run, seed=seed) for run in settings for seed in seeds]
