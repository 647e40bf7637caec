"""`flowward demo` starts a run, goes on with it, and leaves a finished one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowward.cli import main
from flowward.commands import train


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(train, "run", lambda words: given.append(words) or 0)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "demo"

    assert main(["demo", "--seed", "1"]) == 0
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("run: {iterations: 2}\n")
    assert main(["demo", "--seed", "1"]) == 0
    (run / "summary.json").write_text('{"finished": true}')
    capsys.readouterr()
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "is finished" in said and "  flowward sample runs/demo 'a red circle' --count 8" in said
    assert given == [
        ["--output", "runs/demo", "--seed", "1"],
        ["--resume", "auto", "--output", "runs/demo", "--seed", "1"],
    ]


def test_a_demo_that_was_stopped_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "run", lambda words: 130)
    assert main(["demo", "--output", str(tmp_path / "run")]) == 130
