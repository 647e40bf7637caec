"""The sample pictures of an evaluation and of training groups: as a grid, and as the record that saved.py reads."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from . import images as pictures


@dataclass(frozen=True)
class Samples:
    """Pictures of N prompts, always the same ones from the same noise."""

    images: Tensor  # [N, 3, H, W] or videos [N, F, 3, H, W]
    texts: Sequence[str]
    categories: Sequence[str]
    marks: Sequence[str | None]
    sources: Sequence[Sequence[Path]] = ()  # the source images of each prompt, if there are any
    scores: dict[str, list[float]] = field(default_factory=dict)  # each [N]
    longest: int = 160  # side of a saved picture, in pixels
    sounds: Sequence[bytes] = ()  # small WAV files of the first samples, if they are sounds

    def grid(self) -> Image:
        return pictures.labelled_grid(self.images, self.texts, self.marks, columns=4, sources=self.sources)

    def record(self, iteration: int, groups: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """As `saved.Saved` reads it."""
        heard = [{"sound": base64.b64encode(each).decode()} for each in self.sounds]
        found = [
            {
                "number": number,
                "prompt": self.texts[number],
                "category": self.categories[number],
                "mark": self.marks[number],
                "scores": {name: own[number] for name, own in self.scores.items()},
                **image,
                **(heard[number] if number < len(heard) else {}),
            }
            for number, image in enumerate(small(pictures.beside(self.images, self.sources), self.longest))
        ]
        return {"iteration": iteration, "samples": found, "groups": list(groups)}


def grouped(texts: Sequence[str], every: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training groups of G prompts as `saved.Group` reads them, from their G * S members."""
    size = len(every) // max(1, len(texts))
    return [{"prompt": text, "samples": every[k * size : (k + 1) * size]} for k, text in enumerate(texts)]


def members(images: Tensor, rewards: Tensor, advantages: Tensor, longest: int = 160) -> list[dict[str, Any]]:
    """N images of training groups as small files, with rewards and advantages [N]."""
    return [
        {"reward": float(reward), "advantage": float(advantage), **image}
        for image, reward, advantage in zip(small(images, longest), rewards, advantages, strict=True)
    ]


def small(images: Tensor, longest: int) -> list[dict[str, str]]:
    """Each image as a small file in base64, with its kind."""
    return [
        {"image": base64.b64encode(data).decode(), "kind": "png" if data.startswith(b"\x89PNG") else "jpeg"}
        for data in pictures.thumbnails(images, longest)
    ]
