"""`--keep N` checkpoints stay, and the best one; `--at` chooses among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Refused, started

from flowward import trained
from flowward.cli import main
from flowward.evaluation.evaluate import Evaluator
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")
MEANS = {0: 0.99, 1: 0.1, 2: 0.9, 3: 0.3, 4: 0.9, 5: 0.2}


def line(iteration: int, mean: float | None) -> dict[str, object]:
    scores = {"balance": {"verdicts": False, "overall": {"mean": mean, "low": 0, "high": 1, "n": 4}, "categories": {}}}
    return {"iteration": iteration, "images": 0, **({"evaluation": {"scores": scores}} if mean is not None else {})}


@pytest.mark.parametrize(("keep", "left"), [(1, [2, 5]), (2, [2, 4, 5]), (3, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_last_ones_and_the_best_stay(keep: int, left: list[int]) -> None:
    folder = RunFolder.create(Path("run"), {"model": "scenes"})
    for iteration, mean in MEANS.items():
        folder.append(line(iteration, mean))
        if iteration:
            folder.save(iteration, {"iteration": iteration}, keep)
    assert [int(path.stem) for path in folder.checkpoints()] == left
    assert folder.best() == 2  # the first of two equal ones; before training there is no checkpoint
    for at, found in (("best", 2), (left[0], left[0]), (None, 5)):
        state = folder.state(at=at)
        assert state and state["iteration"] == found
    with pytest.raises(ValueError, match="no checkpoint of iteration 7; it has "):
        folder.state(at=7)


def test_without_an_evaluation_there_is_no_best() -> None:
    folder = RunFolder.create(Path("run"), {"model": "scenes"})
    folder.append(line(1, None))
    folder.save(1, {"a": 1})
    assert folder.best() is None
    with pytest.raises(ValueError, match="leave out --at best"):
        folder.state(at="best")


@pytest.fixture
def peaked(tiny: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four iterations whose second one has the best score; it saves every tenth, and keeps one."""
    from flowward.training.trainer import Trainer

    real = Trainer.measured

    def measured(trainer: Trainer, step: object, evaluator: Evaluator, folder: RunFolder | None) -> object:
        found = real(trainer, step, evaluator, folder)
        found.evaluation["scores"]["balance"]["overall"]["mean"] = MEANS[found.index]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "measured", measured)
        how = ["--iterations", "4", "--evaluate-every", "1", "--keep", "1", "--precision", "float32"]
        return started(tiny, Path("run"), *how, "--lora-rank", "2")


def test_at_chooses_a_checkpoint(peaked: Path, refused: Refused, capsys: pytest.CaptureFixture[str], tiny: str) -> None:
    assert [int(path.stem) for path in RunFolder.open(peaked).checkpoints()] == [2, 4]
    assert trained.load(peaked).name.endswith("iteration 4)")
    assert trained.load(peaked, at="best").name.endswith("iteration 2)")
    assert main(["sample", "run", "a circle", "--steps", "1", "--count", "1", "--at", "2", "--output", "a.png"]) == 0
    assert "iteration 2)" in capsys.readouterr().out
    how = ["--images", "4", "--steps", "1", "--rewards", "balance", "--json", "a.json", "--precision", "float32"]
    assert main(["eval", tiny, "run", *how, "--at", "best"]) == 0
    assert "run (policy, iteration 2)" in json.loads(Path("a.json").read_text())["models"]
    assert main(["export", "run", "--at", "best"]) == 0
    assert "| iterations | 2 |" in Path("run/export/README.md").read_text()
    assert "has no checkpoint of iteration 3; it has 2, 4" in refused("sample", "run", "a circle", "--at", "3")
    assert "is not a run, so it has no checkpoints" in refused("sample", tiny, "a circle", "--at", "3")
    assert "no run is measured" in refused("eval", tiny, *how, "--at", "3")
    assert "--at takes N|best, not 'worst'" in refused("export", "run", "--at", "worst")
