"""On-policy distillation: one student learns from a teacher for each kind of prompt (DiffusionOPD, arXiv:2605.15055).

Experts are trained one by one, each on its own prompts and rewards. Then the student, which starts from the base model,
draws samples itself. At its own states it is pulled to the velocity of the teacher of the prompt's category:

    l = w ||v - v_T||^2  (+ w beta ||v - v_ref||^2)

    visited states, ODE     w = (t - s)^2 / 2           Eq. 12, the default
    visited states, SDE     w = Q^2 / (2 sigma^2)       Eq. 11: over all steps, the KL of the two chains
    samples noised again    w = (1 - t) / t             the mean is KL(student || teacher); ours

Why this form: states are the student's own, so it is taught where it goes, and not only where a teacher would. Every
w > 0 has the same minimum, v = v_T. Weights of steps are divided by their mean, so that only their proportions count.
Where a prompt does not tell its category, the student rests at the mean of the teachers, weighted by the probability of
each given the state. No reward is needed: rewards are only watched. Gradients of all categories are added up in a step.

Not a policy gradient: Flow-OPD (arXiv:2605.08063) uses the negative KL of a step as its advantage. That KL does not
depend on the noise which was drawn, so E[KL grad log p] = 0: as a constant advantage it teaches nothing, and what is
left is the gradient of the KL itself, which is this loss. `beta` is its pull to the base model (0.04 there).

Limits: teachers must be made from the student's base model. Guidance is distilled too: a teacher with guidance teaches
what it answers with it. Say which each has: `guidance` and `rollout.guidance` of the student, `teacher_guidance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..learning.credit import Even
from ..learning.snapshots import Decay
from ..learning.states import State, States
from ..process.flow import mean, wide
from ..process.policy import Models
from ..process.trajectory import Trajectory
from ..system.errors import finite, not_negative
from .algorithm import TEACHER, Stale


def opd(v: Tensor, v_teacher: Tensor, v_ref: Tensor | None, weight: Tensor, beta: float = 0.0) -> Tensor:
    """weight (||v - v_teacher||^2 + beta ||v - v_ref||^2), [B].

    Args:
        v, v_teacher, v_ref: [B, ...]; the last two are constants. v_ref may be None if beta is 0.
        weight: [B].
    """
    v = wide(v)
    square = mean((v - wide(v_teacher)) ** 2)
    if v_ref is not None:
        square = square + beta * mean((v - wide(v_ref)) ** 2)
    return weight.to(square.dtype) * square


@dataclass(frozen=True)
class OPD:
    """Settings of on-policy distillation; the defaults are those of the paper, scaled down to `scenes`."""

    beta: float = 0.0
    """weight of the reference model beside the teachers (0: not evaluated; Flow-OPD: 0.04)"""
    teacher_guidance: float = 1.0
    """guidance scale of the teachers (1: off); --teacher-guidance sets that of a single one"""
    guidance: float = field(default=1.0, kw_only=True)
    """guidance scale of the student in training (1: off), independent of the rollout's"""
    rollout: Trajectory = field(default_factory=Trajectory)
    credit: Even = field(default_factory=Even)
    points: States = field(default_factory=States)

    behaviour = "policy"
    skips_silent: ClassVar[bool] = False
    stale: ClassVar[Stale] = "free"  # a state is taught, whichever weights led to it

    def __post_init__(self) -> None:
        finite(self, "guidance", "teacher_guidance")
        not_negative(self, "beta")

    @property
    def copies(self) -> dict[str, Decay]:
        """None: teachers are frozen, and there is no old policy."""
        return {}

    @property
    def anchors(self) -> dict[str, float]:
        """The teacher of each row, and the reference model if it is pulled to, with the guidance scale of each."""
        return {TEACHER: self.teacher_guidance} | ({"reference": self.guidance} if self.beta > 0 else {})

    def loss(self, models: Models, points: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v_teacher = models.at(TEACHER, points)
        v_ref = models.at("reference", points) if self.beta > 0 else None
        v = models.at("policy", points)
        apart = mean((wide(v.detach()) - wide(v_teacher)) ** 2)
        return opd(v, v_teacher, v_ref, points.weight, self.beta), {"teacher_distance": apart}
