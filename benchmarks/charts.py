"""The report's charts, as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from benchmarks import figures
from benchmarks.history import Point

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, GRID, OURS, LOSS, PEER = "#1f2933", "#e4e7eb", "#1f6f8b", "#c2410c", "#8a94a0"
SYMBOLS = {
    "torch": "circle-open",
    "torch_compile": "diamond-open",
    "jax": "square-open",
    "onnxruntime": "triangle-up-open",
    "numpy": "x-thin-open",
}
NETS = {"none": PEER, "batch": OURS, "layer": "#d97f1e"}
OTHERS = ("#6b4e9b", "#2f8560", "#b03a5b")
DASHES = ("solid", "dash", "dot", "dashdot")
FEW = 20
"""Up to so many points of a line are marked: they are what was measured."""

ROW = 19
"""Height of a case in pixels."""


def _figure(height: int, **layout: Any) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        height=height,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 10, "r": 20, "t": 40, "b": 45},
        paper_bgcolor="white",
        plot_bgcolor="white",
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        **layout,
    )
    figure.update_yaxes(automargin=True, gridcolor=GRID)
    figure.update_xaxes(gridcolor=GRID)
    return figure


def _points(
    cases: list[dict[str, Any]], names: list[str], ratio: Callable[[dict[str, Any]], float | None]
) -> tuple[list[float], list[str]]:
    """The cases that have a ratio, as x and y."""
    found = [(value, name) for case, name in zip(cases, names, strict=True) if (value := ratio(case)) is not None]
    return [value for value, _ in found], [name for _, name in found]


def ratios(cases: list[dict[str, Any]]) -> Figure:
    """Every peer's time over ours, one row a case, on a log axis with a line at 1."""
    import plotly.graph_objects as go

    figure = _figure(90 + ROW * len(cases))
    names = [figures.label(case) + (" ~" if figures.unsteady(case) else "") for case in cases]
    hover = "%{y}<br>%{x:.2f} times our time<extra>%{fullData.name}</extra>"
    for peer in figures.peers_of(cases):
        x, y = _points(cases, names, lambda case, peer=peer: figures.ratio(case, peer))
        hollow = {"symbol": SYMBOLS[peer], "size": 7, "color": PEER}
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="markers", name=figures.title(peer), marker=hollow, hovertemplate=hover)
        )
    for name, color, kept in (
        ("the fastest framework, slower than us or level", OURS, lambda ratio: ratio >= 1 - figures.LEVEL),
        ("the fastest framework, faster than us", LOSS, lambda ratio: ratio < 1 - figures.LEVEL),
    ):
        chosen = [case["times_fastest"] is not None and kept(case["times_fastest"]) for case in cases]
        winners = list(compress(cases, chosen))
        x, y = _points(winners, list(compress(names, chosen)), lambda case: case["times_fastest"])
        marker = {"size": 10, "color": color}
        text = [f"{figures.title(case['fastest_peer'])}, the fastest" for case in winners]
        named = hover.replace("%{fullData.name}", "%{text}")
        if x:
            figure.add_trace(
                go.Scatter(x=x, y=y, text=text, mode="markers", name=name, marker=marker, hovertemplate=named)
            )
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    figure.update_xaxes(
        type="log", title="the peer's time / our time", tickvals=ticks, ticktext=[f"{t:g}x" for t in ticks]
    )
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], range=[-0.7, len(names) - 0.3])
    figure.add_vline(x=1, line={"color": INK, "width": 1.5})
    return figure


def ceiling(cases: list[dict[str, Any]]) -> Figure:
    """Percent of the streaming ceiling, one bar a case."""
    import plotly.graph_objects as go

    figure = _figure(90 + ROW * len(cases), bargap=0.35)
    names = [figures.label(case) + (" ~" if figures.unsteady(case) else "") for case in cases]
    values = [case["percent_of_ceiling"] for case in cases]
    texts = [f"{case['percent_of_ceiling']:.0f} %" for case in cases]
    hover = "%{y}<br>%{x:.0f} % of the ceiling<extra></extra>"
    bars = {"orientation": "h", "marker": {"color": OURS}, "hovertemplate": hover, "textposition": "outside"}
    figure.add_trace(go.Bar(x=values, y=names, text=texts, **bars))
    figure.update_xaxes(
        title="percent of the streaming ceiling", rangemode="tozero", range=[0, max([110, *values]) * 1.08]
    )
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.add_vline(x=100, line={"color": INK, "width": 1.5})
    return figure


def history(lines: dict[str, list[Point]]) -> Figure:
    """Each benchmark over commits, relative to its first value; a menu chooses the op."""
    import plotly.graph_objects as go

    groups: dict[str, list[str]] = {}
    for name in lines:
        groups.setdefault(name.split()[0], []).append(name)
    commits = {point.commit: point.date for points in lines.values() for point in points}
    order = sorted(commits, key=lambda commit: commits[commit])

    figure = _figure(480)
    owner: list[str] = []
    for group, names in groups.items():
        for name in names:
            points = lines[name]
            owner.append(group)
            figure.add_trace(
                go.Scatter(
                    x=[point.commit for point in points],
                    y=[point.value / points[0].value for point in points],
                    customdata=[point.value for point in points],
                    name=name.partition(" ")[2] or name,
                    mode="lines+markers",
                    visible=group == next(iter(groups)),
                    hovertemplate="%{x}: %{customdata:.3g}, %{y:.2f} of the first<extra>%{fullData.name}</extra>",
                )
            )
    buttons = [
        {"label": group, "method": "restyle", "args": [{"visible": [of == group for of in owner]}]} for group in groups
    ]
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "top"}],
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"},
        margin={"t": 80},
        showlegend=True,
    )
    figure.update_xaxes(title="commit", type="category", categoryorder="array", categoryarray=order)
    figure.update_yaxes(title="value / first value (lower is better)", rangemode="tozero")
    return figure


def bands(plot: Mapping[str, Any]) -> Figure:
    """A plot of claims.json: every line a median over seeds, in a band from low to high."""
    import plotly.graph_objects as go

    figure = _figure(300, title={"text": plot["y"], "font": {"size": 13}, "x": 0, "y": 0.97}, hovermode="x unified")
    hover = "%{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})<extra>%{fullData.name}</extra>"
    for line, (color, dash) in zip(plot["lines"], _styles([line["label"] for line in plot["lines"]]), strict=True):
        both = {"name": line["label"], "legendgroup": line["label"]}
        outline = {"x": line["x"] + line["x"][::-1], "y": line["high"] + line["low"][::-1]}
        figure.add_trace(
            go.Scatter(
                **outline,
                **both,
                fill="toself",
                fillcolor=color,
                opacity=0.16,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=line["x"],
                y=line["median"],
                **both,
                customdata=list(zip(line["low"], line["high"], strict=True)),
                mode="lines+markers" if len(line["x"]) <= FEW else "lines",
                line={"color": color, "width": 2, "dash": dash},
                marker={"size": 5},
                hovertemplate=hover,
                showlegend=True,
            )
        )
    figure.update_layout(margin={"l": 10, "r": 20, "t": 62, "b": 40})
    figure.update_xaxes(title=plot["x"], **_axis(plot, ("x",), plot["log_x"]))
    figure.update_yaxes(**_axis(plot, ("low", "high"), plot["log_y"]))
    return figure


def _styles(labels: list[str]) -> list[tuple[str, str]]:
    """A color and a dash for each: the color says which net, the dash what else is said of it ("batch, tanh")."""
    split = [label.partition(" ") for label in labels]
    nets = [first.rstrip(",") for first, _, _ in split]
    kinds = list(dict.fromkeys(rest for net, (_, _, rest) in zip(nets, split, strict=True) if net in NETS))
    others = [label for label, net in zip(labels, nets, strict=True) if net not in NETS]
    return [
        (NETS[net], DASHES[kinds.index(rest) % len(DASHES)])
        if net in NETS
        else (OTHERS[others.index(label) % len(OTHERS)], "solid")
        for label, net, (_, _, rest) in zip(labels, nets, split, strict=True)
    ]


MOST_TICKS = 8


def _axis(plot: Mapping[str, Any], keys: Sequence[str], log: bool) -> dict[str, Any]:
    """Ticks at the values of x where they are few, and at round numbers on a logarithmic axis."""
    values = sorted({value for line in plot["lines"] for key in keys for value in line[key]})
    few = "x" in keys and len(values) <= MOST_TICKS
    if not (few or log):
        return {}
    ticks = values if few else _round_ticks(values[0], values[-1])
    return {"type": "log" if log else "linear", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _round_ticks(low: float, high: float) -> list[float]:
    """From powers of ten to ever more between them, until there are four; and never too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
