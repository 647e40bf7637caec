"""LAION's aesthetic predictor: what people think of how an image looks, whatever its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..network import NetworkReward, linears, weights
from . import clip


@dataclass
class Aesthetic(NetworkReward):
    """Five linear layers, without activations, on the normalised CLIP L/14 embedding of an image.

    Scale: ratings from 1 to 10 (the layers know no bounds); most images score 4 to 7. The prompt is not looked at.
    Schuhmann et al., 2022, arXiv:2210.08402; `sac+logos+ava1-l14-linearMSE.pth` of the repository
    christophschuhmann/improved-aesthetic-predictor (Apache-2.0), from a copy of it on the hub unless a file is given.
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """id or folder of the image processor (empty: that of `model`)"""
    head: str = "trl-lib/ddpo-aesthetic-predictor"
    """id on the hub, a folder, or the file of the linear layers itself"""
    file: str = "aesthetic-model.pth"
    """the linear layers in it"""

    def __post_init__(self) -> None:
        from ...models import hub

        super().__post_init__()
        path = hub.file(self.head, self.file)
        self._layers = linears(weights(path), str(path)).requires_grad_(False)
        self._clip = clip.load(self, self.processor)
        given, wanted = self._clip.width, self._layers[0].in_features
        if given != wanted or self._layers[-1].out_features != 1:
            raise ValueError(f"{path} makes one number of {wanted} features, and {self.model} has {given}")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        with torch.no_grad():
            scores: Tensor = self._layers(self._clip.images(images, self.batch)).squeeze(-1)
        return scores
