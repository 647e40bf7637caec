"""HunyuanVideo 1.5, text to video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from diffusers import ClassifierFreeGuidance
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts, format_text_input
from torch import Tensor

from ..lora import ATTENTION
from ..reading import Reader
from .video import Video, masked


class HunyuanVideo15(Video):
    """Qwen2.5-VL reads the prompt, ByT5 the words in quotation marks; both texts have masks.

    The network takes two places for a source: latents and their mask, which are 0 here. Guidance is a component of the
    pipeline, the `guider`; its scale is the one that a run asks for.
    """

    pipelines = ("HunyuanVideo15Pipeline",)
    masks_text = True
    own = (480, 848, 121)
    targets = ATTENTION
    text_tokens, fixed_text = 1000, "1000 text tokens, always"
    sigmas: ClassVar[Literal["scheduler", "even"]] = "even"
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        self.text_tokens = pipe.tokenizer_max_length
        super().__init__(pipe, *size, **more)

    @property
    def channels(self) -> int:
        channels: int = self.pipe.num_channels_latents
        return channels

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words, mask, glyphs, seen = self.pipe.encode_prompt(prompts, batch_size=len(prompts))
        second = {f"{name}_2": each for name, each in masked(glyphs, seen).items()}
        return {**masked(words, mask), **second}

    def readers(self) -> list[Reader]:
        pipe = self.pipe

        def form(text: str) -> str:
            (chat,) = format_text_input([text], pipe.system_message)
            said: str = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            return said

        before = pipe.prompt_template_encode_start_idx
        quoted = Reader(
            "ByT5", pipe.tokenizer_2, pipe.tokenizer_2_max_length, lambda text: extract_glyph_texts(text) or ""
        )
        return [Reader("Qwen2.5-VL", pipe.tokenizer, self.text_tokens, form, before), quoted]

    def beside(self, x: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The source's latents with their mask [B, C + 1, F, H, W], and what an image encoder sees of it [B, L, D]."""
        nothing = torch.zeros(len(x), 0, self.pipe.vision_states_dim, dtype=x.dtype, device=x.device)
        return torch.zeros_like(torch.cat([x, x[:, :1]], 1)), nothing

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        latents, image = self.beside(x, condition)
        v: Tensor = network(
            torch.cat([x, latents], 1),
            timestep=(1000 * t).to(x.dtype),  # as the pipeline does: the embedding of the time follows it
            encoder_hidden_states=condition["words"],
            encoder_attention_mask=condition["mask"],
            encoder_hidden_states_2=condition["words_2"],
            encoder_attention_mask_2=condition["mask_2"],
            image_embeds=image,
            return_dict=False,
        )[0]
        return v

    def decode(self, x0: Tensor) -> Tensor:
        """One by one: the attention of this autoencoder takes no batch."""
        return torch.cat([super(HunyuanVideo15, self).decode(each) for each in x0.split(1)])

    def sized_by(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width, "num_frames": self.frames}

    def guided_by(self, scale: float) -> dict[str, Any]:
        return {}  # the guider has it

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        with self._guided(guidance):
            return super().reference(prompts, x, steps, guidance, **more)

    @contextmanager
    def _guided(self, scale: float) -> Iterator[None]:
        before, self.pipe.guider = self.pipe.guider, ClassifierFreeGuidance(scale)
        try:
            yield
        finally:
            self.pipe.guider = before
