"""Points of the reverse process: states that a rollout passed, and the random steps it took from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..process.rollout import Rollout, Steps, places
from ..system.errors import one_of
from ..system.streams import Key
from .credit import ZScore
from .points import MeanOfPoints, even_units
from .rows import Batch
from .step_rewards import StepReward, step_rewards

Weight = Literal["even", "noise", "per-time", "pull"]
Views = Literal["sum", "mean", "restandardised"]
Counted = Literal["all", "signal"]
Order = Literal["shuffled", "by-step"]


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
class Walked(MeanOfPoints):
    """State number i, with its steps. States of one root go into the same optimiser step, or in order those of one
    step number.
    """

    steps: Steps  # those of the rollout, or some of them
    rollout: Rollout
    weight: Tensor  # [S] of each step of the grid
    advantage: Tensor  # [R, C]
    trained: Tensor  # [R, C] bool: children that are trained on
    in_order: bool = False

    indivisible = 1

    @property
    def unit(self) -> int:
        return self.steps.per_root

    def __len__(self) -> int:
        return len(self.advantage)

    def units(self) -> list[Tensor]:
        if self.in_order:
            number = self.steps.number
            return [(number == each).nonzero().flatten() for each in number.unique()]
        return even_units(len(self), self.unit)

    def prompts(self) -> Tensor:
        return self.rollout.group[self.steps.sample[:: self.unit, 0, 0]]

    def here(self, numbers: Tensor) -> Tensor:
        return numbers if self.steps.here is None else numbers[torch.isin(numbers, self.steps.here)]

    def take(self, numbers: Tensor) -> Moves:
        """States are gathered for these points alone."""
        steps, device = self.steps, self.rollout.x0.device
        own = places(steps.here, numbers)
        number, sample = steps.number[numbers], steps.sample[numbers]
        t, s, q, sigma = steps.table[number].unbind(1)
        there = self.trained[numbers]
        even = len(self.trained) / int(self.trained.sum())  # so that every step counts once
        return Moves(
            x_t=steps.x[own].to(device),
            t=t.float().to(device),
            condition=self.rollout.condition[self.rollout.group[sample[:, 0, 0]]],
            z=steps.z[own].to(device),
            advantage=self.advantage[numbers].to(device),
            weight=(self.weight[number][:, None] * there * even).to(device),
            step=number.to(device),
            q=q.to(device),
            sigma=sigma.to(device),
            length=(t - s).to(device),
            known={"old": steps.v[own].to(device)},
        )


@dataclass(frozen=True)
class RandomSteps:
    """Every random step of the rollout (reverse-process policy gradients)."""

    weight: Weight = "even"
    """weight of a step: sigma / mean (`noise`), 1 / (t - s) (`per-time`), or (sigma / |Q|) / mean (`pull`)"""
    views: Views = "sum"
    """combine the advantages of several samples of one step (G2RPO)"""
    extremes: int | None = None
    """train only on steps to N images per prompt, half of them with the highest advantages, half with the lowest"""
    counted: Counted = "all"
    """average the loss over `all` images, or over those with a `signal`, an advantage that is not 0 (Flow-GRPO)"""
    order: Order = "shuffled"
    """split an iteration into updates by images in random order (`shuffled`) or by step number (`by-step`, G2RPO)"""
    rewards: StepReward | None = None
    """reward of a step: its own `gain` or the `trend` of its chain, with turning points (none: that of its images)"""

    def __post_init__(self) -> None:
        one_of("choice of counted images", self.counted, get_args(Counted))
        one_of("order of updates", self.order, get_args(Order))
        one_of("step weight", self.weight, get_args(Weight))
        one_of("way to combine views", self.views, get_args(Views))
        if self.rewards is not None:
            one_of("reward of a step", self.rewards, get_args(StepReward))
            if self.extremes is not None:
                raise ValueError("with rewards of steps no image is left out: leave points.extremes at none")
        if self.extremes is not None and (self.extremes < 2 or self.extremes % 2):
            raise ValueError(
                f"extremes counts the best and the worst images, equally many: it must be even and at least 2, "
                f"not {self.extremes}"
            )

    def __call__(self, rollout: Rollout, key: Key) -> Walked:
        """Raises ValueError where no step of the rollout was random, or a prompt has too few images."""
        steps = rollout.steps
        if steps is None:
            raise ValueError("this algorithm trains on random steps, but this rollout has no random steps")
        kept = self._ends(rollout)
        if kept is not None and steps.sample.shape[1:] == (1, 1):  # of samples that share no step
            steps, kept = steps[torch.isin(steps.sample[:, 0, 0], kept).nonzero().flatten()], None
        advantage = self._advantages(rollout, steps)
        trained = steps.sample[:, :, 0] >= 0
        if kept is not None:  # steps that samples share are trained on if one of them is kept
            trained = torch.isin(steps.sample, kept).any(2)
            advantage = advantage * trained
        if self.counted == "signal":  # whole roots, since their states are trained together
            heard = (advantage != 0).view(-1, steps.per_root * advantage.shape[1]).any(1)
            rows = torch.arange(len(advantage)).view(-1, steps.per_root)[heard].flatten()
            steps, advantage, trained = steps[rows], advantage[rows], trained[rows]
        return Walked(steps, rollout, self._weights(steps, trained), advantage, trained, self.order == "by-step")

    def _ends(self, rollout: Rollout) -> Tensor | None:
        """The numbers of the images whose steps are trained on; None: all."""
        if self.extremes is None:
            return None
        members, half = rollout.by_group(), (self.extremes or 0) // 2
        if members.shape[1] < 2 * half:
            raise ValueError(f"extremes asks for {2 * half} images per prompt, but a group has only {members.shape[1]}")
        order = members.gather(1, rollout.advantage[members].argsort(dim=1, descending=True, stable=True))
        return torch.cat([order[:, :half], order[:, order.shape[1] - half :]], 1)

    def _weights(self, steps: Steps, trained: Tensor) -> Tensor:
        """[S], of each step of the grid."""
        t, s, q, sigma = steps.table.unbind(1)
        match self.weight:
            case "even":
                return torch.ones_like(t)
            case "noise":
                return sigma / sigma.nanmean()
            case "per-time":
                return 1 / (t - s)
            case "pull":  # its mean over all trained steps of the iteration is 1
                weight, many = sigma / q.abs(), trained.sum(1)
                return weight * many.sum() / (weight[steps.number] * many).sum()

    def _advantages(self, rollout: Rollout, steps: Steps) -> Tensor:
        """[R, C]: those of the samples that came of each step, put together, or what the step changed."""
        if self.rewards is not None:
            return _standardised(self._changes(rollout, steps, self.rewards), rollout, steps)
        each = rollout.advantage[steps.sample] * (steps.sample >= 0)
        if self.views == "mean":
            return each.sum(2) / (steps.sample >= 0).sum(2).clamp(min=1)
        total = each.sum(2)
        return _standardised(total, rollout, steps) if self.views == "restandardised" else total

    def _changes(self, rollout: Rollout, steps: Steps, kind: StepReward) -> Tensor:
        """[R, 1]: the reward of each step, from those of all completions of its chain."""
        roots = len(steps.number) // steps.per_root
        if steps.sample.shape[1] > 1 or len(rollout) != roots * (steps.per_root + 1):
            raise ValueError(
                "rewards of steps need every state of a chain completed by the ODE, so a rollout of kind "
                "CompletedChain (turningpoint_grpo): leave points.rewards at none"
            )
        return step_rewards(rollout.advantage.view(roots, -1), kind).view(-1, 1)


def _standardised(values: Tensor, rollout: Rollout, steps: Steps) -> Tensor:
    """Z-scores of values [R, C], over steps of one number whose samples (of the first view) are compared."""
    first = steps.sample[:, :, 0]
    rivals = torch.stack([rollout.cohort[first], steps.number[:, None].expand_as(first)], 2)
    there = first >= 0
    found = torch.zeros_like(values)
    found[there] = ZScore("group")(values[there], rivals[there].unique(dim=0, return_inverse=True)[1])
    return found
