"""The claims study: each claim reads its runs rightly, and the verdicts follow from the rule."""

import dataclasses
import functools
import itertools
import json
import math

import numpy as np
import pytest

import normnumba
from benchmarks.claims import accuracy, batches, command, common, decide, probes, study
from benchmarks.claims.runs import NORMS, Grid, Run, Tuned, seeded
from benchmarks.claims.training import train
from tests.claims_helpers import shapes, tiny
from tests.test_layers import EXACT

pytest.importorskip("sklearn")

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


def test_the_exact_claim_shows_the_largest_differences_of_all_seeds(rng, monkeypatch):
    differences = rng.random((len(SEEDS.study), 2 * len(batches.SHAPES)))  # each shape in two dtypes
    each = iter(differences.ravel())
    monkeypatch.setattr(batches, "_apart", lambda *arrays: next(each))
    found = findings_of("layer-norm-single-sample", None)
    (effects,), (plot,) = found.effects.values(), found.plots
    layer, batch = (line.values[0] for line in plot.lines)
    np.testing.assert_array_equal(effects, differences.max(axis=1))
    np.testing.assert_array_equal(layer, effects)
    assert len(np.unique(batch)) == len(SEEDS.study)
    assert found.metrics == {
        "largest difference, layer norm": differences.max(),
        "largest change of batch norm's other outputs": batch.max(),
    }


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
    np.testing.assert_allclose(common.smooth_loss({"loss": list(range(12))}), [4.5, 5.5, 6.5], **EXACT)
    for wrong in (math.nan, math.inf):
        found = common.smooth_loss({"loss": [1.0] * 12 + [wrong] * 12})
        np.testing.assert_allclose(found, [1] * 3 + [math.inf] * 12, **EXACT)


def test_steps_to_a_loss():
    record = {"loss": [1.0] * 20 + [0.0] * 20}
    assert common.steps_to_loss(record, 2.0) == 10  # the first step that has ten
    assert common.steps_to_loss(record, 0.25) == 28
    assert common.steps_to_loss(record, 0.0) == 30
    assert common.steps_to_loss(record, -1.0) == 40
    assert common.steps_to_loss({"loss": [1.0] * 20 + [math.nan] * 20}, 0.5) == 40
    assert common.steps_to_loss({"loss": [math.nan] * 40}, 0.5) == 40
    for huge in (1e20, 3e38):  # beside which a sum has no digits for what comes after it
        assert common.steps_to_loss({"loss": [2.3] * 5 + [huge] + [2.3] * 94}, 0.1) == 100


def test_steps_to_a_score():
    record = {"loss": [1.0] * 40, "score": [10.0, 96.0, 90.0, 97.0]}
    assert [common.steps_to_score(record, target) for target in (5, 95, 96, 97, 98)] == [10, 20, 20, 40, 40]
    assert common.steps_to_score({"loss": [1.0] * 40, "score": [math.nan] * 4}, 95) == 40


def test_scores_at_the_end():
    record = {"score": [100.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
    assert (common.last_score(record), common.final_score(record)) == (3.0, 5.0)


def test_a_test_loss_is_ten_at_most():
    losses = {0.25: 0.25, 10.5: 10.0, 1e300: 10.0, math.inf: 10.0, math.nan: 10.0}
    assert [accuracy.test_loss({"test_loss": loss}) for loss in losses] == list(losses.values())


def test_numbers_by_name_are_of_all_seeds_and_rounded():
    values = [[1.0, 2.0, 6.0], [100 / 359, 100 / 359, 100 / 359]]
    assert common.by((64, "all"), values) == {"64": 3.0, "all": 0.278551532}
    assert common.by((64, "all"), values, np.median) == {"64": 2.0, "all": 0.278551532}
    assert common.by(["a sum"], [[0.1, 0.2, -0.3]], np.sum) == {"a sum": 0.0}  # without rounding 2.8e-17
    assert {type(value) for value in common.by((64, "all"), values).values()} == {float}
    for names in ((64,), (64, 8, "all")):
        with pytest.raises(ValueError, match="argument 2 is"):
            common.by(names, values)


def assert_effects(found, expected):
    assert list(found) == list(expected)
    for label, effect in expected.items():
        np.testing.assert_array_equal(found[label], effect)


def test_norms_are_compared_with_the_plain_net_seed_by_seed():
    scores = np.array([[90.0, 80.0], [95.0, 81.0], [89.0, 80.5]])
    assert_effects(common.against_plain(scores), {"batch": [5, 1], "layer": [-1, 0.5]})
    assert_effects(common.against_plain(scores, ", wine"), {"batch, wine": [5, 1], "layer, wine": [-1, 0.5]})
    deeper = np.stack([scores, 2 * scores], axis=1)  # (norm, depth, seed)
    assert_effects(common.against_plain(deeper), {"batch": [[5, 1], [10, 2]], "layer": [[-1, 0.5], [-2, 1]]})
    with pytest.raises(ValueError, match="zip"):
        common.against_plain(scores[:2])


def test_half_the_steps_are_one_doubling():
    steps = np.array([[256.0, 64.0], [128.0, 64.0], [512.0, 16.0]])
    assert_effects(common.doublings(steps), {"batch": [1, 0], "layer": [-1, 2]})
    assert_effects(common.doublings(steps, ", tanh"), {"batch, tanh": [1, 0], "layer, tanh": [-1, 2]})


def test_lines_are_one_for_each_name_with_its_seeds():
    values = np.arange(24.0).reshape(2, 3, 4)  # (name, x, seed)
    first, second = common.lines(("none", 8), (0.1, 0.2, 0.3), values)
    assert (first.label, second.label) == ("none", "8")
    assert first.x == second.x == (0.1, 0.2, 0.3)
    np.testing.assert_array_equal(first.values, values[0].T)
    np.testing.assert_array_equal(second.values, values[1].T)
    assert second.as_dict()["median"] == [13.5, 17.5, 21.5]
    with pytest.raises(ValueError, match="zip"):
        common.lines(("none",), (0.1, 0.2, 0.3), values)


def test_smallest_effects_are_what_their_reasons_say():
    assert (common.POINT.smallest, common.HALF.smallest) == (1.0, 0.5)
    assert math.log2(1.1) == common.FACTOR
    assert common.FASTER.smallest == common.FACTOR
    assert common.SWEEP.axes == {"norm": NORMS, "rate": common.RATES}
    # Else "all at 0.03" would not be of the sweep's nets.
    assert set(common.UNTUNED.settings()) < set(common.SWEEP.settings())


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
