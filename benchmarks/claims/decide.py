"""The rule that turns one number for each seed into a verdict. It was fixed before any run that it judges.

Each test is about an effect: the difference that a norm makes, seed by seed, signed so that more is in favour of what
is said. Its mean is estimated with an interval that inverts the exact paired sign-flip test (exact where effects lie
symmetrically about their mean; where a net dies on a few of the seeds, the interval is too narrow), and

- the effect is **there** where the whole interval is above 0 and the mean is at least the smallest effect that is worth
  calling one;
- it is **absent** where the whole interval is below that smallest effect, be it nothing, little or the opposite;
- else nothing is known.

A test that affirms is supported by an effect that is there and contradicted by one that is absent; one that denies,
the other way round. A claim of several tests holds as a sentence does: "and" is contradicted by any of them and
supported by all, "or" the other way round.

All tests of the study together call an effect there that is not with a probability of at most `ALPHA` (Bonferroni: each
has ALPHA / number of tests, however many of them are run, so that a claim run alone gets the verdict of the whole
study). What is tuned is tuned on other seeds, so that the effects of those that decide are independent.

With n seeds no sign-flip test has a p below 2 / 2^n, which for 61 tests asks for 12 seeds. With fewer, the interval is
the widest that the test has, from the least to the largest seed, and the verdict is preliminary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any

ALPHA = 0.05

DIGITS = 9
"""Behind the point, to which means are rounded: scores of some digits in 359 make sums that are 0 but for rounding."""

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
_NOT = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED, UNDECIDED: UNDECIDED}


@dataclass(frozen=True)
class Test:
    """What one effect has to be."""

    unit: str
    smallest: float
    """The smallest effect worth calling one, in `unit`."""
    denies: bool = False
    """Whether what is said is that there is no such effect."""
    exact: bool = False
    """Whether what is said holds for every seed without exception: then the effects must all be 0, and no chance is
    involved."""


@dataclass(frozen=True)
class Decision:
    """A test's outcome."""

    label: str
    test: Test
    verdict: str
    preliminary: bool
    effect: float
    interval: tuple[float, float]
    confidence: float
    p: float | None
    reason: str
    margin: float
    """How far the interval or the mean is inside the region of the verdict: the test with the least decides."""


def interval(effects: Sequence[float], level: float) -> tuple[float, float, float]:
    """Where the mean effect can be without the sign-flip test rejecting it, and the interval's confidence.

    The means of all subsets of the effects part the line into pieces that hold the true centre with equal probability
    (Hartigan, 1969, doi:10.1080/01621459.1969.10501057), and the k outermost on each side are cut off: as many as
    `level` allows, or none.
    """
    sums, sizes = np.zeros(1), np.zeros(1)
    for effect in effects:
        sums, sizes = np.concatenate([sums, sums + effect]), np.concatenate([sizes, sizes + 1])
    means = np.round(np.sort(sums[1:] / sizes[1:]), DIGITS)
    cut = max(1, int(level / 2 * len(sums)))
    return float(means[cut - 1]), float(means[-cut]), 1 - 2 * cut / len(sums)


def p_value(effects: Sequence[float]) -> float:
    """Of the exact two-sided sign-flip test: all 2^n signs."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(effects),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True, batch=1 << 14
    )
    return float(found.pvalue)


def decide(label: str, test: Test, effects: Sequence[float], tests: int) -> Decision:
    """The verdict on one of the study's `tests` tests.

    Raises
    ------
    ValueError
        For effects that are not finite numbers, of two seeds and more.
    """
    effects = [float(effect) for effect in effects]
    if len(effects) < 2 or not np.all(np.isfinite(effects)):
        raise ValueError(f"{label}: needs a finite effect for each of two seeds and more, got {effects}")
    mean = float(np.round(np.mean(effects), DIGITS))
    if test.exact:
        worst = max(map(abs, effects))
        verdict = CONTRADICTED if worst else SUPPORTED
        reason = f"the largest difference is {worst:.3g}; it has to be 0, without exception"
        return Decision(label, test, verdict, False, worst, (min(effects), worst), 1.0, None, reason, 0.0)

    level = ALPHA / tests
    low, high, confidence = interval(effects, level)
    there, absent = low > 0 and mean >= test.smallest, high < test.smallest
    verdict = SUPPORTED if there else CONTRADICTED if absent else UNDECIDED
    span = f"{mean:+.3g} {test.unit} ({low:+.3g} to {high:+.3g})"
    asked = f"{test.smallest:.3g} is the smallest that counts"
    if there:
        reason, margin = f"{span}: an effect; {asked}", min(low, mean - test.smallest)
    elif absent:
        kind = "the opposite" if high < 0 and mean <= -test.smallest else "no effect worth the name"
        reason, margin = f"{span}: {kind}; {asked}", test.smallest - high
    else:
        reason, margin = f"{span}: neither an effect nor the absence of one is certain; {asked}", 0.0
    return Decision(
        label,
        test,
        _NOT[verdict] if test.denies else verdict,
        2 / 2 ** len(effects) > level,
        mean,
        (low, high),
        confidence,
        p_value(effects),
        reason,
        margin,
    )


def combine(decisions: Iterable[Decision], every: bool) -> Decision:
    """The decision that settles a claim: of all (`every`) or of any of its tests."""
    decisions = list(decisions)
    for verdict in (CONTRADICTED, UNDECIDED) if every else (SUPPORTED, UNDECIDED):
        settling = [decision for decision in decisions if decision.verdict == verdict]
        if settling:
            return max(settling, key=lambda decision: decision.margin)
    return min(decisions, key=lambda decision: decision.margin)
