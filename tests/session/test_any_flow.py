"""Runs over samples that are no images: training, evaluation, reports, exports, and the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_flows import GOALS, SHAPE, Gaussian, near, net, policy
from tiny_runs import algorithm, few_steps
from torch import Tensor

import flowward
from flowward import policies, prompts, rewards
from flowward.cli import main
from flowward.rewards import differentiable
from flowward.system import distributed
from flowward.training.folder import RunFolder
from flowward.training.run import Run
from flowward.training.trainer import Trainer

FEW: dict[str, Any] = {"images_per_update": 8, "rollout_batch": 8, "microbatch": 8, "group_size": 4, "warmup": 0}
TESTS = Path(__file__).parents[1]


def fitted(one: Any, reward: Any = near, texts: Any = tuple(GOALS), **more: Any) -> Any:
    settings = {"iterations": 2, "evaluation": {"images": 8}, "progress": False, **FEW, **more}
    return flowward.fit(algorithm(), one, reward, [*texts], **settings)


def test_a_run_keeps_plots_in_the_place_of_pictures(tmp_path: Path) -> None:
    heard = []
    run = fitted(policy(), output=tmp_path / "run", hook=lambda step: heard.append(step.samples.medium.noun))
    config = (tmp_path / "run/config.yaml").read_text("utf-8")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert config.startswith("kind: samples\n") and heard[-1] == "samples"
    assert [line["samples"] for line in lines] == [0, 8, 16] and "images" not in lines[-1]
    assert lines[-1]["evaluation"]["sample_shape"] == [*SHAPE] and "image_size" not in lines[-1]["evaluation"]
    kept = json.loads((tmp_path / "run/samples/000002.json").read_text("utf-8"))
    assert {each["prompt"] for each in kept["samples"]} == {*GOALS} and len(kept["groups"][0]["samples"]) == 4
    assert (tmp_path / "run/samples/000002-best-worst.png").is_file()
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "<h2>Samples</h2>" in page and "Training samples of the same prompt" in page
    assert "makes a sample more likely" in page and "images" not in page.split("<main")[-1].split("config.yaml")[0]
    assert len(run.metrics) == 2


def test_samples_are_returned_as_tensors_and_as_plots() -> None:
    run = fitted(policy())
    found = run.sample(["goal 0", "goal 1"], count=3, tensor=True)
    assert found.shape == (6, *SHAPE)
    assert [each.size for each in run.sample("goal 0", count=2)] == [(240, 150)] * 2
    drawn = fitted(policy(draw=lambda sample, prompt: torch.zeros(3, 7, 3, dtype=torch.uint8).numpy()))
    assert [each.size for each in drawn.sample("goal 0", count=1)] == [(7, 3)]


def test_a_step_has_the_samples_that_were_scored() -> None:
    run, texts = Run(iterations=1, **FEW), prompts.of("goals", [*GOALS])
    (step,) = flowward.train(algorithm(), policy(), near, texts, run)
    assert step.images.shape == (8, *SHAPE)
    assert torch.allclose(step.rewards["near"], near(step.images, step.prompts))


def test_samples_of_four_axes_are_scored_whole() -> None:
    """They are no videos, whose frames would be scored one by one."""
    shapes = set()

    def size(samples: Tensor, texts: Sequence[str]) -> Tensor:
        shapes.add(tuple(samples.shape[1:]))
        return samples.square().mean((1, 2, 3, 4))

    one = policies.of(Gaussian(), (2, 3, 4, 5))
    assert fitted(one, size, ["a", "b"]).evaluate().mean["size"] > 0
    assert shapes == {(2, 3, 4, 5)}


@pytest.mark.parametrize("name", ["draft", "refl", "srpo", "adjoint_matching"])
def test_a_differentiated_reward_rises(name: str) -> None:
    """There is nothing to decode, so its gradient by a sample is that by what the reward gets."""
    one, texts = policy(), prompts.of("goals", [*GOALS])
    numbers = {**FEW, "images_per_update": 32, "microbatch": 32, "rollout_batch": 32, "learning_rate": 0.01}
    trainer = Trainer(few_steps(name), one, differentiable(near), texts, Run(**numbers))
    rises = [trainer.step().metrics["reward"] for _ in range(12)]
    assert sum(rises[-3:]) / 3 > sum(rises[:3]) / 3 + 0.3


def test_a_reward_of_verdicts_is_shown_in_percent() -> None:
    def done(samples: Tensor, texts: Sequence[str]) -> Tensor:
        return (samples.mean((1, 2)) > 0).float()

    done.verdicts = True  # type: ignore[attr-defined]
    run = fitted(policy(), evaluation={"images": 8, "rewards": [done]})
    assert ", done on given prompts was" in (said := run.evaluate(base=False).sentence) and "%" in said


def test_a_process_without_samples_has_an_empty_batch_of_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(algorithm(), policy(), near, prompts.of("goals", [*GOALS]), Run(iterations=1, **FEW))
    monkeypatch.setattr(distributed, "share", lambda numbers, unit=1: numbers[:0])
    monkeypatch.setattr("flowward.training.trainer.Rollout.of", lambda *given: given[0])
    _, samples = trainer.sample(["goal 0", "goal 1"], 0)
    assert samples.shape == (0, *SHAPE)
    assert (
        trainer.size.startswith("with samples of shape [6, 2], 8 samples sampled at once") and "vae" not in trainer.size
    )


def test_out_of_the_box_reward_errors_name_what_is_wrong() -> None:
    with pytest.raises(rewards.RewardError, match="reward 'jpeg-compressibility' raised"):
        fitted(policy(), "jpeg-compressibility")


@pytest.mark.parametrize("rank", [None, 2])
def test_exports_are_a_state_dict(rank: int | None, tmp_path: Path) -> None:
    run = fitted(policy(lora_rank=rank), learning_rate=0.01)
    (file,) = run.export(tmp_path / "out")
    fresh = net(seed=3)
    fresh.load_state_dict(load_file(file))
    again = policies.of(fresh, SHAPE, GOALS)
    x, t, condition = torch.ones(2, *SHAPE), torch.tensor([0.2, 0.9]), again.encode(["goal 1", "goal 2"])
    assert torch.allclose(again.velocity(x, t, condition), run.policy.velocity(x, t, condition), atol=1e-6)


CODE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from tiny_flows import near, policy
from flowward import load

def make(lora_rank=None):
    return policy(lora_rank=lora_rank)

def other(lora_rank=None):
    return policy(seed=1, lora_rank=lora_rank)

def full():
    return policy()

def plain():
    return 3

def near2(samples, prompts):
    return -near(samples, prompts)

def broken():
    raise OSError("no disk")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("flow.py").write_text(CODE)
    Path("goals.txt").write_text("\n".join(GOALS))
    return tmp_path


WORDS = ["--model", "flow.py:make", "--reward", "flow.py:near", "--prompts", "goals.txt", "--evaluation.images", "4"]
WORDS += ["--images-per-update", "8", "--rollout-batch", "8", "--microbatch", "16", "--group-size", "4"]
WORDS += ["--checkpoint-every", "1", "--warmup", "0", "--learning-rate", "0.01", "--schedule", "constant"]


def weights(run: str) -> dict[str, Tensor]:
    state = {key: value for key, value in load_file(sorted(Path(run, "checkpoints").iterdir())[-1]).items()}
    return {key: value for key, value in state.items() if key.startswith("weights.policy")}


@pytest.mark.parametrize("rank", ["none", "2"])
def test_the_command_line_trains_and_resumes_a_model_of_a_file(code: Path, rank: str, capsys: Any) -> None:
    more = ["--lora-rank", rank]
    assert main(["train", *WORDS, *more, "--iterations", "2", "--output", "whole"]) == 0
    assert main(["train", *WORDS, *more, "--iterations", "1", "--output", "parts"]) == 0
    assert main(["train", "--resume", "parts", "--iterations", "2"]) == 0
    one, other = weights("whole"), weights("parts")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert main(["sample", "whole", "goal 1", "--count", "2", "--output", "drawn.png"]) == 0
    assert "2 samples of whole (policy, iteration 2): drawn.png" in capsys.readouterr().out
    assert main(["export", "whole"]) == 0
    assert (code / "whole/export/module.safetensors").is_file()
    assert main(["train", "--resume", "whole", "--model", "flow.py:other", "--iterations", "3"]) == 2
    assert "this checkpoint belongs to another model (different base" in capsys.readouterr().err


def test_presets_of_the_built_in_world_do_not_watch_other_models(code: Path, capsys: Any) -> None:
    """Guards of the built-in world; and the evaluation has the column of the prompts of training."""
    Path("near.py").write_text(CODE + "\nfrom flowward.rewards import differentiable\nnear = differentiable(near)\n")
    Path("goals.csv").write_text("goal\n" + "\n".join(GOALS))
    words = ["--prompts", "goals.csv", "--prompt-column", "goal", "--algorithm", "draft", "--reward", "near.py:near"]
    assert main(["train", *WORDS, *words, "--iterations", "1", "--output", "run"]) == 0
    config = RunFolder.open(Path("run")).config()
    assert config["evaluation"]["guard"] == [] and config["evaluation"]["prompt_column"] == "goal"
    assert main(["export", "run", "--output", "out"]) == main(["export", "run", "--output", "out", "--overwrite"]) == 0


def test_experts_of_a_module_are_merged(code: Path, capsys: Any) -> None:
    """On-policy distillation from a run of the same module; one of another module is refused."""
    Path("goals.jsonl").write_text("".join(json.dumps({"prompt": goal, "category": "all"}) + "\n" for goal in GOALS))
    for make, name in (("make", "expert"), ("other", "stranger")):
        assert main(["train", *WORDS, "--model", f"flow.py:{make}", "--iterations", "1", "--output", name]) == 0
    words = ["--algorithm", "opd", "--updates-per-iteration", "1", "--prompts", "goals.jsonl", "--iterations", "1"]
    words += ["--microbatch", "10"]
    assert main(["train", *WORDS, *words, "--teachers", "all=expert", "--output", "merged"]) == 0
    assert main(["train", *WORDS, *words, "--teachers", "all=stranger", "--output", "never"]) == 2
    assert "was trained from another base model" in capsys.readouterr().err


def test_a_model_of_a_file_gets_a_sentence_where_it_is_wrong(code: Path, capsys: Any) -> None:
    def said(*words: str) -> str:
        assert main(["train", *WORDS, "--output", "never", *words]) == 2
        return str(capsys.readouterr().err)

    assert "flow.py:plain must return a policy" in said("--model", "flow.py:plain").replace(f"{code}/", "")
    assert "cannot make a model: OSError: no disk" in said("--model", "flow.py:broken")
    assert "has no function 'missing'" in said("--model", "flow.py:missing")
    assert "trains all weights, not of rank 2: give it an argument" in said(
        "--model", "flow.py:full", "--lora-rank", "2"
    )
    assert "does not support size; leave out" in said("--size", "64", "64")
    palette = ("--reward", "flow.py:near", "flow.py:near2", "--mix", "advantages", "--palette", "--lora-rank", "2")
    assert "does not support palette; leave out" in said(*palette)
    assert "runs in float32, not bf16" in said("--precision", "bf16")
    with pytest.raises(ValueError, match="name a --reward"):
        from flowward.commands.train import chosen

        chosen(["--model", "flow.py:make"])
