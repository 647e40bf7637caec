"""What the loop asks of an algorithm: a value of four parts, rollout, credit, points and one equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from ..learning.credit import Piece
from ..learning.points import PointSet
from ..learning.snapshots import Decay
from ..process.policy import Condition, Models, Velocity
from ..process.rollout import Rollout, Sampling
from ..system.streams import Key


class Objective(Protocol):
    """What the loop asks of an algorithm, whatever kind of sample it trains on."""

    @property
    def behaviour(self) -> str: ...  # the weights that are sampled from
    @property
    def copies(self) -> Mapping[str, Decay]: ...  # copies of the policy that it uses, and how each follows
    @property
    def guidance(self) -> float: ...  # of the policy that is trained; 1: none
    @property
    def skips_silent(self) -> bool: ...  # points whose advantages are all 0 have no gradient
    @property
    def anchors(self) -> Mapping[str, float]: ...  # velocities needed beside the policy's, and the guidance of each
    @property
    def credit(self) -> Piece: ...
    def loss(self, models: Any, points: Any) -> tuple[Tensor, dict[str, Tensor]]: ...  # Rows of its `points`


class Algorithm(Objective, Protocol):
    """What the loop over images asks of an algorithm; see algorithms/advantageflow.py for one."""

    @property
    def rollout(self) -> Sampling: ...
    @property
    def points(self) -> Callable[[Rollout, Key], PointSet]: ...
    def loss(self, models: Models, points: Any) -> tuple[Tensor, dict[str, Tensor]]: ...  # a Batch of its `points`


TEACHER = "teacher"
"""The anchor of a loss that learns from frozen teachers, chosen by the prompt of a row (training/teachers.py)."""

Stale = Literal["recorded", "anchored", "free", "none"]
"""Why a loss may be given samples that earlier weights drew. `recorded`: the velocities of the sampler come with them.
`anchored`: the loss is relative to `old`, and the `old` of the version that drew takes its place. `free`: it does not
ask what drew the samples. `none`: it takes the current policy for what drew them, so it may not."""


def stale_of(algorithm: object) -> Stale:
    """What an algorithm says in its optional attribute `stale`; `none` if it says nothing."""
    found: Stale = getattr(algorithm, "stale", "none")
    return found


def measured_by(
    algorithm: object, velocity: Velocity, start: Callable[[], tuple[Tensor, Condition]]
) -> dict[str, float]:
    """What the algorithm measures of the model at an evaluation, if it has a method for it.

    Args:
        start: gives noise [B, ...] and the condition of B rows.
    """
    found: Callable[..., dict[str, float]] | None = getattr(algorithm, "measured", None)
    return found(velocity, *start()) if found else {}


State = dict[str, Any]  # plain numbers by name, as a checkpoint stores them
Measured = Callable[[], Mapping[str, float]]
"""means of the loss's metrics over the points of the last optimiser step; all processes have to ask together"""
Loss = Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]  # (models, points) -> losses [B], metrics
PRIVATE = "_"  # metrics of a loss whose names begin so are for `Adaptive.learned` alone


class Adaptive(Protocol):
    """Settings that a run chooses for itself, one iteration after the other: pure functions of a state.

    The run keeps the state. It is part of a checkpoint, equal in all processes, and a failed iteration changes nothing.
    An algorithm has one of these in its optional attribute `adaptive` (None: nothing adapts), for example
    AdvantageFlow's gamma.
    """

    def start(self) -> State: ...  # before the first iteration
    def seen(self, state: State, advantage: Tensor) -> State: ...  # [N] of all processes, before the optimiser steps
    def loss(self, state: State) -> Loss: ...  # of this iteration
    def learned(self, state: State, measured: Measured) -> tuple[State, dict[str, float], list[str]]: ...

    # after them, from means of the loss's metrics over the last step's points; also more metrics, and warnings


@dataclass(frozen=True)
class Fixed:
    """Nothing adapts: the loss is that of the algorithm."""

    algorithm: Objective

    def start(self) -> State:
        return {}

    def seen(self, state: State, advantage: Tensor) -> State:
        return state

    def loss(self, state: State) -> Loss:
        found: Loss = self.algorithm.loss
        return found

    def learned(self, state: State, measured: Measured) -> tuple[State, dict[str, float], list[str]]:
        return state, {}, []


def adaptive_of(algorithm: Objective) -> Adaptive:
    """What adapts the settings of an algorithm: its optional attribute `adaptive`."""
    found: Adaptive | None = getattr(algorithm, "adaptive", None)
    return Fixed(algorithm) if found is None else found


def differentiates(algorithm: object) -> bool:
    """Whether the loss asks for the gradient of the reward, by the optional attribute of this name."""
    return bool(getattr(algorithm, "differentiates", False))


def words(algorithm: object) -> tuple[str, ...]:
    """Texts that the loss puts before prompts, in its optional attribute of this name."""
    found: tuple[str, ...] = getattr(algorithm, "words", ())
    return found


def products(algorithm: object) -> Mapping[str, float]:
    """Weights whose Jacobian the loss multiplies with vectors, and the guidance of each (optional attribute)."""
    found: Mapping[str, float] = getattr(algorithm, "products", {})
    return found


PARTS = ("behaviour", "rollout", "copies", "guidance", "skips_silent", "anchors", "credit", "points", "loss")


def remarks(algorithm: object, updates: int) -> list[str]:
    """Warnings of the algorithm about a run with so many optimiser steps per rollout, if it has a method for them."""
    said: Callable[[int], list[str]] | None = getattr(algorithm, "remarks", None)
    return said(updates) if said else []


def refuse_incomplete(algorithm: object, called: str | None = None) -> None:
    """Raises ValueError if this is a name, a class, or a value without some of the parts; `called` is its name."""
    if isinstance(algorithm, str | type):
        name = algorithm if isinstance(algorithm, str) else algorithm.__name__
        raise ValueError(f"an algorithm is a value, such as AdvantageFlow(gamma=1.1), not the name or the class {name}")
    if missing := [name for name in PARTS if not hasattr(algorithm, name)]:
        raise ValueError(
            f"{called or type(algorithm).__name__} is not an algorithm: it has no {', '.join(missing)} "
            "(see flowward/algorithms/algorithm.py)"
        )
