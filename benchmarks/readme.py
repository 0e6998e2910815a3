"""The tables in README.md, written between markers from reports/peers.json and reports/claims.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.claims import page
from benchmarks.selection import SMALL_BYTES

LARGE = 32 << 20
"""Bytes from which glibc asks the system for the memory of every array, and returns it."""

PACKAGES = ("numba", "numpy", "torch", "jax", "onnxruntime")


def _range(cases: Iterable[dict[str, Any]], peer: str) -> str:
    """The ratios to a peer, from the lowest to the highest."""
    tally = figures.tally(list(cases), peer)
    if tally is None:
        return "-"
    low, high = figures.times(tally.low), figures.times(tally.high)
    return low if low == high else f"{low} to {high}"


def results(peers: dict[str, Any]) -> str:
    """What the run says in all, and one row an op: how it compares in each size."""
    heads = [f"{peer}, {size}" for peer in ("fastest peer", "torch") for size in figures.SIZE_TITLES.values()]
    lines = [f"| op | {' | '.join(heads)} | of the ceiling |", f"|---|{'--:|' * (len(heads) + 1)}"]
    for op in dict.fromkeys(case["op"] for case in peers["cases"]):
        cases = [case for case in peers["cases"] if case["op"] == op]
        cells = (
            _range((case for case in cases if case["size"] == size), peer)
            for peer in ("fastest", "torch")
            for size in figures.SIZE_TITLES
        )
        ceiling = figures.percent(figures.ceiling_median(cases))
        lines.append(" | ".join((f"| `{op}`", *cells, f"{ceiling} |")))
    machine = peers["machine"]
    dtypes = ", ".join(dict.fromkeys(case["dtype"] for case in peers["cases"]))
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in PACKAGES if name in machine["versions"])
    frameworks = figures.frameworks(figures.peers_of(peers["cases"]))
    notes = (
        f"Where: {machine['cpu']}, {machine['threads']} threads, {versions}, {dtypes}, commit "
        f"`{(peers['commit'] or 'unknown')[:8]}`, {machine['date'][:10]}. Each op is timed on a few shapes, from a "
        "small call to arrays beyond the caches; every case, its time and its GB/s: `reports/index.html`.",
        f"The fastest peer of a case is one of {frameworks or 'none'}; NumPy is a plain formula.",
        "A figure is the peer's time over ours, both allocating their outputs, lowest to highest where there are "
        f"several shapes. Below 1x we are slower; within {figures.LEVEL:.0%} counts as level; cases that other "
        "processes disturbed are left out." + _without_reuse(peers["cases"]),
        "The ceiling is what the machine streams at the same size in the same minute, and ours beside it writes into "
        "an existing array (`out=`), a second output into memory of the call before: median over arrays of "
        f"{figures.nbytes(figures.STREAMING_BYTES)} and more.",
        *_memory_of_outputs(peers["cases"]),
    )
    head = [*figures.tallies(peers["cases"]), *figures.classes(peers["cases"])]
    return "\n".join([*(f"- {line}" for line in head), "", *lines, "", *(f"- {note}" for note in notes)])


def _ratios(cases: Iterable[dict[str, Any]], top: str, bottom: str) -> str:
    """One contender's time over another's in the steady cases that have both: median, lowest, highest."""
    found = [
        case["seconds"][top] / case["seconds"][bottom]
        for case in cases
        if {top, bottom} <= case["seconds"].keys() and not figures.unsteady(case)
    ]
    if not found:
        return ""
    return f"{figures.times(statistics.median(found))} ({figures.times(min(found))} to {figures.times(max(found))})"


def _memory_of_outputs(cases: list[dict[str, Any]]) -> list[str]:
    """What reusing outputs gains, and what `out=` costs small calls, a sentence each."""
    large = _ratios((case for case in cases if case["x_bytes"] >= LARGE), "ours", "ours_reused")
    others = _ratios((case for case in cases if case["x_bytes"] < LARGE), "ours", "ours_reused")
    small = _ratios((case for case in cases if case["x_bytes"] < SMALL_BYTES), "ours_out", "ours")
    said = {
        f"Speed under `reuse_outputs` on arrays of {figures.nbytes(LARGE)} and more: {large}.": large,
        f"On smaller ones whose outputs it takes, of 1 MiB and more: {others}.": others,
        f"Time of small calls that write into `out=`, beside those that allocate: {small}.": small,
    }
    return [sentence for sentence, figure in said.items() if figure]


def _without_reuse(cases: list[dict[str, Any]]) -> str:
    """What the comparison with a framework that keeps its outputs' memory would be if ours did not."""
    ratios = _ratios((case for case in cases if "ours_reused" in case["seconds"]), "onnxruntime", "ours")
    if not ratios:
        return ""
    return (
        " ONNX Runtime keeps the memory of its outputs from call to call; beside it ours does so too, under "
        f"`reuse_outputs`. Without that the same cases would be {ratios}."
    )


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
