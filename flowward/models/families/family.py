"""What flowward needs to know about a family of diffusers models: one subclass and one file per family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ...process import medium
from ...process.distilled import Sign, of_pipeline, of_scheduler
from ...process.policy import LOADER, Loader
from ...prompts import SOURCE
from ..lora import ATTENTION
from ..reading import Reader

Guidance = Literal["classifier-free", "embedded", "none"]


class Family(ABC):
    """A diffusers pipeline in flowward's convention, at one image or video size.

    Samples [B, *shape] are the pipeline's `latents` before they are packed into tokens. Noise, solver states and losses
    are never packed.

    Args:
        pipe: the pipeline; its scheduler is never changed.
        height, width: of the finished image, in pixels.
        frames: of the finished video; 1 for images.
        text_tokens: maximum per prompt (None: the pipeline's default).
        seconds: refused: only families of sound have a length in seconds (sound.py).

    Raises:
        ValueError: the model does not support this size or text length.
    """

    pipelines: ClassVar[tuple[str, ...]]  # classes in model_index.json
    targets: ClassVar[tuple[str, ...]] = ATTENTION  # modules that get LoRA adapters
    guidance: ClassVar[Guidance] = "classifier-free"
    published: ClassVar[float | None] = None  # guidance scale in the publication of a model with embedded guidance
    two_times: ClassVar[bool] = False  # the network has a second time, the end of a jump: `until` in a condition
    sources: ClassVar[range] = range(1)  # how many source images a prompt may have; if any, see edits.py
    inputs: ClassVar[str] = "prompt=prompt"  # of the pipeline, as code on model cards
    reads_sources: ClassVar[bool] = False  # the text encoder sees them too, so each prompt has its own empty one
    by_length: ClassVar[bool] = False  # only rows whose texts have the same length share a pass of the network
    masks_text: ClassVar[bool] = False  # text is padded to the longest prompt, and a condition has a `mask` [N, tokens]
    unused: ClassVar[tuple[str, ...]] = ()  # components of the pipeline that are not loaded
    needs: ClassVar[tuple[str, ...]] = ()  # packages that flowward does not install
    text_tokens: int
    most_text: ClassVar[int | None] = None  # token limit of the pipeline, if it has one
    fixed_text: ClassVar[str] = ""  # what it reads of a text, in words, if nobody can choose `text_tokens`
    nothing: ClassVar[str] = ""  # the text used as the empty prompt
    lora_loader: ClassVar[Loader] = LOADER  # the pipeline's method that loads a LoRA
    lora_first: ClassVar[tuple[str, ...]] = ()  # lines of code that this method needs before
    encoders: ClassVar[tuple[str, ...]] = ()  # components of the pipeline that encode prompts, beside text encoders
    emptied: ClassVar[tuple[str, ...]] = ()  # tensors that are 0 for the empty prompt, whose others are the prompt's

    def __init__(
        self,
        pipe: Any,
        height: int | None = None,
        width: int | None = None,
        frames: int = 1,
        text_tokens: int | None = None,
        seconds: float | None = None,
    ):
        if seconds is not None:
            raise ValueError(f"{type(pipe).__name__} makes no sound: leave out --seconds")
        self.pipe = pipe
        self.height, self.width = (self.side if each is None else each for each in (height, width))
        self.frames = frames
        self._limit(text_tokens)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < 1 or value % self.multiple:
                raise ValueError(
                    f"the {name} of {type(pipe).__name__}'s images must be a multiple of {self.multiple} pixels, "
                    f"not {value}"
                )
            if self.places and value // self.multiple > self.places:
                raise ValueError(
                    f"the {name} of {type(pipe).__name__}'s images must be at most {self.places * self.multiple} "
                    f"pixels, not {value}"
                )
        if frames != 1 and len(self.shape) == 3:
            raise ValueError(f"{type(pipe).__name__} makes images, not videos of {frames} frames; leave out the option")

    def _limit(self, text_tokens: int | None) -> None:
        """Set the maximum of text tokens; raises ValueError if the pipeline does not support it."""
        if text_tokens is not None:
            if self.fixed_text:
                raise ValueError(
                    f"{type(self.pipe).__name__} reads {self.fixed_text}; leave out the text tokens option"
                )
            self.text_tokens = text_tokens
        if self.most_text and self.text_tokens > self.most_text:
            raise ValueError(
                f"{type(self.pipe).__name__} reads at most {self.most_text} text tokens, not {self.text_tokens}"
            )

    @property
    def medium(self) -> medium.Medium:
        """What a decoded sample is."""
        return medium.images(self.height, self.width, self.shape[1] if len(self.shape) == 4 else None)

    @property
    def reads(self) -> list[Any]:
        """What encoded prompts depend on beside their text and the networks that encode them."""
        return []

    @property
    def side(self) -> int:
        """Default height and width, in pixels."""
        side: int = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return side

    @property
    def patch(self) -> int:
        """Side of a transformer token, in latent pixels."""
        side: int = self.pipe.transformer.config.patch_size if self.cuts_patches else 2
        return side

    @property
    def multiple(self) -> int:
        """Side of a token, in image pixels; height and width are multiples of it."""
        multiple: int = self.pipe.vae_scale_factor * self.patch
        return multiple

    @property
    def places(self) -> int | None:
        """Maximum number of tokens along a side (position embeddings); None: no limit."""
        return None

    @property
    def transformers(self) -> dict[str, Any]:
        """The trained networks, by their component names in the pipeline."""
        return {"transformer": self.pipe.transformer}

    @property
    def network(self) -> Any:
        """The trained networks as one module, for `velocity`."""
        return self.joined(self.transformers)

    def joined(self, transformers: Mapping[str, Any]) -> Any:
        """Networks like `transformers` as one module."""
        return transformers["transformer"]

    def load_lora(self, folder: Path) -> None:
        """Let the pipeline load a LoRA that was exported to a folder."""
        name, options = self.lora_loader
        attrgetter(name)(self.pipe)(folder, **options)

    def convert_lora(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a LoRA in the layout of another program, under the names of diffusers.

        Without a loader of its own, a pipeline knows no other layout.

        Raises:
            ValueError, KeyError and others: diffusers does not know the layout.
        """
        if not hasattr(self.pipe, "lora_state_dict"):
            return dict(tensors)
        found = type(self.pipe).lora_state_dict(dict(tensors), return_alphas=True)
        weights, *alphas = found if isinstance(found, tuple) else (found,)  # FLUX returns some alphas apart
        return {**weights, **(alphas[0] if alphas and alphas[0] else {})}

    cuts_patches: ClassVar[bool] = False
    """whether the transformer itself cuts a sample into tokens, whose side its configuration says"""

    packed: ClassVar[bool] = False
    """whether the transformer takes 2 x 2 latent pixels as the channels of one token"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        scale, channels = self.pipe.vae_scale_factor, self.pipe.transformer.config.in_channels
        return (channels // 4 if self.packed else channels, self.height // scale, self.width // scale)

    @property
    def tokens(self) -> int:
        """Number of tokens in a sample; the shift of some time grids depends on it."""
        return (self.height // self.multiple) * (self.width // self.multiple)

    @property
    def length(self) -> int:
        """What the pipeline takes for the length of a sample, for `mu`."""
        return self.tokens

    together = 1
    """processes that share the sequence of a sample, in equal parts"""

    @property
    def parts(self) -> dict[str, int]:
        """What they share, by name, with its length; text with a mask is padded."""
        frames = self.shape[1] if len(self.shape) == 4 else 1
        return {"attention heads": self.pipe.transformer.config.num_attention_heads, "tokens": self.tokens * frames}

    def distilled(self) -> list[Sign]:
        """Signs in the pipeline's settings that it is step-distilled."""
        pipe = self.pipe
        return [
            *of_pipeline(type(pipe).__name__, pipe.config),
            *of_scheduler(type(pipe.scheduler).__name__, pipe.scheduler.config),
        ]

    @abstractmethod
    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        """Named tensors [N, ...], one row per prompt; shorter texts are padded with zeros.

        Prompts are texts, or Edits with as many sources as the family takes.
        """

    def readers(self) -> list[Reader]:
        """How the pipeline tokenises prompts, one reader per text encoder (none: it never cuts a prompt)."""
        return []

    def _longest(self, name: str, tokenizer: Any, **more: Any) -> Reader:
        """A reader of `text_tokens` tokens."""
        able = not self.fixed_text and (self.most_text is None or self.text_tokens < self.most_text)
        return Reader(name, tokenizer, self.text_tokens, more=able, **more)

    def seen(self, x: Tensor, condition: Mapping[str, Tensor]) -> list[Tensor]:
        """The transformer's image inputs [B, *shape] each: the samples x, then the sources of edits in their order."""
        return [x, *(condition[SOURCE].unbind(1) if SOURCE in condition else ())]

    def empty(self) -> dict[str, Tensor]:
        """Encode the empty prompt (classifier-free guidance): the tensors of `encode` with one row."""
        return self.encode([self.nothing])

    def encode_sources(self, prompts: list[Any]) -> dict[str, Tensor]:
        """Tensors of source images, of families that edit."""
        return {}

    @abstractmethod
    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        """v [B, ...] at x [B, ...], t [B] in [0, 1]; only models with embedded guidance use `guidance`."""

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance, as in the pipeline; scale 1 means none."""
        return v_0 + scale * (v - v_0)

    def guided_by(self, scale: float) -> dict[str, Any]:
        """The pipeline's arguments for a guidance scale."""
        return {"guidance_scale": scale}

    def sized_by(self) -> dict[str, Any]:
        """The pipeline's arguments for this size, and for the text length if it is not the default."""
        own = {} if self.text_tokens == type(self).text_tokens else {"max_sequence_length": self.text_tokens}
        return {"height": self.height, "width": self.width, **own}

    def mu(self, steps: int) -> float:
        """The shift `mu` for schedulers that depend on image size: linear in `length`."""
        known = self.pipe.scheduler.config
        low, high = known.get("base_image_seq_len", 256), known.get("max_image_seq_len", 4096)
        first, last = known.get("base_shift", 0.5), known.get("max_shift", 1.15)
        mu: float = first + (last - first) * (self.length - low) / (high - low)
        return mu

    sigmas: ClassVar[Literal["scheduler", "even"]] = "even"
    """times before the shift: the scheduler's own (`scheduler`), or 1, (N - 1) / N, ... 1 / N (`even`)"""

    def scheduler(self) -> Any:
        """A new scheduler like the pipeline's; if that is not Euler, an Euler one with the same shift."""
        shipped = self.pipe.scheduler
        if type(shipped) is FlowMatchEulerDiscreteScheduler:
            return deepcopy(shipped)
        return FlowMatchEulerDiscreteScheduler(shift=shipped.config.get("flow_shift", 1.0))

    def times(self, steps: int) -> tuple[float, ...]:
        """The [steps + 1] times of the pipeline's own scheduler, from 1 to 0.

        Raises:
            ValueError: the scheduler does not support 1 step.
        """
        scheduler = self.scheduler()
        if steps == 1 and scheduler.config.get("shift_terminal"):  # one time cannot be 1 and the terminal value
            raise ValueError(f"the scheduler of {type(self.pipe).__name__} does not support 1 step; use at least 2")
        given: dict[str, Any] = {"mu": self.mu(steps)} if scheduler.config.get("use_dynamic_shifting") else {}
        if self.sigmas == "even":
            scheduler.set_timesteps(sigmas=[1 - number / steps for number in range(steps)], **given)
        else:
            scheduler.set_timesteps(steps, **given)
        return tuple(scheduler.sigmas.double().tolist())

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Finished samples by the pipeline itself, from noise x [B, ...]; `flowward verify` compares with them."""
        given = {**self.sized_by(), **self.guided_by(guidance), "latents": x, **more}
        shipped, self.pipe.scheduler = self.pipe.scheduler, self.scheduler()
        try:
            latents: Tensor = self.pipe(
                prompt=prompts,
                num_inference_steps=steps,
                output_type="latent",
                return_dict=False,
                **given,
            )[0]
        finally:
            self.pipe.scheduler = shipped
        return latents

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W], or videos [B, F, 3, H, W], in [-1, 1]."""
        known = self.pipe.vae.config
        image: Tensor = self.pipe.vae.decode(x0 / known.scaling_factor + (known.shift_factor or 0)).sample
        return image

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of images: the inverse of `decode`, up to the autoencoder's loss."""
        known = self.pipe.vae.config
        z: Tensor = self.pipe.vae.encode(images).latent_dist.mean
        return (z - (known.shift_factor or 0)) * known.scaling_factor


def padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Texts of their own lengths, [tokens, ...] each, as `words` [N, tokens, ...] with a `mask` [N, tokens]."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "words": pad(list(rows), batch_first=True),
        "mask": pad([row.new_ones(len(row)) for row in rows], batch_first=True),
    }


def lengths(condition: Mapping[str, Tensor]) -> Tensor:
    """The length of each text, [N]."""
    return condition["mask"].sum(1, dtype=torch.long)  # bf16 cannot count past 256


@contextmanager
def replaced(where: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for a name in a module or object of diffusers, while its pipeline runs."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def statistics(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel of a video autoencoder, [1, C, 1, 1, 1] each."""
    known = vae.config
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1).to(x) for each in (known.latents_mean, known.latents_std))
    return mean, std


def pack(x: Tensor) -> Tensor:
    """[B, C, H, W] to tokens of 2 x 2 pixels, [B, H/2 W/2, 4C], channels first."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`: [B, C, h, w]."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def positions(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row and column of each token, [h w] each."""
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return rows.flatten(), columns.flatten()
