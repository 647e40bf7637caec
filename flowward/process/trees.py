"""Trajectory trees: which parts of their trajectories the samples of a root share, and which steps are trained on.

A tree is a list of segments. A segment starts at the end of its parent and may fan out there into several children.
It follows its own times, by the ODE or by random steps of a noise schedule. If several segments start at one state,
the network is evaluated once. For every random step the log-probability's inputs are recorded: the state, the velocity
there, and the noise of every child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..system.streams import Key, generator
from .laws import Law
from .noise import Noise
from .policy import Condition, Velocity
from .rollout import Drawn, Steps
from .solvers import Solver, euler

Cohorts = Literal["prompt", "branch", "root"]


@dataclass(frozen=True)
class Segment:
    """A part of every trajectory that continues from the end of `parent`."""

    parent: int
    """index of an earlier segment; -1: the root"""
    times: tuple[float, ...]
    """[n + 1], decreasing; the first is the parent's last"""
    first: int = 0
    """index of its first step in the tree's grid"""
    fanout: int = 1
    """children per trajectory"""
    law: Law | None = None
    """noise schedule of its random steps (None: it follows the ODE)"""
    solver: Solver = euler
    """solver of the ODE"""
    branch: int = 0
    """key of its noise, so that other branches do not change it"""
    leaf: bool = False
    """whether it ends in samples"""


@dataclass(frozen=True)
class Tree:
    """Segments, and how their samples are compared. The samples of a root are consecutive, ordered by segment.

    Raises:
        ValueError: a segment does not start at the end of its parent; all children of a state would be equal; a random
            step has no noise.
    """

    segments: tuple[Segment, ...]
    shared_start: bool = False
    """whether all roots of a prompt start from the same noise"""
    share: float = 1.0
    """share of a root's random steps to train on, drawn per root"""
    cohorts: Cohorts = "prompt"
    """which samples are compared: of the same `prompt`, the same `branch`, or one `root`'s branch"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""
    untrained: frozenset[int] = frozenset()
    """random steps that are not recorded, by their index in the grid"""

    def __post_init__(self) -> None:
        for number, segment in enumerate(self.segments):
            if not -1 <= segment.parent < number:
                raise ValueError(f"segment {number} comes before its parent, {segment.parent}")
            start = self.segments[segment.parent].times[-1] if segment.parent >= 0 else 1.0
            if segment.times[0] != start:
                raise ValueError(
                    f"segment {number} starts at {segment.times[0]:.4g}, but its parent ends at {start:.4g}"
                )
            if segment.law is None and segment.fanout > 1:
                raise ValueError(
                    f"segment {number} follows the ODE, so its {segment.fanout} children are equal; "
                    "fan out in a segment with a noise schedule"
                )
            for t, s in pairwise(segment.times):
                if segment.law is not None and self.coefficients(segment.law, t, s)[2] == 0:
                    raise ValueError(
                        f"the step from {t:.4g} to {s:.4g} has no noise, so no density to train on; "
                        "raise the noise or exclude the step"
                    )

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
        """The samples of each trajectory at the end of a segment, [rows, views], numbered within the root.

        A trajectory that fans out again later has the samples of all its children.
        """
        views, before = [], 0
        for end, segment in enumerate(self.segments):
            if not segment.leaf:
                continue
            above = end
            while above > number:
                above = self.segments[above].parent
            if above == number:
                views.append(before + torch.arange(self.rows[end]).view(self.rows[number], -1))
            before += self.rows[end]
        return torch.cat(views, 1)

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`; B is a multiple of `leaves`."""
        of, prompts = noise.roots(self.leaves), condition[torch.arange(0, len(noise.keys), self.leaves)]
        roots = len(prompts)

        def ask(x: Tensor, t: float) -> Tensor:
            rows = torch.arange(roots).repeat_interleave(len(x) // roots)
            return velocity(x, torch.full((len(x),), t, device=x.device), prompts[rows])

        ends = {-1: of.start(None if self.shared_start else 1)}
        asked: dict[int, Tensor] = {}  # velocity at the end of each segment, shared by its children
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
                if step not in self.untrained:
                    kept.append(_record(roots, fan, x, v, z, samples, step))
                x = (p * x + q * v).repeat_interleave(fan, 0) + sigma * z
            ends[number] = x
        leaves = [ends[number] for number, segment in enumerate(self.segments) if segment.leaf]
        x0 = torch.cat([leaf.unflatten(0, (roots, -1)) for leaf in leaves], 1).flatten(0, 1)
        return Drawn(x0, steps=self._steps(kept, of) if kept else None, cohort=self._cohort(of))

    def _steps(self, kept: list[dict[str, Tensor]], of: Noise) -> Steps:
        """The random steps of each root in order, or a random share of them."""
        widest, most = (max(record["sample"].shape[way] for record in kept) for way in (2, 3))
        padded = [_widened(record, widest, most) for record in kept]
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
        """[S, 4] float64: t, s, Q and sigma of each trained random step, by its index; NaN for other steps."""
        rows: dict[int, tuple[float, ...]] = {}
        for segment in self.segments:
            if segment.law is not None:
                for step, (t, s) in enumerate(pairwise(segment.times), start=segment.first):
                    if step not in self.untrained:
                        rows[step] = (t, s, *self.coefficients(segment.law, t, s)[1:])
        return tabled(rows)

    def _cohort(self, of: Noise) -> Tensor:
        """Cohort numbers, [B]: samples of a prompt with equal numbers are compared."""
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
    """`ask`, but with the velocity v already known at time `top`."""
    return lambda x, t: v if t == top else ask(x, t)


def _record(roots: int, fan: int, x: Tensor, v: Tensor, z: Tensor, sample: Tensor, number: int) -> dict[str, Tensor]:
    """A random step of all roots: [roots, states, ...], and [roots, states, children, ...] for z and sample.

    Moved to the CPU, because all states of an iteration may not fit on the device.
    """
    x, v, z = (each.cpu() for each in (x, v, z))
    x = x.unflatten(0, (roots, -1))
    return {
        "x": x,
        "v": v.unflatten(0, (roots, -1)),
        "z": z.unflatten(0, (roots, -1, fan)),
        "sample": sample.unflatten(0, (-1, fan)).expand(roots, -1, -1, -1),
        "number": torch.full(x.shape[:2], number),
    }


def tabled(rows: dict[int, tuple[float, ...]]) -> Tensor:
    """`Steps.table` of steps with these indices: t, s, Q and sigma of each."""
    table = torch.full((max(rows) + 1, 4), torch.nan, dtype=torch.float64)
    table[list(rows)] = torch.tensor(list(rows.values()), dtype=torch.float64)
    return table


def _widened(record: dict[str, Tensor], children: int, views: int) -> dict[str, Tensor]:
    """Pad a record to this many children per state and samples per child; missing ones have sample -1."""
    z, sample = record["z"], record["sample"]
    more = children - z.shape[2]
    room = z.new_zeros(*z.shape[:2], more, *z.shape[3:])
    full = pad(sample, (0, views - sample.shape[3], 0, more), value=-1)
    return {**record, "z": torch.cat([z, room], 2), "sample": full}


def _choose(count: int, many: int, key: Key) -> Tensor:
    """Choose `many` of `count` steps, in order; depends on the root's key alone."""
    _, *rest = key
    return torch.randperm(count, generator=generator("share", *rest))[:many].sort().values
