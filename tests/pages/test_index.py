"""A folder of runs has an index: one row each, with the same numbers as its report."""

from __future__ import annotations

import os
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from flowward.cli import main
from flowward.pages import index

OLDER = Path(__file__).parents[1] / "data" / "run"


def words(path: Path) -> str:
    markup = re.sub(r"<(script|style).*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("one", "two & <b>"):
        shutil.copytree(OLDER, tmp_path / "runs" / name)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.yaml").write_text("model: 7")
    (tmp_path / "runs" / "else").mkdir()
    return tmp_path / "runs"


def test_each_run_has_a_row_with_its_scores_and_a_link(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 0
    assert capsys.readouterr().out == f"{runs / 'index.html'}\n"
    said, html = words(runs / "index.html"), (runs / "index.html").read_text("utf-8")
    assert said.count("balance 0.028 [0.019, 0.036] 0.029 [0.026, 0.032] +0.001") == 2
    assert f"3 runs in {runs}" in said and "config.yaml is damaged: model is '7'" in said
    assert 'href="one/report.html"' in html and 'href="two%20%26%20%3Cb%3E/report.html"' in html and "<b>" not in html
    assert (runs / "one" / "report.html").is_file() and not (runs / "damaged" / "report.html").exists()


def test_a_report_is_written_again_if_the_run_went_on(runs: Path) -> None:
    index.write(runs)
    page = runs / "one" / "report.html"
    before = page.stat().st_mtime_ns
    index.write(runs)
    assert page.stat().st_mtime_ns == before
    os.utime(runs / "one" / "metrics.jsonl")
    index.write(runs)
    assert page.stat().st_mtime_ns > before


def test_a_folder_without_runs_is_refused(tmp_path: Path, refused) -> None:
    assert "is not a run folder" in refused("report", tmp_path)
    with pytest.raises(ValueError, match="contains no run folders"):
        index.write(tmp_path)
