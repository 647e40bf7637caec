"""HiDream-I1."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..reading import Reader
from .family import Family


class HiDream(Family):
    """Experts that tokens choose; two CLIP encoders, T5, and every layer of Llama 3; the network returns -v.

    The pipeline changes a size to one of its default area; here all sizes are allowed.
    """

    pipelines = ("HiDreamImagePipeline",)
    cuts_patches = True
    targets = ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t")
    text_tokens = 128
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        pipe.transformer.register_to_config(force_inference_output=True)  # an image from a network in training too
        for module in pipe.transformer.modules():
            if isinstance(module, MOEFeedForwardSwiGLU):
                module._force_inference_output = True
                module.moe_infer = MethodType(_experts, module)  # no gradient flows through its own

    def mu(self, steps: int) -> float:
        """Of the largest image, whatever the size."""
        return 0.5 + 0.65 * (self.pipe.transformer.max_seq - 256) / (4096 - 256)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        t5, _, llama, _, pooled, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": t5, "layers": llama.permute(1, 2, 0, 3), "pooled": pooled}

    def readers(self) -> list[Reader]:
        pipe = self.pipe
        short = [("CLIP", pipe.tokenizer), ("CLIP", pipe.tokenizer_2)]
        two = [Reader(name, each, min(self.text_tokens, 218), more=self.text_tokens < 218) for name, each in short]
        return [*two, self._longest("T5", pipe.tokenizer_3), self._longest("Llama", pipe.tokenizer_4)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timesteps=1000 * t,
            encoder_hidden_states_t5=condition["words"],
            encoder_hidden_states_llama3=condition["layers"].permute(2, 0, 1, 3),
            pooled_embeds=condition["pooled"],
            return_dict=False,
        )[0]
        return -v

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """With a default area that is the area of this size."""
        before = self.pipe.default_sample_size
        self.pipe.default_sample_size = (self.height * self.width) ** 0.5 / self.pipe.vae_scale_factor * (1 + 1e-9)
        try:
            return super().reference(prompts, x, steps, guidance, **more)
        finally:
            self.pipe.default_sample_size = before


def _experts(self: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The sum of what each token's experts say of it.

    Args:
        x: tokens [n, width].
        chosen: experts of the first token, of the second, ... [n k].
        weights: of these [n k, 1].
    """
    order = chosen.argsort()
    counts = _even(len(order), len(self.experts)) if isinstance(chosen, FakeTensor) else chosen.bincount().tolist()
    found = torch.zeros_like(x)
    for expert, rows in zip(self.experts, order.split(counts), strict=False):
        tokens = rows // self.num_activated_experts
        found = found.index_add(0, tokens, (expert(x[tokens]) * weights[rows]).to(found.dtype))
    return found


def _even(many: int, parts: int) -> list[int]:
    """Tokens without values choose all experts alike."""
    return [many // parts + (part < many % parts) for part in range(parts)]
