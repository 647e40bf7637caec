"""RVM: advantage-weighted matching of velocities, without an old policy (2026, arXiv:2608.23664).

Move the velocity towards what its own samples say, in proportion to their advantage, and nothing else. With
u = eps - x0, a small gain c and a weight beta that may be 0:

    push = c A (v - u) + beta (v - v_ref),    l = ||v - sg[v - push]||^2 / 2

where sg[.] is treated as a constant. Why this form: the gradient is push / N, that of c A ||v - u||^2 / 2 plus
beta ||v - v_ref||^2 / 2. For A < 0 that square has no minimum, so its value says nothing; a target that moves with v
has the same gradient and a value that can be read. There is no old policy: it is AdvantageFlow with gamma = 0 in
velocity space, halved (docs/same.md).

Limits: nothing bounds a step but the learning rate, and with beta = 0 nothing holds the policy to the reference model.
An error of calibration, E[u | x_t] - v, is amplified where A < 0: watch `residual`.

What could not be confirmed: we read the loss in third-party code for a video model, not in the paper's own. Its rule
for the reference model and its settings for images are not known to us.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..learning.terms import detached
from ..process.flow import over, wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..system.errors import not_negative, positive
from .anchored import Anchored


def rvm(
    v: Tensor,
    v_ref: Tensor | None,
    x0: Tensor,
    eps: Tensor,
    advantage: Tensor,
    gain: float = 0.1,
    beta: float = 0.0,
    advantage_clip: float = 5.0,
) -> Tensor:
    """||v - sg[v - push]||^2 / 2 with push = gain A (v - u) + beta (v - v_ref), [B]; its gradient is push / N.

    Args:
        v, v_ref, x0, eps: [B, ...]. v_ref is a constant and may be None if beta is 0.
        advantage: [B]; advantages are clipped to +-advantage_clip.
    """
    return matched(v, v, v_ref, x0, eps, gain * advantage.clamp(-advantage_clip, advantage_clip), beta)


def matched(
    v: Tensor, fit: Tensor, v_ref: Tensor | None, x0: Tensor, eps: Tensor, weight: Tensor, beta: float
) -> Tensor:
    """||v - sg[v - push]||^2 / 2 with push = weight (fit - u) + beta (v - v_ref), [B]; fit is v, or v_old (RAM)."""
    v, u = wide(v), wide(eps) - wide(x0)
    push = over(weight, v) * (wide(fit) - u)
    if v_ref is not None:
        push = push + beta * (v - wide(v_ref))
    return detached(v, push) / 2


@dataclass(frozen=True)
class RVM(Anchored):
    """RVM's settings; the defaults are those of the code that we read, scaled down to `scenes`."""

    gain: float = 0.1
    """multiply clipped advantages by this"""
    advantage_clip: float = 5.0
    """clip advantages to [-advantage_clip, advantage_clip]"""
    beta: float = 0.0
    """weight of the reference model (0: not evaluated)"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: ZScore = field(default_factory=ZScore)
    points: Renoise = field(default_factory=Renoise)

    behaviour = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "gain", "advantage_clip")
        not_negative(self, "beta")

    @property
    def copies(self) -> dict[str, Decay]:
        """None: there is no old policy."""
        return {}

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return ("reference",) * (self.beta > 0)

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v_ref = self.reference(models, points)
        v = models.at("policy", points)
        loss = rvm(v, v_ref, points.x0, points.eps, points.advantage, self.gain, self.beta, self.advantage_clip)
        return loss, self.watched(points, v, None, v_ref)
