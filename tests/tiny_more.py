"""Tiny pipelines of more families of image models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import transformers
from tokenizers.processors import TemplateProcessing


def autoencoder(blocks: int = 2) -> Any:
    """Halves both sides in each block but the last."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, layers_per_block=1,
    )  # fmt: skip


def gemma2(layers: int) -> Any:
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip


def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=32, pos_embed_max_size=64,
    )  # fmt: skip
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=tiny.VOCABULARY, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    )
    return diffusers.AuraFlowPipeline(
        transformer=transformer, scheduler=tiny.schedule(shift=1.73), vae=tiny.autoencoder(4, None), text_encoder=text,
        tokenizer=tiny.tokenizer(512),
    )  # fmt: skip


def cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=16,
        time_embed_dim=16, condition_dim=4, sample_size=16,
    )  # fmt: skip
    text = transformers.GlmModel(
        transformers.GlmConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip
    schedule = tiny.schedule(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        transformer=transformer, scheduler=schedule, vae=tiny.autoencoder(4, None), text_encoder=text,
        tokenizer=tiny.tokenizer(1024),
    )  # fmt: skip


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16, in_channels=4, hidden_size=32, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 6, 6), axes_lens=(300, 32, 32), cap_feat_dim=16,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=autoencoder(4), text_encoder=gemma2(2),
        tokenizer=tiny.tokenizer(512),
    )  # fmt: skip


def chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(4), text_encoder=tiny.t5(32),
        tokenizer=tiny.tokenizer(512),
    )  # fmt: skip


def ovis_image() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    words = tiny.tokenizer(512, chat=True)
    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A")  # Qwen's adds nothing
    return diffusers.OvisImagePipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(4), text_encoder=tiny.qwen3(2).model,
        tokenizer=words,
    )  # fmt: skip


def bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    return diffusers.BriaPipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(4), text_encoder=tiny.t5(32),
        tokenizer=tiny.tokenizer(512),
    )  # fmt: skip


MORE: dict[str, Callable[[], Any]] = {
    "AuraFlowPipeline": aura_flow,
    "CogView4Pipeline": cogview4,
    "Lumina2Pipeline": lumina2,
    "ChromaPipeline": chroma,
    "OvisImagePipeline": ovis_image,
    "BriaPipeline": bria,
}
