"""The pool of training runs: each is trained once, whichever claims ask for it, in parallel processes."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import normnumba
from benchmarks import machine
from benchmarks.claims.runs import Run

TRAINING = ("runs", "data", "layers", "models", "probes", "training")
"""The modules that a record depends on: a measure that is mended does not discard what was trained."""


def fingerprint() -> str:
    """What the records depend on besides the run: the code, the versions and the machine."""
    text = hashlib.sha256()
    own = [Path(__file__).with_name(f"{name}.py") for name in TRAINING]
    for path in (*own, *sorted(Path(normnumba.__file__).parent.rglob("*.py"))):
        text.update(path.read_bytes())
    versions = [machine.version(package) for package in ("numpy", "numba", "llvmlite", "scikit-learn")]
    text.update(repr((versions, platform.python_version(), machine.cpu_model(), blas())).encode())
    return text.hexdigest()[:12]


def blas() -> list[str]:
    """The libraries behind matrix products, and the processors that they take this one for."""
    import scipy.linalg  # noqa: F401 - brings one besides NumPy's
    from threadpoolctl import threadpool_info

    found = [info for info in threadpool_info() if info["user_api"] == "blas"]  # in any order
    return sorted({f"{info['internal_api']} {info['version']} {info.get('architecture', '')}" for info in found})


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
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            with suppress(json.JSONDecodeError):  # a study that was killed may have left half a line
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
        # One thread each, or the processes would be in each other's way and the bits depend on the machine.
        with (
            self.path.open("a", encoding="utf-8") as file,
            joblib.parallel_config(backend="loky", inner_max_num_threads=1),
        ):
            file.write("\n")  # after half a line, if there is one
            parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator_unordered")
            for run, record in parallel(joblib.delayed(_trained)(run) for run in missing):
                self.records[run.key()] = record
                file.write(_line(run.key(), record))
                file.flush()
                done(run.key())

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self.records[run.key()]

    def forget(self, runs: Iterable[Run]) -> None:
        """Remove these from the file: the next study trains them anew, so that a repetition is one."""
        for run in runs:
            self.records.pop(run.key(), None)
        if self.records:
            self.path.write_text("".join(map(_line, self.records, self.records.values())), encoding="utf-8")
        else:
            self.path.unlink(missing_ok=True)


def _line(key: str, record: dict[str, Any]) -> str:
    return json.dumps({"run": key, "record": record}) + "\n"


def _trained(run: Run) -> tuple[Run, dict[str, Any]]:
    from threadpoolctl import threadpool_limits

    from benchmarks.claims.training import train

    with threadpool_limits(1, "blas"):
        return run, train(run)
