"""Parts of the laws of the protocol that depend on the kind of training points: noised samples or random steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from typing import Any

import torch
from torch import Tensor

from ..algorithms.algorithm import Algorithm
from ..learning.moves import Moves
from ..learning.points import Points
from ..learning.states import State
from ..process.flow import over
from ..process.policy import Condition
from ..process.rollout import Rollout
from .check import real
from .worlds import Discrete, covariance_with_velocity

Case = tuple[Any, Tensor, Tensor]  # points, the policy's velocities and those of its anchors


@singledispatch
def ends(points: Any) -> dict[str, Any]:
    """The same points in extreme cases, where values may become infinite."""
    raise TypeError(f"there are no laws for training points of type {type(points).__name__}; use Points or Moves")


@ends.register
def _(points: Points) -> dict[str, Any]:
    return {
        "t in (0, 1)": points,
        "t = 0": replace(points, t=torch.zeros_like(points.t), x_t=points.x0),
        "t = 1": replace(points, t=torch.ones_like(points.t), x_t=points.eps),
    }


@ends.register
def _(points: Moves) -> dict[str, Any]:
    return {
        "after an update": points,
        "before the first update": replace(points, fresh=True),
        "with a thousandth of the noise": replace(points, sigma=points.sigma / 1000),
    }


@ends.register
def _(points: State) -> dict[str, Any]:
    return {"at states": points, "with a thousand times the weight": replace(points, weight=1000 * points.weight)}


@singledispatch
def cases(points: Any, old: Tensor) -> list[Case]:
    """Cases on policy, off policy, and with zeros that a loss may divide by."""
    raise NotImplementedError


@cases.register
def _(points: Points, old: Tensor) -> list[Case]:
    u, off = points.eps - points.x0, old + real(*old.shape) / 100
    same = replace(
        points,
        x0=points.x0[:1].expand_as(points.x0),
        delta=None if points.delta is None else torch.zeros_like(points.x0),
    )
    silent = replace(points, advantage=torch.zeros_like(points.t))
    return [(points, off, old), (points, old, old), (points, u, u), (same, off, old), (silent, off, old)]


@cases.register
def _(points: Moves, old: Tensor) -> list[Case]:
    off, far = old + real(*old.shape) / 100, old + 10
    still = replace(points, z=torch.zeros_like(points.z))
    silent = replace(points, advantage=torch.zeros_like(points.advantage))
    return [(points, off, old), (points, old, old), (points, far, old), (still, off, old), (silent, off, old)]


@cases.register
def _(points: State, old: Tensor) -> list[Case]:
    return [(points, old + real(*old.shape) / 100, old), (points, old, old), (points, old + 10, old)]


@singledispatch
def towards(points: Any, old: Tensor) -> tuple[Tensor, str]:
    """The direction in which the velocity must change for better samples [B, ...], times A; and its name."""
    raise NotImplementedError


@towards.register
def _(points: Points, old: Tensor) -> tuple[Tensor, str]:
    """The clean prediction moves towards the sample; a lower v moves the end of a trajectory up."""
    if points.delta is None:
        way, name = points.eps - points.x0 - old, "u - v_old"
    else:
        way, name = -points.delta, "-delta"
    return over(points.advantage, way) * way, name


@towards.register
def _(points: Moves, old: Tensor) -> tuple[Tensor, str]:
    """The mean of x_s moves by Q times the change of v; it must move along the noise that led to the sample."""
    share = (points.weight * points.advantage)[(...,) + (None,) * (old.ndim - 1)]
    return over(points.q, old) * (share * points.z).sum(1), "Q z"


@singledispatch
def owned(points: Any, done: Rollout) -> tuple[list[float], str]:
    """Signs that are 1 if a point has the advantage of its own sample, for R = sum of a sample; and what is summed."""
    raise NotImplementedError


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    return (a - a.mean()) @ (b - b.mean()).double()


@owned.register
def _(points: Points, done: Rollout) -> tuple[list[float], str]:
    """Per prompt. A wrong sign of the credit does not matter here."""
    value = (points.x0 if points.delta is None else points.delta).flatten(1).sum(1)  # R, or half a difference of R
    signs = []
    for prompt in done.group.unique():
        mine, drawn = points.condition.tensors["id"] == prompt, done.group == prompt
        given = _covariance(done.advantage[drawn], done.reward[drawn])
        signs.append((given * _covariance(points.advantage[mine], value[mine])).sign().item())
    return signs, "sample" if points.delta is None else "delta"


@owned.register
def _(points: Moves, done: Rollout) -> tuple[list[float], str]:
    """Over all prompts: the noise of a step is one part of its sample's sum."""
    there = points.weight > 0
    value = points.z.flatten(2).sum(2)[there]
    given = _covariance(done.advantage, done.reward)
    return [(given * _covariance(points.advantage[there], value)).sign().item()], "noise"


@dataclass(frozen=True)
class Population:
    """The posterior at five states: points, their probabilities, and the expected direction of the mean gradient."""

    points: Any
    old: Tensor
    weight: Tensor  # [B] probability
    at: Tensor  # [B] state that a point belongs to
    along: Tensor  # [5, D] expected direction
    name: str


@singledispatch
def population(points: Any, algorithm: Algorithm) -> Population:
    """All pairs of atoms, weighted by their exact probability.

    With rewards 0 and 1, every centred credit of a pair is proportional to the difference of its rewards, so the law
    does not depend on the credit. All atoms have equal distances, so losses may divide by the distance of a pair.
    """
    raise NotImplementedError


def _atoms() -> tuple[Tensor, Tensor]:
    """16 atoms [16, 16] at equal distances, and their rewards [16]."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return reduce(torch.kron, [signs] * 4), (torch.arange(16) % 5 < 2).double()


@population.register
def _(points: Points, algorithm: Algorithm) -> Population:
    """Atoms of x0, so close to each other that all have some probability at a noisy point.

    Pairs share a group if the loss compares samples; if all points of a group are of one sample, each has its own.
    """
    atoms, won = _atoms()
    world = Discrete(atoms / 4, 1 + torch.arange(16) % 3)
    t = torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    noisy = real(5, 16, seed=2)
    pairs = torch.combinations(torch.arange(16))
    weight = world.posterior(noisy, t).weights[:, pairs].prod(2).repeat_interleave(2)  # one per row
    sample, at = pairs.flatten().repeat(5), torch.arange(5).repeat_interleave(2 * len(pairs))
    group = torch.arange(len(sample)) // 2
    x_t, x0 = noisy[at], world.atoms[sample]
    eps = (x_t - (1 - t[at])[:, None] * x0) / t[at][:, None]
    old = world.velocity(noisy, t)[at]
    alone = all((points.x0[points.group == one] == points.x0[points.group == one][:1]).all() for one in points.group)
    made = Points(
        x_t=x_t, t=t[at], x0=x0, eps=eps, advantage=algorithm.credit(won[sample].float(), group).double(),
        condition=Condition({"id": torch.zeros(len(group))}),
        group=torch.arange(len(group)) if alone else group, exemplar=torch.zeros(len(group)).bool(),
        delta=None if points.delta is None else (x0 - x0.view(-1, 2, 16).flip(1).flatten(0, 1)) / 2,
        known={"old": old} if "old" in points.known else {},
    )  # fmt: skip
    along = -covariance_with_velocity(world, lambda x: won, noisy, t)
    return Population(made, old, weight, at, along, "-Cov(R, u | x_t)")


@population.register
def _(points: Moves, algorithm: Algorithm) -> Population:
    """Atoms of z, at five of the algorithm's own steps."""
    atoms, won = _atoms()
    share = (1 + torch.arange(16.0) % 3).double()
    pairs = torch.combinations(torch.arange(16))
    sample, at = pairs.flatten().repeat(5), torch.arange(5).repeat_interleave(2 * len(pairs))
    group, chosen = torch.arange(len(sample)) // 2, (torch.arange(5) % len(points))[at]
    old, a = real(5, 16, seed=2)[at], algorithm.credit(won[sample].float(), group).double()[:, None]
    made = Moves(
        x_t=old, t=points.t[chosen], condition=Condition({"id": torch.zeros(len(group))}), z=atoms[sample][:, None],
        advantage=a, weight=torch.ones_like(a), step=points.step[chosen], q=points.q[chosen],
        sigma=points.sigma[chosen], length=points.length[chosen], known={"old": old},
    )  # fmt: skip
    share = share / share.sum()
    covariance = (share * won) @ atoms - (share @ won) * (share @ atoms)
    along = -points.q[chosen].view(5, -1)[:, :1] * covariance
    weight = share[pairs].prod(1).repeat_interleave(2).repeat(5)
    return Population(made, old, weight, at, along, "-Q Cov(R, z | x_t)")
