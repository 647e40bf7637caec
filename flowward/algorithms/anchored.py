"""Base class of algorithms with an old-policy copy and a reference model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..learning.points import Points
from ..learning.snapshots import Decay
from ..learning.terms import Watched, departure
from ..process.policy import Models
from ..process.rollout import Sampling
from ..system.errors import finite
from .algorithm import Stale


@dataclass(frozen=True)
class Anchored:
    """An algorithm with a policy copy `old`, and with the reference model if its weight `k_ref` is above 0."""

    if TYPE_CHECKING:  # every subclass has these fields, with its own defaults

        @property
        def old(self) -> Decay: ...
        @property
        def k_ref(self) -> float: ...
        @property
        def behaviour(self) -> str: ...
        @property
        def rollout(self) -> Sampling: ...

    guidance: float = field(default=1.0, kw_only=True)
    """guidance scale in training (1: off), independent of the rollout's; FLUX.1-dev reads it as input"""

    def __post_init__(self) -> None:
        finite(self, "guidance")

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old}

    @property
    def stale(self) -> Stale:
        """Samples of an earlier `old` are trained on with that `old`; those of an earlier policy have no record."""
        return "none" if self.behaviour == "policy" else "anchored"

    skips_silent: ClassVar[bool] = False  # a point without advantage still pulls towards `old`

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return ("old", "reference") if self.k_ref > 0 else ("old",)

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs besides the policy's, with the guidance scale of each."""
        return dict.fromkeys(self.held_to, self.guidance)

    def reference(self, models: Models, points: Points) -> Tensor | None:
        """The reference model's velocity [B, ...], or None (not evaluated) if its weight is 0."""
        return models.at("reference", points) if "reference" in self.anchors else None

    @property
    def calibrated(self) -> bool:
        """Whether the velocities of the loss are those that draw the samples: no guidance on either side."""
        scales = {self.guidance, self.rollout.guidance, *self.anchors.values()}
        return scales == {1.0}

    def watched(self, points: Points, v: Tensor, v_old: Tensor | None, v_ref: Tensor | None) -> Watched:
        """Metrics of the points: how far the policy has gone; see `departure`."""
        return departure(points, v, v_old, v_ref, self.calibrated)
