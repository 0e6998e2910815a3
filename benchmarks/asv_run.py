"""Time the commit HEAD through asv, and save the times only if they are those of HEAD."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import asv_name, cpu_model

ROOT = Path(__file__).resolve().parent.parent

TIMED_PATHS = ("normnumba", "benchmarks", "pyproject.toml", "asv.conf.json")
"""What a time depends on: a change here that is not committed would be filed under a commit that lacks it."""


@dataclass(frozen=True)
class Outcome:
    """How a run of asv ended."""

    ok: bool
    saved: bool
    message: str


def dirty_paths(porcelain: str) -> list[str]:
    """The paths in the output of `git status --porcelain` that a time depends on, untracked ones included."""
    found = []
    for line in porcelain.splitlines():
        # A rename reads "R  old -> new", and odd names come in quotes.
        for path in line[3:].split(" -> "):
            name = path.strip('"')
            if any(name == timed or name.startswith(f"{timed}/") for timed in TIMED_PATHS):
                found.append(name)
    return found


def _git(*arguments: str, root: Path = ROOT) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def commit(root: Path = ROOT) -> str | None:
    """HEAD's hash, None where there is no git or no commit."""
    try:
        return _git("rev-parse", "--verify", "--quiet", "HEAD", root=root).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def uncommitted(root: Path = ROOT) -> list[str]:
    """Paths that a time depends on and HEAD does not have as they are."""
    return dirty_paths(_git("status", "--porcelain", "--untracked-files=all", root=root))


def refusal(save: bool, root: Path = ROOT) -> str | None:
    """Why asv cannot or must not run here, in words; None where it can."""
    if commit(root) is None:
        return "asv times commits, and here is no git repository with a commit."
    paths = uncommitted(root) if save else []
    if paths:
        shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        return (
            f"Not committed: {shown}. A saved time belongs to a commit, so commit first, "
            "or time HEAD without saving: --no-save."
        )
    return None


def _introduce_machine() -> str:
    """Tell asv about this machine, as `asv machine` does, and return the name it goes by.

    The command drops every value that equals what it would guess, and guesses a kernel version and an amount of memory
    that begin a new series of results whenever they change.
    """
    from asv.machine import MachineCollection

    name = asv_name()
    facts = {"machine": name, "os": platform.system(), "arch": platform.machine(), "cpu": cpu_model()}
    MachineCollection.save(name, {**facts, "num_cpu": str(os.cpu_count())})
    return name


def run(
    patterns: Iterable[str],
    save: bool,
    progress: Callable[[float, str], None] = lambda part, line: None,
    root: Path = ROOT,
) -> Outcome:
    """Run asv on HEAD.

    Parameters
    ----------
    patterns : iterable of str
        Regular expressions that choose benchmarks (asv's --bench).
    save : bool
        Keep the times in reports/results. asv's own --quick saves; only --dry-run does not.
    progress : callable
        Called with the part done, 0 to 1, and what asv last said.
    root : Path
        The checkout.
    """
    why_not = refusal(save, root)
    if why_not:
        return Outcome(False, False, why_not)
    try:
        name = _introduce_machine()
    except ImportError:
        return Outcome(False, False, 'asv is not installed: pip install -e ".[bench]"')

    chosen = [argument for pattern in patterns for argument in ("--bench", pattern)]
    # Threads do not survive asv's other way to launch, a fork server that has made a parallel call.
    options = ["--machine", name, "--launch-method", "spawn", "--show-stderr", *([] if save else ["--dry-run"])]
    process = subprocess.Popen(
        [sys.executable, "-m", "asv", "run", *options, *chosen, "HEAD^!"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    last: deque[str] = deque(maxlen=30)
    assert process.stdout is not None
    for line in process.stdout:
        last.append(line.rstrip())
        part = re.match(r"\[\s*([\d.]+)%\]\s*[·.]*\s*(.*)", line)
        if part:
            progress(float(part[1]) / 100, part[2].strip())
    if process.wait():
        return Outcome(False, False, "asv run failed; it said:\n" + "\n".join(last))
    return Outcome(True, save, f"asv timed {(commit(root) or '')[:8]}" + ("" if save else " and saved nothing"))
