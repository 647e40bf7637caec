"""FLUX.2: klein and dev."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor

from ...prompts import text_of
from ..reading import Reader, chat
from .edits import Edits
from .family import Family, Guidance, pack, positions, replaced, unpack


class Flux2Latents(Family):
    """Families with the autoencoder of FLUX.2: latents of 2 x 2 pixels, normalised by its batch norm."""

    def _norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        mean, var = (each.view(1, -1, 1, 1).to(x) for each in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (var + vae.config.batch_norm_eps).sqrt()

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = self._norm(x0)
        _, _, h, w = x0.shape
        image: Tensor = self.pipe.vae.decode(unpack((x0 * std + mean).flatten(2).transpose(1, 2), 2 * h, 2 * w)).sample
        return image

    def encode_images(self, images: Tensor) -> Tensor:
        return self.normalised(self.pipe.vae.encode(images).latent_dist.mean)

    def normalised(self, z: Tensor) -> Tensor:
        h, w = z.shape[-2] // 2, z.shape[-1] // 2
        x0 = pack(z).transpose(1, 2).reshape(len(z), -1, h, w)
        mean, std = self._norm(x0)
        return (x0 - mean) / std


class Flux2Klein(Edits, Flux2Latents):
    """Text as hidden states of Qwen3.

    Sources are optional; the tokens of source k = 1, 2, ... have 10 k as the first of their four position ids.
    Distilled models have no guidance; base models use classifier-free guidance.
    """

    pipelines = ("Flux2KleinPipeline",)
    sources = range(11)  # the pipeline has no limit; 10 as the authors' service
    inputs = "prompt=prompt"
    targets = (*Family.targets, "to_qkv_mlp_proj")
    text_tokens = 512

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        self.guidance = "none" if pipe.config.is_distilled else "classifier-free"  # type: ignore[misc]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pipe.transformer.config.in_channels, self.height // self.multiple, self.width // self.multiple)

    def mu(self, steps: int) -> float:
        """The authors' fit to the number of tokens and steps."""
        many = 0.00016927 * self.tokens + 0.45666666  # for 200 steps
        if self.tokens > 4300:
            return many
        few = 8.73809524e-05 * self.tokens + 1.89833333  # for 10 steps
        return many + (many - few) / 190 * (steps - 200)

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words, _ = self.pipe.encode_prompt(list(map(text_of, prompts)), max_sequence_length=self.text_tokens)
        return {"words": words, **self.encode_sources(prompts)}

    def readers(self) -> list[Reader]:
        return [self._longest("Qwen3", self.pipe.tokenizer, form=chat(self.pipe.tokenizer, enable_thinking=False))]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images = self.seen(x, condition)
        words = torch.arange(condition["words"].shape[1], device=x.device)
        v: Tensor = network(
            torch.cat([each.flatten(2).transpose(1, 2) for each in images], 1),
            timestep=t,
            guidance=torch.full_like(t, guidance) if network.config.guidance_embeds else None,
            encoder_hidden_states=condition["words"],
            txt_ids=torch.stack([torch.zeros_like(words)] * 3 + [words], 1)[None],
            img_ids=torch.cat([_places(10 * number, each) for number, each in enumerate(images)])[None],
            return_dict=False,
        )[0]
        return v[:, : self.tokens].transpose(1, 2).reshape(x.shape)

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """The pipeline without its lower limit of 64 pixels for the sides of sources."""
        with replaced(self.pipe.image_processor, "check_image_input", lambda image: image):
            return self.normalised(super().reference(prompts, x, steps, guidance, **more))


class Flux2(Flux2Klein):
    """FLUX.2-dev: guidance is a network input, and layers of Mistral read an instruction and the prompt.

    Text is always padded to the maximum, which counts the instruction too; the padding has an effect.
    """

    pipelines = ("Flux2Pipeline",)
    guidance: ClassVar[Guidance] = "embedded"
    published = 4.0

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super(Flux2Klein, self).__init__(pipe, *size, **more)

    def readers(self) -> list[Reader]:
        outer = self.pipe.tokenizer
        if outer is None:
            return []
        inner = getattr(outer, "tokenizer", outer)  # of a processor, which also prepares images

        def form(text: str) -> str:
            whole = outer.apply_chat_template(format_input([text], self.pipe.system_message)[0], tokenize=False)
            return str(whole).removeprefix(inner.bos_token or "")  # the tokenizer adds it by itself

        return [self._longest("Mistral", inner, form=form)]

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        with replaced(self.pipe.image_processor, "check_image_input", lambda image: image):
            tokens = super(Flux2Klein, self).reference(prompts, x, steps, guidance, **more)
        return tokens.transpose(1, 2).reshape(x.shape)


def _places(time: int, x: Tensor) -> Tensor:
    """Position ids [h w, 4] of the tokens of latents [B, C, h, w]: time, row, column and 0."""
    rows, columns = positions(x.shape[-2], x.shape[-1], x.device)
    return torch.stack([torch.full_like(rows, time), rows, columns, torch.zeros_like(rows)], 1)
