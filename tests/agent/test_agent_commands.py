"""The commands of `flowward agent`, from the words on the command line to the files that they leave."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from resumed_runs import assert_same, metrics, state

from flowward.agent import trained
from flowward.agent.language import Language
from flowward.cli import main
from flowward.commands.agent import train as train_command
from flowward.pages import report
from flowward.training import log
from flowward.training.folder import RunFolder

BUDGET = shlex.split(
    "--questions-per-update 2 --group-size 4 --updates-per-iteration 2 --evaluation.episodes 8 --threads 1 "
    "--learning-rate 1e-3 --evaluate-every 2"
)
QUESTION = "what is the height of arlo plus the age of brim"


def train(*words: str | Path) -> None:
    assert main(["agent", "train", *map(str, words)]) == 0


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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration over LoRA adapters, whose last step was large enough to be seen."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    how = "--lora-rank 4 --iterations 1 --learning-rate 0.05 --evaluation.episodes 4 --questions-per-update 4"
    train(*BUDGET, *shlex.split(how), "--output", folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main(["agent", *map(str, words)]) == code
    return capsys.readouterr().out


def same(a: Path, b: Path) -> None:
    assert_same(state(a), state(b))
    assert metrics(a) == metrics(b)


# Training


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.yaml", "inputs.json", "metrics.jsonl", "summary.json", "episodes.jsonl", "checkpoints"}
    assert [path.name for path in RunFolder.open(finished).checkpoints()] == ["000002.safetensors"]
    first, *others = RunFolder.open(finished).lines()
    assert first["iteration"] == 0 and first["evaluation"]["episodes"] == 8
    assert set(first["evaluation"]["scores"]) == {"exact", "exact (greedy)"}
    for index, line in enumerate(others, 1):
        assert (line["iteration"], line["episodes"]) == (index, 16 * index)
        assert {"reward", "turns", "loss", "kl", "gradient_norm", "end/stopped", "trouble/unreadable"} <= set(line)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["finished"] and summary["command"].startswith("flowward agent train --questions-per-update 2")
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["kind"] == "agent" and config["algorithm"]["name"] == "agentflow" and config["tools"] == ["world"]
    shown = [json.loads(line) for line in (finished / "episodes.jsonl").read_text().splitlines()]
    assert {each["iteration"] for each in shown} == {0, 2}


def test_what_training_says(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "train", *BUDGET, "--iterations", "1").splitlines()
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("agent-world-") and out[0] == f"run folder: {folder}"
    assert out[1] == "planner world, 5440 questions; measuring on world-held-out first"
    assert out[2].startswith("iteration 0: exact ")
    assert out[-1] == f"report: {folder}/report.html"


@pytest.mark.parametrize("kind", [[], ["--lora-rank", "2"], ["--curriculum", "1"]], ids=["full", "lora", "curriculum"])
def test_two_halves_make_a_whole(tmp_path: Path, kind: list[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(*BUDGET, *kind, "--output", whole, "--iterations", "4")
    train(*BUDGET, *kind, "--output", halves, "--iterations", "2")
    train("--resume", halves, "--iterations", "4")
    same(whole, halves)


def test_resume_auto_starts_and_goes_on(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    how = ["train", *BUDGET, "--preset", "world", "--output", run, "--resume", "auto"]
    assert f"{run} has not begun: starting it" in said(capsys, *how, "--iterations", "1")
    assert f"{run} has begun: continuing it" in said(capsys, *how, "--iterations", "2")
    assert_same(state(run), state(finished))


def test_ctrl_c_measures_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole, show = tmp_path / "run", tmp_path / "whole", log.TrainProgress.show

    def stopped(progress: Any, step: Any) -> None:
        show(progress, step)
        if step.index == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(log.TrainProgress, "show", stopped)
        out = said(capsys, "train", *BUDGET, "--iterations", "2", "--output", run, code=130)
    assert out.splitlines()[-1] == f"stopped and saved; go on with: flowward agent train --resume {run}"
    assert [line["iteration"] for line in metrics(run) if "evaluation" in line] == [0, 1]
    train("--resume", run)
    train(*BUDGET, "--iterations", "2", "--output", whole)
    assert_same(state(whole), state(run))


def test_settings_that_are_printed_make_the_same_run(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "train", *BUDGET, "--iterations", "2", "--print-config")
    assert yaml.safe_load(text)["run"]["output"] is None
    Path("mine.yaml").write_text(text)
    assert said(capsys, "train", "--config", "mine.yaml", "--print-config") == text
    train("--config", "mine.yaml", "--output", tmp_path / "again")
    same(tmp_path / "again", finished)
    text = said(capsys, "train", "--config", finished / "config.yaml", "--print-config")
    assert yaml.safe_load(text)["run"]["output"] is None  # that folder is taken


def test_a_rehearsal_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "train", *BUDGET, "--dry-run")
    assert "80 iterations of 4 questions x 4 episodes, 2 updates each; nothing was written" in out
    assert not list(Path().iterdir())


def test_hooks_are_called_with_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def seen(step):\n    print('seen', step.index)\n")
    out = said(capsys, "train", *BUDGET, "--iterations", "1", "--hook", "mine.py:seen")
    assert [line for line in out.splitlines() if line.startswith("seen")] == ["seen 0", "seen 1"]


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path, finished: Path) -> None:
    run = tmp_path / "two"
    words = [*BUDGET, "--iterations", "2", "--processes", "2", "--output", str(run)]
    command = [sys.executable, "-m", "flowward", "agent", "train", *words]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert [line["reward"] for line in metrics(run)[1:]] == [line["reward"] for line in metrics(finished)[1:]]
    one, two = (state(folder)["weights"]["policy"] for folder in (finished, run))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


# Using what was trained


def test_solve_shows_every_turn(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "solve", QUESTION, "--model", finished).splitlines()
    assert out[0].startswith("planner world, executor ")
    turns = [line for line in out if line.startswith("turn ")]
    assert turns and turns[0].startswith("turn 1: ")
    assert sum(line.startswith("  check   ") for line in out) == len(turns)
    assert out[-1].startswith("answer: ") and all(line == line.rstrip() for line in out)


def test_solve_gives_programs_one_object(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "solve", QUESTION, "--model", finished, "--json"))
    assert found["question"] == QUESTION and found["end"] in ("stopped", "turns")
    assert found["planner"] == {"name": str(finished), "weights": "policy", "iteration": 2}
    assert found["turns"] and {"tool", "arguments", "result", "stop"} <= set(found["turns"][0])
    before = json.loads(said(capsys, "solve", QUESTION, "--model", finished, "--json", "--weights", "reference"))
    assert before["planner"] == {"name": str(finished), "weights": "reference"}


def test_sampled_answers_follow_their_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def answered(*words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(said(capsys, "solve", QUESTION, "--json", *words))["turns"]
        return found

    seeds = [answered("--sampled", "--seed", str(seed)) for seed in range(5)]
    assert seeds[3] == answered("--sampled", "--seed", "3")
    assert len({json.dumps(each) for each in seeds}) > 1
    assert answered() == answered("--seed", "4")  # the likeliest tokens have none


def test_eval_of_two_planners_writes_down_how_it_measured(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "eval", "world", finished, "--json", "scores.json")
    found = json.loads(Path("scores.json").read_text())["models"]
    assert list(found) == ["world", str(finished)]
    before, *_, after = (line["evaluation"] for line in metrics(finished) if "evaluation" in line)
    for own, line in zip(found.values(), (before, after), strict=True):  # the run measured itself in the same way
        assert own["scores"] == line["scores"] and own["behaviour"] == line["behaviour"]
        assert {"planner", "executor", "verifier", "generator", "analysis"} == set(own["modules"])
        assert len(own["shown"]) == 8
    assert found[str(finished)]["model"] == {"name": str(finished), "weights": "policy", "iteration": 2}
    assert (
        "exact (greedy)" in out and "ended: stopped" in out and "8 episodes on world-held-out" in " ".join(out.split())
    )
    assert main(["agent", "eval", "world", "--json", "scores.json"]) == 2
    said(capsys, "eval", "world", "--episodes", "4", "--seed", "5", "--json", "scores.json", "--overwrite")
    assert json.loads(Path("scores.json").read_text())["models"]["world"]["episodes"] == 4


def test_an_exported_adapter_is_read_by_peft_with_equal_logits(
    adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert said(capsys, "export", adapted, "--output", "planner") == "planner\n"
    settings = json.loads(Path("planner/adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"], dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        start = base(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(base, "planner")(input_ids=ids).logits
    language, _ = trained.load(str(adapted), trained.settings_of(str(adapted)))
    with torch.no_grad(), language.weights.network("policy") as network:
        ours: Any = network
        mine = ours(input_ids=ids).logits
    assert torch.allclose(mine, theirs, atol=1e-5) and not torch.allclose(mine, start, atol=1e-3)
    again = Language.load("planner", precision="float32")  # merged
    with torch.no_grad(), again.weights.network("policy") as network:
        ours = network
        assert torch.allclose(ours(input_ids=ids).logits, mine, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_exported_planner_solves_as_its_run_does(
    kind: str, finished: Path, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished if kind == "full" else adapted
    said(capsys, "export", run, "--output", "planner")

    def turns(*words: str | Path) -> Any:
        return json.loads(said(capsys, "solve", QUESTION, "--json", "--sampled", *words))["turns"]

    mine = turns("--model", run)
    assert turns("--model", "planner") == mine
    Path("planner/agent.yaml").unlink()  # as a model from elsewhere
    assert turns("--model", "planner", "--preset", "world") == mine


def test_what_an_export_knows_of_its_agent(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "export", finished, "--output", "planner")
    own, run = (trained.settings_of(name) for name in ("planner", str(finished)))
    assert own.modules == {**run.modules, "planner": "planner"}
    assert (own.tools, own.limits, own.temperature) == (run.tools, run.limits, run.temperature)
    Path("planner/agent.yaml").write_text("kind: agent\nverifyer: rule\n")
    assert "planner/agent.yaml: config: unknown setting 'verifyer'" in refused(
        capsys, "solve", "x", "--model", "planner"
    )


def test_prompts_can_be_changed_and_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "prompts", "verifier").startswith("=== verifier (")
    out = said(capsys, "prompts", "--output", "mine").split()
    assert sorted(out) == sorted(str(path) for path in Path("mine").iterdir())
    assert "exists: name another" in refused(capsys, "prompts", "planner", "--output", "mine")
    Path("mine/planner.txt").write_text("{{ question }\n---\n")
    said_of_it = refused(capsys, "prompts", "--templates", "mine")
    assert "mine/planner.txt, line 1" in said_of_it


# What is refused


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path, command: str = "agent") -> str:
    """The one sentence of a command that must refuse."""
    capsys.readouterr()
    assert main([command, *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("flowward: ") and told.count("\n") == 1, told
    return told


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
        ("train --processes 40", "16 questions per iteration are too few for 40 processes"),
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


def written(*rows: dict[str, Any], name: str = "mine.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


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
