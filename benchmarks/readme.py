"""The tables in README.md, written between markers from reports/peers.json and reports/claims.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.claims import page

PACKAGES = ("numba", "numpy", "torch", "jax", "onnxruntime")


def _range(tally: figures.Tally | None) -> str:
    if tally is None:
        return "-"
    return f"{figures.times(tally.median)} ({figures.times(tally.low)} to {figures.times(tally.high)})"


def _lost(tally: figures.Tally | None) -> str:
    return f"{len(tally.slower)} of {tally.count}" if tally else "-"


def results(peers: dict[str, Any]) -> str:
    """One row an op: how it compares over the shapes it was timed on."""
    lines = [
        "| op | shapes | against the fastest peer | slower in | against torch | slower in | against NumPy "
        "| of the ceiling |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for op in dict.fromkeys(case["op"] for case in peers["cases"]):
        cases = [case for case in peers["cases"] if case["op"] == op]
        fastest, torch, numpy = (figures.tally(cases, peer) for peer in ("fastest", "torch", "numpy"))
        cells = (_range(fastest), _lost(fastest), _range(torch), _lost(torch), _range(numpy))
        ceiling = figures.percent(figures.ceiling_median(cases))
        lines.append(" | ".join((f"| `{op}`", str(len(cases)), *cells, f"{ceiling} |")))
    machine = peers["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in PACKAGES if name in machine["versions"])
    frameworks = figures.frameworks(figures.peers_of(peers["cases"]))
    note = (
        f"The fastest peer of a shape is one of {frameworks or 'none'}. "
        "Speed is the peer's time over ours, both allocating their outputs: median (lowest to highest) over the "
        f"shapes. Less than 1x means that we are slower; within {figures.LEVEL:.0%} counts as level; cases that other "
        "processes disturbed are left out. The ceiling is what the machine streams at the same size in the same "
        f"minute, median over arrays of {figures.nbytes(figures.STREAMING_BYTES)} and more. "
        f"{machine['cpu']}, {machine['threads']} threads, {versions}, {machine['date'][:10]}. "
        "Every case, its time and its GB/s: `reports/index.html`."
    )
    return "\n".join([*lines, "", note])


def claims(entries: Sequence[dict[str, Any]]) -> str:
    """Which claims got which verdict."""
    lines = ["| verdict | what is said about batch norm and layer norm |", "|---|---|"]
    for verdict in page.VERDICTS:
        ids = [f"`{entry['id']}`" for entry in entries if entry["verdict"] == verdict]
        lines.append(f"| {len(ids)} {verdict} | {', '.join(ids) or '-'} |")
    source = entries[0]["source"]
    seeds = min(entry["n_seeds"] for entry in entries)
    note = (
        f"{seeds} seeds, {source['cpu']}, {source['date'][:10]}. Most sentences have several tests, often one for each "
        "norm, and one contradicted test contradicts the sentence (of `not-always`, all would have to be). Every test, "
        "its effect and its interval: `reports/claims.html`."
    )
    return "\n".join([*lines, "", note])


def update(readme: Path, section: str, text: str) -> bool:
    """Write `text` between the markers of a section of `readme`; False, and nothing touched, where there are none."""
    begin, end = (f"<!-- {section}:{mark} -->" for mark in ("begin", "end"))
    before, found, rest = (readme.read_text(encoding="utf-8") if readme.exists() else "").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        return False
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    return True
