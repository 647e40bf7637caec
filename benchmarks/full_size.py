"""Write a pipeline of published size and random weights to a folder: speed and memory do not depend on the numbers.

    python benchmarks/full_size.py sd3.5-medium FOLDER [--text | --configurations] [--device cuda]

The folder is read like any other: `flowward train --model FOLDER`. Text encoders have their published width, behind a
tokenizer of two dozen words; their published depth too with `--text`, and one layer without. bf16; Stable Diffusion 3.5
Medium takes 5 GB (16 with text), FLUX.1-dev 24 GB (34).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_pipelines import VOCABULARY, WORDS, tokenizer  # noqa: F401

from flowward.models import hub

Size = dict[str, Any]
SD3: Size = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
SMALL_SD3: Size = {
    "sample_size": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 64,
    "caption_projection_dim": 32, "pooled_projection_dim": 64, "pos_embed_max_size": 64, "dual_attention_layers": (0,),
}  # fmt: skip
FLUX: Size = {"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
SMALL_FLUX: Size = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def autoencoder(width: tuple[int, ...], groups: int, scale: float, shift: float) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=width, down_block_types=("DownEncoderBlock2D",) * len(width),
        up_block_types=("UpDecoderBlock2D",) * len(width), latent_channels=16, norm_num_groups=groups, sample_size=1024,
        layers_per_block=2, scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def clip(width: int, layers: int, heads: int, projected: bool) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, projection_dim=width, hidden_act="gelu",
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=77, eos_token_id=2,
        bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5(width: int, layers: int) -> Any:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=width, d_ff=5 * width // 2, num_layers=layers, num_heads=width // 64, d_kv=64,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def sd3(small: bool, text: bool) -> Any:
    """Stable Diffusion 3.5 Medium: 2.5 billion parameters in the transformer; CLIP-L, OpenCLIP-bigG, T5-XXL."""
    first, second, third = (12, 32, 24) if text else (1, 1, 1)
    if small:
        readers = clip(32, first, 4, True), clip(32, second, 4, True), t5(64, third)
    else:
        readers = clip(768, first, 12, True), clip(1280, second, 20, True), t5(4096, third)
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            patch_size=2, in_channels=16, out_channels=16, qk_norm="rms_norm", **(SMALL_SD3 if small else SD3)
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder((8, 8), 4, 1.5305, 0.0609) if small else autoencoder((128, 256, 512, 512), 32, 1.5305, 0.0609),
        text_encoder=readers[0], tokenizer=tokenizer(), text_encoder_2=readers[1], tokenizer_2=tokenizer(),
        text_encoder_3=readers[2], tokenizer_3=tokenizer(512),
    )  # fmt: skip


def flux(small: bool, text: bool) -> Any:
    """FLUX.1-dev: 12 billion parameters in the transformer; CLIP-L, T5-XXL."""
    first, second = (12, 24) if text else (1, 1)
    readers = (clip(32, first, 4, False), t5(64, second)) if small else (clip(768, first, 12, False), t5(4096, second))
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=64, guidance_embeds=True, **(SMALL_FLUX if small else FLUX)
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
        ),
        vae=autoencoder((8, 8), 4, 0.3611, 0.1159) if small else autoencoder((128, 256, 512, 512), 32, 0.3611, 0.1159),
        text_encoder=readers[0], tokenizer=tokenizer(), text_encoder_2=readers[1], tokenizer_2=tokenizer(512),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[bool, bool], Any]] = {"sd3.5-medium": sd3, "flux.1-dev": flux}


def write(name: str, folder: Path, device: str, small: bool = False, text: bool = False) -> None:
    """Weights are drawn on the device: there it takes seconds."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            pipe = PIPELINES[name](small, text)
    finally:
        torch.set_default_dtype(before)
    hub.quiet()
    pipe.save_pretrained(folder)


def configurations(name: str, folder: Path) -> None:
    """The folder without weights, which is enough to count memory (`flowward memory --model FOLDER`)."""
    with init_empty_weights():
        pipe = PIPELINES[name](False, True)
    for key, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            save = part.save_config if isinstance(part, diffusers.ModelMixin) else part.config.save_pretrained
            save(folder / key)
        elif part is not None:
            part.save_pretrained(folder / key)
    pipe.save_config(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(PIPELINES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", action="store_true", help="with text encoders")
    parser.add_argument("--configurations", action="store_true", help="and no weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a few thousand weights, to try the program")
    options = parser.parse_args()
    if options.configurations:
        return configurations(options.name, options.folder)
    write(options.name, options.folder, options.device, options.small, options.text)


if __name__ == "__main__":
    main()
