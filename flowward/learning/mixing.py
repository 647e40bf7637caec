"""Combine several rewards into one advantage, and remember earlier rewards per prompt (reward buffer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from ..prompts import Prompt
from .credit import Piece, members

Mix = Callable[[Piece, Tensor, Tensor, Tensor], Tensor]
"""(credit, rewards [B, R], weights [R], group [B]) -> advantages float64 [B], or [B, K] if rewards stay apart"""

MixName = Literal["rewards", "advantages", "gdpo", "pareto", "chebyshev", "descent"]


def rewards_first(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Add up the weighted rewards, then compute advantages: a reward's spread matters as well as its weight."""
    return credit((rewards.double() * weights.double()).sum(1), group)


def advantages_first(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Compute an advantage per reward, then add them up by weight; spreads do not matter (MixGRPO, arXiv:2507.21802).

    The sum of R advantages has another spread than a single one. MixGRPO's weights sum to 1. Here weights may also be
    [B, R], if groups have weights of their own.
    """
    columns = zip(weights.double().unbind(-1), rewards.unbind(1), strict=True)
    return torch.stack([weight * credit(column, group) for weight, column in columns]).sum(0)


def gdpo(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor, floor: float = 1e-4) -> Tensor:
    """`advantages_first`, divided by its standard deviation over the batch (GDPO, Liu et al., 2026, arXiv:2601.05242).

    The mean is not subtracted: every group's mean is 0 already, so groups without variance stay exactly 0.
    """
    total = advantages_first(credit, rewards, weights, group)
    return total / (total.std(correction=0) + floor)


def pareto(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Score an image by the share of its group that it dominates, minus the share that dominates it.

    An image dominates another if it is better in at least one reward and worse in none (as in Parrot, Lee et al.,
    2024, arXiv:2401.05675). Only the signs of the weights matter, and weight 0 excludes a reward.
    """
    values, _ = _turned(rewards, weights)
    found = torch.zeros(len(values), dtype=torch.float64)
    names, index = group.unique(return_inverse=True)
    for rows in members(index, len(names)):
        one, other = values[rows][:, None], values[rows][None]
        beats = (one >= other).all(2) & (one > other).any(2)
        found[rows] = (beats.sum(1) - beats.sum(0)).double() / max(1, len(rows) - 1)
    return credit(found, group)


def chebyshev(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor, slope: float = 0.05) -> Tensor:
    """Score an image by its largest weighted distance to the best values: -(max_k d_k + slope sum_k d_k).

    d_k = w_k (z_k - R_k) / s_k, with z_k the best value of reward k in the batch and s_k its standard deviation there.
    This is the augmented weighted Chebyshev distance (Steuer and Choo, 1983, Mathematical Programming 26:326). A sum of
    rewards is only best at points on the convex hull of what can be reached. This value is best at every
    non-dominated point for some weights. Weight 0 excludes a reward, a negative weight turns it round.
    """
    values, chosen = _turned(rewards, weights)
    spread = values.std(0, correction=0)
    far = (values.amax(0) - values) * (chosen / spread.where(spread > 0, torch.ones_like(spread)))
    return credit(-(far.amax(1) + slope * far.sum(1)), group)


def descent(credit: Piece, rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Keep the K rewards of weight != 0 apart, with an advantage each [B, K]: each gets a gradient of its own.

    The optimiser step is then their common descent direction (see `objectives.common_descent`). Only the signs of the
    weights matter.
    """
    values, _ = _turned(rewards, weights)
    return torch.stack([credit(column, group) for column in values.T], 1)


def _turned(rewards: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards [B, K] of weight != 0 with positive weights [K]: a negative weight turns its reward round."""
    used = weights != 0
    return (rewards.double() * weights.sign().double())[:, used], weights.double().abs()[used]


def correlations(rewards: Tensor, group: Tensor) -> Tensor:
    """Correlation of each pair of rewards within groups, [R, R]; 0 if one of them is constant in every group.

    A negative value means that the two rewards conflict.
    """
    values = rewards.double()
    counts = torch.bincount(group).double()
    sums = torch.zeros(len(counts), values.shape[1], dtype=torch.float64).index_add_(0, group, values)
    own = values - (sums / counts.clamp(min=1)[:, None])[group]
    length = own.square().sum(0).sqrt()
    return (own.T @ own) / (length[:, None] * length[None]).clamp(min=1e-12)


def each_reward(names: Sequence[str], rewards: Tensor, group: Tensor) -> dict[str, float]:
    """Metrics: the mean of each of R rewards [B, R] and the correlation of each pair; empty if there is only one."""
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
    "chebyshev": chebyshev,
    "descent": descent,
}
APART: frozenset[MixName] = frozenset({"descent"})  # mixes that return an advantage per reward


class RewardBuffer:
    """The latest rewards of each prompt over iterations (DDPO, arXiv:2305.13301). Size 0 keeps none.

    If a run is resumed with other rewards, the buffer starts empty, because their values cannot be compared. `kinds`
    identifies the rewards, one text each (see `provenance.same_scores`).
    """

    def __init__(self, size: int, kinds: Sequence[str] = ()):
        self.size, self.kinds = size, list(kinds)
        self._kept: dict[str, Tensor] = {}  # prompt -> [k <= size, R], oldest first

    def beside(
        self, rewards: Tensor, cohort: Tensor, group: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor]:
        """Append remembered rewards: new rewards [B, R] and their cohort numbers [B] become [B + M, R] and [B + M].

        With the new ones, a prompt has at most `size` rewards. Equal prompts share one buffer.
        """
        if not self.size:
            return rewards, cohort
        names = [str(prompt) for prompt in prompts]
        known = list(dict.fromkeys(names))
        place = {name: number for number, name in enumerate(known)}
        prompt = torch.tensor([place[name] for name in names])[group]
        values, owners = [rewards], [prompt]
        for number, new in enumerate(prompt.bincount(minlength=len(known)).tolist()):
            kept = self._kept.get(known[number], rewards[:0])
            kept = kept[max(0, len(kept) + new - self.size) :]
            values.append(kept)
            owners.append(torch.full((len(kept),), number))
        return torch.cat(values), torch.cat(owners)

    def add(self, rewards: Tensor, group: Tensor, prompts: Sequence[Prompt]) -> None:
        """Remember rewards [B, R] of the prompts with these numbers [B]."""
        if not self.size:
            return
        for name, mine in zip(map(str, prompts), members(group, len(prompts)), strict=True):
            new = rewards[mine]
            self._kept[name] = torch.cat([self._kept.get(name, new[:0]), new])[-self.size :]

    def clear(self) -> None:
        """Forget all rewards."""
        self._kept = {}

    def state_dict(self) -> dict[str, Any]:
        return {"kinds": self.kinds, "kept": dict(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = dict(state["kept"]) if state.get("kinds") == self.kinds else {}
