"""Parts of a self-contained HTML page: the page itself, charts, tables and number formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from statistics import mean
from string import Template
from typing import Any

from ..evaluation.outcome import Measure, Scores, bounded

Line = dict[str, Any]  # one of metrics.jsonl
Trace = dict[str, Any]  # of a chart, as Plotly describes it in JSON
_ACCENT, _PALE, _PALER = "#3a7fc4", "rgba(58, 127, 196, 0.45)", "rgba(58, 127, 196, 0.2)"


def page(title: str, body: str) -> str:
    """A whole page. It contains Plotly's code (4.8 MB) once if there is a chart."""
    from plotly.offline import get_plotlyjs  # here and in `chart`: who imports a page need not draw one

    template = Template(files("flowward.pages").joinpath("report.html.in").read_text("utf-8"))
    code = f"<script>{get_plotlyjs()}</script>" if "plotly-graph-div" in body else ""
    return template.substitute(title=escape(title), body=body, plotly=code)


def text(words: str) -> str:
    """Escaped text, without line breaks inside an interval or between a number and its % sign."""
    return re.sub(r"(\[[\d.+−-]+,) ", r"\1&nbsp;", escape(words).replace(" %", "&nbsp;%"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """An HTML table from plain text. The first `left` columns are words, the others numbers (right-aligned)."""

    def row(kind: str, cells: Sequence[str]) -> str:
        style = ["" if k < left else " class=number" for k in range(len(cells))]
        return "<tr>" + "".join(f"<{kind}{s}>{text(c)}</{kind}>" for s, c in zip(style, cells, strict=True)) + "</tr>"

    return f"<div class=wide><table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table></div>"


def chart(traces: Sequence[Trace], title: str = "", x: str = "", height: int = 320, **y: Any) -> str:
    """An interactive chart of Plotly traces, with a legend if several have names; `y` goes to Plotly's y axis."""
    import plotly.graph_objects as go

    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 58, "r": 12, "t": 36 if title else 12, "b": 44 if x else 28},
        title={"text": escape(title), "font": {"size": 14}, "x": 0, "y": 1, "yanchor": "top", "pad": {"t": 8}},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        hovermode="closest",
        showlegend=sum(bool(trace.get("name")) for trace in traces) > 1,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        xaxis={
            "title": {"text": x, "standoff": 6},
            "showgrid": False,
            "zeroline": False,
            "rangemode": "tozero",
            "ticklabelstandoff": 4,
            "automargin": True,  # long names are rotated and then need more space below
        },
        yaxis={
            "zeroline": False,
            "nticks": 6,
            "gridcolor": "#e2e5e9",
            "ticklabelstandoff": 6,
            "exponentformat": "e",
            **y,
        },
    )
    settings = {"responsive": True, "displayModeBar": False}
    return f"<div class=chart>{figure.to_html(settings, full_html=False, include_plotlyjs=False)}</div>"


def small(charts: Iterable[str]) -> str:
    """Charts side by side, as many as fit."""
    return f"<div class=small-charts>{''.join(charts)}</div>"


def score_chart(
    measure: Measure,
    scores: Scores,
    title: str,
    x: str = "",
    height: int = 320,
    limits: tuple[float, float] | None = None,
) -> str:
    """A line through the means, on a band of their intervals.

    `limits`: smallest and largest value that the y axis must show.
    """
    factor = 100 if measure.percent else 1
    at = [iteration for iteration, _ in scores]
    middle = [factor * score["mean"] for _, score in scores]
    sure = [(iteration, score) for iteration, score in scores if bounded(score)]
    within = [iteration for iteration, _ in sure]
    low, high = ([factor * score[end] for _, score in sure] for end in ("low", "high"))
    line = _line(at, middle, "iteration %{x}: %{text}", mode="lines+markers")
    line["text"] = [measure.interval(score) for _, score in scores]
    band = {
        "type": "scatter",
        "x": within + within[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": _PALER,
        "mode": "none",
        "hoverinfo": "skip",
    }
    y: dict[str, Any] = {"ticksuffix": " %" if measure.percent else ""}
    if limits:
        room = 0.05 * (limits[1] - limits[0])
        y["range"] = [factor * (limits[0] - room), factor * (limits[1] + room)]
    return chart([band, line], title, x, height, **y)


def metric_chart(lines: Sequence[Line], key: str, title: str, x: str = "iteration", height: int = 200, **y: Any) -> str:
    """The metric `key` of every line against its value `x`."""
    lines = [line for line in lines if is_number(line.get(key))]
    if all(line[key] >= 0 for line in lines):
        y = {"rangemode": "nonnegative", **y}  # a curve that is always 0 starts at the bottom
    return chart(
        [_line([line[x] for line in lines], [line[key] for line in lines], f"{x} %{{x}}: %{{y:.4g}}")],
        title,
        height=height,
        **y,
    )


def smoothed_chart(lines: Sequence[Line], key: str) -> str:
    """The metric `key` of every iteration, with a moving mean if there are enough iterations."""
    at, values = [line["iteration"] for line in lines], [line[key] for line in lines]
    tip, window = "iteration %{x}: %{y:.4g}", max(5, len(lines) // 15)
    if len(lines) < 2 * window:
        return chart([_line(at, values, tip)], x="iteration")
    means = [mean(values[end - window : end]) for end in range(window, len(values) + 1)]
    raw = _line(at, values, tip, name="each iteration", color=_PALE)
    return chart([raw, _line(at[window - 1 :], means, tip, name=f"mean of the last {window}")], x="iteration")


def _line(x: list[Any], y: list[Any], tip: str, name: str = "", color: str = _ACCENT, mode: str = "") -> Trace:
    mode = mode or ("lines" if len(x) > 1 else "markers")
    line, tip = {"color": color, "width": 2}, f"{tip}<extra></extra>"
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": name,
        "mode": mode,
        "line": line,
        "marker": {"size": 6},
        "hovertemplate": tip,
        "cliponaxis": False,
    }


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration(seconds: float) -> str:
    """9.4 s, 5 min 48 s, 2 h 05 min"""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
