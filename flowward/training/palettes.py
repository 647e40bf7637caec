"""What a palette of adapters asks of a run: one adapter per reward, and weights that are drawn for every group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import rewards
from ..learning.mixing import APART
from ..learning.mixtures import Drawn, Fixed, Weighting
from ..process.policy import Policy
from ..rewards import Reward
from ..system.paths import short_codes
from .run import Run


def weights_of(reward: Reward) -> Tensor:
    """The weights [R] of its terms, float64."""
    return torch.tensor([weight for _, weight, _ in rewards.terms(reward)], dtype=torch.float64)


def weighting_of(policy: Policy, reward: Reward, run: Run, compares: bool = True) -> Weighting:
    """Drawn weights if the policy is a palette, otherwise fixed ones.

    Args:
        compares: whether the algorithm compares rewards, which gives the advantages that a palette mixes.

    Raises:
        ValueError: the palette has other adapters than the rewards, or this mix or these weights do not allow it.
    """
    weights, palette = weights_of(reward), policy.weights.palette
    if run.mix in APART and policy.weights.collective:
        raise ValueError(f"--mix {run.mix} needs the gradient of each reward whole: set --shard none, or another mix")
    if not palette:
        return Fixed(weights)
    if not compares:
        raise ValueError("a palette mixes advantages, and this algorithm compares no rewards: leave out --palette")
    names = tuple(name for name, weight, _ in rewards.terms(reward) if weight)
    if names != palette:
        raise ValueError(
            f"the palette has adapters for {', '.join(palette)}, but the rewards are {', '.join(names)}: train with "
            "the rewards of its adapters, in their order"
        )
    if run.mix != "advantages":
        raise ValueError(f"a palette adds up the advantages of its rewards: set --mix advantages, not {run.mix}")
    return Drawn(weights, run.seed)


def named_by(spec: Sequence[str]) -> tuple[str, ...]:
    """The adapters of a palette for these rewards, `name` or `name=weight`: those whose weight is not 0.

    Raises:
        ValueError: there are fewer than two.
    """
    each = [rewards.weighted(item) for item in spec]
    short = short_codes([name for name, _ in each])
    names = tuple(short[name] for name, weight in each if weight)
    if len(names) < 2:
        raise ValueError("a palette mixes rewards, so it needs two or more of weight other than 0: add a --reward")
    return names


def refuse_elsewhere(settings: Any) -> None:
    """Raises ValueError if images of a palette come from elsewhere: only its trainer knows the weights of a group."""
    if not settings.palette:
        return
    if settings.drawing.rollouts != "here":
        raise ValueError("Ray actors do not know the drawn weights of a palette: set --rollouts here")
    if settings.preferences:
        raise ValueError("preference pairs are made for no weights: leave out --preferences or --palette")
