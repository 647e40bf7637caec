"""The models of the recipes at their published sizes, as configurations without weights: enough to count memory.

    python benchmarks/published.py flux.1-dev FOLDER
    flowward memory --model FOLDER --config flux.1-dev/advantageflow-pickscore --prompts drawbench-style

A model is the tiny pipeline of its family in the tests, with a transformer and an autoencoder of published size: what
the classes of diffusers have as their defaults, and the values below. Text encoders keep the published width of what
they return; they are freed before training, so their depth does not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_pipelines import tiny

from flowward.models import hub

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A pipeline, and how its parts differ from the defaults of their classes."""

    pipeline: str  # its name in tests/tiny_pipelines.py
    transformer: Values = field(default_factory=dict)
    vae: Values = field(default_factory=dict)
    text: Mapping[str, Values] = field(default_factory=dict)  # values of a text encoder's configuration
    config: Values = field(default_factory=dict)  # values of the pipeline's configuration


SIXTEEN: Values = {  # the autoencoder of SD3, FLUX.1 and Z-Image
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 16, "layers_per_block": 2, "sample_size": 1024,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
SD3: Values = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "qk_norm": "rms_norm",
    "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
CLIP_AND_T5 = {"text_encoder": {"hidden_size": 768, "projection_dim": 768}, "text_encoder_2": {"d_model": 4096}}
WAN_5B: Values = {
    "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48,
}  # fmt: skip
WAN_5B_VAE: Values = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
MODELS: Mapping[str, Published] = {
    "sd3.5-medium": Published(
        "StableDiffusion3Pipeline", SD3, {**SIXTEEN, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"text_encoder": {"hidden_size": 768, "projection_dim": 768},
         "text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280}, "text_encoder_3": {"d_model": 4096}},
    ),
    "flux.1-dev": Published("FluxPipeline", {"guidance_embeds": True}, SIXTEEN, CLIP_AND_T5),
    "flux.1-kontext": Published("FluxKontextPipeline", {"guidance_embeds": True}, SIXTEEN, CLIP_AND_T5),
    "flux.2-klein": Published(
        "Flux2KleinPipeline",
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
         "guidance_embeds": False},
        text={"text_encoder": {"hidden_size": 2560}},
    ),
    "flux.2-dev": Published("Flux2Pipeline", text={"text_encoder": {"hidden_size": 5120}}),
    "qwen-image": Published("QwenImagePipeline", text={"text_encoder": {"hidden_size": 3584}}),
    "qwen-image-edit": Published("QwenImageEditPlusPipeline", text={"text_encoder": {"hidden_size": 3584}}),
    "z-image": Published("ZImagePipeline", vae=SIXTEEN, text={"text_encoder": {"hidden_size": 2560}}),
    "wan2.1-1.3b": Published(
        "WanPipeline", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        text={"text_encoder": {"d_model": 4096}},
    ),
    "wan2.2-5b": Published(
        "WanPipeline", WAN_5B, WAN_5B_VAE, {"text_encoder": {"d_model": 4096}}, {"expand_timesteps": True}
    ),
    "wan2.2-14b": Published("of two", text={"text_encoder": {"d_model": 4096}}),
    "hunyuanvideo-1.5": Published(
        "HunyuanVideo15Pipeline", {"task_type": "t2v"},
        text={"text_encoder": {"hidden_size": 3584}, "text_encoder_2": {"d_model": 1472}},
    ),
    "ltx": Published("LTXPipeline", text={"text_encoder": {"d_model": 4096}}),
}  # fmt: skip


def resized(encoder: Any, values: Values) -> Any:
    """A text encoder like this one, with other values in its configuration."""
    config = encoder.config
    known = getattr(config, "text_config", config)
    for name, value in values.items():
        setattr(known, name, value)
    if known is not config:  # pictures are read at the width of words
        config.vision_config.out_hidden_size = values["hidden_size"]
    return type(encoder)(config)


def pipeline(name: str) -> Any:
    """The pipeline of a model, its large parts without weights."""
    one = MODELS[name]
    pipe = tiny(one.pipeline)
    with init_empty_weights():
        parts = {
            key: type(part)(**one.transformer)
            for key, part in pipe.components.items()
            if key.startswith("transformer") and part is not None
        }
        parts["vae"] = type(pipe.vae)(**one.vae)
        parts |= {key: resized(pipe.components[key], values) for key, values in one.text.items()}
    pipe.register_modules(**parts)
    pipe.register_to_config(**one.config)
    return pipe


def configurations(name: str, folder: Path) -> None:
    """Write the folder of a model without weights."""
    hub.quiet()
    pipe = pipeline(name)
    for key, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            save = part.save_config if isinstance(part, diffusers.ModelMixin) else part.config.save_pretrained
            save(folder / key)
        elif part is not None and hasattr(part, "save_pretrained"):
            part.save_pretrained(folder / key)
    pipe.save_config(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(MODELS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    configurations(options.name, options.folder)
