"""Points of the reverse process: the random steps of a rollout, their weights, and whose reward they are held to."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from walks import FAMILY, everything, family, loss, rollout

from flowward import ALGORITHMS
from flowward.algorithms import G2RPO, FlowGRPO, FlowGRPOFast, TempFlowGRPO
from flowward.learning.moves import RandomSteps
from flowward.process.flow import grid
from flowward.process.laws import LAWS
from flowward.process.plans import Branches, Chain
from flowward.process.rollout import Rollout

BRANCHING = FlowGRPOFast(rollout=Branches(6, high=3, fanout=3, length=2, cohorts="prompt"), ratio="gaussian")


def known(done: Rollout) -> Any:
    assert done.steps is not None
    return done.steps


@family
def test_a_step_carries_what_belongs_to_it(name: str) -> None:
    """State, recorded velocity, noise, prompt and numbers of its own; every state once."""
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, size=2 * algorithm.rollout.leaves)
    steps, batch = known(done), everything(algorithm, done)
    assert len(batch) == len(steps.x)
    assert torch.equal(batch.x_t, steps.x)
    assert torch.equal(batch.known["old"], steps.v)
    assert torch.equal(batch.z, steps.z)
    assert len(batch.z.flatten(1).unique(dim=0)) == len(batch)
    assert torch.equal(batch.condition.tensors["id"], done.group[steps.sample[:, 0, 0]].float())
    times = grid(algorithm.rollout.steps, algorithm.rollout.shift, algorithm.rollout.grid)
    t, s = times[batch.step], times[batch.step + 1]
    assert torch.equal(batch.t, t.float())
    assert torch.equal(batch.length, t - s)
    law = LAWS[algorithm.rollout.law](algorithm.rollout.noise)
    scales = torch.tensor(
        [law.coefficients(*pair, times[1].item()) for pair in zip(t.tolist(), s.tolist(), strict=True)]
    )
    assert batch.q.tolist() == pytest.approx(scales[:, 1].tolist(), abs=1e-6)
    assert batch.sigma.tolist() == pytest.approx(scales[:, 2].tolist(), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILY if ALGORITHMS[name]().points.rewards is None])
def test_a_step_has_the_advantage_of_its_own_sample(name: str) -> None:
    """Of all of them, where there are several: a reward of 1 for one sample shows in the steps that led to it.

    Steps with rewards of their own: test_step_rewards.py.
    """
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, size=max(4, algorithm.rollout.leaves))
    for winner in (0, 3, len(done) - 1):
        reward = torch.zeros(len(done))
        reward[winner] = 1
        scored = replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))
        advantage, sample = everything(algorithm, scored).advantage, known(done).sample
        assert ((advantage > 0) == (sample == winner).any(2)).all()
        assert (advantage > 0).sum() == (sample == winner).sum() > 0


@family
def test_a_step_is_the_same_in_whichever_minibatch(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    done = rollout(algorithm, size=max(4, algorithm.rollout.leaves))
    together, points = everything(algorithm, done), algorithm.points(done, ("other", 1))
    for numbers in (torch.tensor([3]), torch.tensor([5, 0, 2]), torch.arange(len(together)).flip(0)):
        part = points.take(numbers)
        for field in fields(part):
            if isinstance(value := getattr(part, field.name), Tensor):
                assert torch.equal(value, getattr(together, field.name)[numbers]), field.name
        assert torch.equal(part.known["old"], together.known["old"][numbers])


@family
def test_states_of_a_root_stay_together(name: str) -> None:
    """They go into the same optimiser step: a unit is all that one root gives to train on."""
    algorithm = ALGORITHMS[name]()
    leaves = algorithm.rollout.leaves
    done = rollout(algorithm, size=max(4, leaves))
    points, roots = algorithm.points(done, ("",)), known(done).sample[:, 0, 0] // leaves
    assert len(points) == points.unit * len(roots.unique())
    assert (roots.view(-1, points.unit) == roots.view(-1, points.unit)[:, :1]).all()


# Weights


@pytest.mark.parametrize("algorithm", [FlowGRPO(), BRANCHING, G2RPO(), TempFlowGRPO(points=RandomSteps())])
def test_every_step_counts_once(algorithm: Any) -> None:
    """The mean over states of the sum over a state's children is the mean over children, however they are spread."""
    done = rollout(algorithm, size=2 * algorithm.rollout.leaves)
    batch, there = everything(algorithm, done), known(done).sample[:, :, 0] >= 0
    assert batch.weight.sum(1).mean().item() == pytest.approx(1, abs=1e-12)
    assert (batch.weight[~there] == 0).all()
    assert len(batch.weight[there].unique()) == 1


def test_room_for_children_that_are_not_there_means_nothing() -> None:
    """Whatever stands there: noise and advantage have no weight."""
    done = rollout(BRANCHING, size=18)
    batch = everything(BRANCHING, done)
    assert (batch.weight == 0).any()
    noise = torch.where(batch.weight[..., None, None] > 0, batch.z, 9.0)
    spoilt = replace(batch, z=noise, advantage=torch.where(batch.weight > 0, batch.advantage, -3.0))
    assert torch.equal(loss(BRANCHING, spoilt), loss(BRANCHING, batch))


def test_steps_are_weighed_by_noise_or_by_length() -> None:
    """sigma over its mean over the steps that are trained; 1 / (t - s)."""
    chain = Chain(5)
    noise, time = (
        everything(each, rollout(each, size=4))
        for each in (FlowGRPO(rollout=chain, points=RandomSteps(kind)) for kind in ("noise", "per-time"))  # type: ignore[arg-type]
    )
    assert noise.weight[:, 0].tolist() == pytest.approx((noise.sigma / noise.sigma[:4].mean()).tolist())
    assert (time.weight[:, 0] * time.length).tolist() == pytest.approx([1.0] * 32)


def test_a_weight_does_not_depend_on_which_steps_were_drawn() -> None:
    """With a share of them, some may be missing from a small rollout: all that may be trained make up the mean."""
    whole = FlowGRPO(rollout=Chain(6), points=RandomSteps("noise"))
    part = replace(whole, rollout=Chain(6, share=0.2))
    every = everything(whole, rollout(whole, size=4))
    table = dict(zip(every.step.tolist(), every.weight[:, 0].tolist(), strict=True))
    batch = everything(part, rollout(part, prompts=1, size=4))
    assert len(batch) == 4
    for number, weight in zip(batch.step.tolist(), batch.weight[:, 0].tolist(), strict=True):
        assert weight == pytest.approx(table[number])


# A2: advantages of several samples of one step


def scored(views: Any, reward: list[float]) -> Tensor:
    """Advantages of three children at each of two places, each finished on two grids; one prompt, one root."""
    draw = Branches(5, low=1, high=3, fanout=3, strides=(1, 2), cohorts="branch")
    algorithm = G2RPO(rollout=draw, points=RandomSteps(views=views))
    done = rollout(algorithm, prompts=1)
    values = torch.tensor(reward)
    done = replace(done, reward=values, advantage=algorithm.credit(values, done.cohort))
    advantage: Tensor = everything(algorithm, done).advantage
    return advantage


REWARD = [0.0, 1, 2, 5, 1, 0, 0, 0, 3, 7, 7, 7]  # place by place, grid by grid


def test_a2_advantages_of_grids_add_up() -> None:
    """(0, 1, 2) has z = -1, 0, 1 over n - 1; (5, 1, 0) has mean 2 and std sqrt 7; (0, 0, 3): sqrt 3; (7, 7, 7): 0."""
    one, two = [-1 + 3 / 7**0.5, -1 / 7**0.5, 1 - 2 / 7**0.5], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]
    assert scored("sum", REWARD).tolist() == [pytest.approx(one), pytest.approx(two)]
    halves = [[a / 2 for a in one], [a / 2 for a in two]]
    assert scored("mean", REWARD).tolist() == [pytest.approx(halves[0]), pytest.approx(halves[1])]


def test_a2_restandardised_sums_have_variance_one() -> None:
    found, plain = scored("restandardised", REWARD), scored("sum", REWARD)
    assert found.mean(1).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found.std(1, correction=0).tolist() == pytest.approx([1, 1], abs=1e-3)
    for row in range(2):
        assert torch.corrcoef(torch.stack([found[row], plain[row]]))[0, 1].item() == pytest.approx(1)
    assert (scored("restandardised", [3.0] * 12) == 0).all()


def test_a2_restandardised_over_what_a_step_is_compared_with() -> None:
    """All roots of the prompt where the cohort is a branch of it; the other steps of a chain are others' concern."""
    draw = Branches(5, low=1, high=3, fanout=3, strides=(1, 2), cohorts="branch")
    for cohorts, rows in (("branch", 2), ("root", 1)):
        algorithm = G2RPO(rollout=replace(draw, cohorts=cohorts), points=RandomSteps(views="restandardised"))  # type: ignore[arg-type]
        batch = everything(algorithm, rollout(algorithm, prompts=3, size=24))
        for place in (1, 2):
            mine = batch.advantage[batch.step == place].view(-1, rows * 3)  # by prompt, or by root
            assert mine.std(1, correction=0).tolist() == pytest.approx([1.0] * len(mine), abs=1e-2)
    chain = FlowGRPO(rollout=Chain(4), points=RandomSteps(views="restandardised"))
    batch = everything(chain, rollout(chain, size=5))
    assert batch.advantage[batch.step == 1].view(2, 5).std(1, correction=0).tolist() == pytest.approx(
        [1.0] * 2, abs=1e-3
    )


@pytest.mark.parametrize("views", ["sum", "mean", "restandardised"])
def test_a2_with_one_grid_there_is_nothing_to_put_together(views: Any) -> None:
    algorithm = TempFlowGRPO(rollout=Branches(5, fanout=4), points=RandomSteps(views=views))
    done = rollout(algorithm)
    assert everything(algorithm, done).advantage.flatten().tolist() == pytest.approx(done.advantage.tolist(), abs=1e-3)


def test_a2_samples_are_compared_by_prompt_start_and_step() -> None:
    """TempFlow: a shift of the rewards of one branch of one start changes nothing."""
    algorithm = TempFlowGRPO(rollout=Branches(4, fanout=3))
    done = rollout(algorithm, prompts=2, size=18)
    shift = 10 * torch.arange(12.0).repeat_interleave(3)
    moved = replace(done, advantage=algorithm.credit(done.reward.double() + shift, done.cohort))
    assert torch.allclose(moved.advantage, algorithm.credit(done.reward.double(), done.cohort), atol=1e-12)


def test_every_algorithm_of_the_family_is_tried_here() -> None:
    assert len(FAMILY) == 13


# The best and the worst


def extremes(done: Rollout, many: int | None) -> Any:
    points = RandomSteps(extremes=many)(done, ("points", 0))
    return points, points.take(torch.arange(len(points)))


def test_the_best_and_the_worst_of_a_prompt_are_trained_on() -> None:
    """DanceGRPO for video: advantages over all images, steps of some; the same number for every prompt."""
    algorithm = FlowGRPO(rollout=Chain(5))
    done = rollout(algorithm, prompts=3, size=6)
    points, batch = extremes(done, 4)
    assert (len(points), points.unit) == (3 * 4 * 4, 4)
    steps = known(done)
    for prompt in range(3):
        mine = done.advantage[done.group == prompt]
        order = mine.argsort(descending=True)
        kept = {(6 * prompt + int(number)) for number in (*order[:2], *order[-2:])}
        rows = [row for row in range(len(steps.x)) if int(steps.sample[row, 0, 0]) in kept]
        mine_rows = slice(prompt * 16, (prompt + 1) * 16)
        assert torch.equal(batch.x_t[mine_rows], steps.x[rows])
        assert torch.equal(batch.advantage[mine_rows, 0], done.advantage[steps.sample[rows, 0, 0]])


def test_all_of_them_are_what_there_is() -> None:
    algorithm = FlowGRPO(rollout=Chain(5))
    done = rollout(algorithm, prompts=2, size=4)
    (_, some), (_, every) = extremes(done, 4), extremes(done, None)
    assert torch.equal(some.x_t, every.x_t) and torch.equal(some.weight, every.weight)


def test_among_equal_advantages_the_choice_is_the_first_and_the_last() -> None:
    done = rollout(FlowGRPO(rollout=Chain(3)), prompts=1, size=5)
    _, batch = extremes(replace(done, advantage=torch.zeros(5, dtype=torch.float64)), 2)
    assert torch.equal(batch.x_t, known(done).x[torch.isin(known(done).sample[:, 0, 0], torch.tensor([0, 4]))])


@pytest.mark.parametrize(
    ("many", "how", "size", "said"),
    [
        (3, FlowGRPO(), 6, "must be even and at least 2, not 3"),
        (0, FlowGRPO(), 6, "must be even and at least 2, not 0"),
        (8, FlowGRPO(rollout=Chain(4)), 6, "extremes asks for 8 images per prompt, but a group has only 6"),
    ],
)
def test_extremes_that_there_are_not_are_refused(many: int, how: Any, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        extremes(rollout(how, size=size), many)


# Which images count


@pytest.mark.parametrize("name", ["flow_grpo", "tempflow_grpo"])
def test_silent_images_can_be_left_out_of_the_mean(name: str) -> None:
    """All images of a start without an advantage: their states are not there, and those of the others are as before."""
    every = ALGORITHMS[name](beta=0.04)
    leaves = every.rollout.leaves
    done = rollout(every, prompts=2, size=2 * leaves)
    quiet = torch.arange(len(done)) < 2 * leaves  # the first prompt
    done = replace(done, advantage=torch.where(quiet, 0.0, done.advantage))
    heard = replace(every, points=replace(every.points, counted="signal"))
    found, whole = everything(heard, done), everything(every, done)
    assert 2 * len(found) == len(whole)
    loud = (whole.advantage != 0).any(1)
    assert torch.equal(found.x_t, whole.x_t[loud]) and torch.equal(found.advantage, whole.advantage[loud])
    assert torch.equal(loss(heard, found), loss(every, whole)[:, loud])
    points = heard.points(done, ("",))
    assert torch.equal(torch.cat(points.units()).sort().values, torch.arange(len(points)))


def test_half_of_the_images_silent_halves_the_gradient_of_all() -> None:
    """So the divergence weighs twice as much beside it: the published settings count images with a signal alone."""
    every = FlowGRPO(beta=0.0)
    done = rollout(every, prompts=2, size=4)
    done = replace(done, advantage=torch.where(torch.arange(8) < 4, 0.0, done.advantage))
    heard = replace(every, points=RandomSteps(counted="signal"))
    one, two = (loss(each, everything(each, done)).mean(1) for each in (every, heard))
    assert two.tolist() == pytest.approx((2 * one).tolist(), rel=1e-12)


def test_nothing_is_left_where_all_images_are_silent() -> None:
    heard = FlowGRPO(points=RandomSteps(counted="signal"))
    done = rollout(heard, size=4)
    assert len(heard.points(replace(done, advantage=torch.zeros(8, dtype=torch.float64)), ("",))) == 0


def test_updates_by_step_take_one_step_number_each() -> None:
    """First to last, with the states of all prompts; in random order they are those of a start."""
    ordered = G2RPO(rollout=Branches(6, high=4, fanout=3), points=RandomSteps(order="by-step"))
    points = ordered.points(rollout(ordered, prompts=3, size=24), ("",))
    assert points.in_order
    found = [points.take(unit) for unit in points.units()]
    assert [set(each.step.tolist()) for each in found] == [{0}, {1}, {2}, {3}]
    assert all(len(each) == 3 * 2 for each in found)
    assert not replace(ordered, points=RandomSteps()).points(rollout(ordered), ("",)).in_order


@pytest.mark.parametrize("field", ["counted", "order"])
def test_an_unknown_choice_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        RandomSteps(**{field: "al"})  # type: ignore[arg-type]
