"""Samples with the states that each passed, along the ODE or with random steps (on-policy distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..system.errors import finite, one_of
from .flow import GridKind, TimeGrid, wide
from .laws import LAWS, ODE, Law, LawName, remark
from .noise import Noise
from .policy import Condition, Velocity
from .rollout import Drawn, Steps


@dataclass(frozen=True)
class Trajectory(TimeGrid):
    """Samples along a time grid, each with the states at which the network was evaluated.

    Without noise these are Euler steps of the ODE, and all states are kept. With noise, all steps but the last are
    random, and the states before random steps are kept.
    """

    shift: float = 1.0
    """spend more steps near noise (> 1) or near data (< 1)"""
    grid: GridKind | Literal["model"] = "linear"
    """spacing of times: `linear`, `sd3` (diffusers' grid for SD3) or `model` (the model's scheduler)"""
    noise: float = 0.0
    """noise strength of the steps: a, eta or scale of the noise schedule (0: the ODE)"""
    law: LawName = "flow-sde"
    """noise schedule of random steps"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    leaves = breadth = 1

    def __post_init__(self) -> None:
        one_of("noise schedule of random steps", self.law, LAWS)
        LAWS[self.law](self.noise)  # raises on an invalid strength
        finite(self, "guidance")
        super().__post_init__()
        if self.noise and self.steps < 2:
            raise ValueError("a trajectory with noise needs at least 2 steps, since the last one is not random")

    @property
    def table(self) -> Tensor:
        """[K, 4] float64: t, s, Q and sigma of each step whose state is kept (see laws.py)."""
        law: Law = LAWS[self.law](self.noise) if self.noise else ODE()
        pairs = list(pairwise(self.times))[: self.steps - (self.noise > 0)]
        return torch.tensor([(t, s, *law.coefficients(t, s, self.times[1])[1:]) for t, s in pairs], dtype=torch.float64)

    def at(self, seed: int, iteration: int) -> Trajectory:
        """Itself: this sampler is the same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """What becomes of the initial noise in the first random step, if that is worth knowing."""
        said = remark(LAWS[self.law](self.noise), self.times[1]) if self.noise else None
        return [said] if said else []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`, with their states."""
        law: Law = LAWS[self.law](self.noise) if self.noise else ODE()
        x, states, table = noise.start(), list[Tensor](), self.table
        for number, (t, s) in enumerate(pairwise(self.times)):
            v = wide(velocity(x, torch.full((len(x),), t, device=x.device), condition))
            if number == len(table):  # the last step, without noise
                x = x + (s - t) * v
                continue
            states.append(x.cpu())  # all states of an iteration may not fit on the device
            p, q, sigma = law.coefficients(t, s, self.times[1])
            x = p * x + q * v
            if sigma > 0:
                x = x + sigma * noise.step(number)
        many, kept = len(x), len(states)
        none = torch.empty(many * kept, 0)  # velocities and noise, which no loss asks for
        return Drawn(
            x,
            steps=Steps(
                x=torch.stack(states, 1).flatten(0, 1),
                v=none,
                z=none,
                sample=torch.arange(many).repeat_interleave(kept).view(-1, 1, 1),
                number=torch.arange(kept).repeat(many),
                table=table,
                per_root=kept,
            ),
        )
