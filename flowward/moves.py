"""Points of the reverse process: states that a rollout passed, and the random steps it took from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .credit import ZScore
from .points import Batch
from .rollout import Rollout, Steps
from .streams import Key

Weight = Literal["even", "noise", "per-time"]
Views = Literal["sum", "mean", "restandardised"]


@dataclass(frozen=True)
class Moves(Batch):
    """B states with up to C random steps x_s = P x_t + Q v + sigma z from each; those of a state share one forward."""

    z: Tensor  # [B, C, ...]
    advantage: Tensor  # [B, C] float64
    weight: Tensor  # [B, C] float64, of the loss of a step; 0 where a state has fewer than C
    step: Tensor  # [B] number of the step in its grid
    q: Tensor  # [B] float64, and so are the next two
    sigma: Tensor
    length: Tensor  # [B] t - s


@dataclass(frozen=True)
class Walked:
    """State number i, with its steps; states of one root go into the same optimiser step."""

    rollout: Rollout
    weight: Tensor  # [S] of each step of the grid
    advantage: Tensor  # [R, C]

    indivisible = 1

    @property
    def unit(self) -> int:
        assert self.rollout.steps is not None
        return self.rollout.steps.per_root

    def __len__(self) -> int:
        return len(self.advantage)

    def take(self, numbers: Tensor) -> Moves:
        """States are gathered for these points alone."""
        steps = self.rollout.steps
        assert steps is not None
        x, number, sample = steps.x[numbers], steps.number[numbers], steps.sample[numbers]
        t, s, q, sigma = steps.table[number].unbind(1)
        there = sample[:, :, 0] >= 0
        even = len(steps.sample) / int((steps.sample[:, :, 0] >= 0).sum())  # so that every step counts once
        return Moves(
            x_t=x,
            t=t.float().to(x.device),
            condition=self.rollout.condition[self.rollout.group[sample[:, 0, 0]]],
            z=steps.z[numbers],
            advantage=self.advantage[numbers].to(x.device),
            weight=(self.weight[number][:, None] * there * even).to(x.device),
            step=number.to(x.device),
            q=q.to(x.device),
            sigma=sigma.to(x.device),
            length=(t - s).to(x.device),
            known={"old": steps.v[numbers]},
        )


@dataclass(frozen=True)
class RandomSteps:
    """Every random step of the rollout (reverse-process policy gradients)."""

    weight: Weight = "even"
    """of the steps: `noise` by sigma over its mean (TempFlow-GRPO), `per-time` by 1 / (t - s) (GRPO-Guard)"""
    views: Views = "sum"
    """how advantages of several samples of one step are put together (G2RPO)"""

    def __call__(self, rollout: Rollout, key: Key) -> Walked:
        """Raises ValueError where no step of the rollout was random."""
        steps = rollout.steps
        if steps is None:
            raise ValueError("this algorithm trains on random steps, but samples of this kind have none")
        return Walked(rollout, self._weights(steps.table), self._advantages(rollout, steps))

    def _weights(self, table: Tensor) -> Tensor:
        """[S], of each step of the grid."""
        t, s, _, sigma = table.unbind(1)
        match self.weight:
            case "even":
                return torch.ones_like(t)
            case "noise":
                return sigma / sigma.nanmean()
            case "per-time":
                return 1 / (t - s)

    def _advantages(self, rollout: Rollout, steps: Steps) -> Tensor:
        """[R, C]: those of the samples that came of each step, put together."""
        each = rollout.advantage[steps.sample] * (steps.sample >= 0)
        if self.views == "mean":
            return each.mean(2)
        total = each.sum(2)
        if self.views == "restandardised":  # over the steps that the samples of the first view are compared with
            first = steps.sample[:, :, 0]
            rivals = torch.stack([rollout.cohort[first], steps.number[:, None].expand_as(first)], 2)
            there = first >= 0
            total[there] = ZScore("group")(total[there], rivals[there].unique(dim=0, return_inverse=True)[1])
        return total
