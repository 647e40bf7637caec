"""The report is there after every evaluation; training goes on if it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import BUDGET

from flowward.cli import main
from flowward.pages import report
from flowward.training.record import Record


def test_a_report_after_every_evaluation(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[list[int]] = []

    def write(folder: Path) -> Path:
        written.append([line["iteration"] for line in Record(folder).lines() if line.get("evaluation")])
        if len(written) == 2:
            raise OSError("no space left")
        return folder / "report.html"

    monkeypatch.setattr(report, "write", write)
    words = [*BUDGET, "--model", tiny, "--iterations", "2", "--evaluate-every", "1", "--precision", "float32"]
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 0
    assert written == [[0], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert capsys.readouterr().out.count("warning: no report after this evaluation: no space left") == 1
