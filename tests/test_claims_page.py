"""The page about what is said of norms: it has every claim and verdict, its figures are those of claims.json, and it
opens offline.

The entries are made as the study makes them, by every claim's own measure, from records that were never trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import charts, report
from benchmarks.claims import batches, command, decide, page
from benchmarks.claims.runs import Run
from benchmarks.claims.study import CLAIMS, Results, Seeds

SOURCE = {
    "commit": "0123456789",
    "clean": True,
    "date": "2026-01-01 00:00 UTC",
    "cpu": "a <fast> processor",
    "python": "3.11.0",
    "versions": {"numpy": "2.4.6"},
    "blas": "openblas 0.3",
    "runs": 72,
}


GAIN = {"none": 0.0, "layer": 0.5, "batch": 1.0}


class Records(dict):
    """A record for any run."""

    def __missing__(self, run: Run) -> dict[str, Any]:
        gain = GAIN[run.norm] + 0.01 * run.seed
        score = 90 + 2 * gain
        return {
            "loss": np.geomspace(2.3, 0.01, 300) / (1 + gain),
            "score": np.linspace(20, score, 30),
            "train_score": 99.0,
            "test_loss": 0.4 - 0.1 * gain,
            "gradients": np.resize([1.0, 2.0], (300, 17)),
            "drift": np.full(30, 2.0 - gain),
            **dict.fromkeys(("scaled_inputs", "own_scaled_inputs", "own_scaled_weights"), np.full(7, score)),
            **{"updated": np.full(7, score - 5), "batched": np.full(4, score - 10), "whole": score},
        }


class Seconds(dict):
    """The seconds of a step of any run."""

    def __missing__(self, run: Run) -> float:
        return 1e-3 + 1e-4 * GAIN[run.norm] + 1e-6 * run.seed


def entry(id: str) -> dict[str, Any]:
    claim, seeds = CLAIMS[id], Seeds(study=range(2), tuning=range(2, 4))
    findings = claim.measure(Results(claim, seeds, Records(), Seconds()))
    made = [decide.decide(label, test, findings.effects[label], command.TESTS) for label, test in claim.tests.items()]
    return command.entry(claim, findings, made, seeds, quick=True) | {"source": SOURCE}


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        # The one claim that runs kernels: they need not be compiled for a page.
        patch.setattr(batches, "_apart", lambda *arrays: 0.0)
        patch.setattr(batches, "normnumba", SimpleNamespace(batch_norm=lambda x, weight, bias: x * x[0]))
        made = {id: entry(id) for id in CLAIMS}
    return json.loads(json.dumps(made, allow_nan=False))


def save(folder: Path, entries: Mapping[str, Any]) -> None:
    content = {"format": command.FORMAT, "claims": list(entries.values())}
    (folder / command.FILE).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def text(entries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of all claims."""
    folder = tmp_path_factory.mktemp("reports")
    save(folder, entries)
    report.write(folder, folder / "results")
    assert (folder / report.SCRIPT).stat().st_size > 1 << 20
    return (folder / report.CLAIMS_PAGE).read_text(encoding="utf-8")


def of(entries: Mapping[str, Any], *ids: str) -> dict[str, Any]:
    """Some of the claims, without their plots: those take most of the time."""
    return {id: {**entries[id], "plots": []} for id in ids}


def section(text: str, id: str) -> str:
    return text.partition(f'<section id="{id}">')[2].partition("</section>")[0]


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_has_every_claim_and_opens_offline(text: str, entries: dict[str, Any]) -> None:
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert loaded == [report.SCRIPT]
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//|@import|url\(""", text)

    assert text.count("Plotly.newPlot") == sum(len(page.panels(entry["plots"])) for entry in entries.values())
    assert re.findall(r'<section id="([^"]*)">', text) == list(CLAIMS)
    assert set(re.findall(r'href="#([^"]*)"', text)) - set(re.findall(r'id="([^"]*)"', text)) == set()
    assert "Not measured:" not in text
    assert text.count("a &lt;fast&gt; processor") == 1
    for id, found in entries.items():
        part = section(text, id)
        assert found["command"] in part
        assert part.count('class="chip test') == len(found["tests"])
        assert ("Measured in seconds" in part) == bool(CLAIMS[id].timed)


def test_page_shows_each_verdict_and_its_numbers(entries: dict[str, Any]) -> None:
    tests = [
        {**entries["any-activation"]["tests"][0], "test": verdict, "verdict": verdict, "effect": 0.12345}
        for verdict in page.VERDICTS
    ]
    made = {
        id: {**entries[id], "verdict": verdict, "tests": tests, "preliminary": False, "plots": []}
        for id, verdict in zip(("converges-faster", "less-overfitting", "not-always"), page.VERDICTS, strict=True)
    }
    text = report.render_claims(made)
    ledger = text.partition('id="verdicts"')[2].partition("<h2")[0]
    for id, found in made.items():
        verdict = found["verdict"]
        chip = f'<span class="chip {verdict}">{verdict}</span>'
        assert re.search(rf'<a href="#{id}">.*?</td><td class="text">{chip}</td>', ledger)
        assert f"<p>{chip} " in section(text, id)
        assert f'<b>1</b><span class="chip {verdict}">{verdict}</span>' in text
        mark = {"supported": "✓", "contradicted": "✗", "undecided": "?"}[verdict]
        assert len(re.findall(rf'class="chip test {verdict}"[^>]*>{re.escape(mark)} {verdict}<', ledger)) == 3
        assert section(text, id).count("<td>+0.123</td>") == 3
    assert "One test has to hold." in section(text, "not-always")
    assert "All tests have to hold." in section(text, "less-overfitting")
    assert "reliminary:" not in text


def test_a_test_without_chance_has_no_p(entries: dict[str, Any]) -> None:
    id = "layer-norm-single-sample"
    part = section(report.render_claims(of(entries, id)), id)
    assert '<td class="text">0, exactly</td><td>+0</td><td>+0 to +0</td><td>exact</td><td>-</td><td>-</td>' in part


def test_preliminary_is_said(entries: dict[str, Any]) -> None:
    two = of(entries, "converges-faster", "less-overfitting")
    text = report.render_claims(two)
    assert "<b>Preliminary:</b> 2 of 2 verdicts" in text
    assert text.count("<small>preliminary</small>") == 4
    two["converges-faster"] = {**two["converges-faster"], "preliminary": False}
    text = report.render_claims(two)
    assert "<b>Preliminary:</b> 1 of 2 verdicts" in text
    assert "preliminary</small>" not in section(text, "converges-faster")
    assert "preliminary</small>" in section(text, "less-overfitting")


def test_each_claim_has_its_source_where_they_differ(entries: dict[str, Any]) -> None:
    two = of(entries, "converges-faster", "less-overfitting")
    two["less-overfitting"] = {**two["less-overfitting"], "source": {**SOURCE, "commit": "fedcba9876", "clean": False}}
    text = report.render_claims(two)
    assert "01234567" in section(text, "converges-faster")
    assert "fedcba98" in section(text, "less-overfitting")
    assert "changes that are in no commit" in text.partition("<nav>")[0]
    assert "different times or by different code" in text


def test_seeds_and_runs_are_counted(entries: dict[str, Any]) -> None:
    one, other = of(entries, "converges-faster"), of(entries, "less-overfitting")
    assert "<b>2</b><span>seeds for each test, 72 training runs in all" in report.render_claims(one)
    other["less-overfitting"] |= {"n_seeds": 20, "n_tuning_seeds": 10, "source": {**SOURCE, "runs": 5}}
    mixed = report.render_claims(one | other)
    assert "<b>2 or 20</b><span>seeds for each test</span>" in mixed
    assert "(2 or 10 of them)" in mixed


def test_text_is_escaped(entries: dict[str, Any]) -> None:
    evil = "<b>&</b></script><script>alert(1)</script>"
    found = entries["less-overfitting"]
    (first, *_), test = found["plots"], {**found["tests"][0], "test": evil, "unit": evil, "reason": evil + '"'}
    plot = {**first, "x": evil, "y": evil, "lines": [{**first["lines"][0], "label": evil}]}
    texts = dict.fromkeys(("says", "reason", "method", "why_smallest", "command"), evil)
    metrics = {evil: {evil: 1.0}, "nested" + evil: {evil: {evil: 1.0}}}
    made = {**found, **texts, "tests": [test], "plots": [plot], "metrics": metrics}
    text = report.render_claims({"less-overfitting": made})
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10


def test_missing_claims_are_named(tmp_path: Path, entries: dict[str, Any]) -> None:
    text = report.render_claims(of(entries, "less-overfitting"))
    ledger = text.partition('id="verdicts"')[2].partition("<h2")[0]
    named = re.findall(r"<code>([a-z-]*)</code>", ledger.partition("Not measured:")[2])
    assert named == [id for id in CLAIMS if id != "less-overfitting"]
    assert re.findall(r'<section id="([^"]*)">', text) == ["less-overfitting"]
    beside = text.partition('id="beside"')[2].partition("</table>")[0]
    assert beside.count("<b>not measured</b>") == beside.count("<li>")
    assert "href" not in beside

    # One that the study has no more is not shown, nor counted.
    save(tmp_path, {"gone": {**entries["not-always"], "id": "gone"}} | of(entries, "less-overfitting"))
    assert list(page.load(tmp_path)) == ["less-overfitting"]


def test_index_links_to_the_page(tmp_path: Path, entries: dict[str, Any]) -> None:
    index = report.write(tmp_path, tmp_path / "results").read_text(encoding="utf-8")
    assert "not measured yet: <code>python -m benchmarks claims</code>" in index
    assert report.CLAIMS_PAGE not in index
    assert not (tmp_path / report.CLAIMS_PAGE).exists()

    verdicts = {"converges-faster": "supported", "less-overfitting": "undecided", "not-always": "supported"}
    save(tmp_path, {id: {**found, "verdict": verdicts[id]} for id, found in of(entries, *verdicts).items()})
    index = report.write(tmp_path, tmp_path / "results").read_text(encoding="utf-8")
    claims = index.partition("<b>Claims:</b>")[2].partition("</p>")[0]
    assert f'<a href="{report.CLAIMS_PAGE}">measured</a> in 3 sentences' in claims
    assert re.findall(r'"chip (\w+)">(\d) \1<', claims) == [
        ("supported", "2"),
        ("contradicted", "0"),
        ("undecided", "1"),
    ]
    assert "(preliminary)" in claims


# --- batch norm beside layer norm ------------------------------------------------------------------------------------

MEASURED: dict[str, dict[str, Any]] = {
    "layer-norm-single-sample": {
        "metrics": {"largest change of batch norm's other outputs": 5.8371, "largest difference, layer norm": 0.0}
    },
    "small-batches-hurt-batch-norm": {
        "metrics": {
            "score in %, batches of 1": {"none": 10.0, "layer": 11.0},
            "score in %, batches of 2": {"none": 20.0, "batch": 21.0, "layer": 22.0},
            "score in %, batches of 64": {"none": 64.0, "batch": 65.04, "layer": 66.0},
            "points lost from 64 to 2": {"none": 44.0, "batch": 44.5, "layer": 45.0},
        }
    },
    "batch-norm-for-cnn": {"metrics": {"score in %, tuned": {"none": 70.0, "batch": 71.0, "layer": 72.0}}},
    "layer-norm-for-rnn": {"metrics": {"score in %, tuned": {"none": 80.0, "batch": 81.0, "layer": 82.0}}},
    "converges-faster": {"metrics": {"steps, tuned": {"none": 1106.0, "batch": 44.0, "layer": 113.0}}},
    "higher-learning-rate": {"metrics": {"highest trainable rate": {"none": 0.1, "batch": 1.0, "layer": 0.3}}},
    "robust-to-initialization": {"metrics": {"mean score in %, tuned": {"none": 60.0, "batch": 61.0, "layer": 62.0}}},
    "small-overhead": {
        "timings": {
            "share of a step in %, mlp": {"batch": {"64": 99.0, "256": 26.7}, "layer": {"64": 98.0, "256": 13.1}},
            "share of a step in %, cnn": {"batch": 20.2, "layer": 42.3},
        }
    },
    "inference-uses-running-statistics": {
        "metrics": {"score in % by updates": {"5": 88.9, "10": 0.0}, "score in %, running statistics": 97.9}
    },
    "scale-invariance": {
        "metrics": {"points lost, trained on rescaled inputs": {"none": 45.0, "batch": -0.135, "layer": 22.9}}
    },
}
SHOWN = {
    "Axis": (["5.84"], ["0"]),
    "Dependence on batch size": (["65 %, 21 %; 64; 2"], ["66 %, 22 %, 11 %; 64; 2; 1"]),
    "Use cases": (["71 %; 72 %; 70 %", "81 %; 82 %; 80 %"], ["82 %; 81 %; 80 %", "72 %; 71 %; 70 %"]),
    "Advantages": (
        ["44 steps; 0.1; 1106", "rate 1; 0.1", "61 %; 0.1; 10; 60 %"],
        ["113 steps; 0.1; 1106", "rate 0.3; 0.1", "62 %; 0.1; 10; 60 %"],
    ),
    "Disadvantages": (
        ["26.7 %, 20.2 %; 256", "88.9 %; 5; 97.9 %", "44.5 points; 64; 2; 44"],
        ["13.1 %, 42.3 %; 256", "113 steps; 0.1; 44", "22.9 points; -0.135"],
    ),
}
"""Every fact's figure, and the numbers in its words."""


def numbers_of(fact: dict[str, Any]) -> str:
    words = fact["words"].replace("\N{NO-BREAK SPACE}", " ")
    found = re.findall(r"-?\d+(?:\.\d+)?(?: %)?", words)
    return "; ".join([fact["figure"].replace("\N{NO-BREAK SPACE}", " "), *found])


def test_comparison_has_the_numbers_of_the_claims() -> None:
    for row in page.COMPARISON:
        for (_, facts), shown in zip((row.batch, row.layer), SHOWN[row.aspect], strict=True):
            found = [numbers_of(fact.of(MEASURED)) for fact in facts]
            assert found == shown
    assert {row.aspect for row in page.COMPARISON} == set(SHOWN)


def test_every_cell_finds_what_the_measures_return(text: str) -> None:
    beside = text.partition('id="beside"')[2].partition("</table>")[0]
    facts = [fact for row in page.COMPARISON for _, facts in (row.batch, row.layer) for fact in facts]
    assert re.findall(r'href="#([^"]*)"', beside) == [fact.claim for fact in facts]
    assert "not measured" not in beside


def test_a_number_that_the_claim_lacks_is_an_error() -> None:
    (fact,) = page.COMPARISON[0].batch[1]
    with pytest.raises(KeyError, match="largest change"):
        fact.of({fact.claim: {"metrics": {}}})


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_nets_are_columns() -> None:
    tables = page.numbers(
        {
            "steps": {"layer": 3.0, "none": 1.0, "batch": 2.0},
            "drift": {"none": 1.0, "shifted": 9.0},
            "by depth": {"none": {"2": 97.123456, "4": 96.0}, "batch": {"2": 98.0}},
            "by kind": {"relu": {"none": 106.0, "batch": 44.0}},
            "seconds of a step": {"none": 0.0012345},
            "alone": 12345.6,
            "by size": {"8": 0.5, "2": 0.25},
        }
    )
    nets, depth, kind, alone, size = tables
    assert nets.columns == ["none", "batch", "layer", "shifted"]
    assert nets.rows == {
        "steps": {"layer": "3", "none": "1", "batch": "2"},
        "drift": {"none": "1", "shifted": "9"},
        "seconds of a step": {"none": "1.23 ms"},
    }
    assert (depth.title, depth.columns) == ("by depth", ["none", "batch"])
    assert depth.rows == {"2": {"none": "97.12", "batch": "98"}, "4": {"none": "96"}}
    assert (kind.title, kind.rows) == ("by kind", {"relu": {"none": "106", "batch": "44"}})
    assert alone.rows == {"alone": {"": "12346"}}
    assert (size.columns, size.rows) == (["8", "2"], {"by size": {"8": "0.5", "2": "0.25"}})


# --- charts ----------------------------------------------------------------------------------------------------------


def line(label: str, x: Sequence[float] = (1, 10, 100)) -> dict[str, Any]:
    return {
        "label": label,
        "x": list(x),
        "median": [2.0 + i for i in range(len(x))],
        "low": [1.0 + i for i in range(len(x))],
        "high": [4.0 + i for i in range(len(x))],
    }


def plot(*labels: str, **changed: Any) -> dict[str, Any]:
    return {"x": "rate", "y": "steps", "log_x": True, "log_y": False, "lines": list(map(line, labels))} | changed


def test_a_band_lies_from_low_to_high_around_the_median() -> None:
    figure = charts.bands(plot("none", "batch"))
    none_band, none_line, batch_band, batch_line = figure.data
    for band, median in ((none_band, none_line), (batch_band, batch_line)):
        assert list(median.x) == [1, 10, 100]
        assert list(median.y) == [2, 3, 4]
        assert [tuple(ends) for ends in median.customdata] == [(1, 4), (2, 5), (3, 6)]
        assert list(band.x) == [1, 10, 100, 100, 10, 1]
        assert list(band.y) == [4, 5, 6, 3, 2, 1]
        assert band.fill == "toself"
        assert band.fillcolor == median.line.color
        assert 0 < band.opacity < 0.5
        assert band.legendgroup == median.legendgroup == median.name
        assert not band.showlegend
    assert none_line.line.color != batch_line.line.color
    assert (figure.layout.title.text, figure.layout.xaxis.title.text) == ("steps", "rate")
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.tickvals) == [1, 10, 100]
    assert figure.layout.yaxis.type is None
    assert figure.layout.height == 300


def styles(*labels: str) -> dict[str, tuple[str, str]]:
    return {trace.name: (trace.line.color, trace.line.dash) for trace in charts.bands(plot(*labels)).data[1::2]}


def test_a_net_has_one_color_everywhere() -> None:
    usual = styles("layer", "none", "batch")
    assert {name: color for name, (color, _) in usual.items()} == charts.NETS
    assert {dash for _, dash in usual.values()} == {"solid"}
    found = styles("batch, relu", "batch, tanh", "layer, relu", "layer, tanh")
    assert found["batch, relu"] == (charts.NETS["batch"], "solid")
    assert found["layer, tanh"] == (charts.NETS["layer"], found["batch, tanh"][1])
    assert found["batch, tanh"][1] != "solid"
    assert styles("batch with shifts")["batch with shifts"] == (charts.NETS["batch"], "solid")
    others = styles("hidden layers only", "and the input", "and the output")
    colors = {color for color, _ in others.values()}
    assert len(colors) == 3
    assert colors.isdisjoint(charts.NETS.values())


def test_ticks_are_round() -> None:
    rates = (0.003, 0.01, 0.018, 0.03, 0.056, 0.1, 0.18, 0.3, 0.56, 1.0, 1.8, 3.0)
    crowded = charts.bands(plot(lines=[line("none", rates)], log_y=True))
    assert list(crowded.layout.xaxis.ticktext) == ["0.003", "0.01", "0.03", "0.1", "0.3", "1", "3"]
    assert list(crowded.layout.yaxis.ticktext) == ["1", "2", "5", "10"]
    wide = charts._round_ticks(1e-30, 1e3)
    assert 4 <= len(wide) <= charts.MOST_TICKS
    assert len(charts._round_ticks(0.17, 1.3)) >= 4
    few = charts.bands(plot(lines=[line("none", (0.0, 0.1, 0.5))], log_x=False))
    assert (few.layout.xaxis.type, list(few.layout.xaxis.ticktext)) == ("linear", ["0", "0.1", "0.5"])
    many = charts.bands(plot(lines=[line("none", range(30))], log_x=False))
    assert many.layout.xaxis.tickvals is None
    assert many.data[1].mode == "lines"


def test_many_lines_are_parted_by_kind() -> None:
    kinds, nets = ("relu", "tanh", "sigmoid"), ("none", "batch", "layer")
    crowded = plot(*(f"{net}, {kind}" for kind in kinds for net in nets))
    small = plot("none", "batch")
    first, *parted = page.panels([small, crowded])
    assert first is small
    assert [panel["y"] for panel in parted] == ["relu: steps", "tanh: steps", "sigmoid: steps"]
    assert [[of["label"] for of in panel["lines"]] for panel in parted] == [list(nets)] * 3
    assert parted[1]["lines"][2] == {**crowded["lines"][5], "label": "layer"}
