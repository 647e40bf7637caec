"""Rewards with a gradient: a third protocol beside `Reward` and `Explains`.

A reward that is a torch function gets it by autograd: `@differentiable` for a function, `Smooth` for a class. Servers,
checkers and readers of text have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from .reward import called


@runtime_checkable
class Differentiable(Protocol):
    """A reward with a gradient."""

    def gradient(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[Tensor, Tensor]:
        """The scores [B], as the reward itself returns them, and d score / d image [B, 3, H, W].

        The score of an image must not depend on other images of the call.
        """
        ...


def by_autograd(scored: Callable[[Tensor], Tensor], images: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores [B] of a torch function of images [B, 3, H, W], and its derivative, float32 of the images' shape.

    Args:
        scale: multiply scores by this before the backward pass, and divide the result by it.

    Raises:
        ValueError: the scores do not depend on the images through torch operations.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().float().requires_grad_()
        scores = scored(x)
        if not scores.requires_grad:
            raise ValueError("its scores have no graph that leads to the images: it leaves torch, or detaches them")
        (slope,) = torch.autograd.grad(scale * scores.sum(), x)
    return scores.detach(), slope / scale


F = TypeVar("F", bound=Callable[..., Tensor])


def differentiable(reward: F) -> F:
    """Give a function of images and prompts, made of torch operations, a gradient by autograd."""

    def gradient(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[Tensor, Tensor]:
        return by_autograd(lambda x: called(reward, x, prompts, metadata), images)

    reward.gradient = gradient  # type: ignore[attr-defined]
    return reward


class Smooth:
    """A class of rewards whose call keeps the graph if the images require a gradient; `batch` images at a time."""

    batch: int
    scale: Any = 1.0  # see by_autograd

    def gradient(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[Tensor, Tensor]:
        """Scores [B] and d score / d image [B, 3, H, W]."""
        found = []
        for start in range(0, len(images), self.batch):
            rows = slice(start, start + self.batch)

            def scored(x: Tensor, rows: slice = rows) -> Tensor:
                scores: Tensor = called(self, x, prompts[rows], None)
                return scores

            found.append(by_autograd(scored, images[rows], self.scale))
        scores, slopes = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(slopes)
