"""What the commands of `flowward agent` refuse: one sentence each, before anything is written."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from commanded_agents import BUDGET, refused, said, train, written
from resumed_runs import metrics, state

from flowward.commands.agent import train as train_command
from flowward.pages import report
from flowward.training.folder import RunFolder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs land in a folder of their own, and no test waits for a report."""
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations over all weights."""
    folder = tmp_path_factory.mktemp("runs") / "agent"
    train(*BUDGET, "--iterations", "2", "--output", folder)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("trian", "unknown command of flowward agent 'trian'; did you mean 'train'?"),
        ("train --preset wrld", "unknown preset of agentflow 'wrld'; did you mean 'world'?"),
        ("train --reward exakt", "unknown reward of answers 'exakt'; did you mean 'exact'?"),
        ("train --executor rull", "unknown executor of an agent 'rull'; did you mean 'rule'? (or a chat server"),
        ("train --verifier none", "unknown verifier of an agent 'none'"),
        ("solve x --generator world", "unknown generator of an agent 'world'"),
        ("train --questions wrld", "unknown set of questions 'wrld'; did you mean 'world'?"),
        ("train --questions scenes", "'scenes' are prompts for images; questions are world, world-held-out"),
        ("train --questions train:world", "'world' is built in and cannot be split"),
        ("train --questions missing.jsonl", "there is no question file at missing.jsonl"),
        ("train --processes 200", "128 episodes per iteration are too few for 200 processes"),
        ("train --processes " + "9" * 5000, "--processes has 5000 digits"),
        ("train --question-column x", "the questions 'world' are built in and have no column 'x'"),
        ("train --tools nope", "tool"),
        ("train --tools", "an agent needs at least one tool"),
        ("train --model wrld", "unknown model 'wrld'; did you mean 'world'?"),
        ("solve x --model runs/nope", "there is no file or folder runs/nope"),
        ("eval world runs/nope", "there is no file or folder runs/nope"),
        ("export runs/nope", "runs/nope is not a run folder"),
        ("train --model .", "is a folder, but not a language model"),
        ("train --group-size 1", "group_size is 1, but advantages compare episodes of one question"),
        ("train --mix descent", "mix descent keeps rewards apart, which only runs over images can do"),
        ("train --memory auto", "for agents set microbatch and rollout_batch"),
        ("train --processes two", "--processes must be a whole number of at least 1, not 'two'"),
        ("train --changed-inputs", "--changed-inputs is for runs that continue"),
        ("train --preset world --resume x", "--preset, --config and --resume exclude each other"),
        ("train --server http://x#y", "set lora_rank (--lora-rank)"),
        ("train --lora-alpha 4", "set lora_rank (--lora-rank), or leave out lora_alpha"),
        ("solve ' '", "the question is empty"),
        ("solve", "QUESTION is missing"),
        ("solve x --seed -1", "seed must be 0 or more, not -1"),
        ("solve x --at 3", "world is not a run, so it has no checkpoints"),
        ("eval", "name at least one planner"),
        ("prompts plannr", "unknown module 'plannr'; did you mean 'planner'?"),
        ("prompts --templates nowhere", "there is no folder nowhere"),
    ],
)
def test_words_that_mean_nothing(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, *shlex.split(words))
    assert not list(Path().iterdir())


FIRST = {"question": "what is the age of arlo", "answer": "3"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "what is the age of brim"}, "question 2, 'what is the age of brim', has no 'answer'"),
        ({"question": "what is the age of brim", "answer": " "}, "question 2, 'what is the age of brim', has no"),
        ({**FIRST, "answer": "4"}, "line 2: 'what is the age of arlo' comes twice, first in line 1; remove one"),
        ({"question": "what is" + " the age of arlo plus" * 60, "answer": "1"}, "but the model has room for 116"),
        ({"quest": "what", "answer": "1"}, "line 2: no key 'question'"),
    ],
)
@pytest.mark.parametrize("option", ["--questions", "--evaluation.questions"])
def test_questions_that_cannot_be_used(
    option: str, row: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named before the run begins."""
    (other,) = {"--questions", "--evaluation.questions"} - {option}
    good = written({"question": "what is the width of gild", "answer": "2"}, name="good.jsonl")
    assert told in refused(capsys, "train", option, written(FIRST, row), other, good, "--output", "run")
    assert not Path("run").exists()


def test_questions_under_another_key(capsys: pytest.CaptureFixture[str]) -> None:
    file = written({"task": "what is the age of arlo", "answer": "3"})
    assert "no key" in refused(capsys, "train", "--questions", file)
    how = ["--question-column", "task", "--evaluation.questions", written(FIRST, name="good.jsonl")]
    assert "1 questions" in said(capsys, "train", "--questions", file, *how, "--dry-run")


def test_held_out_questions_in_training_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--questions", written(FIRST, {**FIRST, "question": "what is the age of brim"}), "--evaluation.questions"]
    out = said(capsys, "train", *how, "mine.jsonl", "--dry-run")
    assert "warning: 2 of the 2 questions of the evaluation are also training questions" in out
    assert "warning" not in said(capsys, "train", "--dry-run")


def test_runs_of_the_other_kind_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    RunFolder.create(images, {"model": "scenes", "algorithm": {"name": "awm"}})
    for words in (["solve", "x", "--model", images], ["eval", images], ["export", images]):
        assert "is a run over images, not of an agent" in refused(capsys, *words)
    assert "which trains on images: use flowward train" in refused(capsys, "train", "--resume", images)
    assert "which trains on images" in refused(capsys, "train", "--config", images / "config.yaml")
    for command, words in (("sample", [finished, "a circle"]), ("eval", [finished]), ("export", [finished])):
        assert "is a run of kind 'agent', not of images" in refused(capsys, *words, command=command)
    for words in (["--resume", finished], ["--config", finished / "config.yaml"]):
        assert "use flowward agent train" in refused(capsys, *words, command="train")
    assert "is a run folder, not a model: continue its training with --resume" in refused(
        capsys, "train", "--model", finished
    )


def test_a_run_goes_on_in_its_own_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "goes on in its own folder" in refused(capsys, "train", "--resume", finished, "--output", "other")
    assert "already contains a run" in refused(capsys, "train", "--output", finished)
    assert "it has 2" in refused(capsys, "solve", "x", "--model", finished, "--at", "1")


def test_questions_that_have_changed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    own = ["--questions", written(FIRST), "--evaluation.questions", written(FIRST, name="good.jsonl")]
    train(*BUDGET, "--iterations", "1", *own, "--output", run)
    written(FIRST, {**FIRST, "question": "what is the age of brim"})
    assert "questions" in refused(capsys, "train", "--resume", run, "--iterations", "2")
    assert metrics(run)[-1]["iteration"] == 1
    train("--resume", run, "--iterations", "2", "--changed-inputs")


def test_a_run_may_move(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "moved"))
    train("--resume", run, "--iterations", "3")
    assert state(run)["iteration"] == 3


def test_a_preset_is_where_settings_start() -> None:
    world, _ = train_command.chosen([])
    other, _ = train_command.chosen(["--model", "owner/name", "--questions", "x.jsonl"])
    assert (world.planner, other.planner) == ("world", "chat")
    assert other.run.learning_rate == 1e-6 and other.verifier == "same" and other.model == "owner/name"
    mine, _ = train_command.chosen(["--preset", "world", "--model", "owner/name"])
    assert mine.verifier == "world" and mine.model == "owner/name"
