"""LAION's aesthetic predictor: how people rate the look of an image, independent of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..gradients import Smooth
from ..network import NetworkReward, linears, weights
from ..revisions import located
from . import clip


@dataclass
class Aesthetic(Smooth, NetworkReward):
    """Aesthetic rating: five linear layers without activations on the normalised CLIP L/14 embedding of an image.

    Scale: ratings from 1 to 10 (not clamped); most images score 4 to 7. The prompt is not used.
    Schuhmann et al., 2022, arXiv:2210.08402; `sac+logos+ava1-l14-linearMSE.pth` of the repository
    christophschuhmann/improved-aesthetic-predictor (Apache-2.0), by default from a copy on the hub.
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """load the image processor from this hub id or folder (empty: that of `model`)"""
    head: str = "trl-lib/ddpo-aesthetic-predictor"
    """load the linear layers from this hub id, folder or file"""
    file: str = "aesthetic-model.pth"
    """use this file of `head`"""

    def __post_init__(self) -> None:
        from ...models import hub

        super().__post_init__()
        path = hub.file(*located(self.head), self.file)
        self._layers = linears(weights(path), str(path)).requires_grad_(False)
        self._clip = clip.load(self, self.processor)
        given, wanted = self._clip.width, self._layers[0].in_features
        if given != wanted or self._layers[-1].out_features != 1:
            raise ValueError(
                f"{path} needs {wanted} CLIP features and one output, but {self.model} has {given} features"
            )

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        with torch.set_grad_enabled(images.requires_grad):
            scores: Tensor = self._layers(self._clip.images(images, self.batch)).squeeze(-1)
        return scores
