"""Times of calls that run on a device: how long the kernels take there, and how long a call keeps the host.

Kernel time lies between two events around some calls in a row. Before them the device is given so much other work that
the host has asked for all of them by the time the first begins; where it has not, the sample is taken again with more
such work, and what still had to wait is marked. That work also clears the caches, and each call takes other copies of
its inputs than the one before and keeps its outputs for as long, so that data comes from memory and goes there.

Call time is what the host's clock shows for a call that is not waited for.

All contenders take turns in blocks, as in `measure`, whose `Timing` holds the medians of each kind of time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, NamedTuple, Protocol

from benchmarks.measure import Call, Effort, Timing

LEAST_CALLS, MOST_CALLS = 3, 50
"""Calls between two events. The queue of a device holds about a thousand launches, and a call makes a few."""

MOST_WORK = 1024
"""Pieces of other work before a sample: a piece takes 0.1 ms and more, so this is longer than any host needs."""

SAMPLES = 3
"""Samples of each kind in a block."""


class Event(Protocol):
    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Clock(Protocol):
    """What is needed of a device."""

    def event(self) -> Event: ...

    def elapsed(self, start: Event, end: Event) -> float:
        """Seconds between two events."""

    def occupy(self, pieces: int) -> None:
        """Give the device other work, without waiting for it."""

    def synchronize(self) -> None: ...


@dataclass
class DeviceTiming:
    """The two times of one contender."""

    kernel: Timing = field(default_factory=Timing)
    call: Timing = field(default_factory=Timing)
    waited: bool = False
    """Whether the device waited for the host, so that kernel time is too long."""


class Plan(NamedTuple):
    rounds: int
    calls: int
    """Between two events."""
    work: int
    """Pieces of other work before."""


def kernel_sample(clock: Clock, calls: Sequence[Call], count: int, work: int) -> tuple[float, bool]:
    """Seconds a call on the device, and whether the device had nothing left to do before the first or the last call.

    Where it is slower than the host it never has; where it is faster, it runs out of work by the last call if ever.
    """
    start, last, end = clock.event(), clock.event(), clock.event()
    kept = deque[Any](maxlen=len(calls))
    clock.synchronize()
    clock.occupy(work)
    start.record()
    kept.append(calls[0]())
    waited = start.query()
    for i, call in enumerate(islice(cycle(calls), 1, count), 2):
        if i == count:
            last.record()
        kept.append(call())
    waited |= last.query()
    end.record()
    end.synchronize()
    return clock.elapsed(start, end) / count, waited


def call_sample(clock: Clock, calls: Sequence[Call], count: int) -> float:
    """Seconds that a call keeps the host, the median of some."""
    clock.synchronize()
    seconds, kept = [], deque[Any](maxlen=len(calls))
    for call in islice(cycle(calls), count):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
        kept.append(result)  # outside, or the time would be that of dropping another result too
    clock.synchronize()
    return statistics.median(seconds)


def plan(clock: Clock, calls: Sequence[Call], effort: Effort) -> Plan:
    """How often to call, found by calling, which also compiles and warms up."""
    kernel_sample(clock, calls, len(calls), 1)
    once, _ = kernel_sample(clock, calls, LEAST_CALLS, 1)
    count = max(LEAST_CALLS, min(MOST_CALLS, round(effort.block / SAMPLES / max(once, 1e-9))))
    work = 1
    while kernel_sample(clock, calls, count, work)[1] and work < MOST_WORK:
        work *= 2
    rounds = int(effort.budget / (once * count * (2 * SAMPLES + 1)))
    return Plan(max(1, min(effort.rounds, rounds)), count, min(2 * work, MOST_WORK))


def _block(clock: Clock, calls: Sequence[Call], plan: Plan, timing: DeviceTiming) -> None:
    kernel_sample(clock, calls, len(calls), 1)  # untimed: allocators find their memory again
    samples = [kernel_sample(clock, calls, plan.calls, plan.work) for _ in range(SAMPLES)]
    timing.kernel.blocks.append(statistics.median(seconds for seconds, _ in samples))
    timing.waited |= any(waited for _, waited in samples)
    calls_taken = [call_sample(clock, calls, plan.calls) for _ in range(SAMPLES)]
    timing.call.blocks.append(statistics.median(calls_taken))


def side_by_side(clock: Clock, contenders: Mapping[str, Sequence[Call]], effort: Effort) -> dict[str, DeviceTiming]:
    """Time every contender in alternating blocks. Each is the same call on several copies of its inputs."""
    plans = {name: plan(clock, calls, effort) for name, calls in contenders.items()}
    timings = {name: DeviceTiming() for name in contenders}
    for i in range(max((plan.rounds for plan in plans.values()), default=0)):
        for name in list(contenders)[:: 1 if i % 2 == 0 else -1]:
            if i < plans[name].rounds:
                _block(clock, contenders[name], plans[name], timings[name])
    return timings
