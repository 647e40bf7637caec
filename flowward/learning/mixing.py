"""Several rewards to one advantage, and rewards that are remembered: what stands around a credit (credit.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from ..prompts import Prompt
from .credit import Piece

Mix = Callable[[Piece, Tensor, Tensor, Tensor], Tensor]
"""(credit, rewards [B, R], weights [R], group [B]) -> advantages float64 [B]"""

MixName = Literal["rewards", "advantages", "gdpo", "pareto"]


def rewards_first(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Add up the weighted rewards, then compare: a reward counts by its spread as well as by its weight."""
    return credit((rewards.double() * weights.double()).sum(1), group)


def advantages_first(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Compare by each reward, then add up the weighted advantages: only the weights count (MixGRPO, arXiv:2507.21802).

    With R rewards the sum no longer has the spread that the credit gives one. MixGRPO's weights sum to 1.
    """
    each = [weight * credit(column, group) for weight, column in zip(weights.double(), rewards.T, strict=True)]
    return torch.stack(each).sum(0)


def gdpo(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor, floor: float = 1e-4) -> Tensor:
    """The same over its standard deviation in the batch (GDPO, Liu et al., 2026, arXiv:2601.05242).

    Its mean is not subtracted: that of each group is 0 already, and so groups without variance keep exactly 0.
    """
    total = advantages_first(credit, rewards, weights, group)
    return total / (total.std(correction=0) + floor)


def pareto(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Compare by dominance: the share of its group that an image dominates, less the share that dominates it.

    One image dominates another that it beats by one reward at least, and that beats it by none (as in Parrot, Lee et
    al., 2024, arXiv:2401.05675). Only the signs of the weights count, and a weight of 0 leaves a reward out.
    """
    values = (rewards.double() * weights.sign().double())[:, weights != 0]
    found = torch.zeros(len(values), dtype=torch.float64)
    for number in group.unique():
        rows = group == number
        one, other = values[rows][:, None], values[rows][None]
        beats = (one >= other).all(2) & (one > other).any(2)
        found[rows] = (beats.sum(1) - beats.sum(0)).double() / max(1, int(rows.sum()) - 1)
    return credit(found, group)


def correlations(rewards: Tensor, group: Tensor) -> Tensor:
    """Of each pair of rewards over images of the same group, [R, R]; 0 where one of them never differs.

    Negative: what one reward asks for costs the other.
    """
    values = rewards.double()
    counts = torch.bincount(group).double()
    sums = torch.zeros(len(counts), values.shape[1], dtype=torch.float64).index_add_(0, group, values)
    own = values - (sums / counts.clamp(min=1)[:, None])[group]
    length = own.square().sum(0).sqrt()
    return (own.T @ own) / (length[:, None] * length[None]).clamp(min=1e-12)


def each_reward(names: Sequence[str], rewards: Tensor, group: Tensor) -> dict[str, float]:
    """The mean of each of R rewards [B, R], and how each two go together within groups; nothing where there is one."""
    if len(names) == 1:
        return {}
    together = correlations(rewards, group)
    pairs = combinations(range(len(names)), 2)
    means = {f"reward/{name}": rewards[:, i].mean().item() for i, name in enumerate(names)}
    return means | {f"correlation/{names[i]}/{names[j]}": together[i, j].item() for i, j in pairs}


MIXES: dict[MixName, Mix] = {
    "rewards": rewards_first,
    "advantages": advantages_first,
    "gdpo": gdpo,
    "pareto": pareto,
}


class RewardBuffer:
    """The last rewards that each prompt earned, over iterations (DDPO, arXiv:2305.13301). A size of 0 keeps none.

    A run that goes on with other rewards begins anew: what others gave is not to be compared with. `kinds` tells them
    apart, a text for each (see `provenance.same_scores`).
    """

    def __init__(self, size: int, kinds: Sequence[str] = ()):
        self.size, self.kinds = size, list(kinds)
        self._kept: dict[str, Tensor] = {}  # prompt -> [k <= size, R], oldest first

    def beside(
        self, rewards: Tensor, cohort: Tensor, group: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor]:
        """New rewards [B, R] and the numbers of what each is compared with [B]; then the remembered ones, [B + M] each.

        A prompt has `size` rewards with the new ones, at most. One that comes twice is one prompt.
        """
        if not self.size:
            return rewards, cohort
        names = [str(prompt) for prompt in prompts]
        known = list(dict.fromkeys(names))
        prompt = torch.tensor([known.index(name) for name in names])[group]
        values, owners = [rewards], [prompt]
        for number, new in enumerate(prompt.bincount(minlength=len(known)).tolist()):
            kept = self._kept.get(known[number], rewards[:0])
            kept = kept[max(0, len(kept) + new - self.size) :]
            values.append(kept)
            owners.append(torch.full((len(kept),), number))
        return torch.cat(values), torch.cat(owners)

    def add(self, rewards: Tensor, group: Tensor, prompts: Sequence[Prompt]) -> None:
        """Remember rewards [B, R] of the prompts with these numbers [B]."""
        for number, name in enumerate(map(str, prompts if self.size else ())):
            new = rewards[group == number]
            self._kept[name] = torch.cat([self._kept.get(name, new[:0]), new])[-self.size :]

    def state_dict(self) -> dict[str, Any]:
        return {"kinds": self.kinds, "kept": dict(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = dict(state["kept"]) if state.get("kinds") == self.kinds else {}
