"""One table of rules that every algorithm keeps. A new one is held to all of them by its row in `ALGORITHMS`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from tiny_runs import REWARDED, UNDIFFERENTIATED
from torch import Tensor

from flowward import ALGORITHMS
from flowward.learning.jumps import RenoiseJumps
from flowward.learning.moves import Moves, RandomSteps
from flowward.learning.points import PointSet, Renoise, RenoiseShared
from flowward.learning.states import States
from flowward.process.flow import over
from flowward.process.noise import Noise, normal
from flowward.process.policy import Condition, Models, Velocity, anchor_of
from flowward.process.rollout import Pairs, Rollout
from flowward.process.times import Times

# The vetted settings. They were chosen by measurement: whoever changes one owes docs/benchmarks.md new figures.
DEFAULTS: dict[str, dict[str, Any]] = {
    "advantageflow": {"gamma": "1-A", "lam": 1e-3, "credit.clip": 1.0, "old.retention": 0.95},
    "flowawr": {"form": "released", "k_ref": 1e-4, "credit.temperature": 1.0, "credit.clip": 3.0, "old.retention": 0.5},
    "diffusion_nft": {"beta": 1.0, "clip": 5.0, "mode": "all", "k_ref": 1e-4, "old.retention": 0.5},
    "awm": {"weighting": "ghuber", "power": 0.25, "k_old": 1.0, "k_ref": 1e-3, "clip": 1.0, "rollout.solver": "sa"},
    "fdfo": {"clip": 0.03, "k_ref": 0.0},
    "dgpo": {"beta": 100.0, "clip": 0.01, "k_ref": 0.02},
    "crd": {"beta": 1.0, "k_ref": 0.1, "behaviour": "sampling"},
    "dpo": {"beta": 100.0, "old.every": 40},
    "ram": {"m": 100.0, "residual": "policy", "points.times.law": "power", "old.retention": 0.9},
    "rvm": {"gain": 0.1, "advantage_clip": 5.0, "beta": 0.0},
    "vgrpo": {"clip": 6e-3, "beta": 0.0, "scale": "own", "soft_clip": None, "points.draws": 4},
    "meanflow_advantage": {
        "gamma": 1.1,
        "lam": 1e-3,
        "rollout.solver": "jump",
        "rollout.steps": 4,
        "points.times.same": 0.5,
        "points.times.data": 0.25,
        "old.retention": 0.5,
    },
    "ddpo": {"clip": 1e-4, "beta": 0.0, "rollout.steps": 50, "rollout.law": "ddim", "rollout.noise": 1.0},
    "flow_grpo": {"clip": 1e-4, "beta": 0.04, "divergence": "per-noise", "rollout.steps": 10, "rollout.noise": 0.7},
    "flow_grpo_fast": {"clip": 1e-5, "ratio": "cps", "rollout.law": "cps", "rollout.noise": 0.8},
    "dance_grpo": {"clip": 1e-4, "rollout.law": "dance-sde", "rollout.noise": 0.3, "rollout.share": 0.6},
    "mix_grpo": {"clip": 1e-4, "rollout.steps": 25, "rollout.window.size": 4, "rollout.window.every": 25},
    "mix_grpo_flash": {"clip": 1e-4, "rollout.steps": 25, "rollout.window.every": 20, "rollout.tail": 0.4},
    "tempflow_grpo": {
        "clip": 1e-4,
        "beta": 0.004,
        "divergence": "exact",
        "rollout.fanout": 6,
        "points.weight": "noise",
    },
    "g2rpo": {
        "clip": 1e-4,
        "rollout.high": 8,
        "rollout.fanout": 12,
        "rollout.strides": (1, 2, 3),
        "points.views": "sum",
    },
    "grpo_guard": {"clip": 2e-6, "ratio": "guard", "points.weight": "per-time", "rollout.noise": 0.7},
    "opd": {
        "beta": 0.0,
        "teacher_guidance": 1.0,
        "points.where": "visited",
        "points.per_image": 5,
        "rollout.noise": 0.0,
    },
    "flow_dppo": {"clip": None, "trust": 0.655, "outward": "ratio", "rollout.window.size": 3, "rollout.noise": 0.7},
    "flash_grpo": {
        "clip": 1e-3,
        "points.weight": "pull",
        "rollout.window.order": "per-prompt",
        "rollout.window.size": 1,
    },
    "turningpoint_grpo": {"clip": 1e-5, "ratio": "cps", "points.rewards": "trend", "rollout.noise": 0.7},
    "branch_grpo": {
        "clip": 1e-3,
        "points.views": "restandardised",
        "rollout.splits": (0, 3, 6, 9),
        "rollout.fanout": 2,
    },
}

PROMPTS, SHAPE = 3, (2, 8)
FORWARD = [name for name in UNDIFFERENTIATED if not isinstance(ALGORITHMS[name]().points, RandomSteps | States)]
rewarded = pytest.mark.parametrize("name", REWARDED)
algorithms = pytest.mark.parametrize("name", UNDIFFERENTIATED)  # the others: test_differentiated.py


def group_size(name: str) -> int:
    """Four samples, two where they are compared in pairs, or what comes of two roots."""
    draw = ALGORITHMS[name]().rollout
    return 2 if isinstance(draw, Pairs) else max(4, 2 * draw.leaves)


def groups(name: str) -> Tensor:
    """Prompt of each sample, mixed; those that come of one root of a tree stay together."""
    draw = ALGORITHMS[name]().rollout
    together = 1 if isinstance(draw, Pairs) else draw.leaves
    order = torch.randperm(PROMPTS * group_size(name) // together, generator=torch.Generator().manual_seed(0))
    return (order % PROMPTS).repeat_interleave(together)


def linear(theta: Tensor) -> Velocity:
    """v = theta x + t + (number of the prompt)."""
    return lambda x, t, condition: theta * x + (t + condition.tensors["id"]).view(-1, 1, 1)


def rollout(name: str, reward: Tensor | None = None) -> Rollout:
    """Samples of three prompts as the algorithm draws them, with random rewards unless told."""
    algorithm, group = ALGORITHMS[name](), groups(name)
    count = len(group)
    condition = Condition({"id": torch.arange(float(PROMPTS))})
    noise = Noise(SHAPE, tuple(("sample", g, k) for k, g in enumerate(group.tolist())))
    drawn = algorithm.rollout.at(0, 0)(linear(torch.tensor(0.5)), condition[group], noise)
    drawn = replace(drawn, x0=normal(SHAPE, (("end", i) for i in range(count))))
    reward = normal((), (("reward", i) for i in range(count))) if reward is None else reward
    done = Rollout.of([drawn], condition, group, algorithm.rollout.levels)
    return replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))


def training_points(name: str, done: Rollout) -> PointSet:
    return ALGORITHMS[name]().points(done, ("points", 0, 5))


def whole(points: PointSet) -> Any:
    return points.take(torch.arange(len(points)))


def numbers(batch: Any) -> dict[str, Tensor]:
    """All tensors of a batch by name."""
    return {each.name: value for each in fields(batch) if isinstance(value := getattr(batch, each.name), Tensor)}


def towards(batch: Any, v: Tensor) -> Tensor:
    """Where the velocity has to go for better samples, [B, ...]: up or down by how good they are.

    The clean prediction x_t - t v goes to a sample, or along the difference of a pair; the mean of a random step goes
    along the noise that led to a sample.
    """
    if isinstance(batch, Moves):
        a = (batch.weight * batch.advantage)[:, :, None, None]
        return over(batch.q, v) * (a * batch.z).sum(1).float()
    way: Tensor = batch.eps - batch.x0 - v if batch.delta is None else -batch.delta
    return over(batch.advantage, v) * way


def three(theta: Tensor, old: float, reference: float) -> Models:
    fixed = linear(torch.tensor(old))
    return Models(linear(theta), fixed, linear(torch.tensor(reference)), teacher=fixed)


def gradient(name: str, done: Rollout, theta: float, old: float, reference: float) -> tuple[Tensor, Tensor]:
    """The loss of each point [B], and its gradient with respect to theta."""
    weight = torch.tensor(theta, requires_grad=True)
    points = training_points(name, done)
    loss, metrics = ALGORITHMS[name]().loss(three(weight, old, reference), whole(points))
    assert loss.shape == (len(points),)
    assert loss.dtype in (torch.float32, torch.float64)
    assert all(metric.ndim == 1 and 0 < len(metric) <= len(points) for metric in metrics.values())
    assert all(metric.isfinite().all() for metric in metrics.values())
    assert not any(metric.requires_grad for metric in metrics.values())
    return loss.detach(), torch.autograd.grad(loss.sum(), weight)[0]


@algorithms
def test_loss_is_finite_and_reaches_the_policy(name: str) -> None:
    for old in (0.5, 0.4):  # on policy, and away from it
        loss, slope = gradient(name, rollout(name), 0.5, old, 0.5)
        assert loss.isfinite().all()
        assert slope.isfinite()
        assert slope != 0 or (old == 0.5 and name not in REWARDED)  # a student that answers as its teacher rests


@rewarded
def test_a_step_down_the_loss_favours_better_samples(name: str) -> None:
    """On policy, towards the better samples of a prompt and away from the others."""
    done = rollout(name)
    batch = whole(training_points(name, done))
    v = batch.known.get("old", linear(torch.tensor(0.5))(batch.x_t, batch.t, batch.condition)).clone().requires_grad_()
    fixed = v.detach().clone()

    def given(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return v

    loss, _ = ALGORITHMS[name]().loss(Models(given, lambda *_: fixed, lambda *_: fixed), batch)
    step = -torch.autograd.grad(loss.sum(), v)[0]
    along = (step * towards(batch, fixed)).flatten(1).sum(1)
    moving = batch.advantage.abs().view(len(batch), -1).amax(1) > 1e-6
    assert moving.sum() > len(batch) / 3
    assert (along[moving] > 0).all()
    assert (along[~moving].abs() < 1e-5).all()


@rewarded
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e6])
def test_equal_rewards_give_no_update(name: str, value: float) -> None:
    """Nothing to learn: advantages are exactly 0, and with old = policy = reference so is the gradient."""
    done = rollout(name, torch.full((PROMPTS * group_size(name),), value))
    assert (done.advantage == 0).all()
    assert gradient(name, done, 0.5, 0.5, 0.5)[1].abs() < 1e-5


@rewarded
def test_solved_and_hopeless_prompts_give_no_update(name: str) -> None:
    """Prompts differ in reward, samples of one prompt do not."""
    done = rollout(name, torch.tensor([0.0, 1.0, 0.3])[groups(name)])
    assert (done.advantage == 0).all()
    assert gradient(name, done, 0.5, 0.5, 0.5)[1].abs() < 1e-5


@algorithms
def test_loss_of_a_unit_does_not_depend_on_its_neighbours(name: str) -> None:
    points, algorithm = training_points(name, rollout(name)), ALGORITHMS[name]()
    models = three(torch.tensor(0.5), 0.4, 0.3)
    together, _ = algorithm.loss(models, whole(points))
    for units in (torch.tensor([2]), torch.tensor([3, 0])):
        rows = (units[:, None] * points.unit + torch.arange(points.unit)).flatten()
        torch.testing.assert_close(algorithm.loss(models, points.take(rows))[0], together[rows])


@algorithms
def test_known_velocities_are_not_evaluated_again(name: str) -> None:
    """Given the anchors, the loss asks for the policy once, and for nothing else."""
    algorithm, batch = ALGORITHMS[name](), whole(training_points(name, rollout(name)))
    models = three(torch.tensor(0.5), 0.4, 0.3)
    expected, _ = algorithm.loss(models, batch)
    batch = batch.knowing({anchor: models.at(anchor, batch) for anchor in algorithm.anchors})
    calls: list[int] = []

    def counted(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        calls.append(len(x))
        return models.velocities["policy"](x, t, condition)

    def refused(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        raise AssertionError("evaluated for nothing")

    loss, _ = algorithm.loss(Models(counted, refused, refused, teacher=refused), batch)
    assert torch.equal(loss, expected)
    assert calls == [len(batch)]


@algorithms
def test_units_use_every_point_once(name: str) -> None:
    points = training_points(name, rollout(name))
    batch = whole(points)
    assert len(points) % points.unit == 0
    rows = [value.flatten(1) for value in numbers(batch).values() if value.ndim > 2]  # states and noise
    assert len(torch.unique(torch.cat(rows, 1), dim=0)) == len(points)
    if points.indivisible > 1:
        assert (batch.group.view(-1, points.unit) == batch.group.view(-1, points.unit)[:, :1]).all()


@algorithms
def test_a_point_is_the_same_in_whichever_minibatch(name: str) -> None:
    """Time, noise, sample, advantage and prompt belong to its number."""
    together = whole(training_points(name, rollout(name)))
    again, last = training_points(name, rollout(name)), len(together) - 1
    for rows in (torch.tensor([4]), torch.tensor([last, 0, 4]), torch.arange(last + 1).flip(0)):
        part = again.take(rows)
        for field, value in numbers(part).items():
            assert torch.equal(value, numbers(together)[field][rows]), field
        assert torch.equal(part.condition.tensors["id"], together.condition.tensors["id"][rows])


@pytest.mark.parametrize("name", FORWARD)
def test_points_carry_what_belongs_to_their_sample(name: str) -> None:
    """Those of the reverse process: test_moves.py."""
    done = rollout(name)
    batch = whole(training_points(name, done))
    sample = torch.cdist(batch.x0.flatten(1), done.x0.flatten(1)).argmin(1)
    assert torch.equal(batch.x0, done.x0[sample])
    assert torch.equal(batch.advantage, done.advantage[sample].float())
    assert torch.equal(batch.condition.tensors["id"], done.group[sample].float())


@algorithms
def test_points_are_fresh(name: str) -> None:
    """No two updates share noise; within one, only what is compared does. What was visited is what it is."""
    done, algorithm = rollout(name), ALGORITHMS[name]()
    one, two = (whole(algorithm.points(done, ("points", 0, update))) for update in (5, 6))
    if isinstance(algorithm.points, States):  # others of those that were visited
        assert not torch.equal(one.x_t, two.x_t)
        return
    if done.states is not None or done.steps is not None:
        assert all(torch.equal(value, numbers(two)[field]) for field, value in numbers(one).items())
        return
    units = {Renoise: len(one), RenoiseJumps: len(one), RenoiseShared: len(one) // group_size(name)}.get(
        type(algorithm.points), len(one.group.unique())
    )
    assert len(torch.cat([one.eps, two.eps]).unique()) == 2 * units * 16


@algorithms
def test_comparisons_share_time_and_noise(name: str) -> None:
    """Where a loss compares samples of a unit, they differ in nothing but the sample."""
    points = training_points(name, rollout(name))
    if not points.compares:
        return
    batch = whole(points)
    for values in (batch.t, batch.eps):
        units = values.view(-1, points.unit, *values.shape[1:])
        assert (units == units[:, :1]).all()


def test_times_and_noise_of_points_follow_their_laws() -> None:
    """Times are as the time law says, noise is standard normal, and neither tells anything about the other."""
    done = rollout("advantageflow")
    batch = whole(Renoise(250, Times(low=0.5, high=0.9))(done, ("points", 1)))
    assert batch.t.min() >= 0.5
    assert batch.t.max() <= 0.9
    assert batch.t.mean().item() == pytest.approx(0.7, abs=0.01)
    assert batch.eps.mean().item() == pytest.approx(0, abs=0.03)
    assert batch.eps.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(torch.stack([batch.t, batch.eps[:, 0, 0]]))[0, 1].abs() < 0.06


def test_noise_of_a_sample_does_not_depend_on_the_batch() -> None:
    keys = tuple(("noise", 0, prompt, sample) for prompt in range(3) for sample in range(4))
    together = Noise(SHAPE, keys)
    for draw in (lambda n: n.start(), lambda n: n.start(2), lambda n: n.step(3)):
        assert torch.equal(draw(Noise(SHAPE, keys[::-1])), draw(together).flip(0))
        assert torch.equal(draw(Noise(SHAPE, keys[5:6])), draw(together)[5:6])
    assert len(together.start().unique()) == len(together.step(0).unique()) == 12 * 16
    pairs = together.start(siblings=2)
    assert torch.equal(pairs[::2], pairs[1::2])
    assert len(pairs.unique()) == 6 * 16


def test_an_image_needs_a_point() -> None:
    with pytest.raises(ValueError, match="per_image must be between 1 and 10,000, not"):
        Renoise(per_image=0)


def test_pairs_need_groups_of_two() -> None:
    done = rollout("advantageflow")
    with pytest.raises(ValueError, match="group_size must be 2, not 4"):
        ALGORITHMS["fdfo"]().points(done, ("points", 0, 5))


def test_visited_states_are_those_of_the_rollout() -> None:
    """Every state of every sample once, with its own velocity, time, and half the difference to its partner."""
    done = rollout("fdfo")
    batch = whole(training_points("fdfo", done))
    assert done.states is not None
    assert done.velocities is not None
    assert torch.equal(batch.x_t, done.states.flatten(0, 1))
    assert torch.equal(batch.known["old"], done.velocities.flatten(0, 1))
    assert batch.t[: len(done.levels)].tolist() == pytest.approx(done.levels.tolist())
    for sample in range(len(done)):
        (partner,) = [k for k in range(len(done)) if k != sample and done.group[k] == done.group[sample]]
        rows = slice(sample * len(done.levels), (sample + 1) * len(done.levels))
        assert (batch.delta is not None) and torch.equal(
            batch.delta[rows], ((done.x0[sample] - done.x0[partner]) / 2).expand(len(done.levels), *SHAPE)
        )


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
    weights = {anchor_of(name)[0] for name in algorithm.anchors}
    assert weights - {"reference", "teacher"} <= set(algorithm.copies) <= {"old", "sampling"}
