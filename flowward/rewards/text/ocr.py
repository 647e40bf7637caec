"""Does the picture show the text? RapidOCR reads it; scored as in Flow-GRPO (Liu et al., 2025, arXiv:2505.05470)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reward import RewardError
from .quotations import quotations
from .text_reader import TextReader, reader


def plain(text: str) -> str:
    """Normalise a text for comparison: no spaces, lower case, full-width characters as normal ones (NFKC)."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: the number of inserted, removed or replaced characters.

    Raises:
        ValueError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ValueError("comparing texts needs rapidfuzz; pip install 'flowward[rewards]'") from error
    return Levenshtein.distance(one, other)


def similarity(read: str, wanted: str) -> float:
    """1 if the recognised text contains the wanted one, else 1 - distance / length, at least 0.

    Both texts come from `plain`; wanted is not empty.
    """
    if wanted in read:
        return 1.0
    return max(0.0, 1 - edit_distance(read, wanted) / len(wanted))


def part_distance(read: str, wanted: str) -> int:
    """The edit distance of the wanted text to the part of the recognised text that is most like it.

    rapidfuzz has no such distance: its `partial_ratio` has another one, without replacements.
    """
    row = [0] * (len(read) + 1)  # a part may begin and end anywhere
    for i, mine in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, its in enumerate(read, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (mine != its))
    return min(row)


def together(read: str, wanted: Sequence[str]) -> float:
    """The `similarity` of one text. Of several, 1 - sum of their `part_distance` / sum of their lengths.

    So several texts may stand anywhere in the picture, in any order.
    """
    if len(wanted) == 1:
        return similarity(read, wanted[0])
    return 1 - sum(part_distance(read, text) for text in wanted) / sum(map(len, wanted))


def wanted(prompt: str, about: Mapping[str, Any] | None = None) -> list[str]:
    """The texts that a picture should show: `text` of the metadata (one or a list), or the quoted parts of the prompt.

    Raises:
        ValueError: there is none.
    """
    given = (about or {}).get("text")
    found = quotations(prompt) if given is None else given if isinstance(given, list) else [given]
    if not found or not all(isinstance(text, str) and plain(text) for text in found):
        raise ValueError(f"the prompt '{prompt}' has no text to show; put it in double quotes, or in metadata 'text'")
    return list(found)


@dataclass
class OCR:
    """1 - edit distance(recognised, wanted) / length of the wanted text, in [0, 1]; 1 if the text is contained.

    The wanted text is `text` of the metadata, or the quoted part of the prompt. Spaces and case are ignored. Extra text
    costs nothing if the wanted text is complete. As in Flow-GRPO (arXiv:2505.05470), but with the PP-OCR models
    packaged in RapidOCR instead of PaddleOCR. Several wanted texts count together (see `together`); Flow-GRPO reads the
    first one alone.

    Raises:
        ValueError: rapidocr, onnxruntime or rapidfuzz is not installed, or a setting is out of range.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    side: int = 256
    """detect text at this longest side in pixels; recognition uses full resolution"""
    confidence: float = 0.0
    """ignore lines with a confidence below this"""
    threads: int = 0
    """process this many images at once (0: as many as torch threads)"""

    def __post_init__(self) -> None:
        if self.side < 32 or not 0 <= self.confidence <= 1 or self.threads < 0:
            raise ValueError(
                f"the side must be at least 32, the confidence in [0, 1] and threads at least 0, "
                f"not {self.side}, {self.confidence} and {self.threads}"
            )
        edit_distance("", "")  # what it needs is missed now, not after a first iteration
        self._reader: TextReader = reader(self.side)

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError that names the first prompt without a text to show."""
        for prompt, about in zip(prompts, metadata or [None] * len(prompts), strict=True):
            wanted(prompt, about)

    def read(self, images: Tensor) -> list[str]:
        """Recognise the text of each image [B, 3, H, W] in [0, 1]: lines from top to bottom, joined by spaces."""
        pixels = (images.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        threads = self.threads or torch.get_num_threads()
        lines = self._reader(pixels.permute(0, 2, 3, 1).cpu().numpy(), threads)
        return [" ".join(text for text, sure in each if sure >= self.confidence) for each in lines]

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([together(read, texts) for read, texts, _ in self._compared(images, prompts, metadata)])

    def _compared(self, images: Tensor, prompts: Sequence[str], metadata: Any) -> list[tuple[str, list[str], str]]:
        """(recognised, distinct wanted texts), both normalised, and the recognised text as it is."""
        try:
            asked = [wanted(*each) for each in zip(prompts, metadata or [None] * len(prompts), strict=True)]
        except ValueError as error:
            raise RewardError(str(error)) from error
        return [
            (plain(read), list(dict.fromkeys(map(plain, texts))), read)
            for read, texts in zip(self.read(images), asked, strict=True)
        ]


class StrictOCR(OCR):
    """1 if the recognised text contains every wanted text, otherwise 0; settings are those of `ocr`."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor(
            [float(_shown(read, texts)) for read, texts, _ in self._compared(images, prompts, metadata)]
        )

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
        """The text recognised instead; empty if the text is right."""
        compared = self._compared(images, prompts, metadata)
        return ["" if _shown(read, texts) else f"reads '{raw}'" if raw else "no text" for read, texts, raw in compared]


def _shown(read: str, texts: Sequence[str]) -> bool:
    return all(text in read for text in texts)
