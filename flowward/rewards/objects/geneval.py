"""GenEval as a reward: does the picture show the objects of the prompt, in number, colour and position?

Ghosh et al., 2023 (arXiv:2310.11513); as a reward in Flow-GRPO (Liu et al., 2025, arXiv:2505.05470).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...system.errors import positive
from ..images import clip
from ..network import NetworkReward
from ..reward import RewardError
from .detection import ColourNamer, Pixels, cut_out, detector
from .geneval_rules import Found, Request, coloured, kept, reason, share


@dataclass
class GenEval(NetworkReward):
    """The fraction of a prompt's conditions that the picture meets, in [0, 1] (see `geneval_rules.share`).

    Mask2Former finds objects, CLIP names colours. Every prompt needs GenEval's metadata: `tag`, `include` and
    `exclude`, as in the built-in set `geneval` and in GenEval's own file.

    The thresholds are those of the paper's evaluation. An object counts above 0.3 (0.9 if the tag is `counting`), and
    at most 16 of a class count. No boxes are suppressed (overlap 1). For a relation, the centres must be further apart
    than a tenth of both sizes. The authors chose these values for MMDetection's Mask2Former weights with a Swin-S
    backbone. Here the weights are the original ones of Mask2Former, with the same backbone and the same images (COCO).
    Scores are close, but not equal: compare them only with each other. Retune the thresholds before a comparison with
    published scores.

    Raises:
        ValueError: a network cannot be loaded, or a setting is out of range.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    model: str = "facebook/mask2former-swin-small-coco-instance"
    """detect objects with this Mask2Former for COCO instances (hub id or folder)"""
    clip: str = "openai/clip-vit-large-patch14"
    """classify colours with this CLIP (hub id or folder)"""
    batch: int = 8
    confidence: float = 0.3
    """count objects with a score above this"""
    counting_confidence: float = 0.9
    """count objects with a score above this if the prompt's tag is counting"""
    most: int = 16
    """count at most this many objects of a class"""
    overlap: float = 1.0
    """count boxes of a class once if they overlap more than this (1: count all)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "most")
        shares = (self.confidence, self.counting_confidence, self.overlap)
        if not all(0 < value <= 1 for value in shares):
            raise ValueError(f"confidences and overlap must be in (0, 1], not {', '.join(map(str, shares))}")
        place = self.place()
        self._find = detector(self.model, place)
        self._name = ColourNamer(clip.of(self.clip, self.clip, place))
        self._sure = {"counting": self.counting_confidence}  # threshold by tag; `confidence` for the other tags

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError that names the first prompt without GenEval metadata."""
        requests(prompts, metadata)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([earned for _, earned in self.judged(images, prompts, metadata)])

    def judged(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[tuple[str, float]]:
        """(reason for failure, fraction of conditions met) of each image [B, 3, H, W] in [0, 1].

        Raises:
            RewardError: a prompt has no GenEval metadata.
        """
        try:
            asked = requests(prompts, metadata)
        except ValueError as error:
            raise RewardError(str(error)) from error
        pixels = (images.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        pictures = list(pixels.permute(0, 2, 3, 1).cpu().numpy())
        parts = [slice(start, start + self.batch) for start in range(0, len(pictures), self.batch)]
        return [each for part in parts for each in self._part(pictures[part], asked[part])]

    def _part(self, pictures: Sequence[Pixels], asked: Sequence[Request]) -> list[tuple[str, float]]:
        sure = [self._sure.get(request.tag, self.confidence) for request in asked]
        every = self._find(pictures, min(sure))
        found = [kept(each, least, self.most, self.overlap) for each, least in zip(every, sure, strict=True)]
        colours = self._colours(pictures, [coloured(*each) for each in zip(asked, found, strict=True)], asked)
        return [(reason(*each), share(*each)) for each in zip(asked, found, colours, strict=True)]

    def _colours(
        self, pictures: Sequence[Pixels], wanted: Sequence[dict[int, Sequence[Found]]], asked: Sequence[Request]
    ) -> list[dict[int, list[str]]]:
        """The colours of the objects of each clause, per picture; one CLIP call for all pictures."""
        places = [(i, clause, each) for i, own in enumerate(wanted) for clause, all_ in own.items() for each in all_]
        crops = [cut_out(pictures[i], each) for i, _, each in places]
        names = [asked[i].include[clause].name for i, clause, _ in places]
        colours: list[dict[int, list[str]]] = [{} for _ in pictures]
        for (i, clause, _), colour in zip(places, self._name(crops, names, self.batch), strict=True):
            colours[i].setdefault(clause, []).append(colour)
        return colours


class StrictGenEval(GenEval):
    """GenEval's pass/fail verdict: 1 if all objects are there, in number, colour and position, and none is excluded.

    Settings are those of `geneval`.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(not wrong) for wrong, _ in self.judged(images, prompts, metadata)])

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
        """The reason why each picture fails; empty if it passes."""
        return [wrong for wrong, _ in self.judged(images, prompts, metadata)]


def requests(prompts: Sequence[str], metadata: Any = None) -> list[Request]:
    """The request of each prompt.

    Raises:
        ValueError: a prompt has no GenEval metadata; the message names it.
    """
    return [Request.of(*each) for each in zip(prompts, metadata or [None] * len(prompts), strict=True)]
