"""The claims study: each claim reads its runs rightly, the verdicts follow from the rule, and what trains is right."""

import dataclasses
import functools
import itertools
import json
import math
import re
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import normnumba
from benchmarks import job, measure
from benchmarks.claims import batches, checks, clock, command, data, decide, layers, models, pool, probes, study
from benchmarks.claims.runs import NORMS, Grid, Run, Tuned, seeded
from benchmarks.claims.training import Training, train
from tests.test_layers import EXACT

pytest.importorskip("sklearn")
joblib = pytest.importorskip("joblib")
signal = pytest.importorskip("scipy.signal")

IDS = [
    "converges-faster",
    "trains-in-less-time",
    "higher-learning-rate",
    "robust-to-initialization",
    "less-overfitting",
    "better-generalization",
    "stable-gradients",
    "scale-invariance",
    "acts-as-regularizer",
    "deeper-networks",
    "reduces-covariate-shift",
    "small-batches-hurt-batch-norm",
    "layer-norm-single-sample",
    "layer-norm-for-rnn",
    "batch-norm-for-cnn",
    "small-overhead",
    "shallow-nets-too",
    "not-a-replacement",
    "not-always",
    "not-on-input-or-output",
    "before-or-after-activation",
    "any-activation",
    "inference-uses-running-statistics",
]

SEEDS = command.QUICK_SEEDS

TINY = Run(depth=1, width=8, steps=20)
"""The usual net is deeper, and trains for longer than any of these tests needs."""

EVERY_MODEL = [("mlp", "digits"), ("cnn", "digit images"), ("rnn", "digit rows")]


def tiny(**settings):
    return dataclasses.replace(TINY, **settings)


@contextmanager
def silent(text, total):
    """A progress bar that nobody sees."""
    yield lambda name: None


@pytest.fixture
def one_process(monkeypatch):
    """Joblib runs one job in the process that asks for it: a worker's start takes a second."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)


# --- the claims ------------------------------------------------------------------------------------------------------


def random_record(run, rng, diverged=False):
    """What `train` returns, with numbers that no net made."""
    steps, scores = np.arange(run.steps), run.steps // 10
    loss = 2.3 * np.exp(-steps / rng.uniform(5, 200)) + rng.uniform(0, 0.1, run.steps)
    score = np.sort(rng.uniform(10, 100, scores))
    gradients = np.exp(rng.standard_normal((run.steps, run.depth + 1)))
    if diverged:
        last = rng.integers(run.steps)
        loss[last:] = gradients[last:] = np.nan
        score[:] = 10
    record = {
        "loss": loss.tolist(),
        "score": score.tolist(),
        "train_score": float(score[-1]),
        "train_loss": math.nan if diverged else rng.uniform(0.01, 20),
        "test_loss": math.nan if diverged else rng.uniform(0.01, 20),
    }
    scales = ("scaled_inputs", "own_scaled_inputs", "own_scaled_weights")
    watched = {
        "": {},
        "gradients": {"gradients": gradients.tolist()},
        "drift": {"drift": np.exp(rng.standard_normal(scores)).tolist()},
        "scales": {name: rng.uniform(10, 100, len(probes.SCALES)).tolist() for name in scales},
        "statistics": {
            "updated": rng.uniform(10, 100, len(probes.UPDATES)).tolist(),
            "batched": rng.uniform(10, 100, len(probes.BATCHES)).tolist(),
            "whole": rng.uniform(10, 100),
        },
    }
    return record | watched[run.watch]


def shapes(record):
    return {name: (type(value), np.shape(value)) for name, value in record.items()}


@pytest.mark.parametrize("watch", ["", *probes.PROBES])
def test_random_records_have_the_form_of_real_ones(watch, rng):
    run = tiny(norm="batch", depth=2, watch=watch)
    assert shapes(random_record(run, rng)) == shapes(train(run))


def test_each_claim_is_there_once_and_says_what_it_does():
    assert sorted(study.CLAIMS) == sorted(IDS)
    for id, claim in study.CLAIMS.items():
        assert claim.id == id
        assert claim.says
        assert claim.tests
        assert claim.why_smallest
        assert "effect" in claim.method or any(test.exact for test in claim.tests.values())
        assert "\n" not in claim.method
    assert sum(len(claim.tests) for claim in study.CLAIMS.values()) == command.TESTS + 1  # the exact one


def findings_of(id, record_of, seconds_of=lambda run: 1.0):
    claim, records = study.CLAIMS[id], {}
    seconds = {run: seconds_of(run) for grid in claim.timed.values() for run in grid.runs(SEEDS.study)}
    results = study.Results(claim, SEEDS, records, seconds)
    for phase in (results.first, results.second):
        records |= {run: record_of(run) for run in dict.fromkeys(phase()) if run not in records}
    return claim.measure(results)


def entry_of(id, findings):
    claim = study.CLAIMS[id]
    made = [decide.decide(label, test, findings.effects[label], 1) for label, test in claim.tests.items()]
    return command.entry(claim, findings, made, SEEDS, quick=True)


@pytest.mark.parametrize("some_diverge", [False, True])
@pytest.mark.parametrize("id", IDS)
def test_measures_read_any_records(id, some_diverge, rng):
    def record_of(run):
        # The drift is watched at a rate at which no net diverges.
        diverged = some_diverge and run.watch != "drift" and rng.random() < 0.5
        return random_record(run, rng, diverged)

    findings = findings_of(id, record_of, lambda run: rng.uniform(1e-3, 1e-2))
    assert set(findings.effects) == set(study.CLAIMS[id].tests)
    for effects in findings.effects.values():
        assert np.shape(effects) == (len(SEEDS.study),)
        assert np.all(np.isfinite(effects))
    entry = entry_of(id, findings)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["plots"]
    for line in (line for plot in entry["plots"] for line in plot["lines"]):
        assert len(line["x"]) == len(line["low"]) == len(line["median"]) == len(line["high"])


PLANTED = {
    **dict.fromkeys(
        (
            *("converges-faster", "trains-in-less-time", "higher-learning-rate", "robust-to-initialization"),
            *("less-overfitting", "better-generalization", "stable-gradients", "deeper-networks", "small-overhead"),
            *("shallow-nets-too", "any-activation"),
        ),
        lambda run: 2 if run.norm != "none" else 0,
    ),
    "scale-invariance": lambda run: 2 if run.norm != "none" else 0,
    "acts-as-regularizer": lambda run: 1 if run.norm == "batch" else 2 if run.dropout else 0,
    "reduces-covariate-shift": lambda run: 0 if run.shift else 1 if run.norm == "none" else 2,
    "small-batches-hurt-batch-norm": lambda run: 2 if run.batch > 2 else 0 if run.norm == "batch" else 1,
    "layer-norm-for-rnn": lambda run: 2 if run.norm == "layer" else 0,
    "batch-norm-for-cnn": lambda run: 2 if run.norm == "batch" else 0,
    "not-a-replacement": lambda run: 2 if run.dropout or run.decay else 0,
    "not-always": lambda run: 2 if run.norm == "none" else 0,
    "not-on-input-or-output": lambda run: 2 if run.place == "before" else 0,
    "before-or-after-activation": lambda run: 2 if run.place == "before" else 0,
    "inference-uses-running-statistics": lambda run: 2,
}
"""How good the runs of each claim are, from 0 to 2, where it is true."""

OPPOSITE = {
    "acts-as-regularizer": lambda run: 2 if run.norm == "none" or run.dropout else 0,
    "scale-invariance": lambda run: 1 if run.scale == 1 else 0,
    "small-batches-hurt-batch-norm": lambda run: 2 if run.batch > 2 else 0 if run.norm == "layer" else 1,
}
"""And where it is false, if that is not the other way round."""


@functools.cache
def planted_record(steps, rate, level):
    """A run as good as `level`, 0 to 2, in all that is measured: faster, steadier, and less sensitive.

    At rates of 0.3 and more all runs are equally bad, or what is tuned would not matter.
    """
    trainable = rate <= (0.1, 0.3, 1.0)[level]
    level = level if rate < 0.3 else 0
    tests = np.arange(steps // 10)
    score = (88.0, 96.0, 99.0)[level]
    lost = (40.0, 20.0, 0.0)[level]
    scaled = [score if scale == 1 else score - lost for scale in probes.SCALES]
    return {
        "loss": (2.3 * np.exp(-np.arange(steps) / (60, 30, 15)[level])).tolist(),
        "score": np.where(tests >= (20, 10, 5)[level], score, 10.0).tolist(),
        "train_score": 99.5 if trainable else 10.0,
        "train_loss": 0.1,
        "test_loss": (4.0, 2.0, 1.0)[level],
        "gradients": [[2.0 ** ((3 - level) * (step % 2 + layer - 20)) for layer in range(17)] for step in range(100)],
        "drift": [(4.0, 2.0, 1.0)[level]] * len(tests),
        **dict.fromkeys(("scaled_inputs", "own_scaled_inputs", "own_scaled_weights"), scaled),
        "updated": [score - 40 + lost] * len(probes.UPDATES),
        "batched": [score - 40 + lost] * len(probes.BATCHES),
        "whole": score + lost,
    }


@pytest.mark.parametrize("true", [True, False])
@pytest.mark.parametrize("id", PLANTED)
def test_a_claim_is_supported_by_runs_that_bear_it_out_and_contradicted_by_their_opposite(id, true):
    def level(run):
        if true:
            return PLANTED[id](run)
        return OPPOSITE[id](run) if id in OPPOSITE else 2 - PLANTED[id](run)

    def seconds(run):
        return 1.0 if run.norm == "none" else 1.1 if level(run) == 2 else 1.5

    entry = entry_of(id, findings_of(id, lambda run: planted_record(run.steps, run.rate, level(run)), seconds))
    assert {test["verdict"] for test in entry["tests"]} == {decide.SUPPORTED if true else decide.CONTRADICTED}


def test_a_layer_norm_that_sees_the_batch_contradicts_the_exact_claim(monkeypatch):
    id, forward = "layer-norm-single-sample", normnumba.layer_norm_forward

    def leaking(x, *arguments):
        y, mean, rstd = forward(x, *arguments)
        return np.nextafter(y, y + len(x) - 1), mean, rstd  # by one bit, and in batches alone

    assert entry_of(id, findings_of(id, None))["verdict"] == decide.SUPPORTED
    monkeypatch.setattr(batches.normnumba, "layer_norm_forward", leaking)
    assert entry_of(id, findings_of(id, None))["verdict"] == decide.CONTRADICTED


# --- the rule --------------------------------------------------------------------------------------------------------

VERDICTS = (decide.CONTRADICTED, decide.UNDECIDED, decide.SUPPORTED)

POINTS = decide.Test("points", 0.5)
SPREAD = np.array([-3, -2, -1, 0, 1, 2, 3, -2, -1, 0, 1, 2]) / 10
"""Twelve seeds: the least with which one of the study's tests can be certain."""


ROUNDED = {"rtol": 0, "atol": 1.01 * 10**-decide.DIGITS}
"""Each side is rounded to the last digit, and moves by less than a hundredth of it by the rounding of sums."""


@functools.cache
def signs(n):
    return np.array(list(itertools.product((-1, 1), repeat=n)))


def flipped_p(effects, center):
    """The sign-flip test of the hypothesis that the effects are symmetric around `center`."""
    shifted = np.asarray(effects) - center
    observed = abs(shifted.sum())
    # All sums that are equal but for rounding are ties.
    return np.mean(np.abs(signs(len(effects)) @ shifted) >= observed - 1e-12 * np.abs(shifted).sum())


def edge(effects, level, outside, inside):
    """Where the test begins to reject, by bisection."""
    for _ in range(60):
        middle = (outside + inside) / 2
        if flipped_p(effects, middle) > level:
            inside = middle
        else:
            outside = middle
    return inside


@pytest.mark.parametrize("n", range(6, 11))
def test_interval_is_the_inverted_sign_flip_test(n, rng):
    for level in (0.05, 0.1, 0.4):
        effects = rng.standard_normal(n) * rng.uniform(0.1, 10, n)
        low, high, confidence = decide.interval(effects, level)
        found = [edge(effects, level, outside, effects.mean()) for outside in (effects.min() - 1, effects.max() + 1)]
        np.testing.assert_allclose((low, high), found, **ROUNDED)
        assert 1 - level <= confidence < 1 - level + 2 / 2**n + 1e-12


@pytest.mark.parametrize("n", range(6, 11))
def test_interval_excludes_nothing_where_p_is_small_and_nowhere_else(n, rng):
    outcomes = set()
    for _ in range(20):
        effects = rng.standard_normal(n) + rng.uniform(-1.5, 1.5)
        p = decide.p_value(effects)
        assert p == flipped_p(effects, 0)
        low, high, _ = decide.interval(effects, 0.1)
        assert (low > 0 or high < 0) == (p <= 0.1)
        outcomes.add(p <= 0.1)
    assert outcomes == {True, False}


def test_interval_ends_at_nothing_where_sums_are_nothing_but_for_rounding(rng):
    outcomes = set()
    for _ in range(500):
        effects = rng.integers(-2, 4, 8)  # without rounding
        low, high, _ = decide.interval(effects * (100 / 359 / 5), 0.1)  # as means of five scores
        assert (low > 0 or high < 0) == (flipped_p(effects, 0) <= 0.1)
        outcomes.add(low == 0)
    assert outcomes == {True, False}


def test_interval_moves_and_grows_with_the_effects(rng):
    effects = rng.standard_normal(9)
    low, high, confidence = decide.interval(effects, 0.1)
    scaled = {**ROUNDED, "atol": 3 * ROUNDED["atol"]}
    np.testing.assert_allclose(decide.interval(2 * effects + 5, 0.1), (2 * low + 5, 2 * high + 5, confidence), **scaled)
    np.testing.assert_allclose(decide.interval(-2 * effects, 0.1), (-2 * high, -2 * low, confidence), **scaled)
    np.testing.assert_allclose(decide.interval(rng.permutation(effects), 0.1), (low, high, confidence), **ROUNDED)


def test_interval_covers_as_often_as_it_says(rng):
    samples = rng.standard_t(3, (2000, 8)) * [1, 1, 1, 1, 5, 5, 5, 5]
    found = np.array([decide.interval(sample, 0.2) for sample in samples])
    confidence = found[0, 2]
    covered = np.mean((found[:, 0] <= 0) & (found[:, 1] >= 0))
    # Four deviations of a share of 2000.
    assert abs(covered - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / len(samples))


@pytest.mark.parametrize(
    ("effects", "verdict", "reason"),
    [
        (2 + SPREAD, decide.SUPPORTED, "an effect;"),
        (0.6 + SPREAD, decide.SUPPORTED, "an effect;"),
        (0.1 + SPREAD, decide.CONTRADICTED, "no effect worth the name"),
        (0.2 + SPREAD / 10, decide.CONTRADICTED, "no effect worth the name"),
        (-2 + SPREAD, decide.CONTRADICTED, "the opposite"),
        (-0.2 + SPREAD / 10, decide.CONTRADICTED, "no effect worth the name"),
        (1 + 20 * SPREAD, decide.UNDECIDED, "neither"),
        (0.45 + SPREAD, decide.UNDECIDED, "neither"),
    ],
    ids=["large", "just", "none", "small", "opposite", "small opposite", "uncertain", "small or not"],
)
def test_the_three_verdicts(effects, verdict, reason):
    denied = {decide.SUPPORTED: decide.CONTRADICTED, decide.CONTRADICTED: decide.SUPPORTED}
    found = decide.decide("a", POINTS, effects, 61)
    assert (found.label, found.verdict, found.preliminary) == ("a", verdict, False)
    assert reason in found.reason
    assert found.effect == pytest.approx(np.mean(effects))
    assert found.interval == decide.interval(effects, decide.ALPHA / 61)[:2]
    opposite = decide.decide("a", dataclasses.replace(POINTS, denies=True), effects, 61)
    assert opposite.verdict == denied.get(verdict, verdict)
    assert dataclasses.replace(opposite, test=POINTS, verdict=verdict) == found


def test_margin_is_how_far_the_verdict_is_from_another():
    supported, just = (decide.decide("a", POINTS, center + SPREAD, 61) for center in (2, 0.6))
    low, _ = supported.interval
    assert supported.margin == min(low, supported.effect - 0.5)
    assert supported.margin > just.margin > 0
    absent = decide.decide("a", POINTS, -2 + SPREAD, 61)
    assert absent.margin == 0.5 - absent.interval[1] > 0
    assert decide.decide("a", POINTS, 1 + 20 * SPREAD, 61).margin == 0


def test_what_is_exact_has_no_exception():
    exact = decide.Test("bits", 0.0, exact=True)
    assert decide.decide("a", exact, [0.0, 0.0], 61).verdict == decide.SUPPORTED
    found = decide.decide("a", exact, [0.0] * 19 + [-1e-300], 61)
    assert (found.verdict, found.effect, found.preliminary, found.p) == (decide.CONTRADICTED, 1e-300, False, None)


@pytest.mark.parametrize("effects", [[1.0, math.nan, 1.0], [1.0, math.inf, 1.0], [1.0], []])
def test_effects_that_are_no_numbers_have_no_verdict(effects):
    for test in (POINTS, decide.Test("bits", 0.0, exact=True)):
        with pytest.raises(ValueError, match="what: needs a finite effect"):
            decide.decide("what", test, effects, 61)


def test_few_seeds_are_preliminary():
    """Two in 2^n is the least p: with 61 tests, 12 seeds are the first for which that is less than 0.05 / 61."""
    for n in (3, 6, 11, 12):
        effects = 2 + np.arange(n) / 10
        found = decide.decide("a", POINTS, effects, 61)
        assert found.preliminary == (n < 12)
        assert found.p == pytest.approx(2 / 2**n)
        if found.preliminary:
            assert found.interval == pytest.approx((effects[0], effects[-1]))


def test_seeds_of_a_study_can_pass_the_corrected_level_and_quick_ones_cannot(monkeypatch):
    monkeypatch.setattr(decide, "p_value", lambda effects: 0.0)  # of twenty seeds it takes seconds
    for seeds, certain in ((command.SEEDS, True), (command.QUICK_SEEDS, False)):
        found = decide.decide("a", POINTS, [1.0 + seed / 100 for seed in seeds.study], command.TESTS)
        assert found.preliminary != certain
        assert (found.confidence >= 1 - decide.ALPHA / command.TESTS) == certain
        assert not set(seeds.study) & set(seeds.tuning)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("pair", list(itertools.product(VERDICTS, repeat=2)))
def test_claims_of_two_tests_hold_as_sentences_do(pair, every):
    made = [
        decide.Decision(f"{i}", POINTS, verdict, False, 0.0, (0.0, 0.0), 1.0, None, "", margin)
        for i, (verdict, margin) in enumerate(zip(pair, (1.0, 2.0), strict=True))
    ]
    expected = (min if every else max)(pair, key=VERDICTS.index)
    assert decide.combine(made, every).verdict == decide.combine(made[::-1], every).verdict == expected


def test_the_test_that_settles_a_claim_is_named():
    def made(label, verdict, margin):
        return decide.Decision(label, POINTS, verdict, False, 0.0, (0.0, 0.0), 1.0, None, "", margin)

    fine = [made("weak", decide.SUPPORTED, 1.0), made("strong", decide.SUPPORTED, 2.0)]
    wrong = [made("a little", decide.CONTRADICTED, 1.0), made("much", decide.CONTRADICTED, 2.0)]
    assert decide.combine(fine, every=True).label == "weak"
    assert decide.combine([*fine, *wrong], every=True).label == "much"
    assert decide.combine([*fine, *wrong], every=False).label == "strong"
    assert decide.combine(wrong, every=False).label == "a little"


# --- what measures have in common ------------------------------------------------------------------------------------


def test_losses_are_averaged_over_the_last_ten_batches():
    np.testing.assert_allclose(study.smooth_loss({"loss": list(range(12))}), [4.5, 5.5, 6.5], **EXACT)
    for wrong in (math.nan, math.inf):
        found = study.smooth_loss({"loss": [1.0] * 12 + [wrong] * 12})
        np.testing.assert_allclose(found, [1] * 3 + [math.inf] * 12, **EXACT)


def test_steps_to_a_loss():
    record = {"loss": [1.0] * 20 + [0.0] * 20}
    assert study.steps_to_loss(record, 2.0) == 10  # the first step that has ten
    assert study.steps_to_loss(record, 0.25) == 28
    assert study.steps_to_loss(record, 0.0) == 30
    assert study.steps_to_loss(record, -1.0) == 40
    assert study.steps_to_loss({"loss": [1.0] * 20 + [math.nan] * 20}, 0.5) == 40
    assert study.steps_to_loss({"loss": [math.nan] * 40}, 0.5) == 40
    for huge in (1e20, 3e38):  # beside which a sum has no digits for what comes after it
        assert study.steps_to_loss({"loss": [2.3] * 5 + [huge] + [2.3] * 94}, 0.1) == 100


def test_steps_to_a_score():
    record = {"loss": [1.0] * 40, "score": [10.0, 96.0, 90.0, 97.0]}
    assert [study.steps_to_score(record, target) for target in (5, 95, 96, 97, 98)] == [10, 20, 20, 40, 40]
    assert study.steps_to_score({"loss": [1.0] * 40, "score": [math.nan] * 4}, 95) == 40


def test_scores_at_the_end():
    record = {"score": [100.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
    assert (study.last_score(record), study.final_score(record)) == (3.0, 5.0)


def test_lines_are_the_median_and_the_middle_of_the_seeds():
    seeds = np.arange(11.0)[::-1, None]
    found = study.Line("batch", (1, 2), seeds * [1, 100.12345678]).as_dict()
    assert found == {
        "label": "batch",
        "x": [1.0, 2.0],
        "low": [1, 100.123],
        "median": [5, 500.617],
        "high": [9, 901.111],
    }


# --- runs ------------------------------------------------------------------------------------------------------------


def test_results_have_the_axes_of_the_grid():
    grid = Grid(rate=(0.1, 0.2), task="wine", norm=NORMS, seed=7)
    runs = grid.runs([5, 6, 7, 8])
    assert grid.shape == (2, 3)
    assert [(run.rate, run.norm, run.seed) for run in runs] == list(itertools.product((0.1, 0.2), NORMS, [5, 6, 7, 8]))
    assert {run.task for run in runs} == {"wine"}
    claim = study.Claim("a", "", None, {}, "", {"runs": grid}, {"times": grid}, True)
    places = {run: i for i, run in enumerate(runs)}
    seeds = study.Seeds(study=[5, 6, 7, 8], tuning=[1, 2])
    results = study.Results(claim, seeds, places, {run: 2 * i for run, i in places.items()})
    numbers = np.arange(24).reshape(2, 3, 4)
    assert results.first() == results.second() == runs
    np.testing.assert_array_equal(results.each("runs", float), numbers)
    np.testing.assert_array_equal(results.each("runs", lambda i: [i, -i]), np.stack([numbers, -numbers], axis=-1))
    np.testing.assert_array_equal(results.seconds("times"), 2 * numbers)


@pytest.mark.parametrize("over", [1, 2])
@pytest.mark.parametrize("least", [False, True])
def test_settings_are_tuned_on_their_own_seeds(least, over, rng):
    grid = Grid(norm=NORMS, dropout=(0.0, 0.1), rate=(0.1, 0.2, 0.3, 0.4))
    tuned = Tuned(grid, lambda record: record["score"], least, over)
    claim = study.Claim("a", "", None, {}, "", {"runs": tuned}, {}, True)
    seeds, records = study.Seeds(study=range(3), tuning=range(10, 15)), {}
    results = study.Results(claim, seeds, records, {})
    assert results.first() == grid.runs(seeds.tuning)
    scores = rng.uniform(0, 100, (*grid.shape, 5))
    records |= {run: {"score": score} for run, score in zip(results.first(), scores.ravel(), strict=True)}

    means = scores.mean(axis=-1).reshape(*grid.shape[:-over], -1)
    chosen = (np.argmin if least else np.argmax)(means, axis=-1)
    settings = np.reshape(np.array(grid.settings(), object), means.shape)
    best = list(np.take_along_axis(settings, chosen[..., None], axis=-1).ravel())
    assert results.settings("runs") == best
    assert tuned.shape == chosen.shape
    assert results.second() == seeded(best, range(3))
    np.testing.assert_array_equal(results.sweep("runs", lambda record: record["score"]), scores)

    decided = rng.uniform(0, 100, (*tuned.shape, 3))
    records |= {run: {"score": score} for run, score in zip(results.second(), decided.ravel(), strict=True)}
    np.testing.assert_array_equal(results.each("runs", lambda record: record["score"]), decided)
    assert results.settings("runs") == best


def test_grid_refuses_what_a_run_does_not_have():
    with pytest.raises(TypeError, match="a Run has no colour, rates"):
        Grid(rates=(0.1, 0.2), norm=NORMS, colour="red")


def test_runs_are_told_apart_by_their_keys():
    assert Run().key() == "{}"
    assert Run(norm="batch", rate=0.3, seed=2).key() == '{"seed": 2, "norm": "batch", "rate": 0.3}'
    assert Run(rate=1, depth=2.0) == Run(rate=1.0, depth=2)
    assert Run(rate=1, depth=2.0).key() == Run(rate=1.0, depth=2).key() == '{"depth": 2, "rate": 1.0}'
    grids = [grid for claim in study.CLAIMS.values() for grid in claim.grids.values()]
    runs = {run for grid in grids for run in (grid.grid if isinstance(grid, Tuned) else grid).runs([1])}
    assert len({run.key() for run in runs}) == len(runs)
    assert all(Run(**json.loads(run.key())) == run for run in runs)
    changed = {"seed": 1, "task": "wine", "model": "cnn", "norm": "layer", "place": "after", "activation": "tanh"}
    changed |= dict.fromkeys(("depth", "width", "batch", "steps"), 7) | {"optimizer": "adam", "watch": "drift"}
    changed |= dict.fromkeys(("init", "scale", "rate", "dropout", "decay", "shift"), 0.7)
    assert set(changed) == {field.name for field in dataclasses.fields(Run)}
    assert len({Run(**{name: value}).key() for name, value in changed.items()}) == len(changed)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", data.TASKS)
def test_data_are_split_by_the_seed(task):
    first, again, other = (data.load(task, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.test_target, again.test_target)
    assert not np.array_equal(first.test_x, other.test_x)
    x, target = data.TASKS[task].read()
    samples, tests = len(x), len(x) // 5
    assert first.test_x.shape == (tests, *data.TASKS[task].shape)
    assert len(first.x) == (data.TASKS[task].training or samples - tests)
    assert first.x.dtype == first.test_x.dtype == np.float32
    if data.TASKS[task].training is None:  # every sample is on one side
        np.testing.assert_allclose(np.sort(np.concatenate([first.target, first.test_target])), np.sort(target))
    if data.TASKS[task].standardize:
        # A mean of float32 numbers of size 1.
        np.testing.assert_allclose(first.x.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(first.x.std(axis=0, dtype=np.float64), 1, atol=1e-6)
    scaled = data.load(task, np.random.default_rng(0), scale=0.25)
    np.testing.assert_array_equal(scaled.x, 0.25 * first.x)
    np.testing.assert_array_equal(scaled.test_x, 0.25 * first.test_x)


def test_losses_and_scores(rng):
    from scipy.special import log_softmax

    logits, labels = rng.standard_normal((6, 4)) * 5 + 1000, rng.integers(0, 4, 6)
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(6), labels])
    assert data.cross_entropy(logits, labels)[0] == pytest.approx(expected, rel=1e-12)
    outputs, targets = np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 4.0, 4.0])
    assert data.squared_error(outputs, targets)[0] == pytest.approx(8 / 6, rel=1e-15)
    assert data.accuracy(np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 2, 0])) == 75.0
    assert data.explained(targets[:, None], targets) == 100.0
    assert data.explained(np.array([[1.0], [3.0], [4.0]]), targets) == pytest.approx(100 * (1 - 1 / 6))
    assert data.explained(-outputs, targets) == data.explained(np.full((3, 1), np.nan), targets) == 0.0


# --- gradients and kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", checks.every_check(), ids=lambda check: check.what)
def test_every_check_passes(check):
    assert check.error() <= check.tolerance


def test_a_net_of_every_kind_is_checked():
    def kinds(runs):
        return {
            *((run.model, run.norm) for run in runs),
            *((run.model, run.activation) for run in runs),
            *((run.norm, run.place) for run in runs),
            *(data.TASKS[run.task].loss for run in runs),
            *(name for run in runs for name in ("dropout", "shift") if getattr(run, name)),
        }

    first = [study.Results(claim, SEEDS, {}, {}).first() for claim in study.CLAIMS.values()]
    assert kinds([run for runs in first for run in runs if run.seed in (0, SEEDS.tuning[0])]) <= kinds(checks.NETS)


def tolerance_of_gradients():
    (tolerance,) = {check.tolerance for check in checks.every_check() if check.what.startswith("gradient")}
    return tolerance


LAYERS = {
    layers.Linear: Run(),
    layers.Conv: Run(model="cnn", task="digit images"),
    layers.Average: Run(model="cnn", task="digit images"),
    layers.Recurrent: Run(model="rnn", task="digit rows"),
    layers.Relu: Run(),
    layers.Tanh: Run(activation="tanh"),
    layers.Sigmoid: Run(activation="sigmoid"),
    layers.Dropout: Run(dropout=0.3),
    layers.Shift: Run(norm="batch", shift=0.5),
    models.BatchNorm: Run(norm="batch"),
    models.LayerNorm: Run(norm="layer"),
    models.GroupNorm: Run(norm="layer", model="cnn", task="digit images"),
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_gradient_that_is_wrong_fails_the_check(layer, monkeypatch):
    backward = layer.backward
    monkeypatch.setattr(layer, "backward", lambda self, dy: 1.001 * backward(self, dy))
    assert checks.slope_error(LAYERS[layer]) > tolerance_of_gradients()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((layer, name) for layer in (layers.Linear, layers.Conv) for name in ("dweight", "dbias")),
        *((layers.Recurrent, name) for name in ("dweight_x", "dweight_h", "dbias", "dnorm_weight", "dnorm_bias")),
    ],
)
def test_a_parameters_gradient_that_is_wrong_fails_the_check(layer, name, monkeypatch):
    backward = layer.backward

    def wrong(self, dy):
        dx = backward(self, dy)
        setattr(self, name, 1.01 * getattr(self, name))
        return dx

    monkeypatch.setattr(layer, "backward", wrong)
    run = LAYERS[layer]
    normed = dataclasses.replace(run, norm="layer") if name.startswith("dnorm") else run
    assert checks.slope_error(normed) > tolerance_of_gradients()


@pytest.mark.parametrize(
    ("module", "kernel", "run"),
    [
        (checks.batch, "batch_norm_forward", Run(norm="batch", rate=0.03)),
        (checks.batch, "batch_norm_backward", Run(norm="batch", rate=0.03)),
        (checks.rows, "layer_norm_forward", Run(norm="layer", rate=0.03)),
        (checks.rows, "layer_norm_backward", Run(norm="layer", rate=0.03)),
        (checks.groups, "group_norm_forward", Run(norm="layer", rate=0.03, model="cnn", task="digit images")),
        (checks.groups, "group_norm_backward", Run(norm="layer", rate=0.03, model="cnn", task="digit images")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_that_is_wrong_fails_the_check(module, kernel, run, monkeypatch):
    original = getattr(module, kernel)

    def wrong(*arguments, **settings):
        first, *others = original(*arguments, **settings)
        return (first + first.dtype.type(1e-3), *others)

    monkeypatch.setattr(module, kernel, wrong)
    worst = max(check.tolerance for check in checks.every_check() if check.what.startswith("NumPy reference"))
    assert checks.reference_error(run, np.float32) > worst


# --- layers and networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (5, 6)])
def test_convolution_is_the_direct_one(size, stride, rng):
    conv = layers.Conv(3, 4, rng, stride=stride)
    conv.bias += rng.standard_normal(4)
    x, weight = rng.standard_normal((2, *size, 3)), conv.weight.reshape(3, 3, 3, 4)
    direct = [
        [sum(signal.correlate2d(image[..., c], weight[c, ..., o], "same") for c in range(3)) for o in range(4)]
        for image in x
    ]
    expected = np.moveaxis(direct, 1, -1)[:, ::stride, ::stride] + conv.bias
    np.testing.assert_allclose(conv(x), expected, **EXACT)


@pytest.mark.parametrize("norm", NORMS)
def test_recurrent_net_is_a_loop_over_time(norm, rng):
    def normalize(z, weight, bias):
        axis = {"batch": 0, "layer": 1}[norm]
        mean, var = z.mean(axis, keepdims=True), z.var(axis, keepdims=True)
        return (z - mean) / np.sqrt(var + 1e-5) * weight + bias

    net = layers.Recurrent(3, 5, 4, lambda: models.make_norm(norm, 5, dtype=np.float64), rng)
    for name in net.names:
        getattr(net, name)[...] += rng.standard_normal(getattr(net, name).shape)
    x, h = rng.standard_normal((6, 4, 3)), np.zeros((6, 5))
    for t in range(4):
        z = x[:, t] @ net.weight_x + h @ net.weight_h + net.bias
        h = np.tanh(z if norm == "none" else normalize(z, net.norm_weight, net.norm_bias))
    np.testing.assert_allclose(net(x), h, **EXACT)
    if norm == "batch":  # each step of time has running statistics of its own
        means = np.array([each.running_mean for each in net.norms])
        assert len(np.unique(means, axis=0)) == 4


def test_dropout_keeps_the_mean_and_is_off_in_evaluation(rng):
    dropout, x = layers.Dropout(0.3, rng), np.ones((100, 100), np.float32)
    y = dropout(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs(y.mean() - 1) < 4 * math.sqrt(0.3 / 0.7 / x.size)  # four deviations
    assert dropout.train(False)(x) is x


def test_shift_moves_all_samples_alike_and_is_off_in_evaluation(rng):
    shift, x = layers.Shift(0.5, rng), rng.standard_normal((6, 4))
    first, second = shift(x), shift(x)
    assert not np.array_equal(first, second)
    factor = (first[1:] - first[0]) / (x[1:] - x[0])
    np.testing.assert_allclose(factor, factor[:1].repeat(5, axis=0), rtol=1e-9)  # the differences cancel a few digits
    assert shift.train(False)(x) is x


def weights_of(network):
    """The initial weight matrices, which no norm has."""
    return network.values[network.decayed > 0]


@pytest.mark.parametrize("place", ["before", "after", "before+input", "before+output"])
@pytest.mark.parametrize(("model", "task"), EVERY_MODEL)
def test_nets_of_one_seed_differ_in_their_norms_alone(model, task, place):
    run = Run(model=model, task=task, place=place, depth=2)
    plain, *normed = (Training(dataclasses.replace(run, norm=norm)) for norm in NORMS)
    other = Training(dataclasses.replace(run, seed=1))
    picked = [next(plain._batches) for _ in range(30)]  # more than an epoch
    assert not np.array_equal(picked[0], next(other._batches))
    assert not np.array_equal(weights_of(plain.network), weights_of(other.network))
    for training in normed:
        assert len(training.network.values) > len(plain.network.values)
        np.testing.assert_array_equal(weights_of(training.network), weights_of(plain.network))
        np.testing.assert_array_equal(training.data.x, plain.data.x)
        np.testing.assert_array_equal([next(training._batches) for _ in range(30)], picked)


def test_an_epoch_has_each_sample_once():
    training = Training(Run(batch=64))
    epoch = np.concatenate([next(training._batches) for _ in range(1438 // 64)])
    assert len(np.unique(epoch)) == len(epoch) == 22 * 64


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("model", "task"), EVERY_MODEL)
def test_parameters_stay_views_of_one_vector(model, task, norm):
    training = Training(Run(model=model, task=task, norm=norm, depth=2))
    network = training.network
    before = network.values.copy()
    for _ in range(2):
        training.step()
    assert not np.array_equal(network.values, before)
    for flat, arrays in ((network.values, "parameters"), (network.slopes, "gradients")):
        owned = [value.ravel() for layer in network.layers for value in getattr(layer, arrays)().values()]
        np.testing.assert_array_equal(np.concatenate(owned), flat)
    for layer in network.layers:
        for value in layer.parameters().values():
            assert np.shares_memory(value, network.values)


def test_norms_are_before_or_after_the_activation():
    def kinds(**settings):
        network = Training(Run(norm="batch", depth=1, **settings)).network
        return [type(layer).__name__ for layer in network.layers]

    assert kinds(dropout=0.1, shift=0.1) == ["Linear", "BatchNorm", "Shift", "Relu", "Dropout", "Linear"]
    assert kinds(place="after", shift=0.1) == ["Linear", "Relu", "BatchNorm", "Shift", "Linear"]
    assert kinds(place="before+input") == ["BatchNorm", "Linear", "BatchNorm", "Relu", "Linear"]
    assert kinds(place="before+output") == ["Linear", "BatchNorm", "Relu", "Linear", "BatchNorm"]


def two_steps(optimizer, slopes):
    """Where two steps at a rate of 0.1 take a parameter that is 1."""
    network = types.SimpleNamespace(values=np.ones(1), slopes=np.zeros(1))
    made, found = models.OPTIMIZERS[optimizer](network, 0.1), []
    for slope in slopes:
        network.slopes[...] = slope
        made.step()
        found.append(network.values[0])
    return found


def test_momentum():
    np.testing.assert_allclose(two_steps("sgd", (1, 2)), [1 - 0.1, 1 - 0.1 - 0.1 * (0.9 + 2)], **EXACT)


def test_adam():
    # After the first slope m = 0.1 * 2 and v = 0.001 * 4, corrected 2 and 4; after the second:
    m, v = 0.9 * 0.2 - 0.1, 0.999 * 0.004 + 0.001
    first = 1 - 0.1 * 2 / (2 + 1e-8)
    second = first - 0.1 * (m / (1 - 0.9**2)) / (math.sqrt(v / (1 - 0.999**2)) + 1e-8)
    # 1 - 0.999^2 cancels three digits.
    np.testing.assert_allclose(two_steps("adam", (2, -1)), [first, second], rtol=1e-11)


@pytest.mark.parametrize(("model", "task"), EVERY_MODEL)
def test_weights_decay_and_nothing_else_does(model, task):
    run = Run(model=model, task=task, norm="batch", depth=1)
    plain, decayed = Training(run, np.float64), Training(dataclasses.replace(run, decay=0.5), np.float64)
    initial = plain.network.values.copy()
    assert plain.step() == decayed.step()
    matrices = [
        np.full(value.size, value.ndim > 1) for layer in plain.network.layers for value in layer.parameters().values()
    ]
    expected = plain.network.slopes + 0.5 * initial * np.concatenate(matrices)
    np.testing.assert_allclose(decayed.network.slopes, expected, **EXACT)


# --- training --------------------------------------------------------------------------------------------------------


def bits(record):
    return json.dumps(record)


@pytest.mark.parametrize(
    "run",
    [
        tiny(norm="batch", dropout=0.3, shift=0.5, watch="statistics"),
        tiny(norm="layer", model="cnn", task="digit images", steps=3),
        tiny(norm="batch", model="rnn", task="digit rows", optimizer="adam"),
    ],
    ids=lambda run: run.model,
)
def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(run):
    first, again, other = train(run), train(run), train(dataclasses.replace(run, seed=1))
    assert bits(first) == bits(again) != bits(other)
    assert first["loss"] != other["loss"]


def test_training_learns():
    record = train(Run(norm="batch", depth=1, steps=60))
    assert np.mean(record["loss"][-10:]) < 0.3 < record["loss"][0]
    assert record["score"][-1] > 85  # 10 by chance
    assert record["train_score"] > 85
    assert max(record["train_loss"], record["test_loss"]) < 0.5


def test_what_a_record_has_is_of_the_net_at_the_end():
    run = tiny(norm="batch", dropout=0.2)
    training = Training(run)
    losses = [training.step() for _ in range(run.steps)]
    network, task, split = training.network, training.task, training.data
    record = train(run)
    assert record["loss"] == losses
    assert record["score"][-1] == training.test() == task.score(network.predict(split.test_x), split.test_target)
    assert record["train_score"] == task.score(network.predict(split.x), split.target)
    assert record["train_loss"] == task.loss(network.predict(split.x), split.target)[0]
    assert record["test_loss"] == task.loss(network.predict(split.test_x), split.test_target)[0]


def test_a_run_that_diverges_ends_there(monkeypatch):
    taken, step = [], Training.step
    monkeypatch.setattr(Training, "step", lambda self: taken.append(step(self)) or taken[-1])
    run = tiny(rate=1e30, steps=55)
    record = train(run)
    assert 1 < len(taken) < 10
    assert not math.isfinite(taken[-1])
    assert np.all(np.isfinite(taken[:-1]))
    np.testing.assert_array_equal(record["loss"], [*taken, *[math.nan] * (55 - len(taken))])
    assert len(record["score"]) == 5
    assert len(set(record["score"])) == 1
    assert shapes(record) == shapes(train(dataclasses.replace(run, rate=0.1)))


def test_batch_norm_refuses_batches_of_one():
    with pytest.raises(ValueError, match="Training needs at least two"):
        train(tiny(norm="batch", batch=1))
    train(tiny(norm="layer", batch=1))


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watch", probes.PROBES)
def test_probes_leave_training_as_it_is(watch):
    run = tiny(norm="batch", depth=2, dropout=0.2, shift=0.2)
    watched = train(dataclasses.replace(run, watch=watch))
    assert bits({name: watched[name] for name in train(run)}) == bits(train(run))


def trained(watch, **settings):
    """A training that has taken its steps, and its probe."""
    training = Training(tiny(norm="batch", depth=2, watch=watch, **settings))
    probe = probes.PROBES[watch](training)
    for step in range(training.run.steps):
        training.step()
        probe.after(step)
    return training, probe


def test_gradients_are_those_of_the_weight_matrices():
    training, probe = trained("gradients")
    found = probe.result()["gradients"]
    assert np.shape(found) == (20, 3)
    # float32 sums of a few hundred squares.
    assert math.hypot(*found[-1]) == pytest.approx(
        np.linalg.norm(training.network.slopes[training.network.decayed > 0]), rel=1e-5
    )


def test_drift_is_how_far_the_inputs_of_layers_move():
    training, probe = trained("drift", rate=0.0)
    np.testing.assert_array_equal(probe.result()["drift"], [0, 0])
    # All but the first layer's inputs are by batch norms: doubling their parameters doubles means and deviations.
    for layer in training.network.layers:
        if isinstance(layer, models.BatchNorm):
            layer.weight[...] *= 2
            layer.bias[...] *= 2
    probe.after(9)
    moves = [math.sqrt(np.mean(m**2 + s**2) / np.mean(s**2)) for m, s in probe.moments[-2]]
    assert len(moves) == 2
    # The second norm's eps, of 1e-5, is less beside a variance four times as large.
    assert probe.result()["drift"][-1] == pytest.approx(np.mean(moves), rel=1e-4)


def test_scales_are_of_inputs_and_of_hidden_weights():
    training, probe = trained("scales")
    network, split, usual = training.network, training.data, training.test()
    before, score = network.values.copy(), functools.partial(data.accuracy, labels=split.test_target)
    found = probe.result()
    np.testing.assert_array_equal(network.values, before)
    assert training.test() == usual  # the running statistics are as they were
    one, ten = probes.SCALES.index(1.0), probes.SCALES.index(10.0)
    assert found["scaled_inputs"][one] == usual
    assert found["scaled_inputs"][ten] == score(network.predict(10 * split.test_x)) != usual
    own = score(network(split.test_x))
    assert found["own_scaled_inputs"][one] == found["own_scaled_weights"][one] == own
    assert found["own_scaled_inputs"][ten] == score(network(10 * split.test_x))
    for layer in network.linear()[:-1]:
        layer.weight *= 0.1
    assert found["own_scaled_weights"][probes.SCALES.index(0.1)] == score(network(split.test_x))


def test_statistics_are_those_of_batches_or_start_anew():
    training, probe = trained("statistics")
    network, split = training.network, training.data
    running, score = training.test(), functools.partial(data.accuracy, labels=split.test_target)
    found = probe.result()
    assert training.test() == running  # its own copy saw the batches
    norms = [layer for layer in network.layers if isinstance(layer, models.BatchNorm)]
    kept = [(norm.running_mean.copy(), norm.running_var.copy()) for norm in norms]
    assert found["whole"] == score(network(split.test_x))
    pairs = np.concatenate([network(split.test_x[i : i + 2]) for i in range(0, 358, 2)])
    assert found["batched"][probes.BATCHES.index(2)] == data.accuracy(pairs, split.test_target[:358])
    for norm in norms:
        norm.running_mean[...], norm.running_var[...] = 0, 1
    again = Training(training.run)
    for _ in range(training.run.steps):
        next(again._batches)
    network(split.x[next(again._batches)])
    assert found["updated"][probes.UPDATES.index(1)] == training.test()
    assert any(not np.array_equal(norm.running_mean, mean) for norm, (mean, _) in zip(norms, kept, strict=True))


# --- the pool of runs, and the clock ---------------------------------------------------------------------------------


def test_pool_trains_in_processes_what_one_process_would(tmp_path):
    runs = [tiny(norm="batch", seed=seed) for seed in (0, 1)]
    made, done = pool.Pool(tmp_path), []
    made.train(runs, done.append)
    assert sorted(done) == sorted(run.key() for run in runs)
    for run in runs:
        assert bits(made[run]) == bits(train(run))
        assert bits(pool.Pool(tmp_path)[run]) == bits(train(run))


@pytest.fixture
def runs(one_process):
    return [tiny(seed=seed) for seed in range(3)]


def test_pool_resumes(runs, tmp_path):
    pool.Pool(tmp_path).train(runs[:2])
    resumed, done = pool.Pool(tmp_path), []
    assert resumed.missing([*runs, *runs]) == runs[2:]
    resumed.train([*runs, *runs], done.append)
    assert done == [runs[2].key()]
    assert pool.Pool(tmp_path).missing(runs) == []
    (file,) = tmp_path.iterdir()
    assert len([line for line in file.read_text().splitlines() if line]) == 3


def test_pool_trains_again_what_was_cut_off(runs, tmp_path):
    whole = pool.Pool(tmp_path)
    whole.train(runs)
    text = whole.path.read_text()
    for left_out, missing in ((20, runs[2:]), (1, [])):  # of the last line, or its end alone
        whole.path.write_text(text[:-left_out])
        resumed = pool.Pool(tmp_path)
        assert resumed.missing(runs) == missing
        more = [*runs, tiny(seed=3)]
        resumed.train(more)
        again = pool.Pool(tmp_path)
        assert again.missing(more) == []
        assert bits(again.records) == bits(resumed.records)


def test_pool_of_other_code_is_another(runs, tmp_path, monkeypatch):
    def changes(owner, name, value):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert pool.Pool(tmp_path).missing(runs) == runs

    pool.Pool(tmp_path).train(runs[:1])
    changes(pool.machine, "version", lambda package: "another")
    changes(pool.machine, "cpu_model", lambda: "another")
    changes(pool, "blas", lambda: ["another"])
    changes(pool, "TRAINING", pool.TRAINING[1:])
    changes(normnumba, "__file__", str(tmp_path / "__init__.py"))
    assert pool.Pool(tmp_path).missing(runs) == runs[1:]


def test_records_depend_on_no_other_module_of_the_study():
    for name in pool.TRAINING:
        text = Path(pool.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        assert set(re.findall(r"benchmarks\.(?:claims\.)?(\w+) import", text)) <= set(pool.TRAINING)


def test_pool_forgets(runs, tmp_path):
    made = pool.Pool(tmp_path)
    made.forget(runs)
    made.train(runs)
    made.forget([*runs[:2], *runs[:2]])
    assert made.missing(runs) == pool.Pool(tmp_path).missing(runs) == runs[:2]
    assert bits(pool.Pool(tmp_path)[runs[2]]) == bits(made[runs[2]])
    made.forget(runs)
    assert list(tmp_path.iterdir()) == []


def test_steps_of_one_seed_and_net_are_timed_side_by_side(monkeypatch):
    groups = []

    def side_by_side(steps, effort):
        groups.append(list(steps))
        return {key: types.SimpleNamespace(seconds=len(key)) for key in steps}

    monkeypatch.setattr(measure, "side_by_side", side_by_side)
    runs = Grid(norm=NORMS, width=(8, 16), depth=1).runs([0, 1])
    done = []
    seconds = clock.step_seconds([*runs, *runs], done.append)
    assert seconds == {run: len(run.key()) for run in runs}
    assert sorted(done) == sorted(run.key() for run in runs)
    expected = [
        {run.key() for run in runs if (run.seed, run.width) == kind} for kind in itertools.product((0, 1), (8, 16))
    ]
    assert len(groups) == len(expected)
    assert all(set(group) in expected for group in groups)


# --- the command -----------------------------------------------------------------------------------------------------

ORIGIN = {"commit": "c" * 40, "clean": True}
CONTRACT = {"id", "says", "verdict", "metrics", "interval", "n_seeds", "command", "timings"}


@pytest.fixture
def cheap(one_process, monkeypatch):
    """A study of two claims about tiny nets, of two seeds and one for tuning."""
    nets = Grid(norm=("none", "batch"), depth=1, width=8, steps=20, rate=0.3)
    tuned = Tuned(Grid(norm=("none", "batch"), depth=1, width=8, steps=20, rate=(0.03, 0.1)), study.last_score)

    def measure_score(results):
        """What a norm adds."""
        score = results.each("nets", study.last_score)
        lines = [study.Line(norm, (1,), score[i][:, None]) for i, norm in enumerate(("none", "batch"))]
        return study.Findings({"gain": score[1] - score[0]}, {"score": score.tolist()}, [study.Plot("x", "y", lines)])

    def measure_time(results):
        """What a norm costs."""
        seconds = results.seconds("nets")
        return study.Findings({"cost": seconds[1] - seconds[0]}, {}, timings={"seconds": seconds.tolist()})

    claims = [
        study.Claim(
            "gains", "A gain.", measure_score, {"gain": POINTS}, "Why.", {"nets": tuned, "untuned": nets}, {}, True
        ),
        study.Claim("costs", "A cost.", measure_time, {"cost": POINTS}, "Why.", {}, {"nets": nets}, True),
    ]
    monkeypatch.setattr(command, "CLAIMS", {claim.id: claim for claim in claims})
    monkeypatch.setattr(command, "QUICK_SEEDS", study.Seeds(study=range(2), tuning=range(100, 101)))
    monkeypatch.setattr(clock, "EFFORT", measure.Effort(rounds=1, block=1e-4))


def written(folder):
    content = json.loads((folder / command.FILE).read_text(encoding="utf-8"))
    assert content["format"] == command.FORMAT
    return content["claims"]


def test_study_writes_what_the_page_reads(cheap, tmp_path):
    entries = command.study([], True, tmp_path / "new", silent, ORIGIN)
    assert written(tmp_path / "new") == entries
    assert [entry["id"] for entry in entries] == ["gains", "costs"]
    for entry in entries:
        assert set(entry) >= CONTRACT
        assert entry["verdict"] in ("supported", "contradicted", "undecided")
        assert (entry["n_seeds"], entry["n_tuning_seeds"]) == (2, 1)
        assert entry["preliminary"]
        low, high = entry["interval"]
        assert low <= entry["effect"] <= high
        assert entry["command"] == f"python -m benchmarks claims --only {entry['id']} --quick"
        assert entry["source"]["commit"] == ORIGIN["commit"]
        assert entry["source"]["versions"]["numpy"] == np.__version__
        assert entry["source"]["runs"] == 12  # two nets: at two rates to tune, at the better with two seeds, untuned
    gains, costs = entries
    assert (gains["method"], gains["says"], gains["timed"], costs["timed"]) == (
        "What a norm adds.",
        "A gain.",
        False,
        True,
    )
    assert np.shape(gains["metrics"]["score"]) == np.shape(costs["timings"]["seconds"]) == (2, 2)
    assert np.all(np.array(costs["timings"]["seconds"]) > 0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [command.FILE]  # and none of what was trained


def test_study_repeats_and_replaces_only_what_was_asked_for(cheap, tmp_path):
    trained = []

    @contextmanager
    def counting(text, total):
        trained.extend([total] * text.startswith("training"))
        yield lambda name: None

    (costs,) = command.study(["costs"], True, tmp_path, counting, ORIGIN)
    (first,) = command.study(["gains"], True, tmp_path, counting, ORIGIN)
    assert written(tmp_path) == [first, costs]
    (second,) = command.study(["gains"], True, tmp_path, counting, {**ORIGIN, "commit": "another"})
    assert trained == [0, 0, 8, 4, 8, 4]  # anew, and not from what the first left
    assert second["metrics"] == first["metrics"]
    assert second["tests"] == first["tests"]
    assert written(tmp_path) == [second, costs]
    (tmp_path / command.FILE).write_text(json.dumps({"format": 0, "claims": [{"id": "gains"}]}))
    assert command.load(tmp_path) == {}
    command.study(["costs"], True, tmp_path, counting, ORIGIN)
    assert [entry["id"] for entry in written(tmp_path)] == ["costs"]


def test_study_refuses_effects_that_are_not_the_tests(cheap, tmp_path, monkeypatch):
    claim = command.CLAIMS["gains"]
    monkeypatch.setitem(command.CLAIMS, "gains", dataclasses.replace(claim, tests={"loss": POINTS}))
    with pytest.raises(ValueError, match=r"gains has tests \{'loss'\} and effects \{'gain'\}"):
        command.study(["gains"], True, tmp_path, silent, ORIGIN)
    assert not (tmp_path / command.FILE).exists()


def test_a_study_that_was_interrupted_goes_on_with_what_is_trained(cheap, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "decisions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            command.study(["gains"], True, tmp_path, silent, ORIGIN)
    monkeypatch.setattr(pool, "_trained", None)
    command.study(["gains"], True, tmp_path, silent, ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == [command.FILE]


def test_choosing_claims():
    assert [claim.id for claim in command.choose([])] == list(study.CLAIMS)
    asked = ["not-always", "converges-faster", "not-always"]
    assert [claim.id for claim in command.choose(asked)] == [id for id in study.CLAIMS if id in asked]
    with pytest.raises(ValueError, match="no claim is called one, two; there are") as refusal:
        command.choose(["one", "not-always", "two"])
    assert all(id in str(refusal.value) for id in IDS)


@pytest.fixture
def asked(monkeypatch):
    """What the command asked for of a study that is not run."""
    found = []
    monkeypatch.setattr(command, "study", lambda *arguments: found.append(arguments) or [])
    monkeypatch.setattr(command, "every_check", lambda: [checks.Check("what", 1e-6, lambda: 1e-7)])
    for part in ("check", "everything", "report"):
        monkeypatch.setattr(job.Job, part, lambda self: job.DONE)
    return found


def test_command_runs_the_study(asked, tmp_path):
    arguments = ["claims", "--quick", "--only", "not-always, converges-faster,", "--output", str(tmp_path)]
    assert job.main(arguments) == job.DONE
    ((ids, quick, folder, _, origin),) = asked
    assert (ids, quick, folder) == (["not-always", "converges-faster"], True, tmp_path)
    assert set(ORIGIN) <= set(origin)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["claims", "--only", "nonsense"], "no claim is called nonsense; there are"),
        (["claims", "--only", ""], "--only names no claim; there are"),
        (["claims", "--only", "not-always", "--full"], "claims takes --quick, --only and --output"),
        (["claims", "--op", "layer_norm*"], "claims takes --quick, --only and --output"),
        (["claims", "--device", "cuda"], "claims has no --device cuda"),
        (["check", "--only", "not-always"], "--only is for claims alone"),
        (["--only", "not-always"], "--only is for claims alone"),
        (["--only", ""], "--only is for claims alone"),
    ],
    ids=" ".join,
)
def test_command_refuses_what_it_does_not_take(arguments, says, asked, capsys):
    assert job.main(arguments) == job.MISUSED == 2
    assert says in " ".join(capsys.readouterr().out.split())
    assert asked == []


def test_command_says_how_to_go_on_after_an_interruption(asked, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", interrupt)
    try:
        code = job.main(["claims", "--only", "not-always"])
    except KeyboardInterrupt:  # which would end the tests
        pytest.fail("the interruption is not handled")
    assert code == job.FAILED
    assert "the same command goes on with what is trained" in capsys.readouterr().out


@pytest.mark.parametrize("error", [2e-6, math.nan])
def test_what_trains_wrongly_is_not_trained(error, asked, monkeypatch, capsys):
    wrong = [checks.Check("fine", 1e-6, lambda: 1e-7), checks.Check("wrong", 1e-6, lambda: error)]
    monkeypatch.setattr(command, "every_check", lambda: wrong)
    assert job.main(["claims", "--only", "not-always"]) == job.FAILED == 1
    said = capsys.readouterr().out
    assert "wrong: " in said
    assert "fine: " not in said
    assert asked == []
