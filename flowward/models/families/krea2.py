"""Krea 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reading import Reader
from .family import Family, pack, padded, positions, unpack
from .qwen_image import QwenImage


class Krea2(QwenImage):
    """One stream of text and image; twelve layers of Qwen3-VL read an instruction and the prompt; Qwen's autoencoder.

    Text has no positions. The pipeline's guidance scale g adds g (v - v_0); it equals flowward's scale 1 + g.
    """

    pipelines = ("Krea2Pipeline",)
    text_tokens = 512
    most_text: ClassVar[int | None] = None
    nothing = ""

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        self.targets = tuple(  # type: ignore[misc] # not the text's own blocks: each of their rows is a token
            f"transformer_blocks.{block}.attn.{name}"
            for block in range(pipe.transformer.config.num_layers)
            for name in ("to_q", "to_k", "to_v", "to_out.0")
        )
        self.guidance = "none" if pipe.config.is_distilled else "classifier-free"  # type: ignore[misc]

    @property
    def side(self) -> int:
        return 1024

    @property
    def patch(self) -> int:
        patch: int = self.pipe.patch_size
        return patch

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        layers, mask = self.pipe.encode_prompt(prompts, max_sequence_length=self.text_tokens)
        rows = [row[kept] for row, kept in zip(layers, mask.bool(), strict=True)]  # padding lies before their end
        return padded(rows)

    def readers(self) -> list[Reader]:
        prefix, end = self.pipe.prompt_template_encode_prefix, self.pipe.prompt_template_encode_num_suffix_tokens
        before = self.pipe.prompt_template_encode_start_idx - end
        return [self._longest("Qwen3-VL", self.pipe.tokenizer, form=lambda text: prefix + text, before=before)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        rows, columns = positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device)
        places = torch.stack([torch.zeros_like(rows), rows, columns], 1).float()
        words = condition["words"]
        v: Tensor = network(
            pack(x),
            encoder_hidden_states=words,
            timestep=t,
            position_ids=torch.cat([places.new_zeros(words.shape[1], 3), places]),
            encoder_attention_mask=condition["mask"].bool(),
            return_dict=False,
        )[0]
        return unpack(v, *x.shape[-2:])

    def mu(self, steps: int) -> float:
        return 1.15 if self.pipe.config.is_distilled else super().mu(steps)

    guided = Family.guided

    def guided_by(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale - 1}

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        tokens = Family.reference(self, prompts, x, steps, guidance, latents=pack(x), **more)
        return unpack(tokens, *x.shape[-2:])
