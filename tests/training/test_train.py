"""Training as a library: the loop over `flowward.train`, what it leaves in its folder, and what it says."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TEXTS, algorithm, bright, close, same, small, trainer
from torch import Tensor

import flowward
from flowward import models, prompts, rewards
from flowward.algorithms import AdvantageFlow
from flowward.cli import main
from flowward.commands.train import chosen
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.learning.points import Renoise
from flowward.pages import report
from flowward.process.rollout import Sampler
from flowward.prompts import PromptSet
from flowward.rewards.images.scenes import Soft
from flowward.training import config
from flowward.training.folder import RunFolder
from flowward.training.trainer import Trainer


class Brightness:
    """It takes no prompts."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, images: Tensor) -> Tensor:
        return self.factor * images.mean((1, 2, 3))


@pytest.mark.processor
def test_a_loop_over_train(tiny: str, tmp_path: Path) -> None:
    policy = flowward.load(tiny, lora_rank=2, precision="float32")
    texts = flowward.prompts.of("mine", TEXTS)
    run = small(output=tmp_path / "run")
    seen = []
    for step in flowward.train(algorithm(), policy, bright, texts, run):
        seen.append((step.index, step.metrics["reward"]))
    assert [index for index, _ in seen] == [1, 2, 3]
    folder = RunFolder.open(run.output)
    assert [line["reward"] for line in folder.lines()] == [reward for _, reward in seen]
    assert folder.lines()[-1]["images"] == 24
    assert [path.stem for path in folder.checkpoints()] == ["000003"]
    with pytest.raises(ValueError, match="already contains a run"):
        next(flowward.train(algorithm(), policy, bright, texts, run))
    # the same policy can be trained on, and a run without a folder keeps nothing
    assert [step.index for step in flowward.train(algorithm(), policy, bright, texts, small(iterations=1))] == [1]
    assert list(tmp_path.iterdir()) == [run.output]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": AdvantageFlow}, "such as AdvantageFlow.gamma=1.1., not the name or the class AdvantageFlow"),
        ({"algorithm": "awm"}, "not the name or the class awm"),
        ({"algorithm": Sampler()}, "Sampler is not an algorithm: it has no behaviour, rollout, copies, "),
        ({"reward": "scenes"}, r"load it with flowward.rewards.load\('scenes'\)"),
        ({"reward": Brightness}, r"reward Brightness is a class; make an instance, Brightness\(...\)"),
        ({"reward": Brightness(1.0)}, r"reward 'Brightness' must accept .* its signature is \(images: "),
        ({"reward": 3}, "int is not a reward; a reward is called with"),
        ({"reward": rewards.load("scenes-soft")}, "'any text' is not a prompt of the scenes world"),
        (
            {"prompts": "scenes"},
            r"prompts must be a PromptSet from flowward.prompts.load\(.*\) .* not 'scenes'",
        ),
        ({"prompts": list(TEXTS)}, r"flowward.prompts.of\(name, texts\), not \['a circle'"),
    ],
)
def test_what_is_none_of_the_parts_is_refused_in_a_sentence(
    tiny: str, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    texts = prompts.of("mine", ["any text"]) if isinstance(changed.get("reward"), Soft) else prompts.of("mine", TEXTS)
    parts = {
        "algorithm": algorithm(),
        "policy": models.load(tiny, precision="float32"),
        "reward": bright,
        "prompts": texts,
        **changed,
    }
    if "any text" in texts.texts:
        parts["policy"].refuse = lambda given: None
    with pytest.raises(ValueError, match=said):
        next(flowward.train(**parts, run=small(output=tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_prompts_and_rewards_of_an_evaluation_are_asked_before_the_run(tiny: str, tmp_path: Path) -> None:
    policy, texts = models.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    run, how = small(output=tmp_path / "run"), Evaluation(rewards=("balance",), images=5)
    for held_out, scored, said in (
        (prompts.of("strange", ["hello"]), {}, "does not know the word 'hello'"),
        (texts, {"mine": Brightness}, "is a class"),
        ("scenes-held-out", {}, "prompts must be a PromptSet"),
    ):
        evaluator = Evaluator(policy, how, held_out, rewards=scored)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said):
            next(flowward.train(algorithm(), policy, bright, texts, run, evaluator))
    assert not run.output.exists()


def test_a_run_writes_down_what_it_is_measured_with(tiny: str, tmp_path: Path) -> None:
    policy, texts = models.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    evaluator = Evaluator(policy, Evaluation(images=5, sampler=Sampler(2)), texts, 5, {"bright": bright})
    run = small(output=str(tmp_path / "run"), iterations=0)  # a text is a path, too
    list(flowward.train(algorithm(), policy, bright, texts, run, evaluator))
    written = RunFolder.open(tmp_path / "run").config()["evaluation"]
    assert (written["prompts"], written["rewards"], written["guard"]) == ("mine", ["bright"], [])


@pytest.mark.processor
def test_a_run_from_python_is_loaded_again_and_told_as_finished(tiny: str, tmp_path: Path) -> None:
    policy, run = models.load(tiny, precision="float32"), small(output=tmp_path / "run")
    list(flowward.train(algorithm(), policy, bright, prompts.of("mine", TEXTS), run))
    found = flowward.trained.load(run.output)
    assert close(found.weights.tensors("policy"), policy.weights.tensors("policy")) is None
    page = report.write(run.output).read_text("utf-8")
    assert "Finished after 3 iterations." in page and "Not finished" not in page
    assert "cannot store its own reward and prompts" in page and "flowward train --config" not in page


def test_with_an_evaluator_the_base_model_comes_first(tiny: str, tmp_path: Path) -> None:
    policy, texts = flowward.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    how = Evaluation(rewards=("balance",), images=5, sampler=Sampler(2))
    run = small(output=tmp_path / "run", iterations=2, evaluate_every=0)
    steps = list(flowward.train(algorithm(), policy, bright, texts, run, Evaluator(policy, how, texts, pictures=5)))
    assert [step.index for step in steps] == [0, 1, 2]
    assert [step.evaluation is not None for step in steps] == [True, False, True]
    assert steps[0].evaluation["scores"]["balance"]["overall"]["n"] == 5
    names = [f"{index:06d}{end}" for index in (0, 2) for end in ("-scores.json", ".json", ".png")]
    assert {path.name for path in (run.output / "samples").iterdir()} == {*names, "000002-best-worst.png"}


@pytest.mark.processor
def test_the_example_of_a_bare_loop(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    code = (Path(__file__).parents[2] / "examples" / "bare_loop.py").read_text("utf-8")
    assert code.count("range(30)") == 1
    loop = ast.parse(code).body[-1]
    assert isinstance(loop, ast.For) and len(loop.body) == 10  # as README says
    exec(code.replace("range(30)", "range(2)"), {})
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["0", "reward"], ["1", "reward"]]


@pytest.mark.processor
def test_the_example_of_an_own_algorithm(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(examples)
    assert main(["verify", "--algorithm", "own_algorithm:Mine"]) == 0
    assert "all hold" in capsys.readouterr().out
    code = (examples / "own_algorithm.py").read_text("utf-8")
    assert code.count("iterations=20") == 1
    exec(code.replace("iterations=20", "iterations=1"), {"__name__": "__main__"})
    assert capsys.readouterr().out.split()[:2] == ["1", "reward"]


@pytest.mark.processor
def test_the_example_of_an_own_reward(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    code = (Path(__file__).parents[2] / "examples" / "own_reward.py").read_text("utf-8")
    assert code.count("iterations=10") == 1
    exec(code.replace("iterations=10", "iterations=1"), {"__name__": "__main__"})
    assert capsys.readouterr().out.split()[:2] == ["1", "reward"]


def test_leaving_the_loop_early_saves(tiny: str, tmp_path: Path) -> None:
    run = small(output=tmp_path / "run", iterations=9, checkpoint_every=9)
    for step in flowward.train(
        algorithm(), flowward.load(tiny, precision="float32"), bright, PromptSet("x", TEXTS, ("all",) * 5), run
    ):
        if step.index == 2:
            break
    assert [path.stem for path in RunFolder.open(run.output).checkpoints()] == ["000002"]


@dataclass(frozen=True)
class Mine(AdvantageFlow):
    """An algorithm that the program does not know."""


def started_from_python(tiny: str, where: Path, rank: int | None, how: AdvantageFlow) -> Path:
    """A folder as `flowward.train` leaves it, with a reward that is code."""
    one = trainer(tiny, how, rank, iterations=1, output=where)
    described = config.of_python(how, one.policy, bright, one.prompts, one.run)
    list(one.steps(None, RunFolder.create(where, described)))
    return where


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("how", [algorithm(), Mine(), algorithm(points=lambda *given: Renoise(1)(*given))])
def test_the_program_reads_runs_from_python(
    tiny: str, tmp_path: Path, rank: int | None, how: AdvantageFlow, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started_from_python(tiny, tmp_path / "run", rank, how)
    image = str(tmp_path / "x.png")
    assert main(["sample", str(run), "a circle", "--steps", "1", "--output", image]) == 0
    assert main(["eval", str(run), "--images", "6", "--steps", "1"]) == 0
    resume = ["train", "--resume", str(run), "--iterations", "2", "--evaluation.images", "6"]
    capsys.readouterr()
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert "this run was started from Python, with a reward of its own: name one with --reward" in said
    code = main([*resume, "--reward", "balance", "--prompts", "scenes"])
    if how != algorithm():
        assert code == 2 and "start a run with your own algorithm from Python" in capsys.readouterr().err
        return
    assert code == 0
    assert RunFolder.open(run).lines()[-1]["iteration"] == 2
    assert RunFolder.open(run).config()["reward"] == ["balance"]


@pytest.mark.processor
@pytest.mark.parametrize(
    ("spec", "written"),
    [(["scenes"], ["scenes"]), (["balance=0.5", "scenes-soft"], ["balance=0.5", "scenes-soft"])],
)
def test_what_is_built_in_is_written_down(tiny: str, spec: list[str], written: list[str]) -> None:
    policy, how = flowward.load(tiny, lora_rank=4), Evaluation(images=7)
    texts, reward = prompts.load("scenes-held-out"), flowward.rewards.load(spec)
    found = config.of_python(AdvantageFlow(gamma=1.3), policy, reward, texts, small(), how)
    assert (found["reward"], found["prompts"]) == (written, "scenes-held-out")
    settings = config.from_dict(found)
    assert settings.algorithm == AdvantageFlow(gamma=1.3) and settings.run == small() and settings.evaluation == how
    assert (settings.model, settings.lora_rank, settings.precision) == (tiny, 4, policy.precision)
    often = config.of_python(AdvantageFlow(), policy, reward, texts.weighted(["position=2"]), small())
    assert (often["prompts"], often["prompt_weights"]) == ("scenes-held-out", ["position=2"])
    impostor = prompts.of("scenes", TEXTS)
    assert config.of_python(AdvantageFlow(), policy, bright, impostor, small())["prompts"] is None


def test_only_the_last_two_checkpoints_are_kept(tiny: str, tmp_path: Path) -> None:
    run = small(output=tmp_path / "run", iterations=4, checkpoint_every=1)
    list(flowward.train(algorithm(), flowward.load(tiny, precision="float32"), bright, prompts.of("x", TEXTS), run))
    assert [path.stem for path in RunFolder.open(run.output).checkpoints()] == ["000003", "000004"]


def test_health_speaks_in_the_loop(tiny: str) -> None:
    said = trainer(tiny, algorithm(gamma=1.01, lam=0.0)).step().health
    assert any("the loss is almost flat at some training points (curvature 0.01)" in line for line in said), said
    assert any("all images got the same reward, 0.3" in line for line in trainer(tiny, reward=same).step().health)
    with_few = Trainer(algorithm(), models.load(tiny, precision="float32"), bright, prompts.of("x", TEXTS[:1]), small())
    assert any("1 prompt occurred more than once" in line for line in with_few.step().health)


@pytest.mark.processor
def test_a_run_says_where_it_measures_other_images_than_it_draws(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", tiny, "--iterations", "0", "--evaluation.images", "6", "--algorithm.rollout.guidance", "2"]
    said = "training uses guidance 2, but the evaluation uses 1: use --evaluation.sampler.guidance 2 to"
    for name, more in (("alike", []), ("apart", ["--evaluation.sampler.guidance", "1"])):
        assert main(["train", *how, *more, "--output", str(tmp_path / name)]) == 0
        assert (said in capsys.readouterr().out) == (name == "apart")
    (warning,) = RunFolder.open(tmp_path / "apart").lines()[0]["health"]
    assert warning.startswith(said)


def test_a_recipe_that_names_no_guidance_measures_as_images_are_drawn(tiny: str, tmp_path: Path) -> None:
    """Also where a flag changes the rollout's; a config.yaml says all, and keeps what it says."""
    recipe = tmp_path / "recipe.yaml"
    flags = ["--algorithm.rollout.guidance", "2"]
    for said, found in (("{images: 6}", 2), ("{images: 6, sampler: {guidance: 7}}", 7)):
        recipe.write_text(f"model: {tiny}\nalgorithm: {{name: advantageflow}}\nevaluation: {said}\n")
        settings, _ = chosen(["--config", str(recipe), *flags])
        assert settings.evaluation.sampler.guidance == found


@pytest.mark.parametrize("address", ["http://host:1/?reward=mine", "http://host:1"])
def test_a_real_model_is_measured_by_its_reward_without_the_weight(address: str) -> None:
    """The = of an address is none of a weight."""
    settings, _ = chosen(["--model", "owner/name", "--reward", address, "hpsv2=0.5"])
    assert settings.evaluation.rewards == (address, "hpsv2")
