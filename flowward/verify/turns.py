"""A world of episodes with two turns and three actions, small enough that every group of episodes is enumerated.

The planner's answers are a prefix code of two tokens, so that turns differ in tokens as well as episodes in turns:

| action | tokens | in the first turn | in the second turn |
| --- | --- | --- | --- |
| 0 | 0 | a guess: ends the episode, right by chance | ends the episode |
| 1 | 1 0 | goes on | ends the episode |
| 2 | 1 1 | goes on | ends the episode |

So there are eight episodes: a right and a wrong guess, and six of two turns, of which three succeed. The planner is a
table with one logit for each state (first turn, after action 1, after action 2), place in the answer, and token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from ..agent.episode import Episode, Said, Turn
from ..agent.points import Chosen, Decisions, Trace, Turns, Weighting
from .check import real

TOKENS = ((0,), (1, 0), (1, 1))
RIGHT = {(1, 1), (2, 0), (2, 2)}
QUESTION = 5  # the first token of every prompt


@dataclass(frozen=True)
class Way:
    """An episode and its outcome."""

    actions: tuple[int, ...]
    reward: float
    chance: float = 1.0  # of this outcome, after these actions

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The memory is what was done before."""
        before = [self.actions[:turn] for turn in range(len(self.actions))]
        return [(QUESTION, *(token for own in done for token in TOKENS[own])) for done in before]

    @property
    def answers(self) -> list[tuple[int, ...]]:
        return [TOKENS[own] for own in self.actions]

    @property
    def states(self) -> list[int]:
        return [0, self.actions[0]][: len(self.actions)]

    def chosen(self, which: Chosen) -> list[int]:
        """The turns that are trained."""
        last = len(self.actions) - 1
        return {"all": [*range(last + 1)], "first": [0], "last": [last]}[which]

    def weights(self, weighting: Weighting, which: Chosen = "all") -> dict[int, float]:
        """What each token of a trained turn counts."""
        tokens = {turn: len(self.answers[turn]) for turn in self.chosen(which)}
        if weighting == "paper":
            return {turn: 1 / (len(tokens) * own) for turn, own in tokens.items()}
        return {turn: 1 / sum(tokens.values()) if weighting == "episode" else 1.0 for turn in tokens}

    def episode(self, logits: Tensor) -> Episode:
        log_p, turns = logits.log_softmax(-1), []
        for prompt, answer, state in zip(self.prompts, self.answers, self.states, strict=True):
            recorded = tuple(log_p[state, place, token].item() for place, token in enumerate(answer))
            turns.append(Turn(prompt, Said("", answer, recorded)))
        return Episode("", tuple(turns), "", "stopped")


@dataclass(frozen=True)
class Table:
    """The log-probabilities of planners that are tables of logits [3, 2, 2], by name."""

    logits: Mapping[str, Tensor]

    def at(self, name: str, points: Decisions) -> Tensor:
        """[B, L]; 0 at padding. Gradients flow for every name, so that a loss which trains an anchor is seen."""
        if name in points.known:
            return points.known[name]
        first = (points.prompt >= 0).sum(1) == 1
        state = torch.where(first, 0, 1 + points.prompt[:, -1])
        log_p = self.logits[name].log_softmax(-1)[state[:, None], torch.arange(points.answer.shape[1])]
        said = log_p.gather(2, points.answer.clamp_min(0)[..., None])[..., 0]
        return torch.where(points.answer >= 0, said, 0.0)


@dataclass(frozen=True)
class World:
    """The eight episodes, under a planner with these logits."""

    right: float = 0.2  # chance that a guess is right
    logits: Tensor = field(default_factory=lambda: real(3, 2, 2, seed=7))

    @classmethod
    def even(cls) -> World:
        """With guesses that are right as often as episodes of two turns: how often to guess does not matter."""
        made = cls()
        worked = [way for way in made.ways if len(way.actions) == 2]
        p = torch.stack([made.probability(way, made.logits) for way in worked])
        return cls(((p * torch.tensor([way.reward for way in worked])).sum() / p.sum()).item())

    @property
    def ways(self) -> list[Way]:
        guesses = [Way((0,), 1.0, self.right), Way((0,), 0.0, 1 - self.right)]
        return guesses + [Way(own, float(own in RIGHT)) for own in product((1, 2), (0, 1, 2))]

    def probabilities(self, way: Way, logits: Tensor) -> list[Tensor]:
        """Of the action of each turn."""
        p = logits.softmax(-1)
        return [
            torch.stack([p[state, place, token] for place, token in enumerate(answer)]).prod()
            for state, answer in zip(way.states, way.answers, strict=True)
        ]

    def probability(self, way: Way, logits: Tensor) -> Tensor:
        return way.chance * torch.stack(self.probabilities(way, logits)).prod()

    def expected(self, values: Mapping[Way, float], logits: Tensor | None = None) -> Tensor:
        """The expectation of a value of the episode; gradients flow to the logits."""
        at = self.logits if logits is None else logits
        return torch.stack([values[way] * self.probability(way, at) for way in self.ways]).sum()

    @property
    def success(self) -> float:
        """J, the exact success rate."""
        return self.expected({way: way.reward for way in self.ways}).item()

    def slope(self, values: Mapping[Way, float]) -> Tensor:
        """The gradient of `expected`, [3, 2, 2]."""
        logits = self.logits.clone().requires_grad_()
        return torch.autograd.grad(self.expected(values, logits), logits)[0]

    def slope_by_turn(self, values: Mapping[Way, Mapping[int, float]]) -> Tensor:
        """sum_t d_t E[h_t]: the gradient of E[h_t] through the action of turn t alone, over the turns in `values`."""
        logits = self.logits.clone().requires_grad_()
        total = logits.sum() * 0
        for way in self.ways:
            p = self.probabilities(way, logits)
            for turn, value in values[way].items():
                others = math.prod(each.item() for number, each in enumerate(p) if number != turn)
                total = total + value * way.chance * others * p[turn]
        return torch.autograd.grad(total, logits)[0]

    def groups(self, size: int) -> Groups:
        """All of them; groups that differ in the order of episodes alone are one."""
        return Groups(self, size, tuple(combinations_with_replacement(range(len(self.ways)), size)))


@dataclass(frozen=True)
class Groups:
    """Groups of `size` episodes, as so many questions with one group each."""

    world: World
    size: int
    members: tuple[Sequence[int], ...]  # numbers of ways

    @cached_property
    def index(self) -> Tensor:
        return torch.tensor(self.members)

    @cached_property
    def probability(self) -> Tensor:
        """Of each group, in any order of its episodes."""
        own = torch.stack([self.world.probability(way, self.world.logits) for way in self.world.ways])
        repeats = [math.prod(map(math.factorial, Counter(members).values())) for members in self.members]
        return own[self.index].prod(1) * math.factorial(self.size) / torch.tensor(repeats)

    @property
    def reward(self) -> Tensor:
        """[groups, size]"""
        return torch.tensor([way.reward for way in self.world.ways], dtype=torch.float64)[self.index]

    @property
    def length(self) -> Tensor:
        """Turns of each episode, [groups, size]."""
        return torch.tensor([len(way.actions) for way in self.world.ways], dtype=torch.float64)[self.index]

    def points(self, algorithm: Any) -> Turns:
        """The training points of all groups, made by the algorithm itself."""
        episodes = [way.episode(self.world.logits) for way in self.world.ways]
        played = [episodes[number] for members in self.members for number in members]
        trace = Trace.of(played, range(len(played)), algorithm.turns)
        group = torch.arange(len(self.members)).repeat_interleave(self.size)
        kept = torch.ones(len(group), dtype=torch.bool)
        made: Turns = algorithm.points(trace, algorithm.advantages(trace, self.reward.view(-1, 1), group, kept))
        return made

    def gradient(self, algorithm: Any) -> Tensor:
        """Minus the expected gradient of a group's summed loss, over the expected `total`, [3, 2, 2].

        For weights whose total is the number of episodes this is the expectation of an update. With `token` the total
        is random, and this is the limit of many groups per update.
        """
        points = self.points(algorithm)
        logits = self.world.logits.clone().requires_grad_()
        batch = replace(points.take(torch.arange(len(points))), fresh=True)
        loss, _ = algorithm.loss(Table({"policy": logits, "reference": logits.detach()}), batch)
        row = points.trace.episode // self.size
        total = torch.tensor([points.total(own) for own in torch.arange(len(row)).split(torch.bincount(row).tolist())])
        found = torch.autograd.grad((self.probability[row] * loss).sum(), logits)[0]
        return -found / (self.probability @ total.double())
