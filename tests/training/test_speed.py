"""Figures of speed and of samples: counted as another way of counting says, absent where they are unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from resumed_runs import BUDGET, train
from tiny_runs import TEXTS, bright, few_steps, fitting, same, small, taught, trainer

from flowward import ALGORITHMS, models, prompts
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.process.rollout import Pairs, Sampler
from flowward.process.splits import Splits
from flowward.system import tables
from flowward.training import speed
from flowward.training.bench import Recorder
from flowward.training.folder import RunFolder
from flowward.training.metrics import Step, extremes, histogram
from flowward.training.trainer import Trainer


@pytest.mark.parametrize("name", ALGORITHMS)
def test_network_evaluations_are_those_that_a_recorder_sees(name: str, tiny: str) -> None:
    algorithm = few_steps(name)
    policy = models.load(fitting(tiny, algorithm), None, "float32")
    micro = 7 if isinstance(algorithm.rollout, Splits) else 8  # its points are the nodes of trees
    run = small(group_size=2 if isinstance(algorithm.rollout, Pairs) else 4, microbatch=micro)
    texts = prompts.of("mine", TEXTS)
    one = Trainer(algorithm, policy, bright, texts, run, teachers=taught(algorithm, policy, texts))
    recorder = Recorder(policy)
    step = one.step()
    recorder.restore()
    calls = [call for call in recorder.calls if "decode" not in call.what]
    assert step.metrics["network_evaluations"] == sum(call.batch for call in calls) > 0
    assert policy.trained == sum(call.batch for call in calls if call.what == "forward+backward")


def test_guidance_counts_twice(tiny: str) -> None:
    policy = models.load(tiny, None, "float32")
    x, t, condition = torch.zeros(3, *policy.latent_shape), torch.full((3,), 0.5), policy.encode(TEXTS[:3])
    for guidance, expected in ((1.0, 3), (4.0, 9)):
        with torch.no_grad():
            policy.under("policy", guidance)(x, t, condition)
        assert (policy.evaluated, policy.trained) == (expected, 0)


@pytest.mark.parametrize("rank", [None, 2])
def test_mfu_is_counted_flops_over_the_peak(rank: int | None, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tiny, rank=rank)
    assert "mfu" not in one.step().speed  # the peak of a CPU is unknown
    monkeypatch.setattr(speed, "peak", lambda policy: 1e9)
    one.speedometer = speed.Speedometer(one.policy, TEXTS[0])
    before = {name: tensor.clone() for name, tensor in one.policy.weights.tensors("policy").items()}
    without, within = one.speedometer.flops
    ratio = within / without
    assert 2.5 < ratio < 3.1 if rank is None else 1.5 < ratio < 2.6  # a frozen layer needs no gradient of its weights
    after = one.policy.weights.tensors("policy")
    assert all(tensor.grad is None and torch.equal(tensor, before[name]) for name, tensor in after.items())
    found = one.speedometer.figures(8, {"all": 30.0, "trained": 10.0}, 2.0)
    assert found["mfu"] == pytest.approx((20 * without + 10 * within) / 2e9)
    assert (found["images_per_second"], found["evaluations_per_second"]) == (4.0, 15.0)


def test_flops_are_those_of_the_matrix_products(tiny: str) -> None:
    """At least two per weight of every linear layer, and per token."""
    policy = models.load(tiny, None, "float32")
    layers = [w for name, w in policy.weights.tensors("policy").items() if w.ndim == 2 and "transformer_blocks" in name]
    assert speed._flops(policy, TEXTS[0], False) > 2 * sum(w.numel() for w in layers)


def test_peaks_are_of_known_precisions() -> None:
    for name, known in tables.load(speed.PEAKS).items():
        assert set(known) == {"bf16", "float32"} and known["bf16"] > known["float32"] > 0, name


def test_the_histogram_counts_every_reward() -> None:
    reward = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for values in (reward, torch.full((7,), 0.3)):
        found = histogram(values)
        assert sum(found["counts"]) == len(values) and len(found["edges"]) == len(found["counts"]) + 1
    edges = histogram(reward)["edges"]
    assert edges[0] == pytest.approx(reward.min().item()) and edges[-1] == pytest.approx(reward.max().item())


def test_extremes_are_own_samples() -> None:
    reward, own = torch.tensor([0.9, 0.1, 0.5, 0.2]), torch.tensor([False, False, True, True])
    assert extremes(reward, own) == (2, 3) and extremes(reward, torch.ones(4, dtype=torch.bool)) == (0, 1)


def test_the_pictures_are_the_brightest_and_the_darkest(tiny: str, tmp_path: Path) -> None:
    one = trainer(tiny, iterations=2, evaluate_every=2)
    seen: list[torch.Tensor] = []

    def reward(images: torch.Tensor, texts: Any, metadata: Any = None) -> torch.Tensor:
        seen.append(images)
        return bright(images, texts)

    one.reward = reward
    how, folder = Evaluation(images=2, sampler=Sampler(1)), RunFolder.create(tmp_path / "run", {})
    evaluator = Evaluator(one.policy, how, one.prompts, 2, {"same": same})
    *_, last = one.steps(evaluator, folder)
    assert one.shown and one.shown.iteration == 2
    order = seen[-1].mean((1, 2, 3)).argsort()
    assert torch.equal(one.shown.best_and_worst(), seen[-1][order[[-1, 0]]])
    line = folder.lines()[-1]
    assert line["best"]["reward"] >= line["reward"] >= line["worst"]["reward"] and line["best"]["prompt"] in TEXTS
    assert folder.pictures(2).keys() == {"samples", "best-worst"} and folder.pictures(1) == {}
    with Image.open(folder.pictures(2)["best-worst"]) as opened:
        assert opened.width > opened.height > 100
    assert Step.of(line).line(16) == {name: value for name, value in line.items() if name != "evaluation"}
    assert last.speed["images_per_second"] > 0
    folder.forget_after(1)
    assert folder.pictures(2) == {}


def test_the_rate_and_the_share_of_clipped_steps(tiny: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = ["--warmup", "4", "--updates-per-iteration", "2", "--images-per-update", "4", "--microbatch", "4"]
    train(
        *BUDGET,
        *how,
        "--precision",
        "float32",
        "--model",
        tiny,
        "--output",
        run,
        "--iterations",
        "2",
        "--gradient-clip",
        "1e-9",
    )
    train("--resume", run, "--iterations", "3", "--gradient-clip", "1e9")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    assert [line["learning_rate"] for line in lines] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert [line["clipped_steps"] for line in lines] == [1.0, 1.0, 0.0]
