"""Hooks see every finished step, and what they do wrong costs nobody a run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import BUDGET, Refused

from flowward.cli import main
from flowward.training.folder import RunFolder
from flowward.training.hooks import HookError, Hooks
from flowward.training.metrics import Step

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.processor]
STEP = Step(2, {"reward": 0.5}, [], {})
FILE = """
from pathlib import Path

def note(step):
    with Path("seen").open("a") as file:
        print(step.index, len(step.images), len(step.prompts), *step.rewards, file=file)

def again(step):
    with Path("seen").open("a") as file:
        print("again", step.index, file=file)

def stumbles(step):
    if step.index == 2:
        raise KeyError("weights")

def leaves(step):
    raise SystemExit(0)

def interrupts(step):
    if step.index == 1:
        raise KeyboardInterrupt

value = 3

def two(step, other):
    pass

class Kind:
    pass
"""


@pytest.fixture
def words(tiny: str) -> list[str]:
    Path("mine.py").write_text(FILE)
    fixed = ["--reward", "balance", "--model", tiny, "--iterations", "3", "--output", "run", "--evaluate-every", "0"]
    return ["train", *BUDGET, *fixed]


def test_every_hook_is_called_with_every_step_in_order(words: list[str]) -> None:
    assert main([*words, "--hook", "mine.py:note", "--hook=mine.py:again"]) == 0
    sampled = [f"{index} 8 8 balance" for index in (1, 2, 3)]
    wanted = [line for index, said in enumerate(["0 0 0", *sampled]) for line in (said, f"again {index}")]
    assert Path("seen").read_text().splitlines() == wanted
    assert "hook" not in (Path("run") / "config.yaml").read_text() + (Path("run") / "inputs.json").read_text()


def test_a_hook_that_raises_ends_the_run_which_is_saved(words: list[str], refused: Refused) -> None:
    said = refused(*words, "--hook", "mine.py:stumbles")
    assert said == "hook 'mine.py:stumbles' raised KeyError: 'weights' at iteration 2"
    folder = RunFolder.open(Path("run"))
    assert [path.stem for path in folder.checkpoints()] == ["000002"]
    assert main(["train", "--resume", "run"]) == 0
    assert [line["iteration"] for line in folder.lines()] == [0, 1, 2, 3]


def test_a_hook_that_leaves_or_interrupts_does_as_a_reward_does(words: list[str], refused: Refused) -> None:
    assert refused(*words, "--hook", "mine.py:leaves") == "hook 'mine.py:leaves' raised SystemExit: 0 at iteration 0"
    shutil.rmtree("run")
    assert main([*words, "--hook", "mine.py:interrupts"]) == 130
    assert [path.stem for path in RunFolder.open(Path("run")).checkpoints()] == ["000001"]


def test_an_interrupt_of_another_thread_is_the_hook_s_own() -> None:
    caught: list[BaseException] = []

    def interrupts(step: Step) -> None:
        raise KeyboardInterrupt

    def call() -> None:
        try:
            Hooks.of(interrupts)(STEP)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert isinstance(caught[0], HookError) and "hook 'interrupts' raised KeyboardInterrupt" in str(caught[0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py:nothing", "hook 'mine.py:nothing': mine.py has no function 'nothing'"),
        ("mine.py:value", "hook 'mine.py:value': mine.py has no function 'value'"),
        ("mine.py", "give the function or class in mine.py as well; write mine.py:NAME"),
        ("there.py:note", "cannot import hook 'there.py:note': FileNotFoundError"),
        ("nowhere.at.all:note", "cannot import hook 'nowhere.at.all:note': ModuleNotFoundError"),
        ("mine.py:two", "hook 'mine.py:two' must accept (step), but its signature is (step, other)"),
        ("mine.py:Kind", "hook 'mine.py:Kind' is a class; give a function, or an object that can be called"),
    ],
)
def test_what_is_no_hook_is_refused_before_anything_is_loaded(
    words: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    def load(*given: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("flowward.models.load", load)
    assert refused(*words, "--hook", name).startswith(said)
    assert not Path("run").exists()


def test_from_python_a_hook_is_one_function_or_several() -> None:
    seen: list[Any] = []
    for given, many in ((seen.append, 1), ([seen.append, seen.append], 2), (None, 0), ([], 0)):
        seen.clear()
        Hooks.of(given)(STEP)  # type: ignore[arg-type]
        assert seen == [STEP] * many
    others: list[Any] = [3, [3], "mine.py:note"]
    for other in others:
        with pytest.raises((ValueError), match="a hook is a function of a step, not"):
            Hooks.of(other)


def test_the_first_failure_is_the_one_that_is_named() -> None:
    def fails(what: str) -> Callable[[Step], None]:
        def hook(step: Step) -> None:
            raise RuntimeError(what)

        return hook

    with pytest.raises(HookError, match=r"hook 'hook' raised RuntimeError: one at iteration 2") as caught:
        Hooks.of([fails("one"), fails("two")])(STEP)
    assert isinstance(caught.value.__cause__, RuntimeError)
