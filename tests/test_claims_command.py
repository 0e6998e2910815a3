"""The claims study as a command: what is trained is kept and resumed, timed in turns, decided, written and shown."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import normnumba
from benchmarks import asv_run, job, measure, report
from benchmarks.claims import checks, clock, command, common, pool, study
from benchmarks.claims.runs import NORMS, Grid, Tuned
from benchmarks.claims.training import train
from tests.claims_helpers import bits, tiny

pytest.importorskip("sklearn")
joblib = pytest.importorskip("joblib")


@contextmanager
def silent(text, total):
    """A progress bar that nobody sees."""
    yield lambda name: None


@pytest.fixture
def one_process(monkeypatch):
    """Joblib runs one job in the process that asks for it: a worker's start takes a second."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)


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


def test_fingerprint_is_of_the_code_that_trains_and_no_other(tmp_path, monkeypatch):
    own = Path(pool.__file__).parent
    shutil.copytree(own, tmp_path / "claims", ignore=shutil.ignore_patterns("__pycache__"))
    usual = pool.fingerprint()
    assert re.fullmatch("[0-9a-f]{12}", usual)
    assert pool.Pool(tmp_path).path == tmp_path / f"claims-runs-{usual}.jsonl"
    monkeypatch.setattr(pool, "__file__", str(tmp_path / "claims" / "pool.py"))
    assert pool.fingerprint() == usual  # wherever the code is
    for path in sorted((tmp_path / "claims").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n", encoding="utf-8")
        assert (pool.fingerprint() != usual) == (path.stem in pool.TRAINING), path.stem
        path.write_text(text, encoding="utf-8")


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
    tuned = Tuned(Grid(norm=("none", "batch"), depth=1, width=8, steps=20, rate=(0.03, 0.1)), common.last_score)

    def measure_score(results):
        """What a norm adds."""
        score = results.each("nets", common.last_score)
        lines = [study.Line(norm, (1,), score[i][:, None]) for i, norm in enumerate(("none", "batch"))]
        return study.Findings({"gain": score[1] - score[0]}, {"score": score.tolist()}, [study.Plot("x", "y", lines)])

    def measure_time(results):
        """What a norm costs."""
        seconds = results.seconds("nets")
        return study.Findings({"cost": seconds[1] - seconds[0]}, {}, timings={"seconds": seconds.tolist()})

    claims = [
        study.Claim(
            "gains", "A gain.", measure_score, {"gain": common.HALF}, "Why.", {"nets": tuned, "untuned": nets}, {}, True
        ),
        study.Claim("costs", "A cost.", measure_time, {"cost": common.HALF}, "Why.", {}, {"nets": nets}, True),
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
    monkeypatch.setitem(command.CLAIMS, "gains", dataclasses.replace(claim, tests={"loss": common.HALF}))
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


def test_what_is_no_number_is_not_written_and_not_lost(cheap, tmp_path, monkeypatch):
    command.study(["gains"], True, tmp_path, silent, ORIGIN)
    text = (tmp_path / command.FILE).read_text(encoding="utf-8")
    claim = command.CLAIMS["gains"]

    def wrong(results):
        return dataclasses.replace(claim.measure(results), metrics={"score": math.nan})

    with monkeypatch.context() as patch:
        patch.setitem(command.CLAIMS, "gains", dataclasses.replace(claim, measure=wrong))
        with pytest.raises(ValueError, match="not JSON compliant"):
            command.study(["gains"], True, tmp_path, silent, ORIGIN)
    assert (tmp_path / command.FILE).read_text(encoding="utf-8") == text
    monkeypatch.setattr(pool, "_trained", None)  # all that was trained is there for the mended claim
    command.study(["gains"], True, tmp_path, silent, ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == [command.FILE]


def test_choosing_claims():
    assert [claim.id for claim in command.choose([])] == list(study.CLAIMS)
    asked = ["not-always", "converges-faster", "not-always"]
    assert [claim.id for claim in command.choose(asked)] == [id for id in study.CLAIMS if id in asked]
    with pytest.raises(ValueError, match="no claim is called one, two; there are") as refusal:
        command.choose(["one", "not-always", "two"])
    assert all(id in str(refusal.value) for id in study.CLAIMS)


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


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf, object()], ids=["NaN", "infinity", "no JSON"])
def test_saving_what_cannot_be_written_leaves_the_old_file(wrong, tmp_path):
    path = tmp_path / "new" / "claims.json"
    content = {"first": [1.5, None], "then": wrong}
    with pytest.raises((ValueError, TypeError)):
        report.save(path, content)
    assert not path.parent.exists()
    report.save(path, {"old": 1})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"old": 1}
    with pytest.raises((ValueError, TypeError)):
        report.save(path, content)
    assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_saving_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch):
    path, write = tmp_path / "claims.json", Path.write_text
    report.save(path, {"old": 1})

    def full(self, text, **settings):
        write(self, text[: len(text) // 2], **settings)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space left"):
            report.save(path, {"new": [1, 2, 3]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    report.save(path, {"new": [1, 2, 3]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"new": [1, 2, 3]}
    assert list(tmp_path.iterdir()) == [path]


README = "Before.\n<!-- claims:begin -->\nold\n<!-- claims:end -->\nAfter.\n"
OTHERS = list(study.CLAIMS)[1:]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a README and the claims.json of a whole study, which the job takes for the repository."""
    monkeypatch.setattr(asv_run, "ROOT", tmp_path)
    monkeypatch.setattr(job.Job, "_readme_results", lambda self: job.DONE)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    save_claims(tmp_path, {})
    return tmp_path


def save_claims(folder, changed):
    """A whole, full study of one source, but for what is `changed` in the claims of these ids; None leaves one out."""
    source = {"commit": "c" * 40, "clean": True, "cpu": "a processor", "date": "2026-01-02 03:04 UTC"}
    usual = {"verdict": "supported", "preliminary": False, "n_seeds": 20, "source": source}
    entries = {id: {"id": id, **usual} for id in study.CLAIMS}
    for id, changes in changed.items():
        entries[id] = changes and entries[id] | changes
    content = {"format": command.FORMAT, "claims": [entry for entry in entries.values() if entry]}
    report.save(folder / "reports" / command.FILE, content)


def test_readme_has_the_verdicts_of_a_whole_study(repository):
    save_claims(repository, {"not-always": {"verdict": "undecided"}, "gone": None})
    assert job.main(["readme"]) == job.DONE
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert text.startswith("Before.\n<!-- claims:begin -->\n| verdict |")
    assert text.endswith("\n<!-- claims:end -->\nAfter.\n")
    assert f"| {len(study.CLAIMS) - 1} supported |" in text
    assert "| 1 undecided | `not-always` |" in text
    assert "| 0 contradicted | - |" in text
    assert "20 seeds, a processor, 2026-01-02." in text
    assert all(f"`{id}`" in text for id in study.CLAIMS)
    assert job.main(["readme"]) == job.DONE
    assert (repository / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "changed",
    [
        {"not-always": None},
        dict.fromkeys(OTHERS),
        dict.fromkeys(study.CLAIMS),
        {"not-always": None, "gone": {}},
        {"not-always": {"preliminary": True}},
        {id: {"preliminary": True, "n_seeds": 3} for id in study.CLAIMS},
        {"not-always": {"source": {"commit": "another"}}},
        {id: {"source": {"commit": "another"}} for id in OTHERS},
    ],
    ids=[
        *("one missing", "all but one missing", "empty", "one missing and an old one"),
        *("one preliminary", "all preliminary", "one of another study", "one rest of an older study"),
    ],
)
def test_readme_keeps_its_verdicts_where_there_is_no_whole_study(changed, repository, capsys):
    save_claims(repository, changed)
    assert job.main(["readme"]) == job.FAILED
    assert "claims.json is not of one whole, full study" in " ".join(capsys.readouterr().out.split())
    assert (repository / "README.md").read_text(encoding="utf-8") == README


def test_readme_keeps_its_verdicts_where_claims_json_is_missing_or_of_another_format(repository):
    path = repository / "reports" / command.FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    report.save(path, {**content, "format": command.FORMAT + 1})
    assert job.main(["readme"]) == job.FAILED
    path.unlink()
    assert job.main(["readme"]) == job.FAILED
    assert (repository / "README.md").read_text(encoding="utf-8") == README


def test_readme_without_a_place_for_verdicts_is_left_alone(repository, capsys):
    (repository / "README.md").write_text("nothing", encoding="utf-8")
    assert job.main(["readme"]) == job.FAILED
    assert "has no markers 'claims:begin'" in capsys.readouterr().out
    assert (repository / "README.md").read_text(encoding="utf-8") == "nothing"


@pytest.mark.parametrize("results", [job.DONE, job.FAILED])
def test_readme_gets_its_verdicts_whether_or_not_there_are_times(results, repository, monkeypatch):
    monkeypatch.setattr(job.Job, "_readme_results", lambda self: results)
    assert job.main(["readme"]) == results
    assert "20 seeds" in (repository / "README.md").read_text(encoding="utf-8")
