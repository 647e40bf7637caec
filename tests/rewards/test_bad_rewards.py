"""A reward that turns bad ends a run in one sentence, and nothing that was computed is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from program import BUDGET, Refused
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


class Turning:
    """The mean brightness, until it has been called `good` times."""

    def __init__(self, then: Callable[[Tensor], Any], good: int):
        self.then, self.good = then, good

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Any:
        self.good -= 1
        score = images.mean((1, 2, 3))
        return score if self.good >= 0 else self.then(score)


def raises(score: Tensor) -> None:
    raise KeyError("model.bin\nis not there")


failures = pytest.mark.parametrize(
    ("then", "said"),
    [
        (raises, "raised KeyError: 'model.bin"),
        (lambda score: score * float("nan"), "returned nan for 8 of 8 images, the first for the prompt '"),
        (lambda score: score[:-1], "must return shape [8], but returned [7]"),
        (lambda score: score.mean(), "must return shape [8], but returned []"),
        (lambda score: ["good"] * 8, "must return one number per image, but returned list"),
        (lambda score: None, "must return one number per image, but returned NoneType"),
    ],
    ids=["raises", "nan", "short", "scalar", "words", "nothing"],
)


@pytest.mark.processor
def test_a_reward_that_takes_no_metadata_is_refused_before_the_run(refused: Refused, tiny: str) -> None:
    Path("mine.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    said = refused("train", *BUDGET, "--model", tiny, "--reward", "mine.py:bright", "--output", "run")
    assert said.startswith("reward 'bright' must accept (images, prompts, metadata)")
    assert not Path("run").exists()


@pytest.mark.processor
def test_a_single_reward_is_named_where_it_fails(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards.REWARDS["balance"], "__call__", lambda *_: None)
    said = refused("train", *BUDGET, "--model", tiny, "--reward", "balance", "--evaluation.rewards", "scenes-strict",
                   "--output", "run")  # fmt: skip
    assert said.startswith("reward 'balance' must return one number per image, but returned NoneType")


@pytest.mark.processor
@failures
def test_a_reward_that_turns_bad(
    refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch, then: Callable[[Tensor], Any], said: str
) -> None:
    """The first iteration is kept, and the run goes on from there when the reward is well again."""
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(then, 1))
    how = [*BUDGET, "--model", tiny, "--iterations", "3", "--reward", "mine"]
    sentence = refused("train", *how, "--output", "run")
    assert said in sentence and sentence.startswith("reward '")
    folder = RunFolder.open(Path("run"))
    assert [line["iteration"] for line in folder.lines()] == [0, 1]
    assert [path.stem for path in folder.checkpoints()] == ["000001"]

    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(then, 9))
    assert main(["train", "--resume", "run"]) == 0
    assert [line["iteration"] for line in folder.lines()] == [0, 1, 2, 3]


@pytest.mark.processor
def test_a_sum_names_the_reward_that_failed(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(raises, 0))
    sentence = refused("train", *BUDGET, "--model", tiny, "--output", "run", "--reward", "balance=2", "mine=1")
    assert sentence == "reward 'mine' raised KeyError: 'model.bin\\nis not there'"


@pytest.mark.processor
def test_a_measurement_that_turns_bad(refused: Refused, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(raises, 0))
    good = rewards.load(["balance"])
    first = iter([good])
    monkeypatch.setitem(rewards.REWARDS, "late", lambda: next(first, None) or Turning(raises, 0))
    how = [*BUDGET, "--model", tiny, "--reward", "balance", "--output", "run", "--evaluation.rewards", "mine"]
    assert "reward 'mine' raised" in refused("train", *how)  # before training: nothing has been computed
    assert [line["iteration"] for line in RunFolder.open(Path("run")).lines()] == [0]
    assert "already contains a run" in refused("train", *how)
    resumed = ["train", "--resume", "run", "--evaluation.rewards", "balance", "--iterations", "1"]
    assert main(resumed) == 0
    lines = RunFolder.open(Path("run")).lines()
    assert [line["iteration"] for line in lines] == [0, 1] and "evaluation" in lines[0]


def test_a_name_alone_is_a_reward() -> None:
    assert type(rewards.load("balance")) is type(rewards.load(["balance"]))
    with pytest.raises(ValueError, match="unknown reward 'scens'; did you mean 'scenes'"):
        rewards.load("scens")
