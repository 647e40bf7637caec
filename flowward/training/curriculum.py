"""Curriculum: skip prompts without a learning signal. A group whose samples got equal rewards has no advantages.

DAPO's dynamic sampling (Yu et al., 2025, arXiv:2503.14476) drops prompts whose answers are all right or all wrong,
after sampling them. Here they are skipped before sampling, based on earlier visits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..prompts import PromptSet


@dataclass(frozen=True)
class Choice:
    """The prompts of one iteration, and the prompts that were skipped while choosing them."""

    indices: tuple[int, ...]
    passed: tuple[int, ...]
    end: int  # position in the walk through the prompts after this choice

    @property
    def skipped(self) -> float:
        """The share of the prompts in this stretch of the walk that were skipped, in [0, 1)."""
        return len(self.passed) / (len(self.passed) + len(self.indices))


class Order(Protocol):
    """Which prompts an iteration trains on."""

    def choose(self, iteration: int, count: int) -> Choice: ...
    def see(self, choice: Choice, rewards: Tensor, group: Tensor) -> None: ...  # the rewards of a choice's groups
    def told(self, choice: Choice) -> dict[str, float]: ...  # metrics
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class InTurn:
    """All prompts in turn: a pure function of seed and iteration."""

    prompts: PromptSet
    seed: int

    def choose(self, iteration: int, count: int) -> Choice:
        """The prompts of an iteration, counted from 0."""
        return Choice(tuple(self.prompts.draw(self.seed, iteration, count)), (), 0)

    def see(self, choice: Choice, rewards: Tensor, group: Tensor) -> None:
        """Nothing is learned."""

    def told(self, choice: Choice) -> dict[str, float]:
        """Nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


@dataclass
class Curriculum:
    """Skips prompts ("resting" prompts) based on the rewards of their groups.

    If the groups of a prompt had equal rewards in its last `visits` visits, it is skipped for `rest` turns. Then it is
    visited again. If that group has equal rewards too, it rests again. Each skip shortens the rest, so a choice always
    ends and never empties the set. If nothing rests, the prompts are those of `PromptSet.draw`.

    `choose` depends only on the state and does not change it; only `see` does. So a failed iteration leaves no trace,
    and a resumed run makes the same choices.

    Raises:
        ValueError: a setting is out of range.
    """

    prompts: PromptSet
    seed: int
    visits: int = 2
    """equal groups in a row before a prompt rests"""
    rest: int = 3
    """turns that it is skipped"""
    tolerance: float = 1e-6
    """a group is equal if its rewards differ by at most this"""
    _at: int = field(default=0, init=False)
    _equal: Tensor = field(init=False)  # [prompts]: equal groups in a row
    _left: Tensor = field(init=False)  # [prompts]: remaining turns of rest

    def __post_init__(self) -> None:
        if self.visits < 1 or self.rest < 0 or not 0 <= self.tolerance < float("inf"):
            raise ValueError(
                f"a curriculum needs visits >= 1, rest >= 0 and a finite tolerance >= 0, "
                f"not {self.visits}, {self.rest} and {self.tolerance}"
            )
        self._equal = torch.zeros(len(self.prompts), dtype=torch.long)
        self._left = torch.zeros(len(self.prompts), dtype=torch.long)

    def choose(self, iteration: int, count: int) -> Choice:
        """The next `count` prompts that do not rest, in the order of the prompt set."""
        chosen: list[int] = []
        passed: Counter[int] = Counter()
        end = self._at
        for index in self.prompts.walk(self.seed, self._at):
            if len(chosen) == count:
                break
            end += 1
            if passed[index] < self._left[index]:
                passed[index] += 1
            else:
                chosen.append(index)
        return Choice(tuple(chosen), tuple(passed.elements()), end)

    def see(self, choice: Choice, rewards: Tensor, group: Tensor) -> None:
        """Learn from the rewards of a choice's groups.

        Args:
            choice: the result of `choose` for this iteration.
            rewards: [N], or [N, R] with R rewards; a group is equal only if it is equal in every reward.
            group: long [N], the position in `choice.indices` of each sample's prompt.

        Raises:
            ValueError: the choice was not made from this state, or a prompt has no sample.
        """
        if choice.end - len(choice.indices) - len(choice.passed) != self._at:
            raise ValueError("this choice was made from another state of the curriculum")
        equal = equal_groups(rewards, group, len(choice.indices), self.tolerance)
        for index in choice.passed:
            self._left[index] -= 1
        for index, same in zip(choice.indices, equal.tolist(), strict=True):
            self._equal[index] = self._equal[index] + 1 if same else 0
            self._left[index] = self.rest if self._equal[index] >= self.visits else 0
        self._at = choice.end

    def told(self, choice: Choice) -> dict[str, float]:
        """Metrics: the share of skipped prompts, and the share of all prompts that rest now."""
        return {"skipped": choice.skipped, "resting": self.resting}

    @property
    def resting(self) -> float:
        """The share of all prompts that rest now."""
        return (self._left > 0).float().mean().item()

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors for `load_state_dict`."""
        return {"at": self._at, "equal": self._equal.clone(), "left": self._left.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: the number of prompts has changed.
        """
        if len(state["equal"]) != len(self.prompts):
            raise ValueError(
                f"the curriculum was saved with {len(state['equal'])} prompts, but there are {len(self.prompts)} now: "
                "use the same prompts"
            )
        self._at = int(state["at"])
        self._equal, self._left = state["equal"].long().clone(), state["left"].long().clone()


def equal_groups(rewards: Tensor, group: Tensor, count: int, tolerance: float = 0.0) -> Tensor:
    """Whether all samples of each group got equal rewards, bool [count]; rewards [N] or [N, R], group long [N].

    Raises:
        ValueError: a group has no sample.
    """
    values, place = rewards.detach().double().cpu().reshape(len(rewards), -1), group.cpu()
    if (torch.bincount(place, minlength=count) == 0).any() or len(place) != len(values):
        raise ValueError(f"some of {count} groups have no sample among {len(values)} rewards")
    rows = place[:, None].expand_as(values)
    edges = [torch.zeros(count, values.shape[1], dtype=torch.double) for _ in range(2)]
    low, high = (
        edge.scatter_reduce(0, rows, values, how, include_self=False)
        for edge, how in zip(edges, ("amin", "amax"), strict=True)
    )
    return (high - low <= tolerance).all(1)
