"""Tiny pipelines of families of video models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import transformers
from tokenizers.processors import TemplateProcessing


def with_ftfy(kind: Any) -> Any:
    """A class of pipelines, whose module has ftfy, or a substitute for it that repairs no letters."""
    substitute: Any = ModuleType("ftfy")
    substitute.fix_text, substitute.__spec__ = str, ModuleSpec("ftfy", None)
    pipeline: Any = sys.modules[kind.__module__]
    pipeline.ftfy = sys.modules.setdefault("ftfy", substitute)
    return kind


def bare(length: int) -> Any:
    """A tokenizer that adds no marks, as the chats of language models do, with a long system message."""
    made = tiny.tokenizer(length)
    made.backend_tokenizer.post_processor = None
    made.chat_template = (
        "{{ 'user ' * 16 }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}system"
    )
    return made


def qwen_text(layers: int = 3) -> Any:
    return transformers.Qwen2_5_VLTextModel(
        transformers.Qwen2_5_VLTextConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
            rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
        )
    )  # fmt: skip


def siglip() -> Any:
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )


def siglip_processor() -> Any:
    """As SiglipImageProcessor, which takes nothing without torchvision."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(size={"height": 8, "width": 8})


def hunyuan_video15(image: bool = False) -> Any:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=16, image_embed_dim=8, rope_axes_dim=(4, 4, 4),
        target_size=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    kind, seen = diffusers.HunyuanVideo15Pipeline, {}
    if image:
        kind = diffusers.HunyuanVideo15ImageToVideoPipeline
        seen = {"image_encoder": siglip(), "feature_extractor": siglip_processor()}
    pipe = kind(
        transformer=transformer, scheduler=tiny.schedule(shift=5.0), vae=vae, text_encoder=qwen_text(),
        tokenizer=bare(2048), text_encoder_2=tiny.t5(16), tokenizer_2=tiny.tokenizer(256),
        guider=diffusers.ClassifierFreeGuidance(6.0), **seen,
    )  # fmt: skip
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 64, 16, 4  # to be fast
    return pipe


def llama(layers: int = 3) -> Any:
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
        )
    )  # fmt: skip


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8), down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3, layers_per_block=1, norm_num_groups=4, scaling_factor=0.48,
        spatial_compression_ratio=4, temporal_compression_ratio=4,
    )  # fmt: skip


def hunyuan_video(kind: Any = diffusers.HunyuanVideoPipeline, channels: int = 4) -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=channels, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    return kind(
        transformer=transformer, scheduler=tiny.schedule(shift=7.0), vae=hunyuan_vae(), text_encoder=llama(),
        tokenizer=tiny.tokenizer(2048), text_encoder_2=tiny.clip(16, False), tokenizer_2=tiny.tokenizer(),
    )  # fmt: skip


def ltx(kind: Any = diffusers.LTXPipeline) -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False), decoder_inject_noise=(False,) * 3, patch_size=4,
        down_block_types=("LTXVideoDownBlock3D",) * 2, downsample_type=("conv",) * 2, upsample_residual=(False,) * 2,
        upsample_factor=(1, 1), scaling_factor=0.8, spatial_compression_ratio=8, temporal_compression_ratio=2,
    )  # fmt: skip
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2.0)
    return kind(
        transformer=transformer, scheduler=tiny.dynamic(shift_terminal=0.1), vae=vae, text_encoder=tiny.t5(16),
        tokenizer=tiny.tokenizer(128),
    )  # fmt: skip


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=16, time_embed_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32), latent_channels=12,
        layers_per_block=(1, 1, 1, 1, 1), add_attention_block=(False,) * 5, scaling_factor=0.9,
    )  # fmt: skip
    return diffusers.MochiPipeline(
        transformer=transformer, scheduler=tiny.schedule(invert_sigmas=True), vae=vae, text_encoder=tiny.t5(16),
        tokenizer=tiny.tokenizer(256), force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def skyreels_v2() -> Any:
    parts = tiny.wan()
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    return with_ftfy(diffusers.SkyReelsV2Pipeline)(
        transformer=transformer, scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
    )  # fmt: skip


def sana_video(kind: Any = diffusers.SanaVideoPipeline) -> Any:
    parts = tiny.sana()
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=16,
        sample_size=30, rope_max_seq_len=32,
    )  # fmt: skip
    return kind(
        transformer=transformer, scheduler=tiny.schedule(shift=8.0), vae=tiny.wan().vae,
        text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
    )  # fmt: skip


def clip_vision() -> Any:
    return transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        )
    )


def image_processor(side: int = 8) -> Any:
    """As CLIPImageProcessor, which takes nothing without torchvision."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"height": side, "width": side}
    return CLIPImageProcessorPil(size=size, crop_size=size)


def wan_i2v(kind: Any, network: Any = diffusers.WanTransformer3DModel) -> Any:
    """With an image encoder, as Wan 2.1."""
    parts = tiny.wan()
    transformer = network(
        num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32, image_dim=16, added_kv_proj_dim=24,
    )  # fmt: skip
    return with_ftfy(kind)(
        transformer=transformer, scheduler=parts.scheduler, vae=parts.vae, text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer, image_encoder=clip_vision(), image_processor=image_processor(),
    )  # fmt: skip


def wan_i2v_of_one_frame() -> Any:
    """As Wan 2.2-5B: the first frame is in the sample."""
    parts = tiny.wan()
    return with_ftfy(diffusers.WanImageToVideoPipeline)(
        transformer=parts.transformer, scheduler=parts.scheduler, vae=parts.vae, text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer, expand_timesteps=True,
    )  # fmt: skip


def wan_vace() -> Any:
    parts = tiny.wan()
    transformer = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=72,
    )  # fmt: skip
    return with_ftfy(diffusers.WanVACEPipeline)(
        transformer=transformer, scheduler=parts.scheduler, vae=parts.vae, text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
    )  # fmt: skip


def kandinsky5(kind: Any, seen: bool = True) -> Any:
    """Of networks that also see which frames are given, or not."""
    parts = tiny.TINY["Kandinsky5T2IPipeline"]()
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), visual_cond=seen,
    )  # fmt: skip
    return kind(**{**parts.components, "transformer": transformer, "vae": hunyuan_vae()})


def llava() -> Any:
    """576 features of a picture, as in the template of the pipeline."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 24, "patch_size": 1}  # fmt: skip
    config = llama().config
    config.vocab_size = tiny.VOCABULARY + 6
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision), text_config=config, image_seq_length=576,
            image_token_index=tiny.VOCABULARY, pad_token_id=0,
        )
    )  # fmt: skip


def llava_tokenizer() -> Any:
    """The picture has the sixth place in the template, and a prompt comes after 103 tokens, as with Llama's own."""
    made = tiny.tokenizer(2048)
    marks = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n", "move"]
    made.add_special_tokens({"additional_special_tokens": marks})
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def hunyuan_i2v(kind: str = "token_replace", embedded: bool = True) -> Any:
    parts = hunyuan_video()
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(4, 4, 4),
        image_condition_type=kind, guidance_embeds=embedded,
    )  # fmt: skip
    reader = image_processor(24)
    made = {"transformer": transformer, "text_encoder": llava(), "tokenizer": llava_tokenizer()}
    return diffusers.HunyuanVideoImageToVideoPipeline(**{**parts.components, **made, "image_processor": reader})


VIDEO: dict[str, Callable[[], Any]] = {
    "HunyuanVideo15Pipeline": hunyuan_video15,
    "HunyuanVideoPipeline": hunyuan_video,
    "LTXPipeline": ltx,
    "MochiPipeline": mochi,
    "SkyReelsV2Pipeline": skyreels_v2,
    "SanaVideoPipeline": sana_video,
    "WanImageToVideoPipeline": lambda: wan_i2v(diffusers.WanImageToVideoPipeline),
    "SkyReelsV2ImageToVideoPipeline": lambda: wan_i2v(
        diffusers.SkyReelsV2ImageToVideoPipeline, diffusers.SkyReelsV2Transformer3DModel
    ),
    "LTXImageToVideoPipeline": lambda: ltx(diffusers.LTXImageToVideoPipeline),
    "HunyuanVideo15ImageToVideoPipeline": lambda: hunyuan_video15(True),
    "WanVACEPipeline": wan_vace,
    "HunyuanSkyreelsImageToVideoPipeline": lambda: hunyuan_video(diffusers.HunyuanSkyreelsImageToVideoPipeline, 8),
    "SanaImageToVideoPipeline": lambda: sana_video(diffusers.SanaImageToVideoPipeline),
    "ChronoEditPipeline": lambda: wan_i2v(diffusers.ChronoEditPipeline, diffusers.ChronoEditTransformer3DModel),
    "Kandinsky5T2VPipeline": lambda: kandinsky5(diffusers.Kandinsky5T2VPipeline),
    "Kandinsky5I2VPipeline": lambda: kandinsky5(diffusers.Kandinsky5I2VPipeline),
    "HunyuanVideoImageToVideoPipeline": hunyuan_i2v,
}
OWN_FRAMES = {"MochiPipeline": 7, "Kandinsky5I2VPipeline": 17}  # not cut into 4 n + 1, or not so short
FRAMES = {name: {"frames": OWN_FRAMES.get(name, 5)} for name in VIDEO}
