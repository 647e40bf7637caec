"""Prompts that teach nothing rest for a while: a group whose samples all earn the same has no advantage to learn from.

As the sampling of DAPO (Yu et al., 2025, arXiv:2503.14476), which leaves out prompts whose answers are all right or all
wrong; here before they are drawn, from what earlier visits showed.
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
    """The prompts of one iteration, and those that were passed over on the way to them."""

    indices: tuple[int, ...]
    passed: tuple[int, ...]
    end: int  # how far along the walk through the prompts this came

    @property
    def skipped(self) -> float:
        """The share of the prompts that were met and passed over, in [0, 1)."""
        return len(self.passed) / (len(self.passed) + len(self.indices))


class Order(Protocol):
    """Which prompts an iteration trains on."""

    def choose(self, iteration: int, count: int) -> Choice: ...
    def see(self, choice: Choice, rewards: Tensor, group: Tensor) -> None: ...  # what a choice's groups earned
    def told(self, choice: Choice) -> dict[str, float]: ...  # for the metrics
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class InTurn:
    """All prompts, each in its turn: a pure function of seed and iteration."""

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
        """Nothing to go on from."""


@dataclass
class Curriculum:
    """Which prompts rest, learned from the rewards of their groups.

    A prompt whose groups were all equal in its last `visits` visits is passed over the next `rest` times that its turn
    comes; then it is visited again, and rests again unless that group differs. Every time it is passed over its rest
    gets shorter, so a choice always ends, and no set is ever empty. Where nothing rests, the prompts are those of
    `PromptSet.draw`.

    A choice is a function of the state and changes nothing; only `see` does. So an iteration that fails leaves no
    trace, and a resumed run chooses as the first one would have.

    Raises:
        ValueError: a setting is out of range.
    """

    prompts: PromptSet
    seed: int
    visits: int = 2
    """equal groups in a row before a prompt rests"""
    rest: int = 3
    """turns that it is passed over"""
    tolerance: float = 1e-6
    """a group is equal where its rewards differ by no more than this"""
    _at: int = field(default=0, init=False)
    _equal: Tensor = field(init=False)  # [prompts]: equal groups in a row
    _left: Tensor = field(init=False)  # [prompts]: turns of rest that are left

    def __post_init__(self) -> None:
        if self.visits < 1 or self.rest < 0 or not 0 <= self.tolerance < float("inf"):
            raise ValueError(
                f"a curriculum needs at least 1 visit, 0 turns of rest, and a tolerance that is not negative, "
                f"not {self.visits}, {self.rest} and {self.tolerance}"
            )
        self._equal = torch.zeros(len(self.prompts), dtype=torch.long)
        self._left = torch.zeros(len(self.prompts), dtype=torch.long)

    def choose(self, iteration: int, count: int) -> Choice:
        """The next `count` prompts that do not rest, in the order in which the set goes through them."""
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
            choice: what `choose` gave for this iteration.
            rewards: [N], or [N, R] with R rewards, of which one that differs is enough.
            group: long [N], the place in `choice.indices` of the prompt of each sample.

        Raises:
            ValueError: the choice is not the one that this state makes, or a prompt has no sample.
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
        """Shares of the prompts that were met and passed over, and of all that rest now."""
        return {"skipped": choice.skipped, "resting": self.resting}

    @property
    def resting(self) -> float:
        """The share of all prompts that rest now."""
        return (self._left > 0).float().mean().item()

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors that `load_state_dict` takes."""
        return {"at": self._at, "equal": self._equal.clone(), "left": self._left.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is that of another number of prompts.
        """
        if len(state["equal"]) != len(self.prompts):
            raise ValueError(f"the curriculum was saved with {len(state['equal'])} prompts, not {len(self.prompts)}")
        self._at = int(state["at"])
        self._equal, self._left = state["equal"].long().clone(), state["left"].long().clone()


def equal_groups(rewards: Tensor, group: Tensor, count: int, tolerance: float = 0.0) -> Tensor:
    """Whether all samples of each group earned the same, bool [count]; rewards [N] or [N, R], group long [N].

    Raises:
        ValueError: a group has no sample.
    """
    values, place = rewards.detach().double().cpu().reshape(len(rewards), -1), group.cpu()
    if (torch.bincount(place, minlength=count) == 0).any() or len(place) != len(values):
        raise ValueError(f"{len(values)} rewards leave some of {count} groups without a sample")
    rows = place[:, None].expand_as(values)
    edges = [torch.zeros(count, values.shape[1], dtype=torch.double) for _ in range(2)]
    low, high = (
        edge.scatter_reduce(0, rows, values, how, include_self=False)
        for edge, how in zip(edges, ("amin", "amax"), strict=True)
    )
    return (high - low <= tolerance).all(1)
