"""What algorithms that hold on to an earlier policy have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..learning.points import Points
from ..learning.snapshots import Decay
from ..process.policy import Models


@dataclass(frozen=True)
class Anchored:
    """An algorithm with a copy `old` of the policy, and the reference model where its weight `k_ref` is above 0."""

    if TYPE_CHECKING:  # fields of each, with values of its own

        @property
        def old(self) -> Decay: ...
        @property
        def k_ref(self) -> float: ...

    guidance: float = field(default=1.0, kw_only=True)
    """of the velocities that are trained (1: none), whatever that of the rollout; FLUX.1-dev takes it as an input"""

    @property
    def copies(self) -> dict[str, Decay]:
        """The copies of the policy that the loss and the rollout use, and how each follows."""
        return {"old": self.old}

    skips_silent: ClassVar[bool] = False  # a point without advantage still pulls towards `old`

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs beside the policy's."""
        return ("old", "reference") if self.k_ref > 0 else ("old",)

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs beside the policy's, with the guidance of each."""
        return dict.fromkeys(self.held_to, self.guidance)

    def reference(self, models: Models, points: Points) -> Tensor | None:
        """The reference's velocity [B, ...], or None where it has no weight and so costs no evaluation."""
        return models.at("reference", points) if "reference" in self.anchors else None
