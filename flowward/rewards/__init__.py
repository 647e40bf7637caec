"""Rewards: reward(images, prompts, metadata=None) -> one number per image. Anything with that call will do.

A video gets the mean of what its frames get, unless the reward says that it takes videos (`takes_videos = True`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import unknown
from .jpeg import Compressible, Incompressible
from .scenes import Balance, Scenes, Soft, Strict


class Reward(Protocol):
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """images float [B, 3, H, W] or [B, F, 3, H, W] in [0, 1], B prompts -> scores [B], higher is better."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A reward that can say what is wrong with an image."""

    def explain(self, images: Tensor, prompts: Sequence[str]) -> list[str]: ...


@runtime_checkable
class Reads(Protocol):
    """A reward that understands only some prompts."""

    def refuse(self, prompts: Sequence[str]) -> None:
        """Raises ValueError, naming the first prompt that it does not understand."""
        ...


REWARDS: dict[str, Callable[[], Reward]] = {
    "scenes": Scenes,
    "scenes-strict": Strict,
    "scenes-soft": Soft,
    "balance": Balance,
    "jpeg-compressibility": Compressible,
    "jpeg-incompressibility": Incompressible,
}


class RewardError(RuntimeError):
    """A reward failed, or returned something that is not one finite number per image."""


@dataclass(frozen=True)
class Sum:
    """A weighted sum of rewards."""

    terms: tuple[tuple[str, float, Reward], ...]  # (name, weight, reward)

    def refuse(self, prompts: Sequence[str]) -> None:
        """Raises ValueError, naming the first prompt that a term does not understand."""
        for _, _, reward in self.terms:
            refuse(reward, prompts)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        parts = [weight * score(name, reward, images, prompts, metadata) for name, weight, reward in self.terms]
        return torch.stack(parts).sum(0)


def load(spec: Sequence[str]) -> Reward:
    """A reward from its name, or a weighted sum from several `name=weight`.

    Raises:
        ValueError: a name is unknown or a weight is not a number.
    """
    terms = []
    for item in spec:
        name, _, weight = item.partition("=")
        if name not in REWARDS:
            raise ValueError(unknown("reward", name, REWARDS))
        try:
            factor = float(weight or 1)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            raise ValueError(f"the weight of reward '{name}' must be a number, not '{weight}'")
        terms.append((name, factor, REWARDS[name]()))
    if not terms:
        raise ValueError("name at least one reward")
    return terms[0][2] if len(terms) == 1 and terms[0][1] == 1 else Sum(tuple(terms))


def terms(reward: Reward) -> tuple[tuple[str, float, Reward], ...]:
    """(name, weight, reward) of each part of a weighted sum; of any other reward, itself."""
    return reward.terms if isinstance(reward, Sum) else (("reward", 1.0, reward),)


def refuse(reward: Reward, prompts: Sequence[str]) -> None:
    """Raises ValueError where a reward says that it does not understand a prompt: before a run, not in it."""
    if isinstance(reward, Reads):
        reward.refuse(prompts)


def score(name: str, reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    """Call a reward and hold it to its word: float32 [B], finite.

    Raises:
        RewardError: it raised, or returned another shape, NaN or infinity; the message names the reward, and the
            prompt of the first bad score.
    """
    if images.ndim == 5 and not getattr(reward, "takes_videos", False):
        frames = images.shape[1]
        repeated = [prompt for prompt in prompts for _ in range(frames)]
        return score(name, reward, images.flatten(0, 1), repeated, metadata).view(-1, frames).mean(1)
    try:
        scores = torch.as_tensor(reward(images, prompts, metadata)).detach().float().cpu()
    except RewardError:
        raise
    except Exception as error:  # a user's function may fail in any way
        raise RewardError(f"reward '{name}' raised {type(error).__name__}: {error}") from error
    if scores.shape != (len(images),):
        raise RewardError(f"reward '{name}' returned shape {list(scores.shape)} for {len(images)} images")
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward '{name}' returned {scores[bad[0]].item()} for {len(bad)} of {len(images)} images, "
            f"the first with the prompt '{prompts[bad[0]]}'"
        )
    return scores


__all__ = ["REWARDS", "Explains", "Reads", "Reward", "RewardError", "Sum", "load", "refuse", "score", "terms"]
