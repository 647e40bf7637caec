"""Laws of the papers that make a trajectory cheaper: one step per prompt, completions of a chain, trees that split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..algorithms import GRPOGuard, TempFlowGRPO
from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..learning.step_rewards import gains, step_rewards, turning_points
from ..process.laws import LinearSDE
from ..process.plans import Branches, Chain
from ..process.rollout import Rollout
from ..process.splits import Splits
from ..process.windows import Window
from .check import Check, Kind, compared, number, real
from .generic import Subject, linear
from .steps import ALPHA, cost_laws, samples, shared

FLASH, TURNING, BRANCH = "2605.15980", "2602.06422", "2509.06040"


def flash_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, FLASH)
    yield from cost_laws(kind, FLASH, 20, 1)
    s = Subject.of(kind(), 8, linear)
    p, group = s.points, s.rollout.group
    mixed = sum(len(p.step[group == prompt].unique()) != 1 for prompt in group.unique())
    yield number("prompts whose images have different random steps", FLASH, mixed, 0, 0)
    law = "different random steps among 5 prompts are more than 1 (1: yes)"
    yield number(law, FLASH, float(len(p.step.unique()) > 1), 1, 0)
    weight = p.weight[:, 0]
    pull = weight * ALPHA["gaussian"][1](p.q, p.sigma).abs()
    yield compared("w |alpha| is equal for all steps", FLASH, pull, pull[:1].expand_as(pull))
    yield number("mean weight of a step", FLASH, weight.mean().item(), 1, 1e-12)
    _, q, sigma = LinearSDE(0.9825).coefficients(11 / 14, 0.75)
    law = "sigma / |Q| of the step from 0.7857 to 0.75, the code's 3.775"
    yield number(law, FLASH, sigma / abs(q), 3.78, 5e-3)
    yield from _as_guard(kind)


def _as_guard(kind: Kind) -> Iterator[Check]:
    """On policy, Flash-GRPO on all steps has GRPO-Guard's gradient, but for the first step."""
    draw = Chain(10, 3.0, "linear")
    flash = kind(rollout=draw, credit=ZScore("group"))
    guard = GRPOGuard(rollout=draw, credit=ZScore("group"))
    one, two = (Subject.of(each, 4, linear) for each in (flash, guard))
    late = one.points.step > 0
    found, expected = one.slope()[late], two.slope()[late]
    law = "on policy, all steps but the first: the gradient is GRPO-Guard's, up to one factor"
    scale = found.norm() / expected.norm()
    yield compared(law, "derived 11", found, scale * expected)


def turningpoint_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, TURNING)
    yield from cost_laws(kind, TURNING, 55 / 10, 9 / 10)
    flux = replace(kind().rollout, steps=6)
    _, cost = samples(flux)
    yield number("6 steps: network evaluations per chain, 27 without shared states", TURNING, cost * flux.leaves, 21, 0)
    rewards = real(50, 7, seed=4)
    own, total = gains(rewards), rewards[:, -1] - rewards[:, 0]
    yield compared("sum of d_j is R_n - R_0", TURNING, own.sum(1), total)
    one = torch.tensor([[0.0, 1.0, 0.5, 2.0], [2.0, 1.0, 3.0, 1.0]], dtype=torch.float64)
    law = "turning points of R = 0 1 .5 2 (steps 1, 3) and 2 1 3 1 (steps 1, 3)"
    expected = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    yield compared(law, TURNING, turning_points(one).double(), expected.double(), 0.0)
    by_hand = {"gain": [[2.0, -0.5, 1.5], [-1.0, 2.0, -2.0]], "trend": [[3.0, 2.0, 3.5], [-2.0, -1.0, -3.0]]}
    for name, values in by_hand.items():
        found = step_rewards(one, name)  # type: ignore[arg-type]
        yield compared(f"rewards `{name}` of these steps", TURNING, found, torch.tensor(values).double(), 1e-12)
    yield from _shares(kind)


def _shares(kind: Kind) -> Iterator[Check]:
    """with a linear reward and flow, d_j is what step j adds, whatever the others do."""
    draw = replace(kind().rollout, window=Window(4, "frozen"), steps=6)
    algorithm = kind(rollout=draw)

    def velocity(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return 0.4 * x

    s = Subject.of(algorithm, 2 * draw.leaves, linear, velocity)
    done, times = s.rollout, draw.times
    assert done.steps is not None
    steps = done.steps
    found = gains(done.reward.double().view(-1, draw.leaves)).flatten()
    t, end, q, sigma = steps.table[steps.number].unbind(1)
    law = draw.at(0, 0).segments[1].law
    p = torch.tensor([law.coefficients(*pair, times[1])[0] for pair in zip(t.tolist(), end.tolist(), strict=True)])
    over = (..., *(None,) * (steps.x.ndim - 1))
    apart = (p - 1)[over] * steps.x + (q - (end - t))[over] * steps.v + sigma[over] * steps.z[:, 0]
    kept = torch.ones(len(times) - 1, dtype=torch.float64)
    for step in range(len(times) - 2, 0, -1):  # factor of the ODE from step + 1 to the end
        kept[step - 1] = kept[step] * (1 + 0.4 * (times[step + 1] - times[step]))
    expected = kept[steps.number] * apart.flatten(1).sum(1)
    yield compared("with a linear reward and flow, d_j is the share of step j", TURNING, found, expected, 1e-5)


def branch_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, BRANCH)
    yield from cost_laws(kind, BRANCH, 203 / 16, 187 / 16)
    tree = kind().rollout.at(0, 0)
    ends = zip(tree.rows, tree.segments, strict=True)
    nodes = 1 + sum(rows * (len(segment.times) - 1) for rows, segment in ends)
    yield number("nodes of the tree per image, the paper's 13.7 evaluations", BRANCH, nodes / 16, 219 / 16, 0)
    s = Subject.first(kind())
    done, a = s.rollout, s.points.advantage
    there = s.points.weight > 0
    spread = torch.stack(
        [
            torch.stack([values.mean(), values.square().mean() - 1])
            for step in s.points.step.unique()
            for values in [a[s.points.step == step][there[s.points.step == step]].view(5, -1).T]
            for values in values.unbind(1)
        ]
    )
    yield compared("nodes of one depth of a tree: mean 0, variance 1", BRANCH, spread, torch.zeros_like(spread), 1e-3)
    yield from _nodes(kind, done)
    yield from _one_split(kind)


def _nodes(kind: Kind, done: Rollout) -> Iterator[Check]:
    """the return of a node is the mean of its children's."""
    mean = RandomSteps(views="mean")(done, ("",)).advantage
    assert done.steps is not None
    sample, number_of = done.steps.sample, done.steps.number
    found, expected = list[Tensor](), list[Tensor]()
    for row in (number_of > 0).nonzero().flatten().tolist():
        here = sample[row][sample[row] >= 0]
        above = (number_of == number_of[row] - 1).nonzero().flatten()
        child = (sample[above] == here[0]).any(2).nonzero()[0]
        expected.append(mean[above[child[0]], child[1]])
        found.append(mean[row][sample[row][:, 0] >= 0].mean())
    law = "returns of a node's children average to its own"
    yield compared(law, "derived 12", torch.stack(found), torch.stack(expected))


def _one_split(kind: Kind) -> Iterator[Check]:
    """a tree with one split is TempFlow-GRPO's branch at that step, with its credit."""
    draw = Splits(10, law="flow-sde", noise=0.7, splits=(3,), fanout=4, between="ode")
    one = kind(rollout=draw, credit=ZScore("group"))
    two = partial(TempFlowGRPO, beta=0.0, points=RandomSteps())
    both = [Subject.of(each, 8, linear) for each in (one, two(rollout=Branches(10, low=3, high=4, fanout=4)))]
    apart = (both[0].rollout.x0 - both[1].rollout.x0).abs().max().item()
    yield number("samples with one split, those of a TempFlow branch bit for bit", "derived 12", apart, 0, 0)
    found, expected = (each.points.advantage for each in both)
    yield compared(
        "one split has TempFlow's credit, standardised twice with a floor", "derived 12", found, expected, 5e-4
    )


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {
    "flash_grpo": flash_grpo,
    "turningpoint_grpo": turningpoint_grpo,
    "branch_grpo": branch_grpo,
}
