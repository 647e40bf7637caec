"""Options for loading a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..system.errors import positive

MODEL = (
    "size",
    "frames",
    "text_tokens",
    "revision",
    "variant",
    "quantise",
)  # these define the model


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
    gradient_checkpointing: bool = False
    """compute activations again in the backward pass: a third more work, a fraction of the memory"""
    vae_slicing: bool = False
    """decode images one by one"""
    vae_tiling: bool = False
    """decode large images in tiles, with seams that can hardly be seen"""
    compile_blocks: bool = False
    """compile the block that the transformer repeats: a minute at the start, faster steps after it"""
    attention: str | None = None
    """backend of diffusers for attention, such as native, flash or sage (None: its own choice)"""
    quantise: Literal["int8", "nf4"] | None = None
    """store the transformer's frozen weights in 8 bits (torchao) or 4 (bitsandbytes, CUDA); for LoRA"""
    merge_lora: bool = False
    """add adapters to the weights for the time of a rollout: faster, for float32 weights"""

    def of_run(self, name: str, trained: Loading, said: Collection[str] = ()) -> Loading:
        """The options that the run `name` was trained with, with the device, memory and speed options given here.

        An option counts as given if it differs from its default or is listed in `said`.

        Raises:
            ValueError: a given option would make a different model or size.
        """
        asked = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name in said or each.default != getattr(self, each.name)
        }
        if other := [key for key in MODEL if key in asked and asked[key] != getattr(trained, key)]:
            before, now = (_said(getattr(each, other[0])) for each in (trained, self))
            raise ValueError(f"{name} was trained with {other[0]} {before}, not {now}; leave out the option")
        return replace(trained, **{"device": self.device, **asked})

    def __post_init__(self) -> None:
        positive(self, *(name for name in ("frames", "text_tokens") if getattr(self, name) is not None))


def _said(value: Any) -> str:
    many = value if isinstance(value, tuple) else [value]
    return "the model's own" if value is None else " ".join(map(str, many))
