"""What losses share that differentiate a reward: the surrogate whose gradient is the reward's, and their settings.

Not an algorithm itself: see draft.py, refl.py, srpo.py and adjoint_matching.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..learning.credit import Even
from ..learning.snapshots import Decay
from ..process.flow import over, wide
from ..process.policy import Condition, Velocity
from ..process.rollout import Sampling
from ..system.errors import finite
from .algorithm import Stale


def ascent(x0: Tensor, score: Tensor, slope: Tensor, ceiling: float | None = None) -> Tensor:
    """-R as a loss, [B]: its value is -R, and its gradient with respect to x0 is -dR/dx0.

    Args:
        x0: [B, ...], with a graph that leads to the policy.
        score, slope: R [B] and dR/dx0 [B, ...] at x0, as constants.
        ceiling: if given, the loss is max(ceiling - R, 0): samples whose score is above it have no gradient.
    """
    x0, slope = wide(x0), wide(slope)
    along = (slope * (x0 - x0.detach())).flatten(1).sum(1)
    if ceiling is None:
        return -score.to(along) - along
    return (score < ceiling).to(along) * (ceiling - score.to(along) - along)


def unrolled(velocity: Velocity, x: Tensor, way: Tensor, condition: Condition) -> Tensor:
    """Euler steps of the ODE from x [B, ...] along the times `way` [B, K + 1], with their graph: [B, ...]."""
    for t, s in zip(way[:, :-1].unbind(1), way[:, 1:].unbind(1), strict=True):
        x = x + over(s - t, x) * velocity(x, t.float(), condition)
    return x


@dataclass(frozen=True)
class Differentiating:
    """An algorithm that differentiates the reward of its samples; the reward needs a gradient."""

    ceiling: float | None = field(default=None, kw_only=True)
    """the loss is max(ceiling - R, 0): samples that score higher have no gradient (none: -R)"""

    differentiates: ClassVar[bool] = True
    behaviour: ClassVar[str] = "policy"
    skips_silent: ClassVar[bool] = False
    stale: ClassVar[Stale] = "free"

    def __post_init__(self) -> None:
        if self.ceiling is not None:
            finite(self, "ceiling")

    if TYPE_CHECKING:  # every subclass has this field

        @property
        def rollout(self) -> Sampling: ...

    @property
    def guidance(self) -> float:
        """That of the rollout: what is differentiated is what draws the samples, guidance and all."""
        return self.rollout.guidance

    @property
    def credit(self) -> Even:
        """None is needed: every sample counts alike."""
        return Even()

    @property
    def copies(self) -> dict[str, Decay]:
        """None: there is no old policy."""
        return {}

    @property
    def anchors(self) -> dict[str, float]:
        """None: nothing but the policy is evaluated."""
        return {}

    def watched(self, score: Tensor, slope: Tensor) -> dict[str, Tensor]:
        """The reward where it is differentiated, and the norm of its gradient, per point."""
        found = {"point_reward": score.float(), "reward_slope": slope.flatten(1).float().norm(dim=1)}
        return found if self.ceiling is None else {**found, "above_ceiling": (score >= self.ceiling).float()}
