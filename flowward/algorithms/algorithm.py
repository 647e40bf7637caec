"""What the loop asks of an algorithm: a value of four parts, rollout, credit, points and one equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

from ..learning.credit import Piece
from ..learning.points import PointSet
from ..learning.snapshots import Decay
from ..process.policy import Models
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


Stale = Literal["recorded", "anchored", "free", "none"]
"""Why a loss may be given samples that earlier weights drew. `recorded`: the velocities of the sampler come with them.
`anchored`: the loss is relative to `old`, and the `old` of the version that drew takes its place. `free`: it does not
ask what drew the samples. `none`: it takes the current policy for what drew them, so it may not."""


def stale_of(algorithm: object) -> Stale:
    """What an algorithm says in its optional attribute `stale`; `none` if it says nothing."""
    found: Stale = getattr(algorithm, "stale", "none")
    return found


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
