"""Failures: what is undone and saved if an iteration fails, and which state a run can continue from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, bright, equal, snapshot, trainer
from torch import Tensor

from flowward import prompts
from flowward.algorithms import AdvantageFlow
from flowward.evaluation.evaluate import Evaluation, Evaluator, measure
from flowward.evaluation.measurement import Measurement
from flowward.learning.points import Points, Renoise
from flowward.process.policy import Models
from flowward.process.rollout import Sampler
from flowward.rewards import RewardError
from flowward.system import checkpoint
from flowward.system.packing import packed
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.trainer import Trainer

kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@kinds
def test_a_loss_that_is_not_finite_stops_before_the_weights(
    tiny: str, tmp_path: Path, rank: int | None, bad: float
) -> None:
    ended: list[int] = []

    class Bad(AdvantageFlow):
        def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().loss(models, points)
            return (loss * torch.tensor([1.0, bad, 1, 1, 1, 1, 1, 1]) if ended else loss), metrics

    one = trainer(tiny, Bad(rollout=Sampler(2), points=Renoise(1)), rank)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    ended.append(next(steps).index)
    before = {name: snapshot(one.policy, name) for name in ("policy", "old", "ema")}
    with pytest.raises(TrainingError, match="the gradient of iteration 2 is NaN or infinite"):
        next(steps)
    assert all(equal(snapshot(one.policy, name), tensors) for name, tensors in before.items())
    assert [line["iteration"] for line in folder.lines()] == [1]
    (saved,) = folder.checkpoints()
    state = checkpoint.load(saved)
    assert state["iteration"] == 1
    assert equal(state["weights"]["policy"], before["policy"])
    assert all(parameter.grad is None for parameter in one.parameters)


def test_one_gradient_that_is_not_finite_is_enough(tiny: str) -> None:
    one = trainer(tiny)
    one.step()
    before, moments = snapshot(one.policy), packed(one.optimiser.state_dict())[0]
    one.parameters[5].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"gradient .* NaN or infinite"):
        one.step()
    assert equal(snapshot(one.policy), before)
    assert packed(one.optimiser.state_dict())[0] == moments
    assert one.iteration == 1


@kinds
def test_an_iteration_that_fails_half_way_is_taken_back(
    tiny: str, tmp_path: Path, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two updates fails: the first is undone, and what came before is saved, to the last bit."""
    one = trainer(tiny, rank=rank, updates_per_iteration=2, iterations=4, checkpoint_every=25)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    for _ in range(3):
        next(steps)
    before, moments = snapshot(one.policy), packed(one.optimiser.state_dict())[0]
    updates, original = [], Trainer.update

    def update(self: Trainer, number: int) -> float:
        updates.append(number)
        if len(updates) == 2:
            raise TrainingError("no")
        return original(self, number)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(TrainingError):
        next(steps)
    assert updates == [6, 7]
    assert equal(snapshot(one.policy), before)
    assert packed(one.optimiser.state_dict())[0] == moments
    (saved,) = folder.checkpoints()
    assert saved.stem == "000003"
    assert equal(checkpoint.load(saved)["weights"]["policy"], before)


def test_weights_that_have_blown_up_are_not_saved(tiny: str, tmp_path: Path) -> None:
    """A reward need not notice: NaN compared with anything is false."""
    one = trainer(
        tiny, reward=lambda images, texts, metadata=None: (images.mean((1, 2, 3)) > 0.5).float(), iterations=9
    )
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    next(steps)
    with torch.no_grad():
        for tensor in one.policy.weights.tensors("old").values():
            tensor.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the samples of iteration 2 are NaN or infinite"):
        next(steps)
    assert folder.checkpoints() == []


def test_a_resumed_run_has_its_own_settings_of_the_optimiser(tiny: str) -> None:
    state = trainer(tiny, weight_decay=0.5).state_dict()
    one = trainer(tiny, weight_decay=0.1, betas=(0.8, 0.9))
    one.load_state_dict(state)
    assert one.optimiser.param_groups[0]["weight_decay"] == 0.1
    assert one.optimiser.param_groups[0]["betas"] == (0.8, 0.9)


def test_a_reward_that_fails_leaves_the_trainer_as_it_was(tiny: str) -> None:
    broken: list[bool] = []

    def reward(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return bright(images, texts) / (0 if broken else 1)

    one, whole = trainer(tiny, reward=reward), trainer(tiny)
    one.step()
    broken.append(True)
    with pytest.raises(RewardError, match="returned inf for 8 of 8 images, the first for the prompt"):
        one.step()
    broken.clear()
    whole.step()
    assert one.step().metrics == whole.step().metrics  # as if nothing had been


def test_a_measurement_that_fails_loses_no_iteration(tiny: str, tmp_path: Path) -> None:
    class Fails(Evaluator):
        def measure(self) -> Measurement:
            raise RewardError("no")

    one = trainer(tiny, evaluate_every=2)
    folder = RunFolder.create(tmp_path / "run", {})
    next(steps := one.steps(folder=folder))
    steps.close()
    with pytest.raises(RewardError):
        next(one.steps(Fails(one.policy, Evaluation(), one.prompts), folder))
    assert [line["iteration"] for line in folder.lines()] == [1, 2]
    assert [path.stem for path in folder.checkpoints()] == ["000001", "000002"]


@kinds
def test_another_model_s_state_is_refused(tiny: str, rank: int | None) -> None:
    one = trainer(tiny, rank=rank)
    state = one.state_dict()
    for other, said in (
        (state | {"identity": {**state["identity"], "weights": "lora-9"}}, r"another model \(different weights\)"),
        ({}, "another model"),
        (state | {"weights": {"policy": state["weights"]["policy"]}}, "no 'old' weights"),
    ):
        with pytest.raises(ValueError, match=said):
            one.load_state_dict(other)


def test_a_failure_amid_samples_leaves_the_weights_free(tiny: str) -> None:
    """Even while it is remembered with its frames, as notebooks do."""
    one = trainer(tiny, rank=2)
    condition = one.policy.encode([TEXTS[0]])
    expected = one.policy.velocity(torch.zeros(1, *one.policy.latent_shape), torch.ones(1), condition)

    def fails(images: torch.Tensor, *_: Any) -> torch.Tensor:
        raise ZeroDivisionError("no")

    held_out, how = prompts.of("x", TEXTS), Evaluation(images=2, weights="ema", sampler=Sampler(2), batch=1)
    with pytest.raises(RewardError) as first:
        measure(one.policy, held_out, how, rewards={"fails": fails})
    with pytest.raises(ZeroDivisionError) as second:
        one.sample([TEXTS[0], TEXTS[1]], 0, fails)  # type: ignore[arg-type]
    found = one.policy.velocity(torch.zeros(1, *one.policy.latent_shape), torch.ones(1), condition)
    assert torch.equal(found, expected) and found.requires_grad
    assert first.tb and second.tb
