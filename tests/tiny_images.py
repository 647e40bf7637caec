"""Tiny pipelines of newer families of image models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import transformers
from tokenizers.processors import TemplateProcessing

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'][0]['text'] }} {% endfor %}"


def bare(length: int = 512) -> Any:
    """A tokenizer that adds no marks, with a template for messages in parts."""
    made = tiny.tokenizer(length)
    made.chat_template = CHAT
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    return made


def text(layers: int) -> dict[str, Any]:
    """Sizes of a small language model."""
    return {
        "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip


def mistral3(layers: int, kind: Any = transformers.Mistral3ForConditionalGeneration) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    return kind(transformers.Mistral3Config(
        text_config={"model_type": "mistral", **text(layers)}, vision_config={"model_type": "pixtral", **vision}
    ))  # fmt: skip


def flux2() -> Any:
    klein = tiny.flux2_klein()
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=True,
    )  # fmt: skip
    pipe = diffusers.Flux2Pipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=klein.vae, text_encoder=mistral3(30), tokenizer=bare(),
    )  # fmt: skip
    pipe.system_message = "a user of the system"
    return pipe


IMAGES: dict[str, Callable[[], Any]] = {
    "Flux2Pipeline": flux2,
}
