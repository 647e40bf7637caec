"""Adjoint Matching: fine-tuning as stochastic optimal control (Domingo-Enrich et al., 2024, arXiv:2409.08861).

Samples are drawn with memoryless noise, g^2 = 2t / (1 - t). The gradient of the reward is carried from the sample to
noise along its own trajectory, by the Jacobian of the *reference* (the lean adjoint). The policy is regressed on it:

    a(0) = -grad R / tau,   da/dt = J' a,   J = d(-2 v_ref - x / (1 - t)) / dx
    l = mean( ( -(2/g) (v - v_ref) + g a )^2 )

With b = a / (1 - t), which has no singularity, this is

    b(0) = -grad R / tau,   db/dt = -2 (dv_ref/dx)' b,   l = 2 (1 - t) / t mean((v - v_ref - t b)^2)

Why this form: it is a regression, so no chain of networks is differentiated. Its minimiser is the velocity of the exact
KL tilt q ~ p exp(R / tau), tau in units of the reward per nat of the whole sample. That holds for this noise only: the
drift -(1 + a^2/2) v - a^2/2 x/(1-t) of FlowSDE(a) with the optimal control has v - v_ref = a^2 / (1 + a^2/2) t/(1-t)
grad V, which is the change of a flow's velocity only if a^2 = 2.

Limits: S products with the reference's Jacobian for each image. The adjoint is integrated by Euler steps on the
sampler's grid, so few steps leave an error of first order. The state at t = 1 has weight 0 with `weight` published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..learning.trails import Visits, WholeTrajectories
from ..process.flow import mean, over, wide
from ..process.policy import PLAIN, Models
from ..process.trails import Trail
from ..system.errors import one_of, positive
from .algorithm import Stale
from .ascent import Differentiating

Weight = Literal["published", "even"]


def lean_adjoint(
    b: Tensor, times: list[float], product: Callable[[int, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """b = a / (1 - t) at the states of a trajectory, and the reference's velocity there, [S, M, ...] each.

    Args:
        b: [M, ...] at the sample: -grad R / tau.
        times: [S + 1] from the first state to 0.
        product: (number of a state, b) -> the reference's velocity there, and its Jacobian's product with b.
    """
    adjoints, velocities = [], []
    for number in reversed(range(len(times) - 1)):
        v, change = product(number, b)
        b = b - 2 * (times[number] - times[number + 1]) * wide(change)
        adjoints.append(b)
        velocities.append(v)
    return torch.stack(adjoints[::-1]), torch.stack(velocities[::-1])


def adjoint_matching(v: Tensor, v_ref: Tensor, b: Tensor, t: Tensor, weight: Weight = "published") -> Tensor:
    """w mean((v - v_ref - t b)^2), [B]: w = 2 (1 - t) / t, the square of 2/g, or 1."""
    error = mean((wide(v) - wide(v_ref) - over(t, b) * b) ** 2)
    return error if weight == "even" else 2 * (1 - t.to(error)) / t.to(error) * error


@dataclass(frozen=True)
class AdjointMatching(Differentiating):
    """Adjoint Matching's settings, scaled to `scenes`."""

    temperature: float = 0.05
    """tau: reward per nat of KL to the reference; lower moves further from it"""
    weight: Weight = "published"
    """weight of a state: 2 (1 - t) / t (`published`), or 1 (`even`)"""
    rollout: Trail = field(default_factory=lambda: Trail(noise="memoryless", kept=None))
    points: WholeTrajectories = field(default_factory=WholeTrajectories)

    stale: ClassVar[Stale] = "none"  # trajectories are those of the policy that is trained

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "temperature")
        one_of("weight of states", self.weight, get_args(Weight))
        if self.ceiling is not None:
            raise ValueError(
                "a ceiling would change what Adjoint Matching converges to: leave --algorithm.ceiling at none"
            )
        if self.rollout.noise != "memoryless":
            raise ValueError(
                "Adjoint Matching needs memoryless noise, with which alone its minimiser is the velocity of a flow: "
                "set --algorithm.rollout.noise memoryless"
            )

    @property
    def products(self) -> dict[str, float]:
        """The weights whose Jacobian is needed, and the guidance of each."""
        return {"reference": self.guidance}

    def loss(self, models: Models, points: Visits) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each state [B], 0 where the policy is not trained; and metrics of the others."""
        count = int(points.number.max()) + 1
        first = slice(0, len(points), count)
        score, slope = models.slope(points.x0[first], points.condition[first], PLAIN)
        times = [*points.t[:count].tolist(), 0.0]

        def product(number: int, b: Tensor) -> tuple[Tensor, Tensor]:
            rows = slice(number, len(points), count)
            return models.product(points.x_t[rows], points.t[rows], points.condition[rows], b)

        b, v_ref = lean_adjoint(-wide(slope) / self.temperature, times, product)
        rows = points.chosen.nonzero().flatten()
        v = models.velocities["policy"](points.x_t[rows], points.t[rows], points.condition[rows])
        b, v_ref = (each.transpose(0, 1).flatten(0, 1)[rows] for each in (b, v_ref))
        each = adjoint_matching(v, v_ref, b, points.t[rows], self.weight)
        loss = each.new_zeros(len(points)).index_put((rows,), each)
        move = {
            "adjoint": (over(points.t[rows], b) * b).flatten(1).norm(dim=1),
            "distance": mean((v - v_ref).detach() ** 2),
        }
        return loss, {**self.watched(score, slope), **move}
