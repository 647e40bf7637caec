"""A pipeline with the arguments of its calls: what it is asked while it is observed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

from .calls import Answer, How, Recording, parameters, replaced, run

SCALES = ("guidance_scale", "true_cfg_scale")
TEXTS = ("a red circle", "a photo of two green squares on the left of a dog", "a dog")
STEPS = 4
FIXED = {  # sizes and prompts are those that are asked for
    "use_resolution_binning": False,
    "_auto_resize": False,
    "enable_prompt_rewrite": False,
}


class Refused(ValueError):
    """The pipeline cannot be observed; the text completes the sentence that begins with its name."""


@dataclass(frozen=True)
class Asked:
    """A prompt as the pipeline gets it; a model that edits gets an image for Pillow beside the text."""

    text: str
    image: Any = None


@dataclass
class Observer:
    """Runs a pipeline with given arguments on one prompt or several, without reading the same prompt twice."""

    pipe: Any
    scheduler: Any  # a function that makes a new one
    sized: dict[str, Any]  # arguments for the size
    prompts: tuple[Asked, ...] = tuple(map(Asked, TEXTS))  # to observe it with
    place: int | None = None  # of the sample among the tensors of `prepare_latents`
    off: float = 1.0  # the guidance scale that switches guidance off
    known: dict[Any, Any] = field(default_factory=dict)  # what `encode_prompt` returned
    learning: bool = True  # whether more is kept of it

    def __call__(
        self,
        prompts: Sequence[Asked] | None = None,
        steps: int = STEPS,
        scales: dict[str, Any] | None = None,
        output: str = "latent",
        **how: Any,
    ) -> Recording:
        """Run the pipeline.

        Raises:
            Refused: it needs another input, or fails.
        """
        names, prompts = parameters(self.pipe), self.prompts[:1] if prompts is None else prompts
        images = [each.image for each in prompts if each.image is not None]
        given = {
            **FIXED,
            **self.sized,
            **{name: self.off for name in SCALES if name in names},
            **(scales or {}),
            **({"image": images if len(images) > 1 else images[0]} if images else {}),
            "prompt": [each.text for each in prompts],
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(0),
            "output_type": output,
            "return_dict": False,
        }
        with self._remembered(), self.cast(), _quiet():
            try:
                return run(self.pipe, self.scheduler(), given, How(place=self.place, **how))
            except Exception as error:  # any line of a pipeline that nobody has read
                raise Refused(self._why(error)) from error

    def learn_images(self, wanted: bool) -> None:
        """Give every prompt an image if this is wanted, or if the pipeline needs one."""
        able = "image" in parameters(self.pipe)
        try:
            if not (wanted and able):
                self(until=0)
                return
        except Refused:
            if not able:
                raise
        height, width = self.sized["height"], self.sized["width"]
        drawn = [torch.rand(3, height, width, generator=torch.Generator().manual_seed(7 + k)) for k in range(3)]
        self.prompts = tuple(Asked(each.text, pillow(own)) for each, own in zip(self.prompts, drawn, strict=True))
        self(until=0)

    def _why(self, error: Exception) -> str:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        needed = [
            name
            for name, each in parameters(self.pipe).items()
            if each.default is each.empty and name not in ("self", "prompt") and each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        if needed:
            return f"needs more than a prompt: {', '.join(needed)}"
        return f"cannot be called with a prompt alone: {said}"

    def cast(self) -> Any:
        """Parts in several precisions meet under autocast."""
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        kinds = {each.dtype for part in parts for each in list(part.parameters())[:1]}
        half = torch.bfloat16 in kinds and torch.float32 in kinds
        device = next(self.pipe.transformer.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if half else nullcontext()

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        usual = getattr(self.pipe, "encode_prompt", None)
        if usual is None:
            yield
            return

        @wraps(usual)
        def encode_prompt(*args: Any, **named: Any) -> Any:
            key = (tuple(sorted(named)), *map(_key, pytree.tree_leaves((args, sorted(named.items())))))
            if key not in self.known:
                found = usual(*args, **named)
                if not self.learning:
                    return found
                self.known[key] = found
            return pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, self.known[key])

        with replaced(self.pipe, "encode_prompt", encode_prompt):
            yield


def _key(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.double().sum().item())
    return leaf if isinstance(leaf, str | int | float | bool | torch.device | torch.dtype | None) else id(leaf)


def constant(answer: Any) -> Answer:
    """The same from every call."""
    return lambda number, call: answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Pipelines repeat their advice in every call."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(before)


def pillow(image: Tensor) -> Any:
    """An image [3, H, W] in [0, 1] for Pillow."""
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).cpu().numpy())
