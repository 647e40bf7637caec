"""The examples of training from Python run, on a small model and in few iterations."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from program import BUDGET
from tiny_runs import algorithm

import flowward
from flowward.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.processor


@pytest.fixture(autouse=True)
def small(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = flowward.fit
    few: dict[str, Any] = {"iterations": 1, "images_per_update": 8, "group_size": 4, "evaluation": {"images": 4}}
    monkeypatch.setattr(flowward, "fit", lambda _, *given, **__: fit(algorithm(), *given, **few), raising=False)
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    monkeypatch.chdir(tmp_path)


def test_six_lines_train_sample_and_export(capsys: pytest.CaptureFixture[str]) -> None:
    code = (EXAMPLES / "fit.py").read_text("utf-8").partition('"""\n')[2]
    assert len(code.split("\n\n", 1)[1].splitlines()) <= 6
    runpy.run_path(str(EXAMPLES / "fit.py"))
    assert "Strict accuracy on held-out prompts" in capsys.readouterr().out
    assert Path("red_circle.png").is_file() and Path("my-lora/pytorch_lora_weights.safetensors").is_file()


def test_the_hook_saves_images(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    hook = Path("hook.py")
    hook.write_text(
        (EXAMPLES / "hook.py").read_text("utf-8").replace('EVERY = Path("best"), 10', 'EVERY = Path("best"), 1')
    )
    words = [*BUDGET, "--model", tiny, "--reward", "balance", "--iterations", "2", "--output", "run"]
    assert main(["train", *words, "--hook", "hook.py:best"]) == 0
    assert [path.name for path in sorted(Path("best").iterdir())] == ["000001.png", "000002.png"]
    assert "for 'a" in capsys.readouterr().out
