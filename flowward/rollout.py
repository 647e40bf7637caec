"""Drawing samples: a time grid and a solver, over any velocity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .flow import GridKind, grid
from .models.policy import Condition, Velocity


@dataclass(frozen=True)
class Rollout:
    """Finished samples, in groups that share a prompt; N samples, P prompts."""

    x0: Tensor  # [N, ...] float32
    condition: Condition  # P rows
    group: Tensor  # [N] row of the sample's prompt in `condition`
    reward: Tensor  # [N] float32
    advantage: Tensor  # [N] float64

    def __len__(self) -> int:
        return len(self.x0)


@dataclass(frozen=True)
class Sampler:
    """The probability-flow ODE, dx = v dt from t = 1 to 0, by Euler steps."""

    steps: int = 10
    """network evaluations per sample"""
    shift: float = 1.0
    """> 1 spends more steps near noise"""
    grid: GridKind = "linear"
    """how times are spaced; `sd3` is diffusers' grid for Stable Diffusion 3"""

    def __post_init__(self) -> None:
        grid(self.steps, self.shift, self.grid)  # refuses what it cannot do

    def times(self) -> Iterator[tuple[float, float]]:
        """(t, next t) for each step."""
        yield from pairwise(grid(self.steps, self.shift, self.grid).tolist())

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Tensor) -> Tensor:
        """noise [B, ...] at t = 1 -> finished samples [B, ...], in float32."""
        x = noise.float()
        for t, s in self.times():
            x = x + (s - t) * velocity(x, torch.full((len(x),), t, device=x.device), condition)
        return x
