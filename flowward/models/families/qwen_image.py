"""Qwen-Image, and Qwen-Image-Edit, which edits images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...prompts import Edit, Prompt
from ..reading import Reader
from .edits import Edits
from .family import Family, pack, padded, replaced, statistics, unpack


class QwenImage(Family):
    """Text as hidden states of Qwen2.5-VL, of any length; a video autoencoder applied to one frame.

    Guidance keeps the norm of each token's velocity.
    """

    pipelines = ("QwenImagePipeline",)
    masks_text = True
    packed = True
    text_tokens = 512
    most_text: ClassVar[int | None] = 1024
    nothing = " "  # as in the authors' code

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask = self.pipe.encode_prompt(prompts, max_sequence_length=self.text_tokens)
        return {"words": words, "mask": words.new_ones(words.shape[:2]) if mask is None else mask.to(words.dtype)}

    def readers(self) -> list[Reader]:
        form, before = self.pipe.prompt_template_encode.format, self.pipe.prompt_template_encode_start_idx
        return [self._longest("Qwen2.5-VL", self.pipe.tokenizer, form=form, before=before, sliced=True)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images = self.seen(x, condition)
        more = -condition["words"].shape[1] % self.together
        words = nn.functional.pad(condition["words"], (0, 0, 0, more))
        mask = nn.functional.pad(condition["mask"], (0, more))
        v: Tensor = network(
            torch.cat([pack(each) for each in images], 1),
            timestep=t,
            guidance=torch.full_like(t, guidance) if network.config.guidance_embeds else None,
            encoder_hidden_states=words,
            encoder_hidden_states_mask=mask.long(),
            img_shapes=[[(1, each.shape[-2] // 2, each.shape[-1] // 2) for each in images]] * len(x),
            return_dict=False,
        )[0]
        return unpack(v[:, : self.tokens], *x.shape[-2:])

    def guided_by(self, scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": scale} | ({"negative_prompt": self.nothing} if scale != 1 else {})

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        given: dict[str, Any] = {"latents": pack(x)}
        if guidance != 1:
            given["negative_prompt"] = [self.nothing] * len(prompts)
        return unpack(super().reference(prompts, x, steps, guidance, **given, **more), *x.shape[-2:])

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        mixed, before = pack(super().guided(v, v_0, scale)), pack(v)
        kept = mixed * (before.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack(kept, *v.shape[-2:])

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, x0)
        image: Tensor = self.pipe.vae.decode(x0[:, :, None] * std + mean).sample
        return image[:, :, 0]

    def encode_images(self, images: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, images)
        z: Tensor = self.pipe.vae.encode(images[:, :, None]).latent_dist.mean
        return ((z - mean) / std)[:, :, 0]


READ = 384 * 384  # pixels of a source that the text encoder sees


class QwenImageEdit(Edits, QwenImage):
    """Sources enter twice: the text encoder sees them with the instruction, the transformer as extra tokens.

    The pipeline agrees with flowward's size of sources if both sides of the samples are multiples of 32.
    """

    pipelines = ("QwenImageEditPlusPipeline",)
    sources = range(1, 4)  # as the model was trained
    reads_sources = True
    fixed_text = "text of any length"
    needs = ("torchvision",)  # for the image processor in transformers

    def readers(self) -> list[Reader]:
        return []  # text of any length

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [self._read(prompt) for prompt in prompts]
        return {**padded(rows), **self.encode_sources(prompts)}

    def _read(self, prompt: Edit) -> Tensor:
        """[tokens, width] of one prompt; in a joint call every text would see every image."""
        words, _ = self.pipe.encode_prompt([prompt.text], image=self.looked_at(prompt))
        row: Tensor = words[0]
        return row

    def looked_at(self, prompt: Edit) -> Any:
        """What the text encoder sees."""
        ratio = self.width / self.height
        height, width = (round((READ * each) ** 0.5 / 32) * 32 for each in (1 / ratio, ratio))
        return [self.pipe.image_processor.resize(each, height, width) for each in self.for_pillow(prompt)]

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline with its constant for the source size set to the samples' size."""
        with replaced(sys.modules[type(self.pipe).__module__], "VAE_IMAGE_SIZE", self.height * self.width):
            return super().reference(prompts, x, steps, guidance, **more)


class FirstQwenImageEdit(QwenImageEdit):
    """The first Qwen-Image-Edit, of August 2025: one source, which the text encoder sees at its full size."""

    pipelines = ("QwenImageEditPipeline",)
    sources = range(1, 2)

    def looked_at(self, prompt: Edit) -> Any:
        return self.for_pillow(prompt)[0]

    def shown(self, prompt: Prompt) -> dict[str, Any]:
        return {"image": self.for_pillow(prompt)[0]}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline with the samples' size for the source, in the place of one megapixel."""
        size = lambda *_: (self.width, self.height, None)  # noqa: E731
        with replaced(sys.modules[type(self.pipe).__module__], "calculate_dimensions", size):
            return Edits.reference(self, prompts, x, steps, guidance, **more)
