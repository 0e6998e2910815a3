"""reports/index.html and claims.html: the pages people read, made from the files beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import charts, figures, history
from benchmarks.cases import OPS
from benchmarks.claims import page
from benchmarks.published import SOURCE

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "plotly.min.js"
CLAIMS_PAGE = "claims.html"


FORMAT = 2
"""Version of what peers.json and verify.json hold."""


def load(path: Path) -> dict[str, Any] | None:
    """A file that an earlier part of the job wrote; None where it is missing, or from before its content changed."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return content if content and content["format"] == FORMAT else None


def save(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".tmp")
    written.write_text(text + "\n", encoding="utf-8")
    written.replace(path)  # at once: what was there stays until all is written


def _grouped(cases: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault(case["op"], []).append(case)
    return groups


def _past(points: list[history.Point]) -> list[dict[str, Any]]:
    """For each machine and environment: its commits, and a chart where there is more than one."""
    sections = []
    for (machine, environment), members in history.lines(points).items():
        commits = list(dict.fromkeys(point.commit for line in members.values() for point in line))
        several = {name: line for name, line in members.items() if len(line) > 1}
        sections.append(
            {
                "machine": machine,
                "environment": environment,
                "benchmarks": len(members),
                "commits": commits,
                "chart": _html(charts.history(several)) if several else None,
            }
        )
    return sections


def _html(figure: Any) -> str:
    config = {"displayModeBar": False, "responsive": True}
    # By its content, where plotly would draw a number: the same results make the same page.
    name = f"chart-{hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]}"
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)


def _on_device(cuda: dict[str, Any] | None, checks: dict[str, Any] | None) -> dict[str, Any]:
    """What the section on GPUs shows: nothing is left unsaid that never ran on one."""
    cases = cuda["cases"] if cuda else []
    timed = {case["op"] for case in cases}
    return {
        "cuda": cuda,
        "cuda_checks": checks,
        "cuda_groups": _grouped(cases),
        "cuda_columns": figures.peers_of(cases),
        "never_on_device": [op.name for op in OPS if op.name not in timed],
        "published": SOURCE,
    }


def _template(name: str) -> Any:
    """A template, with what all of them use."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"figures": figures, "script": SCRIPT}
    return environment.get_template(name)


def render_claims(entries: page.Entries) -> str:
    """The text of claims.html; `entries` is what `page.load` returns."""
    return _template("claims.html.j2").render(**page.context(entries), chart=lambda plot: _html(charts.bands(plot)))


def render(
    peers: dict[str, Any] | None,
    checks: dict[str, Any] | None,
    points: list[history.Point],
    cuda: dict[str, Any] | None = None,
    cuda_checks: dict[str, Any] | None = None,
    claims: page.Entries | None = None,
) -> str:
    """The text of index.html.

    Parameters
    ----------
    peers, checks : dict, optional
        The content of peers.json and verify.json; the page says what is missing.
    points : list of history.Point
        What asv saved.
    cuda, cuda_checks : dict, optional
        The content of cuda.json and cuda-verify.json, which need a GPU.
    claims : dict, optional
        What `page.load` makes of claims.json.
    """
    cases = peers["cases"] if peers else []
    streaming = [case for case in cases if figures.streams(case)]
    return _template("report.html.j2").render(
        peers=peers,
        checks=checks,
        machine=(peers or checks or {}).get("machine"),
        columns=figures.peers_of(cases),
        fastest=figures.tally(cases, "fastest"),
        torch=figures.tally(cases, "torch"),
        numpy=figures.tally(cases, "numpy"),
        classes=figures.classes(cases),
        ceiling=figures.ceiling_median(cases),
        streaming=streaming,
        unsteady=[case for case in cases if figures.unsteady(case)],
        groups=_grouped(cases),
        ratios=_html(charts.ratios(cases)) if cases else None,
        percents=_html(charts.ceiling(streaming)) if streaming else None,
        past=_past(points),
        claims=page.tally(claims) if claims else None,
        claims_preliminary=page.preliminary(claims or {}),
        claims_page=CLAIMS_PAGE,
        **_on_device(cuda, cuda_checks),
    )


def write(folder: Path, results: Path) -> Path:
    """Write the pages into `folder` from the files there and asv's `results`, and return the path of index.html."""
    import plotly.offline

    names = ("peers.json", "verify.json", "cuda.json", "cuda-verify.json")
    peers, checks, cuda, cuda_checks = (load(folder / name) for name in names)
    claims = page.load(folder)
    index = render(peers, checks, history.read(results), cuda, cuda_checks, claims)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / SCRIPT
    # The same text as include_plotlyjs="directory" would load: one copy for all pages of the folder.
    text = plotly.offline.get_plotlyjs()
    if not script.exists() or script.read_text(encoding="utf-8") != text:
        script.write_text(text, encoding="utf-8")
    if claims:
        (folder / CLAIMS_PAGE).write_text(render_claims(claims), encoding="utf-8")
    path = folder / "index.html"
    path.write_text(index, encoding="utf-8")
    return path
