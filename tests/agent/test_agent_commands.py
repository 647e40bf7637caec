"""The commands of `flowward agent`, from the words on the command line to the files that they leave."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commanded_agents import BUDGET, refused, said, train
from processes import forked
from resumed_runs import assert_same, metrics, state

from flowward.agent import trained
from flowward.agent.language import Language
from flowward.cli import main
from flowward.pages import report
from flowward.training import log
from flowward.training.folder import RunFolder

QUESTION = "what is the height of arlo plus the age of brim"


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
    with forked():
        train(*BUDGET, "--iterations", "2", "--processes", "2", "--output", run)
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
        "greedy success" in out and "ended: stopped" in out and "8 episodes on world-held-out" in " ".join(out.split())
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
