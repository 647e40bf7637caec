"""Rollouts: samplers (a time grid and a solver for any velocity model), and the samples that they return.

Where several processes share a run, each knows of all samples what rewards and credit are about, and holds the latents
of those that it drew itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, Self, get_args

import torch
from torch import Tensor

from ..system.errors import finite, one_of
from .flow import GridKind, TimeGrid
from .laws import Churn
from .noise import Noise
from .policy import Condition, Policy, Velocity
from .solvers import SA, Solver, dpm2, euler, jump


def places(here: Tensor | None, numbers: Tensor) -> Tensor:
    """Where rows with these numbers [B] lie among those that are `here` [n], rising numbers (None: all of them).

    Raises:
        ValueError: another process has one of them.
    """
    if here is None:
        return numbers
    if not torch.isin(numbers, here).all():
        raise ValueError("these samples are in another process, which trains on them")
    return torch.searchsorted(here, numbers)


@dataclass(frozen=True)
class Steps:
    """Random steps of a rollout: R states with up to C children each, x_s = P x + Q v + sigma z (see laws.py)."""

    x: Tensor  # [r, ...] the state
    v: Tensor  # [r, ...] the network's velocity there
    z: Tensor  # [r, C, ...] the noise of each child
    sample: Tensor  # [R, C, V] indices of each child's samples; -1 if there are fewer than C children or V samples
    number: Tensor  # [R] index of the step in the grid
    table: Tensor  # [S, 4] float64: t, s, Q and sigma of each step of the grid; NaN if it is not random
    per_root: int  # consecutive rows that belong to one root
    here: Tensor | None = None  # [r] rising: the rows whose x, v and z this process has; None: all R

    def __getitem__(self, rows: Tensor) -> Steps:
        """Select rows, in rising order; keep all rows of a root or none."""
        if self.here is None:
            own, here = rows, None
        else:
            here = torch.isin(rows, self.here).nonzero().flatten()
            own = places(self.here, rows[here])
        x, v, z = (each[own] for each in (self.x, self.v, self.z))
        return replace(self, x=x, v=v, z=z, sample=self.sample[rows], number=self.number[rows], here=here)

    @classmethod
    def cat(cls, parts: Sequence[Steps], samples: Sequence[int]) -> Steps:
        """Concatenate parts of a rollout; `samples` is the number of samples in each."""
        before = [sum(samples[:number]) for number in range(len(samples))]
        sample = [torch.where(part.sample < 0, -1, part.sample + n) for part, n in zip(parts, before, strict=True)]
        x, v, z, number = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "v", "z", "number"))
        return cls(x, v, z, torch.cat(sample), number, parts[0].table, parts[0].per_root)

    def outline(self) -> Steps:
        """Which states and samples there are, without latents: what other processes have to know of these steps."""
        none = torch.empty(len(self.x), 0)
        return replace(self, x=none, v=none, z=none, sample=self.sample.int(), number=self.number.int())

    def among(self, outline: Steps, first: int) -> Steps:
        """These steps as rows `first` and on of those of all processes, whose `outline` is known."""
        here = torch.arange(first, first + len(self.x))
        sample, number = outline.sample.long(), outline.number.long()
        return replace(outline, x=self.x, v=self.v, z=self.z, sample=sample, number=number, here=here)


@dataclass(frozen=True)
class Drawn:
    """B finished samples, and their trajectories if training needs them."""

    x0: Tensor  # [B, ...] float32
    states: Tensor | None = None  # [B, S, ...] inputs of the network
    velocities: Tensor | None = None  # [B, S, ...] its outputs
    steps: Steps | None = None
    cohort: Tensor | None = None  # [B] samples of a prompt with equal numbers are compared; None: all

    @classmethod
    def cat(cls, parts: Sequence[Drawn]) -> Drawn:
        """Concatenate parts."""
        steps = [part.steps for part in parts if part.steps is not None]
        cohorts = [part.cohort for part in parts if part.cohort is not None]
        states = [part.states for part in parts if part.states is not None]
        velocities = [part.velocities for part in parts if part.velocities is not None]
        return cls(
            torch.cat([part.x0 for part in parts]),
            torch.cat(states) if states else None,
            torch.cat(velocities) if velocities else None,
            Steps.cat(steps, [len(part.x0) for part in parts]) if steps else None,
            torch.cat(cohorts) if cohorts else None,
        )

    def first(self, many: int) -> Drawn:
        """The first `many` samples, which are whole roots."""
        if many == len(self.x0):
            return self
        steps = self.steps and self.steps[torch.arange(len(self.steps.number) * many // len(self.x0))]
        states, velocities, cohort = (
            None if each is None else each[:many] for each in (self.states, self.velocities, self.cohort)
        )
        return Drawn(self.x0[:many], states, velocities, steps, cohort)

    def outline(self) -> Drawn:
        """What other processes have to know of these samples: no latents, so it is small."""
        return Drawn(torch.empty(len(self.x0), 0), steps=self.steps and self.steps.outline(), cohort=self.cohort)


@dataclass(frozen=True)
class Rollout:
    """Finished samples, in groups that share a prompt; N samples, P prompts. This process has the latents of n."""

    x0: Tensor  # [n, ...] float32
    condition: Condition  # P rows
    group: Tensor  # [N] row of the sample's prompt in `condition`
    cohort: Tensor  # [N] rewards with equal numbers are compared; a part of the group, or all of it
    reward: Tensor  # [N] float32
    advantage: Tensor  # [N] float64
    levels: Tensor  # [S] times at which the network was evaluated
    states: Tensor | None = None  # [n, S, ...]
    velocities: Tensor | None = None  # [n, S, ...]
    exemplar: Tensor | None = None  # [N] bool: a given image, not a sample; None if there are no such images
    steps: Steps | None = None
    here: Tensor | None = None  # [n] rising: the samples whose latents this process has; None: all N
    apart: Tensor | None = None  # [N, K] float64: an advantage per reward, if they get a gradient each

    def __len__(self) -> int:
        return len(self.group)

    def objectives(self) -> list[Rollout]:
        """The same samples with the advantages of one reward each; one rollout if rewards are not kept apart."""
        if self.apart is None:
            return [self]
        return [replace(self, advantage=column, apart=None) for column in self.apart.unbind(1)]

    def rows(self, samples: Tensor) -> Tensor:
        """The rows of x0, states and velocities of samples with these numbers [B].

        Raises:
            ValueError: another process has one of them.
        """
        return places(self.here, samples)

    def has(self, samples: Tensor) -> Tensor:
        """[B] bool: whether this process has the latents of samples with these numbers [B]."""
        return torch.ones_like(samples, dtype=torch.bool) if self.here is None else torch.isin(samples, self.here)

    @property
    def own(self) -> Tensor:
        """[N] bool: drawn by the policy, not a given image."""
        return torch.ones(len(self), dtype=torch.bool) if self.exemplar is None else ~self.exemplar

    @property
    def own_here(self) -> Tensor:
        """[n] bool: the same of the samples whose latents are here."""
        return self.own if self.here is None else self.own[self.here]

    @classmethod
    def of(
        cls,
        parts: Sequence[Drawn],
        condition: Condition,
        group: Tensor,
        levels: Tensor,
        outlines: Sequence[Drawn] = (),
        number: int = 0,
    ) -> Rollout:
        """Combine parts into one rollout; rewards and advantages are 0 for now.

        Args:
            outlines: of all processes, in the order of their samples, where several share the rollout.
            number: of the process that has `parts`.
        """
        drawn = Drawn.cat(parts)
        cohort, steps, here = drawn.cohort, drawn.steps, None
        if len(outlines) > 1:
            whole = Drawn.cat([each for each in outlines if len(each.x0)])
            before = outlines[:number]
            first = sum(len(each.x0) for each in before)
            cohort, here = whole.cohort, torch.arange(first, first + len(drawn.x0))
            if whole.steps is not None:
                row = sum(len(each.steps.x) for each in before if each.steps is not None)
                steps = (steps or whole.steps[torch.arange(0)]).among(whole.steps, row)
        cohort = torch.zeros(len(group)) if cohort is None else cohort
        return cls(
            drawn.x0,
            condition,
            group,
            cohort=torch.stack([group, cohort.long()], 1).unique(dim=0, return_inverse=True)[1],
            reward=torch.zeros(len(group)),
            advantage=torch.zeros(len(group), dtype=torch.float64),
            levels=levels,
            states=drawn.states,
            velocities=drawn.velocities,
            steps=steps,
            here=here,
        )

    def by_group(self) -> Tensor:
        """The sample indices of each group, [P, K].

        Raises:
            ValueError: the groups differ in size.
        """
        sizes = self.group.bincount(minlength=len(self.condition))
        if (sizes != sizes[0]).any():
            raise ValueError(
                f"all groups must have the same size, but they have {sizes.min()} to {sizes.max()} samples"
            )
        return self.group.argsort(stable=True).view(len(sizes), -1)


class Draw(Protocol):
    """A sampler for one iteration."""

    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn: ...


class Sampling(Protocol):
    """The interface of rollout settings to the training loop."""

    @property
    def guidance(self) -> float: ...  # 1: off
    @property
    def levels(self) -> Tensor: ...  # [S] times at which the network is evaluated
    @property
    def leaves(self) -> int: ...  # samples per root; they are drawn together
    @property
    def breadth(self) -> int: ...  # how many of them are in one forward pass
    def at(self, seed: int, iteration: int) -> Draw: ...  # the sampler of an iteration
    def remarks(self) -> list[str]: ...  # remarks and warnings to print before a run
    def bound(self, times: Callable[[int], tuple[float, ...]]) -> Self: ...  # with the model's own times filled in


def bound_to(policy: Policy, sampling: Any) -> Any:
    """The sampler, with the times of this model filled in.

    Raises:
        ValueError: it jumps, and the model has no end times.
    """
    if getattr(sampling, "jumps", False) and not policy.two_times:
        raise ValueError(
            f"solver `jump` needs a model with two times, such as scenes-4step, and {policy.name} has one: choose "
            "another solver, such as `euler`"
        )
    return sampling.bound(policy.times)


SolverName = Literal["euler", "dpm2", "sa", "jump"]


@dataclass(frozen=True)
class Sampler(TimeGrid):
    """Samples from noise at t = 1 to data at t = 0 along a time grid."""

    shift: float = 1.0
    """spend more steps near noise (> 1) or near data (< 1)"""
    grid: GridKind | Literal["model"] = "linear"
    """spacing of times: `linear`, `sd3` (diffusers' grid for SD3) or `model` (the model's scheduler)"""
    solver: SolverName = "euler"
    """solver: `euler` and `dpm2` (second order) follow the ODE, `sa` adds noise, `jump` is for few-step models"""
    tau: float = 0.4
    """noise strength of solver `sa`"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off, which halves the cost)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("solver", self.solver, get_args(SolverName))
        SA(self.tau)
        finite(self, "guidance")

    leaves = breadth = 1

    @property
    def jumps(self) -> bool:
        """Whether it asks the model for average velocities, which only a model with two times has."""
        return self.solver == "jump"

    def at(self, seed: int, iteration: int) -> Sampler:
        """Itself: this sampler is the same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """No remarks."""
        return []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`."""
        solvers: dict[SolverName, Solver] = {"euler": euler, "dpm2": dpm2, "sa": SA(self.tau), "jump": jump}

        def at(x: Tensor, t: float, s: float | None = None) -> Tensor:
            rows = condition if s is None else condition.until(torch.full((len(x),), s, device=x.device))
            return velocity(x, torch.full((len(x),), t, device=x.device), rows)

        return Drawn(solvers[self.solver](at, noise.start(), self.times, noise.step))


@dataclass(frozen=True)
class Pairs(TimeGrid):
    """Pairs of samples from the same initial noise, separated by churn; all visited states are recorded (FDFO).

    Euler steps overshoot and are noised back, x_s = P x + Q v + sigma z (Karras et al., 2022, arXiv:2206.00364), so an
    exact flow keeps its marginals. Two consecutive samples of a prompt form a pair.
    """

    steps: int = 40
    """sampling steps, one network evaluation each"""
    churn: Churn = field(default_factory=Churn)
    """noise that separates the two samples of a pair"""
    guidance: float = 1.0
    """scale of classifier-free guidance (1: off)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "guidance")

    leaves = breadth = 2

    def at(self, seed: int, iteration: int) -> Pairs:
        """Itself: this sampler is the same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """No remarks."""
        return []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """Draw B samples, one per row of `condition` and key of `noise`, with their states and velocities."""
        keep, fresh = self.churn.prior()
        x = keep * noise.start(siblings=2) + fresh * noise.step(self.steps)
        states, velocities = [], []
        for number, (t, s) in enumerate(pairwise(self.times)):
            v = velocity(x, torch.full((len(x),), t, device=x.device), condition)
            states.append(x.cpu())  # all states of an iteration may not fit on the device
            velocities.append(v.cpu())
            p, q, sigma = self.churn.coefficients(t, s)
            x = p * x + q * v
            if sigma > 0:
                x = x + sigma * noise.step(number)
        return Drawn(x, torch.stack(states, 1), torch.stack(velocities, 1))
