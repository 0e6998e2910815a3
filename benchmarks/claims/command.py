"""The study behind `python -m benchmarks claims`: check, train, decide, write claims.json."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.claims.checks import every_check
from benchmarks.claims.clock import step_seconds
from benchmarks.claims.decide import Decision, combine, decide
from benchmarks.claims.pool import Pool, blas
from benchmarks.claims.runs import Run
from benchmarks.claims.study import CLAIMS, Claim, Findings, Results, Seeds

for _theme in ("speed", "stability", "accuracy", "batches", "networks"):
    import_module(f"benchmarks.claims.{_theme}")  # which enters its claims into CLAIMS: the order of the page

SEEDS = Seeds(study=range(20), tuning=range(100, 110))
QUICK_SEEDS = Seeds(study=range(3), tuning=range(100, 101))  # from an empty numba cache in under four minutes

TESTS = sum(not test.exact for claim in CLAIMS.values() for test in claim.tests.values())
"""All tests of the study that chance has a part in: what `decide` corrects for, whichever of them are run."""

FILE, FORMAT = "claims.json", 1

PACKAGES = ("normnumba", "numba", "numpy", "scipy", "scikit-learn", "joblib")

Progress = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""A progress bar, as `job.Job.progress` makes one."""


def choose(ids: Iterable[str]) -> list[Claim]:
    """The claims of these ids, or all.

    Raises
    ------
    ValueError
        For an id that no claim has.
    """
    wanted = list(dict.fromkeys(ids))
    unknown = [id for id in wanted if id not in CLAIMS]
    if unknown:
        raise ValueError(f"no claim is called {', '.join(unknown)}; there are {', '.join(CLAIMS)}")
    return [claim for claim in CLAIMS.values() if not wanted or claim.id in wanted]


def check(progress: Progress) -> list[dict[str, Any]]:
    """The checks before the study, in one thread."""
    from threadpoolctl import threadpool_limits

    checks, found = every_check(), []
    with threadpool_limits(1, "blas"), progress("checking", len(checks)) as step:
        for check in checks:
            error = check.error()
            passed = error <= check.tolerance  # not where it is NaN
            found.append({"what": check.what, "error": error, "tolerance": check.tolerance, "passed": passed})
            step(check.what)
    return found


def measure(
    claims: Sequence[Claim], seeds: Seeds, pool: Pool, progress: Progress
) -> tuple[dict[str, Findings], list[Run]]:
    """Time, tune, train; what each claim makes of it, and all runs."""
    timed = list(
        dict.fromkeys(run for claim in claims for grid in claim.timed.values() for run in grid.runs(seeds.study))
    )
    with progress("timing steps", len(timed)) as step:  # first, while nothing else runs
        seconds = step_seconds(timed, step)
    results = [Results(claim, seeds, pool, seconds) for claim in claims]
    runs: list[Run] = []
    for phase in (Results.first, Results.second):
        runs += [run for result in results for run in phase(result)]
        missing = pool.missing(runs)
        with progress(f"training {len(missing)} nets", len(missing)) as step:
            pool.train(missing, step)
    return {result.claim.id: result.claim.measure(result) for result in results}, runs


def decisions(
    claims: Sequence[Claim], findings: Mapping[str, Findings], progress: Progress
) -> dict[str, list[Decision]]:
    """Every test's decision; with twenty seeds each is a million signs, and a matter of seconds."""
    import joblib

    asked = [(claim, label) for claim in claims for label in claim.tests]
    for claim in claims:
        if set(findings[claim.id].effects) != set(claim.tests):
            raise ValueError(f"{claim.id} has tests {set(claim.tests)} and effects {set(findings[claim.id].effects)}")
    made: dict[str, list[Decision]] = {claim.id: [] for claim in claims}
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")
    outcomes = parallel(
        joblib.delayed(decide)(label, claim.tests[label], findings[claim.id].effects[label], TESTS)
        for claim, label in asked
    )
    with progress("testing", len(asked)) as step:
        for (claim, label), decision in zip(asked, outcomes, strict=True):
            made[claim.id].append(decision)
            step(f"{claim.id}: {label}")
    return made


def entry(claim: Claim, findings: Findings, made: Sequence[Decision], seeds: Seeds, quick: bool) -> dict[str, Any]:
    """What claims.json has about a claim.

    All of it repeats bit for bit on the same machine but `timings` and the source's date, and where `timed` is true,
    what is decided from seconds: the verdict with its effects and intervals, and plots that are `timed`.
    """
    settled = combine(made, claim.every)
    return {
        "id": claim.id,
        "says": claim.says,
        "verdict": settled.verdict,
        "preliminary": settled.preliminary,
        "reason": f"{settled.label}: {settled.reason}",
        "interval": list(settled.interval),
        "effect": settled.effect,
        "unit": settled.test.unit,
        "confidence": settled.confidence,
        "n_seeds": len(seeds.study),
        "n_tuning_seeds": len(seeds.tuning),
        "method": claim.method,
        "rule": "all tests have to hold" if claim.every else "one test has to hold",
        "why_smallest": claim.why_smallest,
        "tests": [_test(decision) for decision in made],
        "metrics": findings.metrics,
        "timed": bool(claim.timed),
        "timings": findings.timings,
        "plots": [plot.as_dict() for plot in findings.plots],
        "command": f"python -m benchmarks claims --only {claim.id}" + (" --quick" if quick else ""),
    }


def _test(decision: Decision) -> dict[str, Any]:
    return {
        "test": decision.label,
        "verdict": decision.verdict,
        "preliminary": decision.preliminary,
        "effect": decision.effect,
        "interval": list(decision.interval),
        "confidence": decision.confidence,
        "p": decision.p,
        "unit": decision.test.unit,
        "smallest": decision.test.smallest,
        "denies": decision.test.denies,
        "reason": decision.reason,
    }


def source(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Which code on which machine an entry is of; what the bits of its metrics depend on."""
    return {
        "commit": origin["commit"],
        "clean": origin["clean"],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": machine.cpu_model(),
        "python": platform.python_version(),
        "versions": {name: machine.version(name) for name in PACKAGES},
        "blas": ", ".join(blas()),
    }


def study(
    ids: Iterable[str], quick: bool, folder: Path, progress: Progress, origin: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run the claims of these ids, or all, and write them into claims.json in `folder`.

    A run of some claims replaces those and leaves the others there. Until claims.json is written the folder keeps what
    was trained, for the next study if this one is interrupted; then it is removed, so that a repetition is one.
    """
    from benchmarks import report  # which imports this module for the page

    claims, seeds = choose(ids), QUICK_SEEDS if quick else SEEDS
    known = load(folder) if len(claims) < len(CLAIMS) else {}
    pool = Pool(folder)
    findings, runs = measure(claims, seeds, pool, progress)
    made = decisions(claims, findings, progress)
    of = source(origin) | {"runs": len(set(runs))}
    entries = [entry(claim, findings[claim.id], made[claim.id], seeds, quick) | {"source": of} for claim in claims]
    merged = known | {found["id"]: found for found in entries}
    report.save(folder / FILE, {"format": FORMAT, "claims": [merged[id] for id in CLAIMS if id in merged]})
    pool.forget(runs)
    return entries


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of the claims.json in `folder` by their ids; none where it is missing or of another format."""
    path = folder / FILE
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {found["id"]: found for found in content["claims"]} if content.get("format") == FORMAT else {}
