"""Whether the content of a video stays the same from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..images import clip
from ..network import NetworkReward


@dataclass
class Steady(NetworkReward):
    """CLIP over time: the mean cosine between the CLIP embeddings of neighbouring frames, in practice 0.8 to 1.

    A still scores 1, so use it beside `motion`. Published as CLIP-Temp (Liu et al., 2023,
    arXiv:2310.11440). Weights of Radford et al., 2021, arXiv:2103.00020 (MIT).
    """

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    takes_videos: ClassVar[bool] = True

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """load the image processor from this hub id or folder (empty: that of `model`)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._clip = clip.load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts, 5)
        vectors = self._clip.images(images.flatten(0, 1), self.batch).view(*images.shape[:2], -1)
        if images.shape[1] == 1:
            return vectors.new_ones(len(images))
        return (vectors[:, 1:] * vectors[:, :-1]).sum(-1).mean(1)
