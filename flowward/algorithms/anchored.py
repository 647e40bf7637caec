"""What algorithms that hold on to an earlier policy have in common."""

from __future__ import annotations

from torch import Tensor

from ..models.policy import Models
from ..points import Points
from ..snapshots import Decay


class Anchored:
    """An algorithm with a copy `old` of the policy, and the reference model where its weight `k_ref` is above 0."""

    old: Decay
    k_ref: float

    guidance = 1.0

    @property
    def copies(self) -> dict[str, Decay]:
        """The copies of the policy that the loss and the rollout use, and how each follows."""
        return {"old": self.old}

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs beside the policy's, with the guidance of each."""
        return {"old": 1.0} | ({"reference": 1.0} if self.k_ref > 0 else {})

    def reference(self, models: Models, points: Points) -> Tensor | None:
        """The reference's velocity [B, ...], or None where it has no weight and so costs no evaluation."""
        return models.at("reference", points) if "reference" in self.anchors else None
