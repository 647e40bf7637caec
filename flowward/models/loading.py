"""How a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import positive


@dataclass(frozen=True)
class Loading:
    """Choices that a model of diffusers leaves; the built-in one has its size."""

    size: tuple[int, int] | None = None
    """height and width of the images in pixels (None: what the model was made for)"""
    frames: int | None = None
    """of a video (None: what the model was made for)"""
    text_tokens: int | None = None
    """of a prompt that the model may read (None: as many as its pipeline; fewer are faster)"""
    revision: str | None = None
    """branch, tag or commit of a model on the hub"""
    variant: str | None = None
    """of its weights, such as fp16"""
    device: str = "auto"
    """auto: a CUDA device where there is one"""

    def __post_init__(self) -> None:
        positive(self, *(name for name in ("frames", "text_tokens") if getattr(self, name) is not None))
