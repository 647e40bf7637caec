"""GenEval as a reward: is what the prompt asks for in the picture, in number, colour and place?

Ghosh et al., 2023 (arXiv:2310.11513); as a reward in Flow-GRPO (Liu et al., 2025, arXiv:2505.05470).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """The share of a prompt's conditions that hold, in [0, 1] (see `geneval_rules.share`).

    Objects are found by Mask2Former, colours named by CLIP. Every prompt needs GenEval's metadata: `tag`, `include`
    and `exclude`, as the built-in set `geneval` and GenEval's own file have them.

    The thresholds are those of the paper's evaluation: an object counts above 0.3 (0.9 where the tag is `counting`), at
    most 16 of a class, no boxes are suppressed (an overlap of 1), and a relation needs centres that lie further apart
    than a tenth of both sizes. They were chosen for the weights that its authors used, MMDetection's Mask2Former with a
    Swin-S backbone. The weights here are those that its inventors trained, with the same backbone, on the same images
    (COCO). Scores are near, but not the same: compare them with each other, and set thresholds anew before
    comparing them with published ones.

    Raises:
        ValueError: a network cannot be loaded, or a setting is out of range.
    """

    model: str = "facebook/mask2former-swin-small-coco-instance"
    """Mask2Former for COCO's instances: id on the hub, or a folder"""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP, for colours"""
    batch: int = 8
    confidence: float = 0.3
    """an object counts above this score"""
    counting_confidence: float = 0.9
    """the same where the prompt is about a number of objects"""
    most: int = 16
    """objects of a class that count"""
    overlap: float = 1.0
    """boxes of a class that overlap by more count once; 1: all count"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "most")
        shares = (self.confidence, self.counting_confidence, self.overlap)
        if not all(0 < value <= 1 for value in shares):
            raise ValueError(f"confidences and overlap must be in (0, 1], not {', '.join(map(str, shares))}")
        place = self.place()
        self._find = detector(self.model, place)
        self._name = ColourNamer(clip.of(self.clip, self.clip, place))
        self._sure = {"counting": self.counting_confidence}  # by tag; `confidence` for the others

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raises ValueError, naming the first prompt without GenEval's metadata."""
        requests(prompts, metadata)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([earned for _, earned in self.judged(images, prompts, metadata)])

    def judged(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[tuple[str, float]]:
        """(what is wrong, share of the conditions) of each image [B, 3, H, W] in [0, 1].

        Raises:
            RewardError: a prompt has no metadata of GenEval.
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
        """For each picture the colours of the objects of each clause; CLIP sees those of all pictures together."""
        places = [(i, clause, each) for i, own in enumerate(wanted) for clause, all_ in own.items() for each in all_]
        crops = [cut_out(pictures[i], each) for i, _, each in places]
        names = [asked[i].include[clause].name for i, clause, _ in places]
        colours: list[dict[int, list[str]]] = [{} for _ in pictures]
        for (i, clause, _), colour in zip(places, self._name(crops, names, self.batch), strict=True):
            colours[i].setdefault(clause, []).append(colour)
        return colours


class StrictGenEval(GenEval):
    """GenEval's verdict, 1 or 0: every object is there, at least so many, in its colour and place, none excluded.

    Settings as those of `geneval`.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(not wrong) for wrong, _ in self.judged(images, prompts, metadata)])

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
        """What is wrong with each picture, in words; empty where nothing is."""
        return [wrong for wrong, _ in self.judged(images, prompts, metadata)]


def requests(prompts: Sequence[str], metadata: Any = None) -> list[Request]:
    """What each prompt asks for.

    Raises:
        ValueError: a prompt has no metadata of GenEval; the message names it.
    """
    return [Request.of(*each) for each in zip(prompts, metadata or [None] * len(prompts), strict=True)]
