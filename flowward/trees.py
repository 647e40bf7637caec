"""Trajectory trees: how the samples of a root share their way, where they part, and which steps are trained on.

A tree is a list of segments. Each starts where its parent ends, may fan out there, and goes down its own times, either
along the ODE or by random steps of a law. A state that several segments leave from is evaluated once. What it takes to
score a random step is kept: the state, the velocity there, and the noise of every child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .flow import GridKind, grid, shifted
from .laws import LAWS, Law, LawName, excess
from .models.policy import Condition, Velocity
from .rollout import Drawn, Steps
from .solvers import Solver, dpm2, euler
from .streams import Key, Noise, generator
from .windows import Window

Cohorts = Literal["prompt", "branch", "root"]


@dataclass(frozen=True)
class Segment:
    """A stretch of every trajectory that passes the end of `parent`."""

    parent: int
    """number of an earlier segment; -1: the root"""
    times: tuple[float, ...]
    """[n + 1], decreasing, from where the parent ends"""
    first: int = 0
    """number of its first step in the tree's grid"""
    fanout: int = 1
    """children per trajectory"""
    law: Law | None = None
    """of its random steps (None: it follows the ODE)"""
    solver: Solver = euler
    """of the ODE"""
    branch: int = 0
    """name of its noise: a child's is the same whichever other branches there are"""
    leaf: bool = False
    """it ends in samples"""


@dataclass(frozen=True)
class Tree:
    """Segments, and how the samples at their ends are compared. Those of a root are consecutive, leaf after leaf.

    Raises:
        ValueError: a segment does not start where its parent ends; children of one state that would all be the same; a
            random step without noise.
    """

    segments: tuple[Segment, ...]
    shared_start: bool = False
    """all roots of a prompt start from the same noise"""
    share: float = 1.0
    """of the random steps of a root that are trained on, drawn for each root"""
    cohorts: Cohorts = "prompt"
    """samples that are compared: all of a `prompt`, or those of a `branch` of it, or of a branch of one `root`"""
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for number, segment in enumerate(self.segments):
            if not -1 <= segment.parent < number:
                raise ValueError(f"segment {number} comes before its parent, {segment.parent}")
            start = self.segments[segment.parent].times[-1] if segment.parent >= 0 else 1.0
            if segment.times[0] != start:
                raise ValueError(
                    f"segment {number} starts at {segment.times[0]:.4g}, where its parent ends at {start:.4g}"
                )
            if segment.law is None and segment.fanout > 1:
                raise ValueError(
                    "children that follow the ODE from one state are the same: fan out where noise is added"
                )
            for t, s in pairwise(segment.times):
                if segment.law is not None and self.coefficients(segment.law, t, s)[2] == 0:
                    raise ValueError(f"the step from {t:.4g} to {s:.4g} has no noise, so no density to train on")

    def coefficients(self, law: Law, t: float, s: float) -> tuple[float, float, float]:
        """(P, Q, sigma) of a step of this tree."""
        return law.coefficients(t, s, self.segments[0].times[1])

    @cached_property
    def rows(self) -> list[int]:
        """Trajectories per root at the end of each segment."""
        rows: list[int] = []
        for segment in self.segments:
            rows.append((rows[segment.parent] if segment.parent >= 0 else 1) * segment.fanout)
        return rows

    @property
    def leaves(self) -> int:
        """Samples per root."""
        return sum(rows for rows, segment in zip(self.rows, self.segments, strict=True) if segment.leaf)

    def descendants(self, number: int) -> Tensor:
        """The samples that come of each trajectory at the end of a segment, [rows, views], counted within the root.

        Raises:
            ValueError: a trajectory fans out again below, so that it has no sample of its own.
        """
        views, before = [], 0
        for end, segment in enumerate(self.segments):
            if not segment.leaf:
                continue
            above = end
            while above > number:
                above = self.segments[above].parent
            if above == number:
                if self.rows[end] != self.rows[number]:
                    raise ValueError("a step that is trained on may not branch again below")
                views.append(before + torch.arange(self.rows[end]))
            before += self.rows[end]
        return torch.stack(views, 1)

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """B samples, one per row of `condition` and key of `noise`; B is a multiple of `leaves`."""
        of, prompts = noise.roots(self.leaves), condition[torch.arange(0, len(noise.keys), self.leaves)]
        roots = len(prompts)

        def ask(x: Tensor, t: float) -> Tensor:
            rows = torch.arange(roots).repeat_interleave(len(x) // roots)
            return velocity(x, torch.full((len(x),), t, device=x.device), prompts[rows])

        ends = {-1: of.start(None if self.shared_start else 1)}
        asked: dict[int, Tensor] = {}  # the velocity where several segments start
        kept: list[dict[str, Tensor]] = []
        for number, segment in enumerate(self.segments):
            x = ends[segment.parent]
            if segment.parent not in asked:
                asked[segment.parent] = ask(x, segment.times[0])
            v = asked[segment.parent]
            if segment.law is None:
                ends[number] = segment.solver(_known(ask, v, segment.times[0]), x, segment.times, of.step)
                continue
            samples, fan = self.descendants(number), segment.fanout
            for step, (t, s) in enumerate(pairwise(segment.times), start=segment.first):
                if step > segment.first:
                    v, fan = ask(x, t), 1
                p, q, sigma = self.coefficients(segment.law, t, s)
                z = of.branch(segment.branch, self.rows[number], step)
                kept.append(_record(roots, fan, x, v, z, samples, step))
                x = (p * x + q * v).repeat_interleave(fan, 0) + sigma * z
            ends[number] = x
        leaves = [ends[number] for number, segment in enumerate(self.segments) if segment.leaf]
        x0 = torch.cat([leaf.unflatten(0, (roots, -1)) for leaf in leaves], 1).flatten(0, 1)
        return Drawn(x0, steps=self._steps(kept, of) if kept else None, cohort=self._cohort(of))

    def _steps(self, kept: list[dict[str, Tensor]], of: Noise) -> Steps:
        """The random steps of each root one after another, or its share of them."""
        widest = max(record["z"].shape[2] for record in kept)
        padded = [_widened(record, widest) for record in kept]
        found = {name: torch.cat([record[name] for record in padded], 1) for name in padded[0]}
        roots, count = found["number"].shape
        if self.share < 1:
            chosen = torch.stack([_choose(count, max(1, round(self.share * count)), key) for key in of.keys])
            found = {name: value[torch.arange(roots)[:, None], chosen] for name, value in found.items()}
            count = chosen.shape[1]
        first = torch.arange(roots).view(-1, 1, 1, 1) * self.leaves
        found["sample"] = torch.where(found["sample"] < 0, -1, found["sample"] + first)
        return Steps(**{name: value.flatten(0, 1) for name, value in found.items()}, table=self.table, per_root=count)

    @property
    def table(self) -> Tensor:
        """[S, 4] float64: t, s, Q and sigma of each random step, by its number; NaN elsewhere."""
        rows: dict[int, tuple[float, ...]] = {}
        for segment in self.segments:
            if segment.law is not None:
                for step, (t, s) in enumerate(pairwise(segment.times), start=segment.first):
                    rows[step] = (t, s, *self.coefficients(segment.law, t, s)[1:])
        table = torch.full((max(rows) + 1, 4), torch.nan, dtype=torch.float64)
        table[list(rows)] = torch.tensor(list(rows.values()), dtype=torch.float64)
        return table

    def _cohort(self, of: Noise) -> Tensor:
        """Samples of a prompt with equal numbers are compared, [B]."""
        ends = [number for number, segment in enumerate(self.segments) if segment.leaf]
        branch = torch.cat([torch.full((self.rows[end],), end) for end in ends]).repeat(len(of.keys))
        root = torch.tensor([int(key[-1]) for key in of.keys]).repeat_interleave(self.leaves)
        match self.cohorts:
            case "prompt":
                return torch.zeros_like(branch)
            case "branch":
                return branch
            case "root":
                return root * len(self.segments) + branch


Ask = Callable[[Tensor, float], Tensor]


def _known(ask: Ask, v: Tensor, top: float) -> Ask:
    """`ask`, knowing the answer at the first time."""
    return lambda x, t: v if t == top else ask(x, t)


def _record(roots: int, fan: int, x: Tensor, v: Tensor, z: Tensor, sample: Tensor, number: int) -> dict[str, Tensor]:
    """A random step of all roots: [roots, states, ...], and [roots, states, children, ...] for z and sample."""
    x = x.unflatten(0, (roots, -1))
    return {
        "x": x,
        "v": v.unflatten(0, (roots, -1)),
        "z": z.unflatten(0, (roots, -1, fan)),
        "sample": sample.unflatten(0, (-1, fan)).expand(roots, -1, -1, -1),
        "number": torch.full(x.shape[:2], number),
    }


def _widened(record: dict[str, Tensor], children: int) -> dict[str, Tensor]:
    """With room for so many children of each state; those that are not there have sample -1."""
    z, sample = record["z"], record["sample"]
    more = children - z.shape[2]
    room = z.new_zeros(*z.shape[:2], more, *z.shape[3:])
    return {**record, "z": torch.cat([z, room], 2), "sample": pad(sample, (0, 0, 0, more), value=-1)}


def _choose(count: int, many: int, key: Key) -> Tensor:
    """`many` of `count`, in order: a pure function of the root."""
    _, *rest = key
    return torch.randperm(count, generator=generator("share", *rest))[:many].sort().values


@dataclass(frozen=True)
class Chain:
    """Trajectories that do not branch: random steps in a window, the ODE before it and after it."""

    steps: int = 10
    """of the grid"""
    shift: float = 3.0
    grid: GridKind = "sd3"
    law: LawName = "flow-sde"
    """of the random steps"""
    noise: float = 0.7
    """its strength: a, eta or scale"""
    window: Window = field(default_factory=Window)
    """the random steps; the last step of the grid has no noise to learn from, and never is one"""
    share: float = 1.0
    """of the random steps that are trained on, drawn for each sample (DanceGRPO: 0.6)"""
    shared_start: bool = False
    """all samples of a prompt start from the same noise"""
    tail: float | None = None
    """after the window, this share of the remaining steps by DPM-Solver++(2M) on a coarser grid (Flash; None: all)"""
    guidance: float = 1.0

    leaves = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of steps to train on must lie in (0, 1], not {self.share}")
        if self.tail is not None and not 0 < self.tail <= 1:
            raise ValueError(f"the share of steps after the window must lie in (0, 1], not {self.tail}")
        self.at(0, 0)  # refuses what it cannot do

    @property
    def times(self) -> tuple[float, ...]:
        """[steps + 1], from 1 to 0."""
        return tuple(grid(self.steps, self.shift, self.grid).tolist())

    @property
    def levels(self) -> Tensor:
        """[steps] float64: the times but the last."""
        return grid(self.steps, self.shift, self.grid)[:-1]

    @property
    def random(self) -> list[int]:
        """The steps that are random in some iteration."""
        starts, size = self.window.positions(self.steps)
        return sorted({step for start in starts for step in range(start, start + size)})

    def remarks(self) -> list[str]:
        """How much noise the random steps leave."""
        return noise_remarks(self)

    def after(self, stop: int) -> tuple[float, ...]:
        """The times from step `stop` to 0. A coarser grid is even in unshifted time, and always ends at 0.

        The paper counts max(1, int((steps - last) * tail)) points after the last random step, both ends included.
        """
        if self.tail is None:
            return self.times[stop:]
        many = max(1, int((self.steps - stop + 1) * self.tail) - 1)
        top = self.times[stop]
        even = torch.linspace(top / (self.shift - (self.shift - 1) * top), 0, many + 1, dtype=torch.float64)
        return (top, *shifted(even, self.shift).tolist()[1:])

    def at(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration.

        Raises:
            ValueError: the window does not fit, or a step in it has no noise.
        """
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
class Branches:
    """A trunk along the ODE, from which random steps branch off; every child then follows the ODE to its sample.

    With several strides a child is finished once on each thinned grid, and has as many samples.
    """

    steps: int = 10
    shift: float = 3.0
    grid: GridKind = "sd3"
    law: LawName = "flow-sde"
    noise: float = 0.7
    low: int = 0
    """first step with a branch"""
    high: int | None = None
    """first step without (None: the last step)"""
    one: bool = False
    """a branch at one of these steps alone, drawn for every iteration, instead of at all"""
    fanout: int = 6
    """children per branch"""
    length: int = 1
    """random steps of a branch"""
    strides: tuple[int, ...] = (1,)
    """steps of the grid per step on the way from a child to its samples"""
    cohorts: Cohorts = "root"
    """samples that are compared: all of a `prompt`, those of a `branch` of it, or of a branch of one `root`"""
    shared_start: bool = False
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.fanout < 2 or self.length < 1:
            raise ValueError(f"a branch needs 2 children and 1 step at least, not {self.fanout} and {self.length}")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be at least 1, not {self.strides}")
        self.at(0, 0)

    @property
    def levels(self) -> Tensor:
        """[steps] float64: the times but the last."""
        return grid(self.steps, self.shift, self.grid)[:-1]

    @property
    def leaves(self) -> int:
        """Samples per root."""
        return self.at(0, 0).leaves

    @property
    def random(self) -> list[int]:
        """The steps that are random in some iteration."""
        starts = replace(self, one=False).places(0, 0)
        return sorted({step for start in starts for step in range(start, start + self.length)})

    def remarks(self) -> list[str]:
        """How much noise the random steps leave."""
        return noise_remarks(self)

    def places(self, seed: int, iteration: int) -> list[int]:
        """The steps where a branch starts."""
        last = self.steps - self.length  # the last step is never random
        high = last if self.high is None else self.high
        if not 0 <= self.low < high <= last:
            raise ValueError(
                f"branches of {self.length} random steps can start at steps 0 to {last - 1} of {self.steps}, "
                f"not at {self.low} to {high - 1}"
            )
        if not self.one:
            return list(range(self.low, high))
        return [self.low + int(torch.randint(high - self.low, (1,), generator=generator("branch", seed, iteration)))]

    def at(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration.

        Raises:
            ValueError: a branch would reach the last step, or a step in it has no noise.
        """
        times = grid(self.steps, self.shift, self.grid).tolist()
        law, segments, trunk, here = LAWS[self.law](self.noise), list[Segment](), -1, 0
        for place in self.places(seed, iteration):
            if place > here:
                segments.append(Segment(trunk, tuple(times[here : place + 1]), here))
                trunk, here = len(segments) - 1, place
            end = place + self.length
            segments.append(Segment(trunk, tuple(times[place : end + 1]), place, self.fanout, law, branch=place + 1))
            child = len(segments) - 1
            for stride in self.strides:
                way = [end, *range(end + 1, self.steps, stride)]
                way = [number for number in way if number + stride <= self.steps or number == end]
                segments.append(Segment(child, (*(times[n] for n in way), 0.0), end, leaf=True))
        return Tree(tuple(segments), self.shared_start, cohorts=self.cohorts, guidance=self.guidance)


NOISY = 1.2  # excess noise that deserves a warning


def excess_noise(rollout: Chain | Branches) -> list[tuple[int, float]]:
    """(step, sqrt(c^2 + sigma^2) / s) of every step that may be random: 1 is as much noise as its level calls for."""
    times, law = grid(rollout.steps, rollout.shift, rollout.grid).tolist(), LAWS[rollout.law](rollout.noise)
    pairs = list(pairwise(times))
    return [(number, excess(law, *pairs[number], times[1])) for number in rollout.random]


def noise_remarks(rollout: Chain | Branches) -> list[str]:
    """How much noise each random step leaves, and a warning where it is too much."""
    found = excess_noise(rollout)
    listed = ", ".join(f"{number}: {value:.3g}" for number, value in found)
    lines = [f"noise after each random step, over what its level calls for: {listed}"]
    if bad := [number for number, value in found if value > NOISY]:
        steps = f"steps {', '.join(map(str, bad))} leave" if len(bad) > 1 else f"step {bad[0]} leaves"
        lines.append(
            f"{steps} more noise than later steps can take away, so the images that are scored are noisier than the "
            "model's: keep late steps out of the random ones, or use --algorithm.rollout.law ddim or cps"
        )
    return lines
