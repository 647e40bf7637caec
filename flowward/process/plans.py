"""Rollout settings with random steps: trajectories with a random window (Chain), or a trunk with branches (Branches).

Each builds the trajectory tree of an iteration (see trees.py). More of them: splits.py, completions.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, get_args

import numpy as np
import torch

from ..system.errors import finite, one_of
from ..system.streams import generator
from .flow import TimeGrid, shifted
from .laws import LAWS, LawName, excess, remark
from .rollout import Draw
from .scattered import Scattered
from .solvers import dpm2, euler
from .trees import Cohorts, Segment, Tree
from .windows import Window


@dataclass(frozen=True)
class Chain(TimeGrid):
    """Trajectories that do not branch: random steps in a window, ODE steps before and after it."""

    law: LawName = "flow-sde"
    """noise schedule of the random steps"""
    noise: float = 0.7
    """noise strength: a, eta or scale of the noise schedule"""
    window: Window = field(default_factory=Window)
    """the random steps; the last step of the grid is never random"""
    share: float = 1.0
    """train on this share of the random steps, drawn per sample (DanceGRPO: 0.6)"""
    shared_start: bool = False
    """start all samples of a prompt from the same noise"""
    tail: float | None = None
    """share of the steps kept after the window, solved by DPM-Solver++(2M) (Flash; None: all)"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    leaves = breadth = 1

    def __post_init__(self) -> None:
        one_of("noise schedule of random steps", self.law, LAWS)
        LAWS[self.law](self.noise)  # raises on an invalid strength
        finite(self, "guidance")
        if not 0 < self.share <= 1:
            raise ValueError(f"share, of the random steps to train on, must lie in (0, 1], not {self.share}")
        if self.tail is not None and not 0 < self.tail <= 1:
            raise ValueError(f"tail, the share of steps after the window, must lie in (0, 1], not {self.tail}")
        if self.window.order == "per-prompt" and (self.tail is not None or self.share < 1):
            raise ValueError(
                "with window.order per-prompt all samples pass the same times, and all steps of a window are trained: "
                "leave tail at none and share at 1"
            )
        super().__post_init__()
        self.window.positions(self.steps)
        if self.known:
            self.at(0, 0)  # raises if a step is impossible

    @property
    def random(self) -> list[int]:
        """The steps that are random in at least one iteration."""
        starts, size = self.window.positions(self.steps)
        return sorted({step for start in starts for step in range(start, start + size)})

    def remarks(self) -> list[str]:
        """Start-up remarks and warnings: how much noise the random steps leave."""
        return noise_remarks(self)

    def after(self, stop: int) -> tuple[float, ...]:
        """The times from step `stop` to 0. With a `tail` they are evenly spaced in unshifted time and end at 0.

        If the times are given as a list (`own`), they are evenly spaced in its indices. The paper counts
        max(1, int((steps - last) * tail)) points after the last random step, both ends included.
        """
        if self.tail is None:
            return self.times[stop:]
        many = max(1, int((self.steps - stop + 1) * self.tail) - 1)
        if self.own is not None:
            places = np.linspace(stop, self.steps, many + 1)
            return tuple(np.interp(places, range(self.steps + 1), self.own).tolist())
        top = self.times[stop]
        even = torch.linspace(top / (self.shift - (self.shift - 1) * top), 0, many + 1, dtype=torch.float64)
        return (top, *shifted(even, self.shift).tolist()[1:])

    def at(self, seed: int, iteration: int) -> Draw:
        """The tree of an iteration, or what takes its place if the window is drawn per prompt.

        Raises:
            ValueError: the window does not fit, or one of its steps has no noise.
        """
        if self.window.order == "per-prompt":
            return Scattered(self.times, self.window, LAWS[self.law](self.noise), self.shared_start, self.guidance)
        return self.tree(seed, iteration)

    def tree(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration in which all samples have the same window."""
        random = self.window.steps(self.steps, seed, iteration)
        times, segments = self.times, []
        if random.start:
            segments.append(Segment(-1, times[: random.start + 1]))
        law = LAWS[self.law](self.noise)
        segments.append(Segment(len(segments) - 1, times[random.start : random.stop + 1], random.start, law=law))
        rest = self.after(random.stop)
        segments.append(Segment(len(segments) - 1, rest, random.stop, solver=dpm2 if self.tail else euler, leaf=True))
        return Tree(tuple(segments), self.shared_start, self.share, guidance=self.guidance)


@dataclass(frozen=True)
class Branches(TimeGrid):
    """An ODE trunk with branches of random steps. Every child then follows the ODE to its sample.

    With several strides, every child is finished once per stride on a coarser grid and gives one sample each.
    """

    law: LawName = "flow-sde"
    """noise schedule of the random steps"""
    noise: float = 0.7
    """noise strength: a, eta or scale of the noise schedule"""
    low: int = 0
    """first step with a branch"""
    high: int | None = None
    """end of the branching steps, exclusive (None: the last step)"""
    one: bool = False
    """branch at one random step per iteration instead of at all of them"""
    fanout: int = 6
    """children per branch"""
    length: int = 1
    """random steps per branch"""
    strides: tuple[int, ...] = (1,)
    """finish each child once per stride; stride 2 skips every second step"""
    cohorts: Cohorts = "root"
    """compare samples of the same `prompt`, of the same `branch`, or of one `root`'s branch"""
    shared_start: bool = False
    """start all samples of a prompt from the same noise"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    def __post_init__(self) -> None:
        one_of("noise schedule of random steps", self.law, LAWS)
        LAWS[self.law](self.noise)  # raises on an invalid strength
        one_of("kind of cohort", self.cohorts, get_args(Cohorts))
        finite(self, "guidance")
        if self.fanout < 2 or self.length < 1:
            raise ValueError(
                f"a branch needs fanout >= 2 and length >= 1, not fanout = {self.fanout} and length = {self.length}"
            )
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be at least 1, not {self.strides}")
        super().__post_init__()
        self.places(0, 0)
        if self.known:
            self.at(0, 0)

    @property
    def leaves(self) -> int:
        """Samples per root."""
        return len(self.places(0, 0)) * self.fanout * len(self.strides)

    @property
    def breadth(self) -> int:
        """Samples per root in one forward pass: the children of one branch on one grid."""
        return self.fanout

    @property
    def random(self) -> list[int]:
        """The steps that are random in at least one iteration."""
        starts = replace(self, one=False).places(0, 0)
        return sorted({step for start in starts for step in range(start, start + self.length)})

    def remarks(self) -> list[str]:
        """Start-up remarks and warnings: how much noise the random steps leave."""
        return noise_remarks(self)

    def places(self, seed: int, iteration: int) -> list[int]:
        """The steps at which branches start.

        Raises:
            ValueError: a branch would start outside the grid or reach the last step.
        """
        last = self.steps - self.length  # the last step is never random
        high = last if self.high is None else self.high
        if not 0 <= self.low < high <= last:
            raise ValueError(
                f"branches with length {self.length} can start at steps 0 to {last - 1} of {self.steps}, "
                f"not at {self.low} to {high - 1}: change low, high or steps"
            )
        if not self.one:
            return list(range(self.low, high))
        return [self.low + int(torch.randint(high - self.low, (1,), generator=generator("branch", seed, iteration)))]

    def at(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration.

        Raises:
            ValueError: a branch would reach the last step, or one of its steps has no noise.
        """
        times = self.times
        law, segments, trunk, here = LAWS[self.law](self.noise), list[Segment](), -1, 0
        for place in self.places(seed, iteration):
            if place > here:
                segments.append(Segment(trunk, times[here : place + 1], here))
                trunk, here = len(segments) - 1, place
            end = place + self.length
            segments.append(Segment(trunk, times[place : end + 1], place, self.fanout, law, branch=place + 1))
            child = len(segments) - 1
            for stride in self.strides:
                way = [end, *range(end + 1, self.steps, stride)]
                way = [number for number in way if number + stride <= self.steps or number == end]
                segments.append(Segment(child, (*(times[n] for n in way), 0.0), end, leaf=True))
        return Tree(tuple(segments), self.shared_start, cohorts=self.cohorts, guidance=self.guidance)


class Noisy(Protocol):
    """A rollout with random steps."""

    @property
    def law(self) -> LawName: ...
    @property
    def noise(self) -> float: ...
    @property
    def times(self) -> tuple[float, ...]: ...
    @property
    def random(self) -> list[int]: ...  # steps that are random in at least one iteration


NOISY = 1.2  # warn above this excess noise
NARROW = 0.8  # warn if one of three or more steps has more than this share of the log-probability gradient


def excess_noise(rollout: Noisy) -> list[tuple[int, float]]:
    """(step, sqrt(c^2 + sigma^2) / s) of every step that may be random; 1 is the correct amount of noise."""
    times, law = rollout.times, LAWS[rollout.law](rollout.noise)
    pairs = list(pairwise(times))
    return [(number, excess(law, *pairs[number], times[1])) for number in rollout.random]


def narrowest(rollout: Noisy) -> tuple[int, float]:
    """The random step with the largest log-probability gradient, |Q| / sigma, and its share of the sum over steps."""
    times, law = rollout.times, LAWS[rollout.law](rollout.noise)
    numbers = [law.coefficients(times[number], times[number + 1], times[1]) for number in rollout.random]
    pulls = [abs(q) / sigma for _, q, sigma in numbers]
    most = max(pulls)
    return rollout.random[pulls.index(most)], most / sum(pulls)


def noise_remarks(rollout: Noisy) -> list[str]:
    """How much noise each random step leaves, with warnings if it is too much or if one step dominates the gradient."""
    found = excess_noise(rollout)
    listed = ", ".join(f"{number}: {value:.3g}" for number, value in found)
    lines = [f"noise after each random step, relative to the correct level (1 is exact): {listed}"]
    if bad := [number for number, value in found if value > NOISY]:
        steps = f"steps {', '.join(map(str, bad))} leave" if len(bad) > 1 else f"step {bad[0]} leaves"
        lines.append(
            f"{steps} too much noise for later steps to remove, so the scored images are noisier than the model's own; "
            "use only early steps as random ones, or --algorithm.rollout.law ddim, cps or precise with "
            "--algorithm.ratio cps"
        )
    if 0 in rollout.random and (said := remark(LAWS[rollout.law](rollout.noise), rollout.times[1])):
        lines.append(said)
    number, share = narrowest(rollout)
    if len(found) > 2 and share > NARROW:
        lines.append(
            f"step {number} has so little noise that it makes up {share:.0%} of the gradient of all steps (with ratio "
            "gaussian and even weights); exclude it from the random steps, or use --algorithm.ratio cps or guard, or "
            "--algorithm.points.weight noise or pull"
        )
    return lines
