"""Detection of reward hacking: the optimised score rises while a guard, which is not optimised, falls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """The change of a score on the same prompts and noise, with its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float


def hacked(objective: Change, guard: Change) -> str | None:
    """A warning if the objective rose while a guard fell and both intervals exclude 0; otherwise None.

    That is the pattern of reward hacking (Gao et al., 2023, arXiv:2210.10760).
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
        f"{rose} while {fell}: the model may exploit the reward (reward hacking). Check the sample images, train for "
        "fewer iterations, raise the weight of the reference model, or add the guard to the reward"
    )
