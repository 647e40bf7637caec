"""Tiny pipelines of families that edit images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import transformers
from tiny_more import autoencoder
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil


def qwen_image_edit(kind: Any = diffusers.QwenImageEditPlusPipeline, **more: Any) -> Any:
    """Qwen-Image, whose language model also sees."""
    pipe, (seeing, words, reader) = tiny.qwen_image(), sight()
    return kind(
        transformer=pipe.transformer, scheduler=pipe.scheduler, vae=pipe.vae, text_encoder=seeing, tokenizer=words,
        processor=reader, **more,
    )  # fmt: skip


def sight() -> tuple[Any, Any, Any]:
    """A tiny Qwen2.5-VL that sees, with its tokenizer and what reads texts with images."""
    words = tiny.tokenizer(2048)
    reader = tiny.Reader(words)
    config = tiny.qwen_image().text_encoder.config
    config.text_config.vocab_size, config.image_token_id = len(words), words.convert_tokens_to_ids(tiny.Reader.token)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), words, reader


def longcat_image_edit() -> Any:
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    seeing, words, reader = sight()
    words.add_special_tokens({"additional_special_tokens": [tiny.Reader.token, "<|vision_start|>"]})
    seeing.resize_token_embeddings(len(words))
    reader.image_processor = reader.images
    return diffusers.LongCatImageEditPipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(16), text_encoder=seeing,
        tokenizer=words, text_processor=reader,
    )  # fmt: skip


def kandinsky5_i2i() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), visual_cond=True,
    )  # fmt: skip
    seeing, _, reader = sight()
    return diffusers.Kandinsky5I2IPipeline(
        transformer=transformer, scheduler=tiny.schedule(shift=3.0), vae=autoencoder(4), text_encoder=seeing,
        tokenizer=reader, text_encoder_2=tiny.clip(16, False), tokenizer_2=tiny.tokenizer(),
    )  # fmt: skip


def bria_fibo_edit() -> Any:
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, text_encoder_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    text = transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(
            vocab_size=128_001, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, in_channels=12,
        out_channels=12, patch_size=2, is_residual=True, temperal_downsample=[False, True, True],
        scale_factor_spatial=16, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 1.2, 0.8, 1.0],
    )  # fmt: skip
    return diffusers.BriaFiboEditPipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=vae, text_encoder=text, tokenizer=tiny.tokenizer(3000)
    )


def z_image_omni() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        siglip_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    siglip = transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_patches=16,
            patch_size=16,
        )
    )  # fmt: skip
    return diffusers.ZImageOmniPipeline(
        transformer=transformer, scheduler=tiny.schedule(shift=3.0), vae=tiny.autoencoder(4),
        text_encoder=tiny.qwen3(3).model, tokenizer=tiny.tokenizer(512), siglip=siglip,
        siglip_processor=Siglip2ImageProcessorPil(max_num_patches=16),
    )  # fmt: skip


EDITS: dict[str, Callable[[], Any]] = {
    "QwenImageEditPlusPipeline": qwen_image_edit,
    "QwenImageEditPipeline": lambda: qwen_image_edit(diffusers.QwenImageEditPipeline),
    "LongCatImageEditPipeline": longcat_image_edit,
    "Kandinsky5I2IPipeline": kandinsky5_i2i,
    "BriaFiboEditPipeline": bria_fibo_edit,
    "ZImageOmniPipeline": z_image_omni,
}
