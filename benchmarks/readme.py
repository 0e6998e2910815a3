"""The table of results in README.md, written between two markers from reports/peers.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import figures

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


PACKAGES = ("numba", "numpy", "torch", "jax", "onnxruntime")


def _range(tally: figures.Tally | None) -> str:
    if tally is None:
        return "-"
    return f"{figures.times(tally.median)} ({figures.times(tally.low)} to {figures.times(tally.high)})"


def _lost(tally: figures.Tally | None) -> str:
    return f"{len(tally.slower)} of {tally.count}" if tally else "-"


def table(peers: dict[str, Any]) -> str:
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


def update(readme: Path, peers: dict[str, Any]) -> str:
    """Rewrite the table in `readme`, and say what was done; nothing is touched where a marker is missing."""
    if not readme.exists():
        return f"{readme.name} does not exist: no table written."
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return f"{readme.name} has no line '{BEGIN}' followed by '{END}': no table written."
    readme.write_text(f"{before}{BEGIN}\n{table(peers)}\n{END}{after}", encoding="utf-8")
    return f"{readme.name}: table written from {len(peers['cases'])} cases."
