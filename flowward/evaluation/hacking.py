"""Whether a reward is gamed: the score that is trained on rises while one that nobody optimises falls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """What a score changed by, on the same prompts and noise, with its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float


def hacked(objective: Change, guard: Change) -> str | None:
    """A sentence where the objective rose while a guard, which nobody optimises, fell: both intervals exclude 0.

    That is how a reward is gamed (Gao et al., 2023, arXiv:2210.10760): what it measures goes up, what it stands for
    goes down.
    """
    if not (objective.low > 0 and guard.high < 0):
        return None
    rose, fell = (
        f"{each.name} {word} by {abs(each.mean):.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"
        for each, word, ends in (
            (objective, "rose", (objective.low, objective.high)),
            (guard, "fell", (-guard.high, -guard.low)),
        )
    )
    return (
        f"{rose} while {fell}: the reward may be gamed; look at the pictures, train for fewer iterations, "
        "raise the weight of the reference model, or add the guard to the reward"
    )
