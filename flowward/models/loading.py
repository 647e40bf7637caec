"""Options for loading a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from ..system.errors import between, one_of

MODEL = (
    "size",
    "frames",
    "seconds",
    "text_tokens",
    "revision",
    "variant",
    "quantise",
)  # these define the model
MOST_PIXELS = 65_536  # per side
MOST_FRAMES = 100_000
MOST_SECONDS = 36_000
MOST_TOKENS = 1_000_000


def _of_older_files(value: Any) -> Any:
    """Until 2026-12 `merge_lora` was true or false."""
    return {True: "always", False: "auto"}[value] if isinstance(value, bool) else value


def _of_a_switch(value: Any) -> Any:
    """Until 2026-12 `compile_blocks` was true or false; `auto` could change the bits of a run that was not compiled."""
    return {True: "always", False: "never"}[value] if isinstance(value, bool) else value


Compiled = Literal["auto", "never", "always", "graphs"]


@dataclass(frozen=True)
class Loading:
    """Options for diffusers models (not for the built-in one)."""

    size: tuple[int, int] | None = None
    """set the image size in pixels (none: the model's own)"""
    frames: int | None = None
    """set the number of frames of a video (none: the model's own)"""
    seconds: float | None = None
    """set the length of a sound in seconds (none: the model's own)"""
    text_tokens: int | None = None
    """cut prompts after this many tokens: fewer are faster (none: the pipeline's limit)"""
    revision: str | None = None
    """load this branch, tag or commit from the hub"""
    variant: str | None = None
    """load this variant of the weights, e.g. fp16"""
    device: str = "auto"
    """run on this device, e.g. cuda:1 (auto: CUDA if there is one)"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: a third more work, much less memory"""
    vae_slicing: bool = False
    """decode images one by one, to save memory"""
    vae_tiling: bool = False
    """decode large images in tiles, to save memory; seams are hardly visible"""
    compile_blocks: Annotated[Compiled, BeforeValidator(_of_a_switch)] = "auto"
    """compile the transformer's blocks (auto: in long training runs; graphs: with CUDA graphs in rollouts)"""
    attention: str | None = None
    """use this attention backend of diffusers, e.g. native, flash or sage (none: its choice)"""
    quantise: Literal["int8", "nf4"] | None = None
    """store frozen weights in 8 bits (torchao) or 4 (bitsandbytes, CUDA); for LoRA"""
    merge_lora: Annotated[Literal["auto", "always", "never"], BeforeValidator(_of_older_files)] = "auto"
    """merge LoRA into the weights during rollouts, which needs a copy of its layers (auto: in half precision)"""

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

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled when the model is loaded; for `auto`, a training run decides later."""
        return self.compile_blocks in ("always", "graphs")

    def __post_init__(self) -> None:
        one_of("value of compile_blocks", _of_a_switch(self.compile_blocks), get_args(Compiled))
        object.__setattr__(self, "compile_blocks", _of_a_switch(self.compile_blocks))  # from Python it may be a switch
        if self.size and not all(1 <= side <= MOST_PIXELS for side in self.size):
            raise ValueError(f"size must be between 1 and {MOST_PIXELS:,} pixels per side, not {_said(self.size)}")
        for name, most in (("frames", MOST_FRAMES), ("text_tokens", MOST_TOKENS)):
            if getattr(self, name) is not None:
                between(self, 1, most, name)
        if self.seconds is not None and not 0 < self.seconds <= MOST_SECONDS:
            raise ValueError(f"seconds must be above 0 and at most {MOST_SECONDS:,}, not {self.seconds:g}")
        if empty := [name for name in ("revision", "variant", "device", "attention") if getattr(self, name) == ""]:
            raise ValueError(f"{empty[0]} is empty: name one, or leave out the option")


def _said(value: Any) -> str:
    many = value if isinstance(value, tuple) else [value]
    return "the model's own" if value is None else " ".join(map(str, many))
