"""The pool of training runs: each is trained once, whichever claims ask for it, in parallel processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import normnumba
from benchmarks.claims.runs import Run
from benchmarks.machine import version


def fingerprint() -> str:
    """What the records depend on besides the run: the code and the versions."""
    text = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(normnumba.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            text.update(path.read_bytes())
    text.update(repr([version(package) for package in ("numpy", "numba", "scikit-learn")]).encode())
    return text.hexdigest()[:12]


class Pool:
    """Records of runs, kept on disk until the study that wanted them is complete.

    Parameters
    ----------
    folder : Path
        Where the file is. What an interrupted study has trained is found there by the next, unless the code changed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"claims-runs-{fingerprint()}.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may have been cut short
                    entry = json.loads(line)
                    self.records[entry["run"]] = entry["record"]

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """What is not trained yet, without repetitions."""
        return [run for run in dict.fromkeys(runs) if run.key() not in self.records]

    def train(self, runs: Iterable[Run], done: Callable[[str], None] = lambda name: None) -> None:
        """Train what is missing, on all cores; `done` is called after each run."""
        import joblib

        missing = self.missing(runs)
        if not missing:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps({"run": key, "record": record}) + "\n" for key, record in self.records.items())
        self.path.write_text(whole, encoding="utf-8")
        # One thread each, or the processes would be in each other's way and the bits depend on the machine.
        with (
            self.path.open("a", encoding="utf-8") as file,
            joblib.parallel_config(backend="loky", inner_max_num_threads=1),
        ):
            parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator_unordered")
            for run, record in parallel(joblib.delayed(_trained)(run) for run in missing):
                self.records[run.key()] = record
                file.write(json.dumps({"run": run.key(), "record": record}) + "\n")
                file.flush()
                done(run.key())

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self.records[run.key()]

    def forget(self) -> None:
        """Remove the file: the next study trains anew, so that a repetition is one."""
        self.path.unlink(missing_ok=True)


def _trained(run: Run) -> tuple[Run, dict[str, Any]]:
    from threadpoolctl import threadpool_limits

    from benchmarks.claims.training import train

    with threadpool_limits(1, "blas"):
        return run, train(run)
