"""Kandinsky 5 for images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean
from torch import Tensor

from ..reading import Reader
from .family import Family, padded, replaced


class Kandinsky5(Family):
    """Blocks of text alone, then blocks of the image that see it; Qwen2.5-VL and CLIP read the prompt.

    The pipeline pads the prompts of a call to the same length, without a mask, so an image depends on its batch. Here
    each prompt is as in a batch of its own. The pipeline draws a few sizes only; here all are allowed.
    """

    pipelines = ("Kandinsky5T2IPipeline",)
    targets: ClassVar[tuple[str, ...]] = (
        "to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer",
    )  # fmt: skip
    text_tokens, most_text = 512, 1024
    by_length = masks_text = True
    needs = ("torchvision",)  # for the processor in transformers
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def side(self) -> int:
        return 1024

    @property
    def multiple(self) -> int:
        multiple: int = self.pipe.vae_scale_factor_spatial * self.pipe.transformer.config.patch_size[1]
        return multiple

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipe.vae_scale_factor_spatial
        return (self.pipe.transformer.config.in_visual_dim, self.height // scale, self.width // scale)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        found = [self.pipe.encode_prompt([prompt], max_sequence_length=self.text_tokens) for prompt in prompts]
        return padded([words[0] for words, _, _ in found]) | {"pooled": torch.cat([short for _, short, _ in found])}

    def readers(self) -> list[Reader]:
        pipe = self.pipe
        long = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)
        form, before = (
            lambda text: pipe.prompt_template.format(prompt_clean(text)),
            pipe.prompt_template_encode_start_idx,
        )
        whole = self._longest("Qwen2.5-VL", long, form=form, before=before, sliced=True)
        return [Reader("CLIP", pipe.tokenizer_2, 77, form=prompt_clean), whole]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            self.pixels(x, condition),
            encoder_hidden_states=condition["words"],
            timestep=1000 * t,
            pooled_projections=condition["pooled"],
            visual_rope_pos=[torch.arange(many, device=x.device) for many in (1, x.shape[-2] // 2, x.shape[-1] // 2)],
            text_rope_pos=torch.arange(condition["words"].shape[1], device=x.device),
            return_dict=False,
        )
        return v[:, 0].movedim(-1, 1)

    def pixels(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """What the network sees of samples x [B, C, h, w]: the channels of each pixel, [B, 1, h, w, channels]."""
        return x.movedim(1, -1)[:, None]

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time, with this size among those of the pipeline."""
        each = zip(prompts, x.split(1), strict=True)
        with replaced(self.pipe, "resolutions", [(self.width, self.height)]):
            found = [self.alone(prompt, start, steps, guidance, **more) for prompt, start in each]
        return torch.cat(found)[:, 0].movedim(-1, 1)

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """By the pipeline, from noise x [1, ...]; channels come last."""
        return Family.reference(self, [prompt], x, steps, guidance, latents=self.pixels(x, {}), **more)

    def decode(self, x0: Tensor) -> Tensor:
        image: Tensor = self.pipe.vae.decode(x0 / self.pipe.vae.config.scaling_factor).sample
        return image

    def encode_images(self, images: Tensor) -> Tensor:
        z: Tensor = self.pipe.vae.encode(images).latent_dist.mean
        return z * self.pipe.vae.config.scaling_factor
