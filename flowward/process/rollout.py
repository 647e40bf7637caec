"""Drawing samples: a time grid and a solver, over any velocity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Protocol, Self, get_args

import torch
from torch import Tensor

from ..system.errors import finite, one_of
from .flow import GridKind, TimeGrid
from .laws import Churn
from .noise import Noise
from .policy import Condition, Velocity
from .solvers import SA, Solver, dpm2, euler


@dataclass(frozen=True)
class Steps:
    """Random steps of a rollout: R states with up to C children each, x_s = P x + Q v + sigma z (see laws.py)."""

    x: Tensor  # [R, ...] the state
    v: Tensor  # [R, ...] what the network said there
    z: Tensor  # [R, C, ...] the noise of each child
    sample: Tensor  # [R, C, V] the samples that came of each child; -1 where a state has fewer than C
    number: Tensor  # [R] of the step in its grid
    table: Tensor  # [S, 4] float64: t, s, Q and sigma of each step of the grid; NaN where it is not random
    per_root: int  # consecutive rows that belong to one root

    def __getitem__(self, rows: Tensor) -> Steps:
        """Some of them: all of a root, or none."""
        x, v, z, sample, number = (each[rows] for each in (self.x, self.v, self.z, self.sample, self.number))
        return replace(self, x=x, v=v, z=z, sample=sample, number=number)

    @classmethod
    def cat(cls, parts: Sequence[Steps], samples: Sequence[int]) -> Steps:
        """Parts of a rollout with so many samples each, put together."""
        before = [sum(samples[:number]) for number in range(len(samples))]
        sample = [torch.where(part.sample < 0, -1, part.sample + n) for part, n in zip(parts, before, strict=True)]
        x, v, z, number = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "v", "z", "number"))
        return cls(x, v, z, torch.cat(sample), number, parts[0].table, parts[0].per_root)


@dataclass(frozen=True)
class Drawn:
    """B finished samples, and the way there where somebody will train on it."""

    x0: Tensor  # [B, ...] float32
    states: Tensor | None = None  # [B, S, ...] where the network was asked
    velocities: Tensor | None = None  # [B, S, ...] what it answered
    steps: Steps | None = None
    cohort: Tensor | None = None  # [B] samples of a prompt with equal numbers are compared; None: all

    @classmethod
    def cat(cls, parts: Sequence[Drawn]) -> Drawn:
        """Parts put together."""
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


@dataclass(frozen=True)
class Rollout:
    """Finished samples, in groups that share a prompt; N samples, P prompts."""

    x0: Tensor  # [N, ...] float32
    condition: Condition  # P rows
    group: Tensor  # [N] row of the sample's prompt in `condition`
    cohort: Tensor  # [N] number of the samples that its reward is compared with; a part of its group, or all
    reward: Tensor  # [N] float32
    advantage: Tensor  # [N] float64
    levels: Tensor  # [S] times at which the network was asked
    states: Tensor | None = None  # [N, S, ...]
    velocities: Tensor | None = None  # [N, S, ...]
    exemplar: Tensor | None = None  # [N] bool: a given image, not a sample; None where there is none
    steps: Steps | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def own(self) -> Tensor:
        """[N] bool: drawn, not given."""
        return torch.ones(len(self), dtype=torch.bool) if self.exemplar is None else ~self.exemplar

    @classmethod
    def of(cls, parts: Sequence[Drawn], condition: Condition, group: Tensor, levels: Tensor) -> Rollout:
        """Parts put together, without rewards yet."""
        drawn = Drawn.cat(parts)
        cohort = torch.zeros(len(group)) if drawn.cohort is None else drawn.cohort
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
            steps=drawn.steps,
        )

    def by_group(self) -> Tensor:
        """The samples of each group, [P, K].

        Raises:
            ValueError: the groups are not all of one size.
        """
        sizes = self.group.bincount(minlength=len(self.condition))
        if (sizes != sizes[0]).any():
            raise ValueError(f"groups of {sizes.min()} to {sizes.max()} samples, where all must be of one size")
        return self.group.argsort(stable=True).view(len(sizes), -1)


class Draw(Protocol):
    """How the samples of one iteration are drawn."""

    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn: ...


class Sampling(Protocol):
    """What the loop asks of a way to draw samples."""

    @property
    def guidance(self) -> float: ...  # 1: none
    @property
    def levels(self) -> Tensor: ...  # [S] times at which the network is asked
    @property
    def leaves(self) -> int: ...  # samples that are drawn together, from one root
    @property
    def breadth(self) -> int: ...  # of them that the network is asked about at once
    def at(self, seed: int, iteration: int) -> Draw: ...  # as it is in an iteration
    def remarks(self) -> list[str]: ...  # sentences that are worth reading before a run begins
    def bound(self, times: Callable[[int], tuple[float, ...]]) -> Self: ...  # to the model's own times


SolverName = Literal["euler", "dpm2", "sa"]


@dataclass(frozen=True)
class Sampler(TimeGrid):
    """From noise at t = 1 to samples at t = 0, along a grid of times."""

    shift: float = 1.0
    grid: GridKind | Literal["model"] = "linear"
    solver: SolverName = "euler"
    """`euler` and `dpm2` (second order) follow the ODE; `sa` adds noise on the way"""
    tau: float = 0.4
    """strength of the noise of `sa`"""
    guidance: float = 1.0
    """scale of classifier-free guidance; 1 is none, and half the work"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("solver", self.solver, get_args(SolverName))
        SA(self.tau)
        finite(self, "guidance")

    leaves = breadth = 1

    def at(self, seed: int, iteration: int) -> Sampler:
        """The same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """None."""
        return []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """B samples, one per row of `condition` and key of `noise`."""
        solvers: dict[SolverName, Solver] = {"euler": euler, "dpm2": dpm2, "sa": SA(self.tau)}

        def at(x: Tensor, t: float) -> Tensor:
            return velocity(x, torch.full((len(x),), t, device=x.device), condition)

        return Drawn(solvers[self.solver](at, noise.start(), self.times, noise.step))


@dataclass(frozen=True)
class Pairs(TimeGrid):
    """Two samples from the same start that part ways through churn; every visited state is kept (FDFO).

    Euler steps that overshoot and are noised back, x_s = P x + Q v + sigma z (Karras et al., 2022, arXiv:2206.00364),
    so that an exact flow keeps its marginals; consecutive samples of a prompt are the two branches of a pair.
    """

    steps: int = 40
    churn: Churn = field(default_factory=Churn)
    guidance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "guidance")

    leaves = breadth = 2

    def at(self, seed: int, iteration: int) -> Pairs:
        """The same in every iteration."""
        return self

    def remarks(self) -> list[str]:
        """None."""
        return []

    @torch.no_grad()
    def __call__(self, velocity: Velocity, condition: Condition, noise: Noise) -> Drawn:
        """B samples, one per row of `condition` and key of `noise`, with their states and velocities."""
        keep, fresh = self.churn.prior()
        x = keep * noise.start(siblings=2) + fresh * noise.step(self.steps)
        states, velocities = [], []
        for number, (t, s) in enumerate(pairwise(self.times)):
            v = velocity(x, torch.full((len(x),), t, device=x.device), condition)
            states.append(x.cpu())  # an epoch of them is too much for many a device
            velocities.append(v.cpu())
            p, q, sigma = self.churn.coefficients(t, s)
            x = p * x + q * v
            if sigma > 0:
                x = x + sigma * noise.step(number)
        return Drawn(x, torch.stack(states, 1), torch.stack(velocities, 1))
