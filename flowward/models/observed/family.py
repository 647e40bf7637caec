"""A family that was found by observing its pipeline, for pipelines that have no written one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...prompts import sources_of, text_of
from ...prompts.pictures import picture
from .. import targets
from ..families.family import Family
from . import agreement, pictures
from .calls import FRAMES, makes_videos, parameters
from .leaves import FromTime
from .observe import observe
from .observer import Asked, Observer, Refused, constant, pillow
from .refusals import refuse_parts, refuse_scheduler

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


class Observed(Family):
    """Made by `family_of`, for one class of pipelines.

    Raises:
        ValueError: the pipeline is no flow, or does something that no known convention describes.
    """

    pipelines = ()
    text_tokens = 0
    shows: ClassVar[bool] = False  # whether prompts have source images, if the pipeline also works without

    def __init__(
        self,
        pipe: Any,
        height: int | None = None,
        width: int | None = None,
        frames: int = 1,
        text_tokens: int | None = None,
    ):
        self.pipe, self.frames, known = pipe, frames, parameters(pipe)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()  # dropout would look like an input that changes by itself
        try:
            refuse_parts([name for name, part in pipe.components.items() if part is not None])
            refuse_scheduler(type(pipe.scheduler), pipe.scheduler.config)
            self.height, self.width = (self._side(*each) for each in (("height", height), ("width", width)))
            self._sized: dict[str, Any] = {"height": self.height, "width": self.width, **dict.fromkeys(FRAMES, frames)}
            self._sized |= {"max_area": self.height * self.width}
            if frames != 1 and not makes_videos(pipe):
                raise Refused(f"makes images, not videos of {frames} frames; leave out the option")
            if text_tokens is not None and "max_sequence_length" not in known:
                raise Refused("has no limit of text tokens; leave out the option")
            if text_tokens is not None:
                self._sized["max_sequence_length"] = text_tokens
            self._observe()
        except Refused as why:
            raise ValueError(
                f"{type(pipe).__name__} has no written family, and observing it shows that it {why}"
            ) from why
        except (RuntimeError, TypeError, LookupError, AttributeError) as error:  # of a kind that nobody foresaw
            failed = f"observing it failed ({type(error).__name__}: {error})"
            raise ValueError(f"{type(pipe).__name__} has no written family, and {failed}") from error
        usual = known["max_sequence_length"].default if "max_sequence_length" in known else 0
        self.text_tokens = text_tokens or (usual if isinstance(usual, int) else 0)

    def _observe(self) -> None:
        self.observer = Observer(self.pipe, self.scheduler, self._sized)
        self.observer.learn_images(self.shows)
        if self.observer.prompts[0].image is not None:
            self.sources, self.reads_sources = range(1, 2), True  # type: ignore[misc] # as far as anybody knows
            self.inputs = "image=image, prompt=prompt"  # type: ignore[misc]
        self.found = observe(self.observer)
        rule = self.found.rule_of_guidance
        self.guidance = "none" if rule is None else "embedded" if rule.name == "embedded" else "classifier-free"  # type: ignore[misc]
        self.nothing = (rule and rule.negative) or ""  # type: ignore[misc]
        if self.guidance == "embedded" and rule:
            self.published = parameters(self.pipe)[rule.argument].default  # type: ignore[misc]
        self.pictures = pictures.find(
            self.observer, self.found.step_shape, self.found.dtype, constant(self.found.answer)
        )
        self._times: dict[int, tuple[float, ...]] = {}
        self.targets = attention(self.pipe.transformer)  # type: ignore[misc]
        if not hasattr(self.pipe, "load_lora_weights"):
            self.lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})  # type: ignore[misc]
        self.notes = agreement.settle(self.observer, self.found)
        self.times(2)
        self.observer.learning = False

    def _side(self, name: str, given: int | None) -> int:
        if given is not None:
            return given
        try:
            return self.side
        except (AttributeError, TypeError):
            usual = parameters(self.pipe)[name].default if name in parameters(self.pipe) else None
            return usual if isinstance(usual, int) else 1024

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pictures.shape

    @property
    def tokens(self) -> int:
        """Of a sample, if its scheduler gets tokens; otherwise places of 2 x 2 latent pixels."""
        step = self.found.step_shape
        return step[0] if len(step) == 2 else torch.Size(step[1:]).numel() // 4

    @property
    def parts(self) -> dict[str, int]:
        raise ValueError(f"{type(self.pipe).__name__} has no written family: leave out --context-parallel")

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        """Run the pipeline up to the first call of its transformer, prompt by prompt."""
        return self.found.written([self._words(prompt) for prompt in prompts])

    def _asked(self, prompt: Any) -> Asked:
        image = None
        if sources_of(prompt):
            image = pillow(picture(sources_of(prompt)[0], (self.height, self.width)))
        return Asked(text_of(prompt), image)

    def _words(self, prompt: Any) -> dict[str, Any]:
        call = self.observer((self._asked(prompt),), until=0).steps[0].calls[0]
        leaves, spec = pytree.tree_flatten(call)
        if spec != self.found.spec:
            raise ValueError(f"'{text_of(prompt)}' changes the structure of the transformer's arguments: leave it out")
        return self.found.following(leaves)

    def empty(self) -> dict[str, Tensor]:
        if self.found.empty is None:
            return super().empty()
        return self.found.written([self.found.empty])

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        found = self.found.evaluated(network, self.pictures.packed(x), t, self.found.read(condition), guidance)
        return self.pictures.unpacked(found)

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        rule, own = self.found.rule_of_guidance, self.pictures
        assert rule is not None
        return own.unpacked(rule(own.packed(v), own.packed(v_0), scale))

    def guided_by(self, scale: float) -> dict[str, Any]:
        rule = self.found.rule_of_guidance
        if rule is None:
            return {}
        negative = {} if rule.negative is None or scale == 1 else {"negative_prompt": rule.negative}
        return {rule.argument: scale - rule.offset, **negative}

    def sized_by(self) -> dict[str, Any]:
        return {name: value for name, value in self._sized.items() if name in parameters(self.pipe)}

    def scheduler(self) -> Any:
        return deepcopy(self.pipe.scheduler) if _euler(self.pipe.scheduler) else super().scheduler()

    def times(self, steps: int) -> tuple[float, ...]:
        """What the pipeline makes its scheduler take; it is run up to the first call of its transformer."""
        if steps not in self._times:
            sigmas = self.observer(steps=steps, until=0).sigmas
            if sigmas is None or not bool(sigmas.isfinite().all()):
                raise ValueError(f"the scheduler of {type(self.pipe).__name__} does not support {steps} steps")
            self._times[steps] = tuple(sigmas.tolist())
        return self._times[steps]

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """The pipeline, prompt by prompt, up to its last step."""
        found, start = [], self.pictures.packed(x)
        for row, prompt in enumerate(prompts):
            scales = {**self.guided_by(guidance), **more}
            if "negative_prompt" in scales:
                scales["negative_prompt"] = [scales["negative_prompt"]]
            done = self.observer(
                (self._asked(prompt),), steps=steps, scales=scales, start=start[row : row + 1], until=steps
            ).done
            assert done[-1].after is not None
            found.append(done[-1].after)
        return self.pictures.unpacked(torch.cat(found))

    def decode(self, x0: Tensor) -> Tensor:
        return self.pictures.decode(self.pipe.vae, x0)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.pictures.encode(self.pipe.vae, images)

    def described(self) -> str:
        """What was found, in one line."""
        clock = next(str(leaf.clock) for leaf in self.found.leaves if isinstance(leaf, FromTime))
        rule = self.found.rule_of_guidance
        guided = (
            "none"
            if rule is None
            else "a network input"
            if rule.name == "embedded"
            else f"two evaluations, {rule.name}"
        )
        sign = "-v" if bool((self.found.velocity.scale < 0).all()) else "v"
        return (
            f"{type(self.pipe).__name__} has no written family; observed: samples {list(self.shape)}, its transformer "
            f"takes {clock} and returns {sign}, guidance: {guided}{f' ({rule.argument})' if rule else ''}, LoRA on "
            f"{' '.join(self.targets)}"
        )


def _euler(scheduler: Any) -> bool:
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def attention(transformer: Any) -> tuple[str, ...]:
    """The linear layers of attention in the repeated blocks, as targets.

    Raises:
        Refused: there are none.
    """
    modules = dict(transformer.named_modules())
    blocks = [f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    found = []
    for name in targets.linear(transformer):
        owners = [name[:place] for place, letter in enumerate(name) if letter == "."]
        inside = any(name.startswith(block) for block in blocks)
        if inside and any(ATTENTION.search(type(modules[own]).__name__) and _projects(modules[own]) for own in owners):
            found.append(name)
    if not found:
        raise Refused("has no attention projections in the blocks of its transformer")
    return targets.named(transformer, found)


def _projects(module: nn.Module) -> bool:
    """Whether it is attention itself, not a block around it."""
    return not any(ATTENTION.search(type(each).__name__) for name, each in module.named_children())


def family_of(kind: str, edits: bool = False) -> type[Observed]:
    """The family of one class of pipelines.

    Args:
        kind: the class in model_index.json.
        edits: whether prompts have source images, if the pipeline also works without.
    """
    return type(f"Observed{kind}", (Observed,), {"pipelines": (kind,), "shows": edits})
