"""Diversity of the images of a prompt: to watch a run for mode collapse, or to reward diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..network import NetworkReward
from ..reward import subjects
from . import clip


@dataclass
class Diversity(NetworkReward):
    """Distance of an image to the others of its prompt: the mean of 1 - cosine of their CLIP embeddings.

    Higher is more diverse. Range [0, 2], in practice 0.05 to 0.4; the only image of a prompt scores 0. The mean over
    the images of a prompt is their mean pairwise distance. Only images of one call are compared: score all images of a
    prompt at once, and evaluate several per prompt. Videos are compared frame by frame at equal times, then averaged
    over frames. Weights of Radford et al., 2021, arXiv:2103.00020 (MIT). Published guards also use other networks, such
    as DreamSim or LPIPS; do not compare numbers of different networks.
    """

    takes_videos: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """load the image processor from this hub id or folder (empty: that of `model`)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._clip = clip.load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts, 5 if images.ndim == 5 else 4)
        frames = images.view(len(images), -1, *images.shape[-3:])
        vectors = self._clip.images(frames.flatten(0, 1), self.batch).view(*frames.shape[:2], -1)
        return distances(vectors.flatten(1) / frames.shape[1] ** 0.5, subjects(prompts, metadata))


def distances(vectors: Tensor, groups: Sequence[str]) -> Tensor:
    """Mean of 1 - cosine of unit vectors [B, D] to the others of their group, [B]; 0 if there are none."""
    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([number[group] for group in groups])
    members = torch.zeros(len(number), vectors.shape[1], dtype=torch.float64).index_add_(0, of, vectors.double())
    others = torch.bincount(of)[of] - 1
    # Subtract the image itself from the sum over its group; so no matrix of pairs is needed.
    alike = (members[of] * vectors).sum(-1) - vectors.double().square().sum(-1)
    return torch.where(others > 0, 1 - alike / others.clamp(min=1), 0.0).float()
