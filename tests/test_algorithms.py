"""One table of rules that every algorithm keeps. A new one is held to all of them by its row in `ALGORITHMS`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import ALGORITHMS
from flowward.flow import Uniform
from flowward.models.policy import Condition, Models, Velocity
from flowward.points import Renoise, Renoised
from flowward.rollout import Rollout
from flowward.streams import normal

# The vetted settings. They were chosen by measurement: whoever changes one owes docs/benchmarks.md new figures.
DEFAULTS: dict[str, dict[str, Any]] = {
    "advantageflow": {"gamma": "1-A", "lam": 1e-3, "credit.clip": 1.0, "old.retention": 0.9},
}

PROMPTS, SAMPLES, SHAPE = 3, 12, (2, 3)
ORDER = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
GROUP = ORDER % PROMPTS  # of each sample: four per prompt, mixed

algorithms = pytest.mark.parametrize("name", ALGORITHMS)


def linear(theta: Tensor) -> Velocity:
    """v = theta x + t + (number of the prompt)."""
    return lambda x, t, condition: theta * x + (t + condition.tensors["id"]).view(-1, 1, 1)


def rollout(algorithm: Any, reward: Tensor | None = None) -> Rollout:
    """Samples of three prompts, with random rewards unless told."""
    x0 = normal(SHAPE, (("sample", i) for i in range(SAMPLES)))
    reward = normal((), (("reward", i) for i in range(SAMPLES))) if reward is None else reward
    condition = Condition({"id": torch.arange(float(PROMPTS))})
    return Rollout(x0, condition, GROUP, reward, algorithm.credit(reward, GROUP))


def training_points(algorithm: Any, done: Rollout, per_image: int = 3) -> Renoised:
    return replace(algorithm.points, per_image=per_image)(done, ("points", 0, 5))


def gradient(algorithm: Any, done: Rollout, theta: float, old: float, reference: float) -> tuple[Tensor, Tensor]:
    """The loss of each point [B], and its gradient with respect to theta."""
    weight = torch.tensor(theta, requires_grad=True)
    models = Models(linear(weight), linear(torch.tensor(old)), linear(torch.tensor(reference)))
    points = training_points(algorithm, done)
    loss, metrics = algorithm.loss(models, points.take(torch.arange(len(points))))
    assert loss.shape == (len(points),)
    assert all(metric.shape == (len(points),) and metric.isfinite().all() for metric in metrics.values())
    assert not any(metric.requires_grad for metric in metrics.values())
    return loss.detach(), torch.autograd.grad(loss.sum(), weight)[0]


@algorithms
def test_loss_is_finite_and_reaches_the_policy(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    for old in (0.5, 0.4):  # on policy, and away from it
        loss, slope = gradient(algorithm, rollout(algorithm), 0.5, old, 0.5)
        assert loss.isfinite().all()
        assert slope.isfinite()
        assert slope != 0


@algorithms
def test_a_step_down_the_loss_favours_better_samples(name: str) -> None:
    """On policy, towards the one good sample of each prompt and away from the others."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, (ORDER < PROMPTS).float())
    points = training_points(algorithm, done, 50)
    batch = points.take(torch.arange(len(points)))
    v = batch.eps.clone().requires_grad_()  # one free number per element

    def given(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return v

    fixed = v.detach().clone()
    loss, _ = algorithm.loss(Models(given, lambda *_: fixed, lambda *_: fixed), batch)
    step = -torch.autograd.grad(loss.sum(), v)[0]
    towards = (step * (batch.eps - batch.x0 - fixed)).flatten(1).sum(1)
    assert (towards[batch.advantage > 0] >= 0).all()
    assert (towards[batch.advantage < 0] <= 0).all()
    assert towards[batch.advantage > 0].sum() > 0 > towards[batch.advantage < 0].sum()


@algorithms
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e6])
def test_equal_rewards_give_no_update(name: str, value: float) -> None:
    """Nothing to learn: advantages are exactly 0, and with old = policy = reference so is the gradient."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, torch.full((SAMPLES,), value))
    assert (done.advantage == 0).all()
    assert gradient(algorithm, done, 0.5, 0.5, 0.5)[1] == 0


@algorithms
def test_solved_and_hopeless_prompts_give_no_update(name: str) -> None:
    """Prompts differ in reward, samples of one prompt do not."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, torch.tensor([0.0, 1.0, 0.3])[GROUP])
    assert gradient(algorithm, done, 0.5, 0.5, 0.5)[1] == 0


@algorithms
def test_loss_of_a_point_does_not_depend_on_its_neighbours(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    points = training_points(algorithm, rollout(algorithm))
    models = Models(*(linear(torch.tensor(theta)) for theta in (0.5, 0.4, 0.3)))
    whole, _ = algorithm.loss(models, points.take(torch.arange(len(points))))
    numbers = torch.tensor([30, 2, 17])
    torch.testing.assert_close(algorithm.loss(models, points.take(numbers))[0], whole[numbers])


@algorithms
@pytest.mark.parametrize("size", [1, 5, 12])
def test_minibatches_of_images_use_every_point_once(name: str, size: int) -> None:
    """However the images are split, and whatever their order."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm)
    points = training_points(algorithm, done)
    order = torch.randperm(len(done), generator=torch.Generator().manual_seed(0))
    numbers = [points.of_images(images) for images in order.split(size)]
    assert torch.cat(numbers).sort().values.tolist() == list(range(3 * len(done)))
    for images, part in zip(order.split(size), numbers, strict=True):
        assert torch.equal(points.take(part).x0, done.x0[images].repeat_interleave(3, 0))


@algorithms
def test_a_point_is_the_same_in_whichever_minibatch(name: str) -> None:
    """Time, noise, sample, advantage and prompt belong to its number."""
    algorithm = ALGORITHMS[name]()
    points = training_points(algorithm, rollout(algorithm))
    whole = points.take(torch.arange(len(points)))
    again = training_points(algorithm, rollout(algorithm))
    for numbers in (torch.tensor([7]), torch.tensor([35, 0, 7]), torch.arange(len(points)).flip(0)):
        part = again.take(numbers)
        for field in ("x0", "eps", "t", "advantage", "x_t"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[numbers]), field
        assert torch.equal(part.condition.tensors["id"], whole.condition.tensors["id"][numbers])


@algorithms
def test_points_carry_what_belongs_to_their_image(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm)
    points = training_points(algorithm, done)
    batch, image = points.take(torch.arange(len(points))), torch.arange(len(points)) // 3
    assert torch.equal(batch.x0, done.x0[image])
    assert torch.equal(batch.advantage, done.advantage[image].float())
    assert torch.equal(batch.condition.tensors["id"], done.group[image].float())


@algorithms
def test_points_are_fresh(name: str) -> None:
    """No two points share their time or noise, nor do two updates."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm)
    one, two = (Renoise(3)(done, ("points", 0, update)).take(torch.arange(36)) for update in (5, 6))
    assert len(torch.cat([one.t, two.t]).unique()) == 72
    assert len(torch.cat([one.eps, two.eps]).unique()) == 72 * 6


def test_times_and_noise_of_points_follow_their_laws() -> None:
    """Times are as the time law says, noise is standard normal, and neither tells anything about the other."""
    done = rollout(ALGORITHMS["advantageflow"]())
    batch = Renoise(250, Uniform(0.5, 0.9))(done, ("points", 1)).take(torch.arange(3000))
    assert batch.t.min() >= 0.5
    assert batch.t.max() <= 0.9
    assert batch.t.mean().item() == pytest.approx(0.7, abs=0.01)
    assert batch.eps.mean().item() == pytest.approx(0, abs=0.03)
    assert batch.eps.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(torch.stack([batch.t, batch.eps[:, 0, 0]]))[0, 1].abs() < 0.06


def test_noise_of_a_sample_does_not_depend_on_the_batch() -> None:
    keys = [("noise", 0, prompt, sample) for prompt in range(3) for sample in range(4)]
    whole = normal(SHAPE, keys)
    assert torch.equal(normal(SHAPE, keys[::-1]), whole.flip(0))
    assert torch.equal(normal(SHAPE, keys[5:6]), whole[5:6])
    assert len(whole.unique()) == whole.numel()


def test_an_image_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least 1 training point"):
        Renoise(per_image=0)


@algorithms
def test_an_algorithm_is_a_frozen_value(name: str) -> None:
    """It cannot be changed, parts included; two made alike are equal."""
    algorithm = ALGORITHMS[name]()
    assert is_dataclass(algorithm)
    assert algorithm == ALGORITHMS[name]()
    for field in fields(algorithm):
        value = getattr(algorithm, field.name)
        with pytest.raises(FrozenInstanceError):
            setattr(algorithm, field.name, value)
        for part in fields(value) if is_dataclass(value) else ():
            with pytest.raises(FrozenInstanceError):
                setattr(value, part.name, getattr(value, part.name))


@algorithms
def test_defaults_are_the_vetted_setting(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    assert {path: attrgetter(path)(algorithm) for path in DEFAULTS[name]} == DEFAULTS[name]


@algorithms
def test_the_copy_that_is_sampled_is_kept(name: str) -> None:
    """An algorithm whose samples come from `old` says how `old` follows the policy."""
    algorithm = ALGORITHMS[name]()
    assert algorithm.behaviour == "policy" or algorithm.behaviour in algorithm.copies
