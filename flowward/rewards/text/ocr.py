"""Is the text in the picture? Recognised with RapidOCR, scored as in Flow-GRPO (Liu et al., 2025, arXiv:2505.05470)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reward import RewardError
from .text_reader import TextReader, reader

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]')


def plain(text: str) -> str:
    """What two texts are compared by: no spaces, lower case, and full-width forms as their usual ones."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def edit_distance(one: str, other: str) -> int:
    """How many characters must be inserted, removed or replaced to make one text of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, its in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (mine != its))
    return row[-1]


def similarity(read: str, wanted: str) -> float:
    """1 where the wanted text is contained in what was read, else 1 - distance / length, at least 0.

    Both as `plain` gives them; wanted is not empty.
    """
    if wanted in read:
        return 1.0
    return max(0.0, 1 - edit_distance(read, wanted) / len(wanted))


def wanted(prompt: str, about: Mapping[str, Any] | None = None) -> str:
    """The text that a picture should show: the metadata's `text`, or what the prompt has in quotation marks.

    Raises:
        ValueError: there is none.
    """
    given = (about or {}).get("text")
    if given is None:
        found = QUOTED.search(prompt)
        given = next(filter(None, found.groups())) if found else ""
    if not isinstance(given, str) or not plain(given):
        raise ValueError(f"the prompt '{prompt}' says no text to show: put it in double quotes, or in metadata 'text'")
    return given


@dataclass
class OCR:
    """1 - edit distance(recognised, wanted) / length of the wanted text, in [0, 1]; 1 where the text is contained.

    The wanted text is the metadata's `text`, or the quoted part of the prompt. Spaces and case do not count. Text that
    is there beside the wanted one costs nothing as long as the wanted one is whole. As in Flow-GRPO
    (arXiv:2505.05470), with RapidOCR's packaged PP-OCR models in the place of PaddleOCR.

    Raises:
        ValueError: rapidocr or onnxruntime is not installed, or a setting is out of range.
    """

    side: int = 256
    """text is looked for at this longest side, in pixels; what is found is read at full resolution"""
    confidence: float = 0.0
    """lines that were read with less are dropped"""
    threads: int = 0
    """images handled at once; 0: as many as torch uses"""

    def __post_init__(self) -> None:
        if self.side < 32 or not 0 <= self.confidence <= 1 or self.threads < 0:
            raise ValueError(
                f"the side must be at least 32, the confidence in [0, 1] and threads at least 0, "
                f"not {self.side}, {self.confidence} and {self.threads}"
            )
        self._reader: TextReader = reader(self.side)

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raises ValueError, naming the first prompt that says no text."""
        for prompt, about in zip(prompts, metadata or [None] * len(prompts), strict=True):
            wanted(prompt, about)

    def read(self, images: Tensor) -> list[str]:
        """The text of each image [B, 3, H, W] in [0, 1]: lines from top to bottom, joined with spaces."""
        pixels = (images.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        threads = self.threads or torch.get_num_threads()
        lines = self._reader(pixels.permute(0, 2, 3, 1).cpu().numpy(), threads)
        return [" ".join(text for text, sure in each if sure >= self.confidence) for each in lines]

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([similarity(read, text) for read, text, _ in self._compared(images, prompts, metadata)])

    def _compared(self, images: Tensor, prompts: Sequence[str], metadata: Any) -> list[tuple[str, str, str]]:
        """(read, wanted) as they are compared, and what was read as it stands there."""
        try:
            texts = [wanted(*each) for each in zip(prompts, metadata or [None] * len(prompts), strict=True)]
        except ValueError as error:
            raise RewardError(str(error)) from error
        return [(plain(read), plain(text), read) for read, text in zip(self.read(images), texts, strict=True)]


class StrictOCR(OCR):
    """1 where the wanted text is contained in what was read, otherwise 0; settings as those of `ocr`."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(text in read) for read, text, _ in self._compared(images, prompts, metadata)])

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]:
        """What is read instead; empty where the text is right."""
        compared = self._compared(images, prompts, metadata)
        return ["" if text in read else f"reads '{raw}'" if raw else "no text" for read, text, raw in compared]
