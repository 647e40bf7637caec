"""Charts and tables as values: what the scripts of a page are given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flowward.evaluation.outcome import Measure
from flowward.pages import curves
from flowward.pages.curves import Run
from flowward.pages.page import render
from flowward.pages.parts import Axis, Chart, Series, embedded, rounded


def lines(many: int = 5) -> list[dict]:
    found = []
    for k in range(many):
        line = {"iteration": k, "images": 8 * k, "seconds": {"total": 2.0}}
        if k:
            line |= {"reward": 0.1 * k, "zero_variance": 0.5, "loss": float("nan") if k == 2 else 1.0}
        if k % 2 == 0:
            score = {"mean": 0.5, "low": 0.4 if k else None, "high": 0.6 if k else None, "n": 4}
            line["evaluation"] = {"scores": {"x-strict": {"overall": score, "categories": {"a": score, "b": score}}}}
        found.append(line)
    return found


def test_a_chart_can_be_read_against_iterations_samples_and_time() -> None:
    run = Run.of(lines())
    trained, evaluated = run.axes
    assert trained.values() == {"iteration": [1, 2, 3, 4], "samples": [8, 16, 24, 32], "seconds": [4, 6, 8, 10]}
    assert evaluated.values() == {"iteration": [0, 2, 4], "samples": [0, 16, 32], "seconds": [2, 6, 10]}
    (series,) = curves.metric([run], "loss").series
    assert series.axis == trained.key and series.y == [1.0, None, 1.0, 1.0]


def test_several_runs_share_a_chart_and_keep_their_colours() -> None:
    runs = [Run.of(lines(many), f"run {k}", k) for k, many in enumerate((5, 7))]
    chart = curves.metric(runs, "reward")
    assert [(each.name, each.colour) for each in chart.series] == [("run 0", 0), ("run 1", 1)]
    assert len({axis.key for run in runs for axis in run.axes}) == 4 and runs[1].axes[0].values()["run"] == "run 1"
    assert [len(each.y) for each in chart.series] == [4, 6]


def test_shares_go_from_0_to_1_and_verdicts_to_100_percent() -> None:
    run = Run.of(lines())
    assert curves.metric([run], "zero_variance").data()["limits"] == (0.0, 1.0)
    assert "limits" not in curves.metric([run], "reward").data()
    found = [(line["iteration"], line["evaluation"]) for line in run.evaluated]
    chart = curves.score([(run, Measure.of("x-strict", found))], "x", "a")
    assert chart.data()["limits"] == (0.0, 100.0) and not chart.data().get("log")
    assert chart.series[0].low == [None, 40.0, 40.0] and chart.series[0].key == "x-strict/a"


def test_numbers_have_six_digits_and_nothing_infinite() -> None:
    assert rounded([1, 1 / 3, float("inf"), float("nan"), None]) == [1, 0.333333, None, None, None]


def test_text_in_data_ends_no_script() -> None:
    evil = "</script><script>alert(1)</script>&"
    chart = Chart(evil, [Series([1.0], "a", evil, said=[evil])])
    html = render("loss.html.j2", [Axis("a", [1])], title=evil, curves=[chart])
    assert evil not in html and "alert(1)</script>" not in html
    (data,) = re.findall(r'<div class="plot"></div>\s*<script type="application/json">(.*?)</script>', html)
    assert json.loads(data)["title"] == evil and "<" not in data


def test_pages_need_nothing_from_outside() -> None:
    """Neither do the templates and assets, apart from Plotly's code, which names its project."""
    folder = Path(curves.__file__).parent
    for path in [*folder.glob("templates/*"), *folder.glob("assets/page.*"), folder / "assets" / "charts.js"]:
        assert not re.search(r"https?://|@import|url\(", path.read_text("utf-8")), path


@pytest.mark.parametrize(("start", "kind"), [(b"\x89PNG", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"RIFF", "webp")])
def test_an_image_is_named_by_its_first_bytes(start: bytes, kind: str) -> None:
    assert embedded(start).startswith(f"data:image/{kind};base64,")
