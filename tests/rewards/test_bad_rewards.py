"""A reward that turns bad ends a run in one sentence, and nothing that was computed is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from program import BUDGET, Refused
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.training.folder import RunFolder

ASKED = torch.zeros(2, 3, 4, 4), ["a", "b"]

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


class Silent(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


def gives_up(error: BaseException) -> Callable[[Tensor], None]:
    def raised(score: Tensor) -> None:
        raise error

    return raised


failures = pytest.mark.parametrize(
    ("then", "said"),
    [
        (raises, "raised KeyError: 'model.bin"),
        (lambda score: score * float("nan"), "returned nan for 8 of 8 images, the first for the prompt '"),
        (lambda score: score[:-1], "must return shape [8], but returned [7]"),
        (lambda score: score.mean(), "must return shape [8], but returned []"),
        (lambda score: ["good"] * 8, "must return one number per image, but returned list"),
        (lambda score: None, "must return one number per image, but returned NoneType"),
        (gives_up(SystemExit(0)), "raised SystemExit: 0"),
        (gives_up(SystemExit()), "raised SystemExit"),
        (gives_up(ValueError()), "raised ValueError"),
        (gives_up(AssertionError()), "raised AssertionError"),
        (gives_up(rewards.RewardError()), "raised RewardError"),
        (gives_up(Silent()), "raised Silent"),
    ],
    ids=["raises", "nan", "short", "scalar", "words", "nothing", "exit", "leave", "mute", "assert", "own", "silent"],
)


@pytest.mark.processor
def test_a_reward_that_takes_no_prompts_is_refused_before_the_run(refused: Refused, tiny: str) -> None:
    Path("mine.py").write_text("def bright(images):\n    return images.mean((1, 2, 3))\n")
    said = refused("train", *BUDGET, "--model", tiny, "--reward", "mine.py:bright", "--output", "run")
    assert said.startswith("reward 'bright' must accept (images, prompts) or (images, prompts, metadata), but its")
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
def test_ctrl_c_in_a_reward_interrupts_the_run(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes at any moment, also in a user's code, where it is the same as one that this code raises."""
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: Turning(gives_up(KeyboardInterrupt()), 1))
    capsys.readouterr()
    assert main(["train", *BUDGET, "--model", tiny, "--iterations", "3", "--reward", "mine", "--output", "run"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("flowward: ")
    assert [path.stem for path in RunFolder.open(Path("run")).checkpoints()] == ["000001"]


def test_an_interrupt_in_another_thread_is_an_error_of_the_reward() -> None:
    """Ctrl-C reaches the main thread only."""
    ran = ThreadPoolExecutor(1).submit(rewards.score, "mine", Turning(gives_up(KeyboardInterrupt()), 0), *ASKED)
    with pytest.raises(rewards.RewardError, match="reward 'mine' raised KeyboardInterrupt"):
        ran.result()


@pytest.mark.parametrize("what", ["raise SystemExit(0)", "raise ValueError", "import sys; sys.exit()"])
def test_a_reward_that_ends_the_program_where_it_is_made(what: str) -> None:
    Path("ends.py").write_text(what)
    Path("made.py").write_text(f"class Red:\n    def __init__(self):\n        {what}\n")
    for name in ("ends.py:red", "made.py:Red"):
        with pytest.raises(ValueError, match=rf"^cannot (import|make) reward '{name}': (SystemExit|ValueError)"):
            rewards.load(name)


@pytest.mark.parametrize(("error", "said"), [(SystemExit(0), "SystemExit: 0"), (KeyError("a"), "KeyError: 'a'")])
def test_a_check_of_prompts_that_fails_names_the_reward(error: BaseException, said: str) -> None:
    class Checks(Turning):
        def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
            raise error

    mine = Checks(raises, 9)
    for reward, name in ((mine, ".*Checks"), (rewards.Sum((("mine", 1.0, mine),)), "mine")):
        with pytest.raises(rewards.RewardError, match=f"^refuse of reward '{name}' raised {said}"):
            rewards.refuse(reward, ["a"])


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
