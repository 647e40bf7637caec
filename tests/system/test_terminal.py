"""Text from outside is shown on a terminal, not obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowward.cli import main
from flowward.system.terminal import visible
from flowward.training.log import TrainProgress, counting
from flowward.training.metrics import Step
from flowward.training.run import Run

NASTY = "[/x] [red]a[/] :smile: \x1b[2J\x1b]0;title\x07 \u202egnp.exe"
SHOWN = "[/x] [red]a[/] :smile: \\x1b[2J\\x1b]0;title\\x07 \\u202egnp.exe"


def test_control_characters_are_written_out() -> None:
    assert visible(NASTY) == SHOWN
    assert visible("a\tb\nc é ☃ 中") == "a\tb\nc é ☃ 中"
    assert visible("\r\x7f\x9b1m\ud83d") == "\\r\\x7f\\x9b1m\\ud83d"


def test_names_with_markup_do_not_end_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for terminal in ("0", "1"):
        monkeypatch.setenv("FORCE_COLOR", terminal) if terminal == "1" else monkeypatch.delenv("FORCE_COLOR", False)
        with TrainProgress(Run(iterations=2), 0, Path(NASTY)) as progress:
            progress.say(f"prompts {NASTY}")
            progress.show(Step(1, {"reward": 0.1, "gradient_norm": 1.0}, [f"category {NASTY}"], {}))
        with counting(NASTY, 3) as advance:
            advance(1)
        said = capsys.readouterr().out
        assert said.count(SHOWN) == 3 and "\x1b[2J" not in said and "\x07" not in said


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", f"{NASTY}.yaml"]) == 2
    said = capsys.readouterr().err
    assert SHOWN in said and "\x1b" not in said
