"""Credit of single steps: completions of a chain, nodes of a tree, pruning, and weights by pull."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from walks import Counted, everything, loss, rollout

from flowward.algorithms import BranchGRPO, FlashGRPO, FlowGRPO, GRPOGuard, TempFlowGRPO, TurningPointGRPO
from flowward.algorithms.policy_gradient import ratio_scales
from flowward.learning.credit import ZScore
from flowward.learning.moves import RandomSteps
from flowward.learning.step_rewards import gains, step_rewards, turning_points
from flowward.process.completions import CompletedChain
from flowward.process.laws import LAWS, LinearSDE
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Models
from flowward.process.splits import Splits
from flowward.process.windows import Window


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def known(done: Any) -> Any:
    assert done.steps is not None
    return done.steps


# TurningPoint-GRPO


def test_t39_gains_add_up() -> None:
    rewards = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(gains(rewards).sum(1), rewards[:, -1] - rewards[:, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "turning", "gain", "trend"),
    [
        ((0, 1, 3), (1, 0), (3, 2), (4, 3)),  # always up: the first step has the whole rise
        ((0, -1, 2), (0, 1), (-1, 3), (2, 5)),  # down, then up beyond the start
        ((0, 3, 1), (1, 0), (1, -2), (4, 1)),  # up, and back by less
        ((3, 4, 0), (0, 1), (1, -4), (-3, -7)),  # a chain that ends lower turns down in step 2
        ((1, 5, 1), (0, 0), (4, -4), (0, 0)),  # ends where it began
        ((1, 1, 2), (0, 0), (0, 1), (1, 1)),  # a step without effect is not followed by a turning point
    ],
)
def test_rewards_of_steps_by_hand(rewards: Any, turning: Any, gain: Any, trend: Any) -> None:
    values = table(rewards)
    assert turning_points(values).int().tolist() == [list(turning)]
    assert step_rewards(values, "gain").tolist() == [list(gain)]
    assert step_rewards(values, "trend").tolist() == [list(trend)]


@pytest.mark.parametrize("kind", ["gain", "trend"])
def test_advantages_are_z_scores_of_step_rewards(kind: Any) -> None:
    """Of raw rewards, among the steps of one number of a prompt: credit of all images first changes nothing."""
    draw = CompletedChain(6, window=Window(4, "frozen", low=1))
    algorithm = TurningPointGRPO(rollout=draw, points=RandomSteps(rewards=kind), credit=ZScore("group", 1e-12))
    done = rollout(algorithm, prompts=2, size=6 * 5)
    each = step_rewards(done.reward.double().view(12, 5), kind)  # [chains, steps]
    for prompt in range(2):
        mine = each[6 * prompt : 6 * prompt + 6]
        expected = (mine - mine.mean(0)) / mine.std(0, correction=0)
        found = everything(algorithm, done).advantage.view(12, 4)[6 * prompt : 6 * prompt + 6]
        assert torch.allclose(found, expected, atol=2e-3)


def test_t40_a_gain_is_the_share_of_its_step() -> None:
    """A constant velocity and a linear reward: what step j moves the state by, whatever the other steps do."""
    draw = CompletedChain(5)
    algorithm = TurningPointGRPO(rollout=draw)
    done = rollout(algorithm, prompts=1, size=2 * draw.leaves)
    steps = known(done)
    t, s, q, sigma = steps.table[steps.number].unbind(1)
    after = torch.ones(5, dtype=torch.float64)
    for number in range(4, 0, -1):  # walks.velocity is 0.5 x + t + id: the ODE multiplies a shift by this
        after[number - 1] = after[number] * (1 + 0.5 * (draw.times[number + 1] - draw.times[number]))
    law = LAWS[draw.law](draw.noise)
    p = [law.coefficients(a, b, draw.times[1])[0] for a, b in zip(t.tolist(), s.tolist(), strict=True)]
    shift = (torch.tensor(p) - 1)[:, None, None] * steps.x + (q - (s - t))[:, None, None] * steps.v
    shift = shift + sigma[:, None, None] * steps.z[:, 0]
    expected = (after[steps.number] * shift.flatten(1).sum(1)).view(2, 4)
    rewards = done.x0.double().flatten(1).sum(1).view(2, 5)
    assert torch.allclose(gains(rewards), expected, atol=1e-5)


def test_rewards_of_steps_need_completions() -> None:
    for algorithm in (FlowGRPO(points=RandomSteps(rewards="gain")), TempFlowGRPO(points=RandomSteps(rewards="gain"))):
        done = rollout(algorithm, size=2 * max(2, algorithm.rollout.leaves))
        with pytest.raises(ValueError, match="need every state of a chain completed by the ODE"):
            algorithm.points(done, ("",))
    with pytest.raises(ValueError, match="with rewards of steps no image is left out"):
        RandomSteps(rewards="trend", extremes=2)
    with pytest.raises(ValueError, match="unknown reward of a step 'gains'; did you mean 'gain'"):
        RandomSteps(rewards="gains")  # type: ignore[arg-type]


# BranchGRPO


def test_t37_one_split_has_tempflows_credit() -> None:
    one = BranchGRPO(
        rollout=Splits(8, law="flow-sde", noise=0.7, splits=(3,), fanout=4, between="ode"), credit=ZScore("group")
    )
    two = TempFlowGRPO(rollout=Branches(8, low=3, high=4, fanout=4), points=RandomSteps())
    found, expected = (everything(each, rollout(each, size=8)).advantage for each in (one, two))
    assert torch.allclose(found, expected, atol=5e-4)


def test_advantages_are_z_scores_of_node_returns() -> None:
    """By hand: four leaves with rewards 0, 2, 3, 7 have returns 1 and 5 after the first split."""
    algorithm = BranchGRPO(rollout=Splits(4, splits=(0, 2)), credit=ZScore("group", 1e-12))
    done = rollout(algorithm, prompts=1)
    reward = torch.tensor([0.0, 2.0, 3.0, 7.0])
    done = replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))
    a = everything(algorithm, done).advantage
    leaves = ((reward - 3) / reward.std(correction=0)).tolist()
    assert a[0].tolist() == pytest.approx([-1, 1], abs=2e-4)
    assert a[1:3, 0].tolist() == pytest.approx([-1, 1], abs=2e-4)
    assert a[3:].flatten().tolist() == pytest.approx(leaves, abs=2e-4)
    assert (everything(algorithm, done).weight > 0).sum() == 2 + 2 + 4


def test_t38_returns_of_children_average_to_the_return_of_their_node() -> None:
    """Weighted by their leaves, where a chain with completions has different numbers of them."""
    for algorithm in (BranchGRPO(rollout=Splits(6, splits=(0, 2, 3), fanout=3)), TurningPointGRPO()):
        mean = replace(algorithm, points=RandomSteps(views="mean"))
        size = 2 * algorithm.rollout.leaves
        done = rollout(algorithm, size=size)
        found, sample = everything(mean, done).advantage, known(done).sample
        for row, child in (sample[:, :, 0] >= 0).nonzero().tolist():
            own = sample[row, child][sample[row, child] >= 0]
            below = [(r, c) for r, c in (sample[:, :, 0] >= 0).nonzero().tolist() if r > row
                     and set(sample[r, c].tolist()) - {-1} < set(own.tolist())]  # fmt: skip
            once = {int(leaf): (r, c) for r, c in reversed(below) for leaf in sample[r, c] if leaf >= 0}
            total = sum((found[once[leaf]] if leaf in once else done.advantage[leaf]) for leaf in own.tolist())
            assert found[row, child].item() == pytest.approx(float(total) / len(own), abs=1e-9)


def test_width_pruning_leaves_out_steps_to_other_images() -> None:
    """The best and the worst leaf of each prompt: their ancestors stay, with the advantages that they had."""
    every = BranchGRPO(rollout=Splits(5, splits=(0, 1, 2)))
    some = replace(every, points=replace(every.points, extremes=2))
    done = rollout(every, prompts=2, size=8)
    whole, batch = everything(every, done), everything(some, done)
    sample = known(done).sample
    best, worst = (
        torch.stack([8 * prompt + pick(done.advantage[8 * prompt : 8 * prompt + 8]) for prompt in range(2)])
        for pick in (torch.argmax, torch.argmin)
    )
    kept = torch.isin(sample, torch.cat([best, worst])).any(2)
    assert 2 * 4 <= kept.sum() < (sample[:, :, 0] >= 0).sum()
    assert torch.equal(batch.advantage, whole.advantage * kept)
    assert torch.equal(batch.weight > 0, kept)
    assert batch.weight.sum(1).mean().item() == pytest.approx(1, abs=1e-12)  # of the steps that are left
    assert some.skips_silent  # states without a kept child are not evaluated
    counted = Counted()
    loud = batch[(batch.advantage != 0).any(1)]
    some.loss(Models(counted, counted, counted), loud)
    assert counted.rows == int(kept.any(1).sum()) < len(whole)
    assert loss(some, batch).isfinite().all()


def test_pruning_that_saves_nothing_is_told_before_a_run() -> None:
    pruned = RandomSteps(views="restandardised", extremes=4)
    assert BranchGRPO(points=pruned).remarks(1) == []
    (said,) = BranchGRPO(points=pruned, beta=0.1).remarks(1)
    assert said.endswith("set --algorithm.beta 0 to save their passes")
    assert "only 2 nodes of a tree are compared" in BranchGRPO().rollout.remarks()[-1]
    assert "only 2 nodes" not in BranchGRPO(rollout=Splits(20, cohorts="prompt")).rollout.remarks()[-1]


# Flash-GRPO


@pytest.mark.parametrize("chain", [Chain(20, 3.0, "linear", "linear-sde", 0.9825), Chain(10), Chain(6, law="ddim")])
def test_t35_all_steps_pull_equally(chain: Chain) -> None:
    """w |alpha| is constant, and w is 1 on average over the trained steps of the iteration, not over the grid."""
    draw = replace(chain, window=Window(1, "per-prompt", high=chain.steps // 2))
    algorithm = FlashGRPO(rollout=draw)
    batch = everything(algorithm, rollout(algorithm, prompts=7, size=4))
    weight = batch.weight[:, 0]
    pull = weight * ratio_scales("gaussian", batch.q, batch.sigma, 6)[0].abs()
    assert (pull / pull[0] - 1).abs().max() < 1e-12
    assert weight.mean().item() == pytest.approx(1, abs=1e-12)
    assert len(batch.step.unique()) > 2 and len(weight.unique()) > 2


def test_t36_the_released_table() -> None:
    """The code's numbers for steps at 999, 982, ... of 1000: linear SDE with the first time below 1 as its scale."""
    times = torch.linspace(1, 0, 21, dtype=torch.float64)
    times = (3 * times / (1 + 2 * times)).tolist()
    law = LinearSDE(0.9825)
    _, q, sigma = law.coefficients(times[9], times[10], times[1])
    assert times[9] == pytest.approx(11 / 14) and times[10] == pytest.approx(0.75)
    assert sigma / -q == pytest.approx(3.775, abs=5e-3)


def test_on_policy_flash_is_guard_but_for_the_first_step() -> None:
    """Up to 1 + a^2 / 2, by which Q of FlowSDE's other steps is larger."""
    draw = Chain(6)
    flash = FlashGRPO(rollout=draw, credit=ZScore("group"))
    one, two = (everything(each, rollout(each, size=4)) for each in (flash, GRPOGuard(rollout=draw)))
    pulls = [
        batch.weight[:, 0] * ratio_scales(each.ratio, batch.q, batch.sigma, 6)[0]
        for each, batch in ((flash, one), (GRPOGuard(), two))
    ]
    ratio = pulls[0] / pulls[1]
    late = one.step > 0
    assert (ratio[late] / ratio[late][0] - 1).abs().max() < 1e-9
    assert (ratio[~late] / ratio[late][0]).tolist() == pytest.approx([1 + 0.7**2 / 2] * int((~late).sum()), rel=1e-9)
    assert torch.equal(one.z, two.z)
