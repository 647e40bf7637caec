"""Trajectories whose random steps differ between prompts (Flash-GRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..system.streams import Key
from .laws import Law
from .noise import Noise
from .policy import Condition, Velocity
from .rollout import Drawn, Steps
from .trees import tabled
from .windows import Window


@dataclass(frozen=True)
class Scattered:
    """Trajectories with random steps in the window of their prompt, and ODE steps before and after it.

    All samples pass the same times, so one forward pass per step serves all of them. The window of a prompt depends on
    seed, iteration and the number of the prompt, not on the batch. The noise of a step is as in a `Tree` of one chain.
    """

    times: tuple[float, ...]
    """[S + 1], from 1 to 0"""
    window: Window
    """draws a position per prompt"""
    law: Law
    """noise schedule of the random steps"""
    shared_start: bool = False
    """whether all samples of a prompt start from the same noise"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    leaves = 1

    def __post_init__(self) -> None:
        for number, (_, _, _, sigma) in self._numbers().items():
            if sigma == 0:
                raise ValueError(
                    f"the step from {self.times[number]:.4g} to {self.times[number + 1]:.4g} has no noise, so no "
                    "density to train on; raise the noise or exclude the step"
                )

    def of_prompt(self, key: Key) -> range:
        """The random steps of a sample with this key; those of a prompt are equal."""
        return self.window.drawn(len(self.times) - 1, key[1:-1])

    def _numbers(self) -> dict[int, tuple[float, float, float, float]]:
        """t, s, Q and sigma of every step that some prompt may have as a random one."""
        starts, size = self.window.positions(len(self.times) - 1)
        steps = sorted({step for start in starts for step in range(start, start + size)})
        ends = {step: (self.times[step], self.times[step + 1]) for step in steps}
        return {step: (t, s, *self.law.coefficients(t, s, self.times[1])[1:]) for step, (t, s) in ends.items()}

    @property
    def table(self) -> Tensor:
        """[S, 4] float64: t, s, Q and sigma of each step that may be random; NaN for other steps."""
        return tabled(dict(self._numbers()))

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`."""
        windows = [self.of_prompt(key) for key in noise.keys]
        first, size = torch.tensor([window.start for window in windows]), len(windows[0])
        x = noise.start(None if self.shared_start else 1)
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # of each step: its place among all, x, v and z
        for number, (t, s) in enumerate(pairwise(self.times)):
            v = velocity(x, torch.full((len(x),), t, device=x.device), condition)
            ahead = x + (s - t) * v.to(x.dtype)
            rows = ((first <= number) & (number < first + size)).nonzero().flatten()
            if len(rows):
                own = Noise(noise.shape, tuple(noise.keys[row] for row in rows.tolist()), noise.device)
                z, here = own.branch(0, 1, number), rows.to(x.device)
                kept.append((rows * size + number - first[rows], x[here].cpu(), v[here].cpu(), z.cpu()))
                p, q, sigma = self.law.coefficients(t, s, self.times[1])
                ahead[here] = (p * x[here] + q * v[here] + sigma * z).to(x.dtype)
            x = ahead
        return Drawn(x, steps=self._steps(kept, first, size), cohort=torch.zeros(len(x)))

    def _steps(self, kept: list[tuple[Tensor, Tensor, Tensor, Tensor]], first: Tensor, size: int) -> Steps:
        """The random steps of each sample in order; `first` [B] is the number of its first one."""
        places, x, v, z = (torch.cat(parts) for parts in zip(*kept, strict=True))
        order = places.argsort()
        number = (first[:, None] + torch.arange(size)).flatten()
        sample = torch.arange(len(first)).repeat_interleave(size).view(-1, 1, 1)
        return Steps(x[order], v[order], z[order][:, None], sample, number, self.table, per_root=size)
