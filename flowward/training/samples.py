"""The images of an iteration with their prompts, rewards and advantages, for whoever follows a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..process.medium import Medium
from ..process.medium import images as of_size


class Samples:
    """N images with what they were scored. The images are let go when the next iteration begins.

    So a program that keeps every step does not keep every image.
    """

    def __init__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        rewards: dict[str, Tensor],
        advantages: Tensor,
        medium: Medium | None = None,
    ):
        """Images [N, 3, H, W] or [N, F, 3, H, W] in [0, 1], N prompts, rewards by name [N], advantages [N].

        With another `medium`, these are its samples [N, *medium.shape].
        """
        self._images: Tensor | None = images
        self.prompts, self.rewards, self.advantages = list(prompts), rewards, advantages
        self.medium = medium or of_size(*images.shape[-2:])

    @classmethod
    def none(cls) -> Samples:
        """Of an iteration that sampled nothing."""
        return cls(torch.empty(0, 3, 0, 0), [], {}, torch.empty(0))

    def release(self) -> None:
        """Let the images go."""
        self._images = None

    @property
    def images(self) -> Tensor:
        """The images.

        Raises:
            ValueError: the next iteration has begun.
        """
        if self._images is None:
            raise ValueError(
                "the images of a step are let go when the next iteration begins: take step.images before, and keep "
                "what you need"
            )
        return self._images
