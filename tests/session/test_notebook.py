"""In a notebook every name is text, never markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowward.session import notebook
from flowward.training.record import Record

EVIL = "<script>alert('x')</script>"


def evaluation(mean: float) -> dict[str, Any]:
    score = {"overall": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 8}, "categories": {}}
    return {"prompts": EVIL, "scores": {EVIL: score}}


@pytest.fixture
def run(tmp_path: Path) -> Record:
    lines: list[dict[str, Any]] = [
        {"iteration": k, "images": 8 * k, "reward": k / 10, "health": [f"{EVIL} {k} is bad"] * (k > 5), "seconds": {}}
        for k in range(30)
    ]
    lines[0] |= {"evaluation": evaluation(0.2)}
    lines[-1] |= {"evaluation": evaluation(0.7)}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Record(tmp_path)


def test_names_prompts_and_warnings_are_escaped(run: Record) -> None:
    page = notebook.summary(run, EVIL)
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert notebook.table([EVIL], [[EVIL]]).count("<script") == 0


def test_the_headline_and_a_few_iterations_are_shown(run: Record) -> None:
    page = notebook.summary(run, "done")
    assert "rose from 0.200 [0.100, 0.300] before training to 0.700 [0.600, 0.800] after 29 iterations" in page
    assert page.count("<tr>") == 1 + notebook.MOST and "<td>29</td><td>2.900</td>" in page
    assert page.count("Warning: ") == 1 and "29 is bad" in page


def test_a_run_without_anything_is_shown_too(tmp_path: Path) -> None:
    assert "There is no evaluation yet." in notebook.summary(Record(tmp_path), "nothing")
