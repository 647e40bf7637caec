"""How much a video moves, and whether a frame of it is the picture that it began from: rewards without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...prompts.pictures import picture
from ...system.errors import one_of, positive
from ..images.looks import LUMA
from ..reward import Metadata, RewardError

SOURCE = "source"  # key of the path of a source image in the metadata


def expect(who: Any, videos: Tensor) -> Tensor:
    """The videos in float32, clamped to [0, 1]; raises RewardError unless they are [B, F, 3, H, W]."""
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.numel():
        raise RewardError(
            f"{type(who).__name__} scores videos of shape [B, F, 3, H, W], not {list(videos.shape)}: use a video model"
        )
    return videos.float().clamp(0, 1)


def changes(videos: Tensor) -> Tensor:
    """Root mean square change of brightness from each frame to the next, [B, F - 1]; videos [B, F, 3, H, W]."""
    light = torch.einsum("bfchw,c->bfhw", videos, torch.tensor(LUMA, device=videos.device))
    return light.diff(dim=1).square().mean((2, 3)).sqrt()


@dataclass
class Motion:
    """How much a video moves, from 0 (a still) to 1: the mean change of brightness between frames, at most `enough`.

    Beside a reward of single frames it keeps stills from winning. It does not tell motion from flicker, so more than
    `enough` gives nothing more. A video of one frame scores 0.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes_videos: ClassVar[bool] = True

    enough: float = 0.05
    """the change that scores 1, as a root mean square of brightness from 0 to 1"""

    def __post_init__(self) -> None:
        positive(self, "enough")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        found = changes(expect(self, images))
        mean = found.mean(1) if found.shape[1] else found.new_zeros(len(found))
        return (mean / self.enough).clamp(max=1).cpu()


@dataclass
class SourceFrame:
    """Whether a video keeps its source image: 1 minus the root mean square distance of a frame to it, from 0 to 1.

    For models that make a video from an image. The source is resized and cropped to the size of the video.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes_videos: ClassVar[bool] = True

    frame: Literal["first", "last"] = "first"
    """compare this frame"""

    def __post_init__(self) -> None:
        one_of("frame", self.frame, ("first", "last"))

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if a prompt has no source image."""
        _sources(prompts, metadata)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        frames = expect(self, images)[:, 0 if self.frame == "first" else -1].cpu()
        size = frames.shape[-2], frames.shape[-1]
        wanted = torch.stack([picture(path, size) for path in _sources(prompts, metadata)])
        return 1 - (frames - wanted).square().mean((1, 2, 3)).sqrt()


def _sources(prompts: Sequence[str], metadata: Metadata) -> list[Path]:
    paths = [about.get(SOURCE) for about in metadata or [{}] * len(prompts)]
    if None in paths:
        raise ValueError(
            f"source-frame compares videos with their source images, but '{prompts[paths.index(None)]}' has none"
        )
    return [Path(str(path)) for path in paths]
