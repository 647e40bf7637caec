"""The gradient of the reverse-process family is that of the expected reward, in closed form (L7 of the notes)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from walks import everything

from flowward.algorithms.policy_gradient import PolicyGradient
from flowward.process.laws import FlowSDE
from flowward.process.noise import Noise
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Condition, Models
from flowward.process.rollout import Rollout
from flowward.process.windows import Window

THETA, CHAIN = 0.6, Chain(4, 1.0, "linear", noise=0.7)


def one_step_kernels() -> list[tuple[float, float, float]]:
    times = CHAIN.times
    return [FlowSDE(0.7).coefficients(t, s, times[1]) for t, s in pairwise(times[:4])]


def expected_reward(theta: Tensor, noisy: tuple[int, ...] = (0, 1, 2), thetas: Tensor | None = None) -> Tensor:
    """E[-(x0 - 1)^2] of v = theta x from N(0, 1), in closed form; `thetas`: one for each step."""
    each = theta.expand(4) if thetas is None else thetas
    mean, var = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for number, (p, q, sigma) in enumerate(one_step_kernels()):
        slope = (
            p + q * each[number]
            if number in noisy
            else 1 + (CHAIN.times[number + 1] - CHAIN.times[number]) * each[number]
        )
        mean, var = slope * mean, slope**2 * var + (sigma**2 if number in noisy else 0.0)
    slope = 1 - CHAIN.times[3] * each[3]
    mean, var = slope * mean, slope**2 * var
    return -((mean - 1) ** 2) - var


def analytic(step: int, noisy: tuple[int, ...] = (0, 1, 2)) -> float:
    """The derivative of E[R] with respect to theta in one step alone."""
    thetas = torch.full((4,), THETA, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(expected_reward(thetas[0], noisy, thetas), thetas)[0][step].item()


def one_dimensional(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return THETA * x


@cache
def estimates(draw: Any, roots: int) -> tuple[Tensor, Tensor]:
    """Gradients of sum ratios with raw rewards as advantages, one for each state, and the number of its step."""
    tree = draw.at(0, 0)
    names = tuple(("noise", 0, 0, 0, number) for number in range(roots * tree.leaves))
    found = tree(one_dimensional, Condition({"id": torch.zeros(len(names))}), Noise((1,), names))
    group = torch.zeros(len(names), dtype=torch.long)
    done = Rollout.of([found], Condition({"id": torch.zeros(1)}), group, draw.levels)
    reward = -((found.x0[:, 0].double() - 1) ** 2)
    done = replace(done, reward=reward.float(), advantage=reward - reward.mean())
    algorithm = PolicyGradient(rollout=draw, ratio="sum", clip=0.1, advantage_clip=1e9)
    points = everything(algorithm, done)
    weight = torch.full((len(points), 1), THETA, requires_grad=True)
    loss, _ = algorithm.loss(Models(lambda x, t, c: weight * x, one_dimensional, one_dimensional), points)
    return -torch.autograd.grad(loss.sum(), weight)[0][:, 0].double(), points.step


@pytest.mark.parametrize("step", [0, 1, 2])
def test_l7_reinforce_is_the_gradient_of_the_expected_reward(step: int) -> None:
    """v = theta x, R = -(x0 - 1)^2: over 20,000 rollouts with all steps random, within four standard errors."""
    found, number = estimates(CHAIN, 20_000)
    mine = found[number == step]
    error = (mine.std() / math.sqrt(len(mine))).item()
    assert error < 0.05
    assert mine.mean().item() == pytest.approx(analytic(step), abs=4 * error)
    assert abs(analytic(step)) > 8 * error


@pytest.mark.parametrize("step", [0, 1, 2])
def test_l7_a_branch_estimates_the_same_with_less_noise(step: int) -> None:
    """At its own step; the rest of the way follows the ODE, so the expectation is that of one random step."""
    draw = Branches(4, 1.0, "linear", low=step, high=step + 1, fanout=16)
    found, number = estimates(draw, 1250)
    assert (number == step).all()
    error = (found.std() / math.sqrt(len(found))).item()
    assert found.mean().item() == pytest.approx(analytic(step, (step,)), abs=4 * error)
    window = replace(CHAIN, window=Window(1, "frozen", low=step, high=step + 1))
    chain, _ = estimates(window, 20_000)
    apart = math.hypot(error, (chain.std() / math.sqrt(len(chain))).item())
    assert found.mean().item() == pytest.approx(chain.mean().item(), abs=4 * apart)
