"""Times of several implementations side by side, as fair as one process allows.

Each round gives every contender a block: a rest of 10 ms, one untimed call, then up to 50 timed ones. Threads of the
contender before go on spinning for a while after its last call: alternating single calls made a kernel of 2.9 ms read
4.8 to 5.9 ms, blocks read 3.0. A contender's time is the median over rounds of its blocks' medians; a ratio of two is
the median over rounds of the ratios, since both sides of one round saw the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]

REST = 0.01
"""Seconds without work before a block."""

FEW = 3
"""Rounds below which a median of ratios says less than a ratio of medians."""

SHORT_CALL = 20e-6
"""A call below this is timed several at once, or reading the clock would show."""


@dataclass(frozen=True)
class Effort:
    """How much time to spend."""

    rounds: int = 5
    block: float = 0.06
    """Seconds of timed calls in a block."""
    budget: float = 1.0
    """Seconds for all blocks of one contender: slow ones get fewer rounds."""


@dataclass
class Timing:
    """The block medians of one contender, in seconds a call, by round."""

    blocks: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(self.blocks)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the block medians, as a part of their median."""
        if len(self.blocks) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.blocks, n=4, method="inclusive")
        return (high - low) / 2 / self.seconds

    def ratio_to(self, other: Timing) -> float:
        """How many times this one's time is the other's, round by round.

        Of the medians where one of them is so slow that it had but a round or two: the other may have been disturbed
        just then, and knows better.
        """
        if min(len(self.blocks), len(other.blocks)) < FEW:
            return self.seconds / other.seconds
        return statistics.median(a / b for a, b in zip(self.blocks, other.blocks, strict=False))


def _repeat(call: Call, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def _block(call: Call, samples: int, batch: int) -> float:
    time.sleep(REST)
    call()
    return statistics.median(_repeat(call, batch) for _ in range(samples))


def plan(call: Call, effort: Effort) -> tuple[int, int, int]:
    """Rounds, samples in a block, calls in a sample."""
    once = min(_repeat(call, 1) for _ in range(2))
    if once > effort.budget / 4:  # the first of these two calls warmed up enough
        return 1, 1, 1
    batch = max(1, round(SHORT_CALL / once))
    samples = max(3, min(50, round(effort.block / (once * batch))))
    spent = REST + once * (samples * batch + 1)
    return max(1, min(effort.rounds, int(effort.budget / spent))), samples, batch


def side_by_side(contenders: Mapping[str, Call], effort: Effort) -> dict[str, Timing]:
    """Time every contender in alternating blocks."""
    plans = {name: plan(call, effort) for name, call in contenders.items()}
    timings = {name: Timing() for name in contenders}
    for i in range(max((rounds for rounds, _, _ in plans.values()), default=0)):
        # The other way round in every second round, so that nobody always follows the same neighbour.
        for name in list(contenders)[:: 1 if i % 2 == 0 else -1]:
            rounds, samples, batch = plans[name]
            if i < rounds:
                timings[name].blocks.append(_block(contenders[name], samples, batch))
    return timings
