"""Whether an algorithm suits a model: few-step models are no flows whose velocity is E[u | x_t]."""

from __future__ import annotations

from ..learning.jumps import trained_by
from ..process.plans import Branches, Chain, corrects
from ..process.policy import Policy
from ..process.rollout import Sampling
from ..process.splits import Splits
from .algorithm import Algorithm


def refuse_times(algorithm: Algorithm, policy: Policy) -> None:
    """Raises ValueError if the loss trains jumps of a model without them, or not those that draw its samples."""
    name, trains = type(algorithm).__name__, trained_by(algorithm.points)
    if trains == "jumps" and not policy.two_times:
        raise ValueError(
            f"{name} trains jumps of a model with two times, and {policy.name} has one: use a few-step model, such as "
            "scenes-4step, or another algorithm, such as advantageflow"
        )
    if trains == "velocity" and getattr(algorithm.rollout, "jumps", False):
        raise ValueError(
            f"{name} trains velocities, and a rollout with solver `jump` draws its samples by jumps, which it would "
            "leave as they are: use --algorithm meanflow_advantage, or another solver, such as `euler`"
        )


def refuse_distilled(algorithm: Algorithm, policy: Policy, allowed: bool = False) -> None:
    """Raises ValueError if the loss takes the velocity of a step-distilled model for E[u | x_t], unless `allowed`."""
    found = [sign for sign in policy.distilled() if sign.sure != "hint"]
    if allowed or not found or trained_by(algorithm.points) != "velocity":
        return
    jumps = "meanflow_advantage, which trains jumps, or " if policy.two_times else ""
    raise ValueError(
        f"{policy.name} is step-distilled ({found[0]}): {type(algorithm).__name__} would blur its samples, as it takes "
        f"the velocity for E[u | x_t], which it is not. Use {jumps}an algorithm that trains the sampler's own steps "
        "(flow_grpo with --algorithm.rollout.law cps); to train anyway, add --allow-distilled"
    )


def distilled_remarks(algorithm: Algorithm, policy: Policy, rollout: Sampling) -> list[str]:
    """Warnings about a model that is, or may be, step-distilled; `rollout` is bound to it."""
    found, name = policy.distilled(), type(algorithm).__name__
    if not found:
        return []
    sure = [sign for sign in found if sign.sure != "hint"]
    if trained_by(algorithm.points) == "velocity":
        if sure:
            return [f"{policy.name} is step-distilled ({sure[0]}); {name} may blur its samples (--allow-distilled)"]
        return [
            f"{policy.name} may be step-distilled ({found[0]}): if it is, {name} blurs its samples. `flowward verify "
            "--model` prints slopes, which are 1 for other models"
        ]
    if sure and isinstance(rollout, Chain | Branches | Splits) and corrects(rollout):
        return [
            f"{policy.name} is step-distilled ({sure[0]}), and noise schedule {rollout.law} corrects its steps "
            "by a score that such a model does not have: use --algorithm.rollout.law cps"
        ]
    return []
