"""Trees that split again and again (BranchGRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from ..system.errors import finite, not_negative, one_of, positive
from .flow import TimeGrid
from .laws import LAWS, LawName
from .plans import noise_remarks
from .trees import Segment, Tree

Between = Literal["random", "ode"]
TreeCohorts = Literal["prompt", "root"]


@dataclass(frozen=True)
class Splits(TimeGrid):
    """Trees of random steps that split into several children at some of their steps.

    Steps before the first split and the last step follow the ODE. Every child of the last split gives one sample.
    A state is evaluated once for all of its children.
    """

    law: LawName = "dance-sde"
    """noise schedule of the random steps"""
    noise: float = 0.3
    """noise strength: a, eta or scale of the noise schedule"""
    splits: tuple[int, ...] = (0, 3, 6, 9)
    """steps at which every trajectory splits, in order"""
    fanout: int = 2
    """children per split"""
    between: Between = "random"
    """steps after a split up to the next: `random` ones, which are trained too, or `ode`"""
    pruned: int = 0
    """leave out so many steps after the last split from training, the latest ones first (depth pruning)"""
    every: int = 30
    """iterations until the left-out steps move one step towards the last split, where they stay"""
    cohorts: TreeCohorts = "root"
    """compare nodes of the same `prompt` or only of the same `root`"""
    shared_start: bool = False
    """start all trees of a prompt from the same noise"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    def __post_init__(self) -> None:
        one_of("noise schedule of random steps", self.law, LAWS)
        LAWS[self.law](self.noise)  # raises on an invalid strength
        one_of("kind of step between splits", self.between, get_args(Between))
        one_of("kind of cohort", self.cohorts, get_args(TreeCohorts))
        finite(self, "guidance")
        not_negative(self, "pruned")
        positive(self, "every")
        super().__post_init__()
        if self.fanout < 2:
            raise ValueError(f"a split needs fanout >= 2, not {self.fanout}")
        if not self.splits or any(one >= two for one, two in pairwise(self.splits)):
            raise ValueError(f"splits must be one or more steps in rising order, not {self.splits}")
        if self.splits[0] < 0 or self.splits[-1] > self.steps - 2:
            wrong = self.splits[0] if self.splits[0] < 0 else self.splits[-1]
            raise ValueError(
                f"a split at step {wrong} lies outside the grid: with {self.steps} steps, trees can split at steps 0 "
                f"to {self.steps - 2}; change splits or steps"
            )
        if self.pruned > self._prunable:
            raise ValueError(
                f"{self._prunable} random steps follow the last split at step {self.splits[-1]}, so {self.pruned} of "
                "them cannot be left out: lower pruned"
            )
        if self.known:
            self.at(0, 0)

    @property
    def _prunable(self) -> int:
        """Random steps after the last split: it never leaves out a split."""
        return self.steps - 2 - self.splits[-1] if self.between == "random" else 0

    @property
    def leaves(self) -> int:
        """Samples per root."""
        return int(self.fanout ** len(self.splits))

    @property
    def breadth(self) -> int:
        """Samples per root in one forward pass: all of them."""
        return self.leaves

    @property
    def random(self) -> list[int]:
        """The random steps, trained or not."""
        return list(range(self.splits[0], self.steps - 1)) if self.between == "random" else list(self.splits)

    def remarks(self) -> list[str]:
        """How much noise the random steps leave, and where two nodes are compared with each other alone."""
        alone = self.cohorts == "root" and self.fanout == 2
        said = (
            f"from step {self.splits[0]} to the next split only 2 nodes of a tree are compared, so their advantages "
            "are 1 and -1 however close their rewards are; --algorithm.rollout.cohorts prompt compares more"
        )
        return [*noise_remarks(self), *[said] * alone]

    def untrained(self, iteration: int) -> range:
        """The random steps that are left out of training in an iteration."""
        first = max(self.splits[-1] + 1, self.steps - 1 - self.pruned - iteration // self.every)
        return range(first, first + self.pruned)

    def at(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration.

        Raises:
            ValueError: a random step has no noise.
        """
        times, law = self.times, LAWS[self.law](self.noise)
        segments, here, trunk = list[Segment](), 0, -1

        def follow(end: int, leaf: bool = False) -> None:
            """The ODE to step `end`."""
            nonlocal here, trunk
            if end > here:
                segments.append(Segment(trunk, times[here : end + 1], here, leaf=leaf))
                here, trunk = end, len(segments) - 1

        for place, stop in pairwise((*self.splits, self.steps - 1)):
            follow(place)
            end = stop if self.between == "random" else place + 1
            segments.append(Segment(trunk, times[place : end + 1], place, self.fanout, law, branch=place + 1))
            here, trunk = end, len(segments) - 1
        follow(self.steps, leaf=True)
        untrained = frozenset(self.untrained(iteration))
        return Tree(
            tuple(segments), self.shared_start, cohorts=self.cohorts, guidance=self.guidance, untrained=untrained
        )
