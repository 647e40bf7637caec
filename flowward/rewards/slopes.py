"""The gradient of a reward or of a weighted sum: who has one, and checks of what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gradients import Differentiable
from .loading import terms
from .reward import Metadata, Reward, RewardError, called, guarded


def has_gradient(reward: Reward) -> bool:
    """Whether a reward has a gradient; a weighted sum has one if all terms that count do."""
    return all(_alone(each) for _, weight, each in terms(reward) if weight)


def _alone(reward: Reward) -> bool:
    return isinstance(reward, Differentiable) and not getattr(reward, "compares", False)


def refuse_without(reward: Reward, who: str) -> None:
    """Raise ValueError, naming the first term without a gradient, which `who` needs."""
    for name, weight, each in terms(reward):
        if weight and not _alone(each):
            raise ValueError(
                f"{who} needs the gradient of the reward, and reward '{name}' has none: use one that has, such as "
                "scenes-net (built-in world) or pickscore, or an algorithm that only needs scores, as advantageflow"
            )


def gradient(
    reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Metadata = None
) -> tuple[Tensor, Tensor]:
    """Scores [B] and d score / d image [B, 3, H, W] of a reward or a weighted sum, float32 on the images' device.

    Raises:
        RewardError: a reward raised, or returned another shape, NaN or infinity.
    """
    total, slope = images.new_zeros(len(images), dtype=torch.float32), torch.zeros_like(images, dtype=torch.float32)
    for name, weight, each in terms(reward):
        if not weight:
            continue
        with guarded(f"gradient of reward '{name}'"):
            scores, own = called(each.gradient, images, prompts, metadata)  # type: ignore[attr-defined]
        for what, found, shape in (("scores", scores, images.shape[:1]), ("slopes", own, images.shape)):
            if found.shape != shape:
                raise RewardError(
                    f"gradient of reward '{name}' must return {what} of shape {list(shape)}, not {list(found.shape)}"
                )
            if bad := (~found.isfinite().view(len(found), -1).all(1)).nonzero().flatten().tolist():
                raise RewardError(
                    f"gradient of reward '{name}' returned {what} that are NaN or infinite for {len(bad)} of "
                    f"{len(images)} images, the first for the prompt '{prompts[bad[0]]}'"
                )
        total += weight * scores.to(total)
        slope += weight * own.to(slope)
    return total, slope
