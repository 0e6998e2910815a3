"""What reports/claims.html shows of claims.json: the order, the numbers as text, and batch norm beside layer norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.claims import command, decide
from benchmarks.claims.runs import NORMS
from benchmarks.claims.study import CLAIMS

VERDICTS = (decide.SUPPORTED, decide.CONTRADICTED, decide.UNDECIDED)

Entries = Mapping[str, Mapping[str, Any]]
"""What `load` returns."""


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The claims of claims.json in `folder` that the study still has, in its order, by their ids."""
    entries = command.load(folder)
    return {id: entries[id] for id in CLAIMS if id in entries}


def tally(entries: Entries) -> dict[str, int]:
    """How many claims have each verdict."""
    found = [entry["verdict"] for entry in entries.values()]
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def preliminary(entries: Entries) -> list[str]:
    """The claims that have too few seeds for a verdict."""
    return [id for id, entry in entries.items() if entry["preliminary"]]


def source(entries: Entries) -> Mapping[str, Any] | None:
    """Where all claims come from; None where they come from different studies."""
    sources = [entry["source"] for entry in entries.values()]
    return sources[0] if sources.count(sources[0]) == len(sources) else None


def context(entries: Entries) -> dict[str, Any]:
    """What the template needs of one claim and more."""
    return {
        "entries": list(entries.values()),
        "missing": [id for id in CLAIMS if id not in entries],
        "tally": tally(entries),
        "preliminary": preliminary(entries),
        "seeds": sorted({entry["n_seeds"] for entry in entries.values()}),
        "tuning_seeds": sorted({entry["n_tuning_seeds"] for entry in entries.values()}),
        "tests": command.TESTS,
        "alpha": decide.ALPHA,
        "source": source(entries),
        "unclean": not all(entry["source"]["clean"] for entry in entries.values()),
        "comparison": [
            (row.aspect, [(text, [fact.of(entries) for fact in facts]) for text, facts in (row.batch, row.layer)])
            for row in COMPARISON
        ],
        "numbers": numbers,
        "panels": panels,
    }


# --- a claim's numbers and plots ---


@dataclass(frozen=True)
class Table:
    """Numbers that have their columns in common."""

    title: str
    rows: dict[str, dict[str, str]]

    @property
    def columns(self) -> list[str]:
        """The nets first, in their usual order."""
        found = dict.fromkeys(chain.from_iterable(self.rows.values()))
        return sorted(found, key=lambda name: NORMS.index(name) if name in NORMS else len(NORMS))


def numbers(measured: Mapping[str, Any]) -> list[Table]:
    """The metrics or timings of a claim as tables.

    Those that are about nets have the nets as columns and share a table, as do those of any other columns in common.
    What has two levels is a table of its own.
    """
    tables: dict[tuple[str, ...], Table] = {}
    for name, value in measured.items():
        row = dict(value) if isinstance(value, Mapping) else {"": value}
        if any(isinstance(inner, Mapping) for inner in row.values()):
            tables[name,] = Table(name, _nets_across(name, row))
        else:
            alike = NORMS if set(row) & set(NORMS) else ("", *row)
            tables.setdefault(alike, Table("", {})).rows[name] = _written(name, row)
    return list(tables.values())


def _nets_across(name: str, levels: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    if not set(levels) <= set(NORMS):
        return {row: _written(name, values) for row, values in levels.items()}
    rows = dict.fromkeys(chain.from_iterable(levels.values()))
    return {row: _written(name, {net: of[row] for net, of in levels.items() if row in of}) for row in rows}


def _written(name: str, values: Mapping[str, float]) -> dict[str, str]:
    write = figures.seconds if name.startswith("seconds") else figures.number
    return {column: write(value) for column, value in values.items()}


MOST_LINES = 6


def panels(plots: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The plots, and for one with too many lines to be read one of each kind: of "batch, tanh" that is tanh."""
    return [panel for plot in plots for panel in _by_kind(plot)]


def _by_kind(plot: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if len(plot["lines"]) <= MOST_LINES:
        return [plot]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in plot["lines"]:
        net, _, kind = line["label"].partition(", ")
        kinds.setdefault(kind, []).append({**line, "label": net})
    return [{**plot, "y": f"{kind}: {plot['y']}" if kind else plot["y"], "lines": kinds[kind]} for kind in kinds]


# --- batch norm beside layer norm ---

DIGITS = 3


@dataclass(frozen=True)
class Fact:
    """A figure of the study, and in words that hold whatever it is, what it is."""

    claim: str
    figure: str
    """With {0}, {1} for the values."""
    words: str
    values: Sequence[tuple[str, ...]]
    """Where they are in the claim's entry."""

    def of(self, entries: Entries) -> dict[str, str | None]:
        """Its text; the figure is None where the claim was not measured.

        Raises
        ------
        KeyError
            Where the claim's entry lacks one of the values.
        """
        if self.claim not in entries:
            return {"claim": self.claim, "figure": None, "words": None}
        figure, words = (text.replace(" %", "\N{NO-BREAK SPACE}%") for text in (self.figure, self.words))
        written = [figures.number(_at(entries[self.claim], path), DIGITS) for path in self.values]
        return {"claim": self.claim, "figure": figure.format(*written), "words": words.format(*written)}


def _at(entry: Mapping[str, Any], path: Sequence[str]) -> float:
    found: Any = entry
    for key in path:
        found = found[key]
    return found


@dataclass(frozen=True)
class Row:
    """One aspect, and for either norm a sentence that no measurement can change, and what was measured."""

    aspect: str
    batch: tuple[str, Sequence[Fact]]
    layer: tuple[str, Sequence[Fact]]


def _metrics(metric: str, *nets: str) -> list[tuple[str, ...]]:
    return [("metrics", metric, net) for net in nets]


def _sizes(norm: str, figure: str, words: str, sizes: Sequence[int]) -> Fact:
    values = [("metrics", f"score in %, batches of {size}", norm) for size in sizes]
    return Fact("small-batches-hurt-batch-norm", figure, f"of test digits right after batches of {words}", values)


def _network(claim: str, kind: str, norm: str, other: str) -> Fact:
    words = f"of test digits right in a {kind} net; with {other} norm {{1}} %, with none {{2}} %"
    return Fact(claim, "{0} %", words, _metrics("score in %, tuned", norm, other, "none"))


def _gains(norm: str) -> list[Fact]:
    return [
        Fact(
            "converges-faster",
            "{0} steps",
            "to a training loss of 0.1; without a norm {1}",
            _metrics("steps, tuned", norm, "none"),
        ),
        Fact(
            "higher-learning-rate",
            "rate {0}",
            "is the highest that trains; without a norm {1}",
            _metrics("highest trainable rate", norm, "none"),
        ),
        Fact(
            "robust-to-initialization",
            "{0} %",
            "of test digits right on average over initial weights times 0.1 to 10; without a norm {1} %",
            _metrics("mean score in %, tuned", norm, "none"),
        ),
    ]


def _share(norm: str) -> Fact:
    return Fact(
        "small-overhead",
        "{0} %, {1} %",
        "of a training step's time, with four layers of 256 units, and in a small convolutional net",
        [("timings", "share of a step in %, mlp", norm, "256"), ("timings", "share of a step in %, cnn", norm)],
    )


ALONE = "layer-norm-single-sample"

COMPARISON = (
    Row(
        "Axis",
        (
            "A mean and a variance for each channel, over all samples of the batch.",
            [
                Fact(
                    ALONE,
                    "{0}",
                    "is the most that the other outputs change when one sample of the batch is replaced",
                    [("metrics", "largest change of batch norm's other outputs")],
                )
            ],
        ),
        (
            "A mean and a variance for each sample, over its features.",
            [
                Fact(
                    ALONE,
                    "{0}",
                    "is the most that a sample's output and gradient differ between alone and in a batch",
                    [("metrics", "largest difference, layer norm")],
                )
            ],
        ),
    ),
    Row(
        "Dependence on batch size",
        (
            "The statistics are of the batch. In training a batch of one sample has no variance.",
            [_sizes("batch", "{0} %, {1} %", "64, and of 2", (64, 2))],
        ),
        (
            "The statistics are of the sample: its batch may be of any size.",
            [_sizes("layer", "{0} %, {1} %, {2} %", "64, of 2, and of 1", (64, 2, 1))],
        ),
    ),
    Row(
        "Use cases",
        (
            "Said to be for convolutional nets.",
            [
                _network("batch-norm-for-cnn", "convolutional", "batch", "layer"),
                _network("layer-norm-for-rnn", "recurrent", "batch", "layer"),
            ],
        ),
        (
            "Said to be for recurrent nets.",
            [
                _network("layer-norm-for-rnn", "recurrent", "layer", "batch"),
                _network("batch-norm-for-cnn", "convolutional", "layer", "batch"),
            ],
        ),
    ),
    Row(
        "Advantages",
        ("Said of it: fewer steps, higher learning rates, any initial weights.", _gains("batch")),
        ("Said of it: the same, without a need for other samples.", _gains("layer")),
    ),
    Row(
        "Disadvantages",
        (
            "Its work; and running statistics for inference, which have to see enough batches.",
            [
                _share("batch"),
                Fact(
                    "inference-uses-running-statistics",
                    "{0} %",
                    "of test digits right when they saw 5 batches; those of the whole training {1} %",
                    [("metrics", "score in % by updates", "5"), ("metrics", "score in %, running statistics")],
                ),
                Fact(
                    "small-batches-hurt-batch-norm",
                    "{0} points",
                    "lost from batches of 64 to batches of 2; without a norm {1}",
                    _metrics("points lost from 64 to 2", "batch", "none"),
                ),
            ],
        ),
        (
            "Its work; and no unit is standardized over the data, as it is by batch norm.",
            [
                _share("layer"),
                Fact(
                    "converges-faster",
                    "{0} steps",
                    "to a training loss of 0.1; with batch norm {1}",
                    _metrics("steps, tuned", "layer", "batch"),
                ),
                Fact(
                    "scale-invariance",
                    "{0} points",
                    "lost on average when all inputs are rescaled, in training too; with batch norm {1}",
                    _metrics("points lost, trained on rescaled inputs", "layer", "batch"),
                ),
            ],
        ),
    ),
)
