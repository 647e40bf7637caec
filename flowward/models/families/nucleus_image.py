"""NucleusMoE-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..reading import Reader
from .family import Family, pack, padded, unpack
from .qwen_image import QwenImage


class NucleusImage(QwenImage):
    """Experts that choose their image tokens; Qwen3-VL reads an instruction and the prompt; the network returns -v.

    Guidance keeps the norm of each token's velocity.
    """

    pipelines = ("NucleusMoEImagePipeline",)
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
    text_tokens = 1024
    most_text: ClassVar[int | None] = None
    nothing = ""
    needs = ("torchvision",)  # for the processor in transformers
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        if self.text_tokens % 8:
            raise ValueError(f"the text tokens of NucleusMoE-Image must be a multiple of 8, not {self.text_tokens}")

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask = self.pipe.encode_prompt(prompts, max_sequence_length=self.text_tokens)
        return padded(
            list(words) if mask is None else [row[kept.bool()] for row, kept in zip(words, mask, strict=True)]
        )

    def readers(self) -> list[Reader]:
        tokenizer = getattr(self.pipe.processor, "tokenizer", self.pipe.processor)
        return [self._longest("Qwen3-VL", tokenizer, form=self.pipe._format_prompt)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            pack(x),
            timestep=t,
            encoder_hidden_states=condition["words"],
            encoder_hidden_states_mask=condition["mask"].bool(),
            img_shapes=[(1, x.shape[-2] // 2, x.shape[-1] // 2)] * len(x),
            return_dict=False,
        )[0]
        return -unpack(v, *x.shape[-2:])

    guided_by = Family.guided_by

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        tokens = Family.reference(self, prompts, x, steps, guidance, latents=pack(x), **more)
        return unpack(tokens, *x.shape[-2:])
