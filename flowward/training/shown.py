"""The training images that a report shows: the best and the worst of an iteration, and its first groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..evaluation.images import labelled_grid
from ..evaluation.samples import grouped, members
from ..process.rollout import Rollout
from ..system import distributed
from .metrics import extremes, histogram
from .samples import Samples

GROUPS = 3  # of an iteration


@dataclass(frozen=True)
class Shown:
    """The samples of an iteration, as an evaluation that follows may show them."""

    iteration: int
    samples: Samples  # those of this process
    numbers: Tensor  # [n] their numbers among those of all processes
    rewards: Tensor  # [n]
    ends: tuple[int, int]  # the numbers of the best and the worst sample of all
    line: Mapping[str, Any]  # for metrics.jsonl: see metrics.SHOWN

    @classmethod
    def of(cls, iteration: int, samples: Samples, numbers: Tensor, rollout: Rollout, texts: Sequence[str]) -> Shown:
        """`texts` has the prompt of each group of the rollout."""
        reward, ends = rollout.reward, extremes(rollout.reward, rollout.own)
        best, worst = ({"prompt": texts[int(rollout.group[n])], "reward": reward[n].item()} for n in ends)
        line = {"reward_histogram": histogram(reward[rollout.own]), "best": best, "worst": worst}
        return cls(iteration, samples, numbers, reward[numbers], ends, line)

    def best_and_worst(self) -> Tensor:
        """Their images, [2, 3, H, W] or [2, F, 3, H, W], or samples. Every process has to call this."""
        mine = self.samples.images[torch.isin(self.numbers, torch.tensor(self.ends))]
        found = torch.cat([each for each in distributed.everyone(mine) if len(each)])  # in the order of their numbers
        return found[[0, -1] if self.ends[0] <= self.ends[1] else [-1, 0]]

    def extremes(self) -> Image:
        """Both side by side, with rewards and prompts. Every process has to call this."""
        told = [f"{name} {self.line[name]['reward']:.3g}: {self.line[name]['prompt']}" for name in ("best", "worst")]
        texts = [self.line[name]["prompt"] for name in ("best", "worst")]
        return labelled_grid(self.samples.medium.draw(self.best_and_worst(), texts), told)

    def groups(self, size: int) -> list[dict[str, Any]]:
        """The first groups of `size` images, with rewards and advantages. Every process has to call this."""
        own, many = self.samples, int((self.numbers < GROUPS * size).sum())  # numbers rise
        mine = []
        if many:
            shown = own.medium.draw(own.images[:many], own.prompts[:many])
            mine = members(shown, self.rewards[:many], own.advantages[:many], own.medium.longest)
        texts = [text for part in distributed.each_team(own.prompts[:many]) for text in part]
        return grouped(texts[::size], [each for part in distributed.each_team(mine) for each in part])
