"""Rewards of the built-in worlds, which are told apart by the size of the image. They use only pixels and prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...prompts import scenes, scenes64
from ...system.errors import positive
from ..gradients import Smooth
from ..network import shared

if TYPE_CHECKING:
    from ...scenes.judging import Verdict


def verdicts(images: Tensor, prompts: Sequence[str]) -> Sequence[Verdict[Any]]:
    """The checker's findings on images [B, 3, H, W] in [0, 1], of the world whose images have this size.

    Raises:
        ValueError: a prompt is not a sentence of that world, or no world has such images.
    """
    from ...scenes.world import of_size  # here, because it loads scipy, which no other reward needs

    world = of_size(*images.shape[-2:])
    return world.check(images.float().cpu().numpy(), [world.language.parse(prompt).request for prompt in prompts])


class _OfPrompts:
    """Shared by rewards that read the prompt."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError if a prompt is not a sentence of a built-in world."""
        for prompt in prompts:
            if not scenes.LANGUAGE.knows(prompt) and not scenes64.LANGUAGE.knows(prompt):
                scenes.parse(prompt)  # names the nearest one


class Strict(_OfPrompts):
    """1 if the image shows exactly the objects of the prompt, otherwise 0 (GenEval's verdict, but exact)."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(verdict.strict) for verdict in verdicts(images, prompts)])

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
        """The reason why each picture fails; empty if it passes."""
        return [verdict.reason for verdict in verdicts(images, prompts)]


class Soft(_OfPrompts):
    """The fraction of the prompt that the image shows, in [0, 1]: the checker's soft score."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([verdict.soft for verdict in verdicts(images, prompts)], dtype=torch.float32)


class Scenes(_OfPrompts):
    """The mean of `Strict` and `Soft`: partial credit as a learning signal, with the verdict as the goal."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        found = verdicts(images, prompts)
        return torch.tensor([0.5 * verdict.strict + 0.5 * verdict.soft for verdict in found], dtype=torch.float32)


@dataclass
class SceneNet(Smooth, _OfPrompts):
    """A small network's guess of `Scenes`, in [0, 1], with a gradient: it was trained on the checker's verdicts.

    It errs, and a model that is trained against it learns its errors: watch `scenes-strict` (docs/scenes.md).
    """

    batch: int = 256
    """process this many images at once"""

    def __post_init__(self) -> None:
        from ...scenes.critic import SHIPPED, Critic

        positive(self, "batch")
        self._network = shared((SceneNet,), lambda: Critic.load(SHIPPED))

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError if a prompt is not a sentence of the scenes world, the only one that the network knows."""
        for prompt in prompts:
            scenes.parse(prompt)

    @property
    def identity(self) -> dict[str, str]:
        """A hash of its weights: scores of other versions of it cannot be compared."""
        from ...scenes.critic import SHIPPED

        return {"network": hashlib.sha256((SHIPPED / "model.safetensors").read_bytes()).hexdigest()[:16]}

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        from ...scenes.critic import features, score

        requests = features([scenes.parse(prompt).request for prompt in prompts])
        with torch.set_grad_enabled(images.requires_grad):
            parts = [
                score(self._network(part.float().cpu(), some))
                for part, some in zip(images.split(self.batch), requests.split(self.batch), strict=True)
            ]
            return torch.cat(parts)


class Balance:
    """Composition in [0, 1]: how well the visual weight is centred.

    exp(-(d / 0.3)^2), with d the distance between the picture's centre and the centre of mass of everything that is not
    background, in half widths. It ignores the prompt, so it can be a second objective, or show drift. A blank picture
    scores 0, and so does one with NaN or infinity.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        finite = images.isfinite().flatten(1).all(1).cpu().numpy()
        x = images.float().nan_to_num(0).clamp(0, 1).cpu().numpy()
        border = np.concatenate([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], 2)
        weight = np.linalg.norm(x - np.median(border, 2)[:, :, None, None], axis=1)
        weight = np.where(weight > 0.1, weight, 0)
        total = weight.sum((1, 2))
        height, width = weight.shape[1:]
        dx = (weight * np.linspace(-1, 1, width)).sum((1, 2)) / np.maximum(total, 1e-6)
        dy = (weight * np.linspace(-1, 1, height)[:, None]).sum((1, 2)) / np.maximum(total, 1e-6)
        score = np.where(finite & (total > 0), np.exp(-(dx**2 + dy**2) / 0.3**2), 0.0)
        return torch.from_numpy(score.astype(np.float32))
