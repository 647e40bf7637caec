"""Trajectories whose last states are kept, so that a loss can run their steps again with a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal, get_args

import torch

from ..system.errors import finite, one_of
from .flow import TimeGrid
from .laws import ODE, PRECISE, Law
from .noise import Noise
from .policy import Condition, Velocity
from .rollout import Drawn

Steps = Literal["ode", "memoryless"]
LAWS: dict[Steps, Law] = {"ode": ODE(), "memoryless": PRECISE(sqrt(2))}


@dataclass(frozen=True)
class Trail(TimeGrid):
    """Samples by Euler steps of the ODE, or by memoryless random steps; the network's last inputs are recorded.

    `memoryless` is the SDE dx = (v + g^2 eps / 2t) dt + g dw with g^2 = 2t / (1 - t), FlowSDE(sqrt 2) in laws.py, by
    its exact step for a constant x0. Euler-Maruyama steps would leave 1.6 times too much noise after the first of ten.
    """

    shift: float = 1.0
    """spend more steps near noise (> 1) or near data (< 1)"""
    grid: Literal["linear", "sd3", "model"] = "linear"
    """spacing of times: `linear`, `sd3` (diffusers' grid for SD3) or `model` (the model's scheduler)"""
    noise: Steps = "ode"
    """take steps of the `ode`, or `memoryless` random ones (Adjoint Matching)"""
    kept: int | None = 1
    """record the states before the last N steps (none: all of them)"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    leaves = breadth = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind of steps", self.noise, get_args(Steps))
        finite(self, "guidance")
        if self.kept is not None and not 1 <= self.kept <= self.steps:
            raise ValueError(
                f"kept, the number of recorded states, must lie between 1 and {self.steps} steps, not {self.kept}"
            )

    @property
    def recorded(self) -> int:
        """States per sample."""
        return self.steps if self.kept is None else self.kept

    def at(self, seed: int, iteration: int) -> Trail:
        """Itself: this sampler is the same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """No remarks."""
        return []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`, with their last states [B, recorded, ...]."""
        x, states, times = noise.start(), [], self.times
        for number, (t, s) in enumerate(pairwise(times)):
            if number >= self.steps - self.recorded:
                states.append(x.cpu())  # all states of an iteration may not fit on the device
            v = velocity(x, torch.full((len(x),), t, device=x.device), condition)
            p, q, sigma = LAWS[self.noise].coefficients(t, s, times[1])
            x = p * x + q * v
            if sigma > 0:
                x = x + sigma * noise.step(number)
        return Drawn(x, torch.stack(states, 1))
