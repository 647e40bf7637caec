"""Stable Diffusion 3 and 3.5, medium and large."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..reading import Reader
from .family import Family

ORIGINAL = re.compile(  # layers as Stability's code and kohya name them: block, stream, part, layer, kind of tensor
    r"(?:lora_unet_|(?:model\.)?diffusion_model\.)?joint_blocks[._](\d+)[._]"
    r"(x|context)_block[._](attn2?|mlp|adaLN_modulation)[._](\w+?)\.(.+)"
)
LAYERS: dict[tuple[str | Any, ...], tuple[str, ...]] = {
    ("x", "attn", "qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x", "attn", "proj"): ("attn.to_out.0",),
    ("x", "attn2", "qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("x", "attn2", "proj"): ("attn2.to_out.0",),
    ("x", "mlp", "fc1"): ("ff.net.0.proj",),
    ("x", "mlp", "fc2"): ("ff.net.2",),
    ("x", "adaLN_modulation", "1"): ("norm1.linear",),
    ("context", "attn", "qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("context", "attn", "proj"): ("attn.to_add_out",),
    ("context", "mlp", "fc1"): ("ff_context.net.0.proj",),
    ("context", "mlp", "fc2"): ("ff_context.net.2",),
    ("context", "adaLN_modulation", "1"): ("norm1_context.linear",),
}


class StableDiffusion3(Family):
    """Joint attention over tokens of two CLIP encoders, T5 and the image; time shift 3."""

    pipelines = ("StableDiffusion3Pipeline",)
    cuts_patches = True
    text_tokens, most_text = 256, 512
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def places(self) -> int:
        places: int = self.pipe.transformer.config.pos_embed_max_size
        return places

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words, "pooled": pooled}

    def readers(self) -> list[Reader]:
        pipe = self.pipe
        two = [Reader("CLIP", each, pipe.tokenizer_max_length) for each in (pipe.tokenizer, pipe.tokenizer_2)]
        return [*two, self._longest("T5", pipe.tokenizer_3)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timestep=1000 * t,
            encoder_hidden_states=condition["words"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return v

    def convert_lora(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From the names of the original code, in which one layer makes queries, keys and values."""
        found = {}
        for key, tensor in tensors.items():
            match = ORIGINAL.fullmatch(key)
            if match is None or (layers := LAYERS.get(match.group(2, 3, 4))) is None:
                found[key] = tensor
                continue
            block, last = match[1], int(match[1]) == self.pipe.transformer.config.num_layers - 1
            outputs = match[5].startswith(("lora_B", "lora_up"))
            parts = tensor.chunk(len(layers)) if outputs else (tensor,) * len(layers)
            if outputs and last and layers == ("norm1_context.linear",):  # diffusers has scale before shift there
                parts = (torch.cat(tensor.chunk(2)[::-1]),)
            found |= {
                f"transformer_blocks.{block}.{layer}.{match[5]}": part
                for layer, part in zip(layers, parts, strict=True)
            }
        return found
