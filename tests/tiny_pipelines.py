"""A pipeline of every family, tiny and with random weights, built from configs: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_video
import torch
import transformers
from tiny_edits import EDITS
from tiny_images import IMAGES
from tiny_images import Processor as Processor
from tiny_more import MORE
from tiny_sound import SOUND
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["a", "an", "the", "red", "green", "blue", "circle", "square", "dog", "cat", "photo", "of", "on", "left",
         "right", "two", "three", "one", "small", "large", ",", ".", "user", "system"]  # fmt: skip
CHAT = "{% for m in messages %}user {{ m['content'] }} {% endfor %}system"


def tokenizer(length: int = 77, chat: bool = False) -> Any:
    """Words of a small vocabulary, with a start and an end."""
    known = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip
    if chat:
        made.chat_template = CHAT
    return made


VOCABULARY = len(WORDS) + 4


def clip(width: int, projected: bool) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77, eos_token_id=2, bos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def t5(width: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=VOCABULARY, d_model=width, d_ff=2 * width, d_kv=8, num_heads=4, num_layers=2)
    )


def autoencoder(channels: int, shift: float | None = 0.1) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4, sample_size=32,
        scaling_factor=1.5, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False, layers_per_block=1,
    )  # fmt: skip


def schedule(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def dynamic(**more: Any) -> Any:
    return schedule(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0, **more)


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=schedule(shift=3.0), vae=autoencoder(4),
        text_encoder=clip(16, True), tokenizer=tokenizer(), text_encoder_2=clip(16, True), tokenizer_2=tokenizer(),
        text_encoder_3=t5(32), tokenizer_3=tokenizer(512),
    )  # fmt: skip


def flux(kind: Any = diffusers.FluxPipeline) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return kind(
        transformer=transformer, scheduler=dynamic(), vae=autoencoder(4), text_encoder=clip(16, False),
        tokenizer=tokenizer(), text_encoder_2=t5(32), tokenizer_2=tokenizer(512),
    )  # fmt: skip


def qwen3(layers: int) -> Any:
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    return diffusers.Flux2KleinPipeline(
        transformer=transformer, scheduler=dynamic(), vae=vae, text_encoder=qwen3(28),
        tokenizer=tokenizer(512, chat=True),
    )  # fmt: skip


class Reader:
    """What Qwen2VLProcessor does with texts that hold an image each; that one takes nothing without torchvision."""

    token = "<|image_pad|>"

    def __init__(self, tokenizer: Any) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer, self.images = tokenizer, Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
        tokenizer.add_special_tokens({"additional_special_tokens": [self.token]})

    def __call__(self, text: list[str], images: list[Any], videos: None = None, **more: Any) -> Any:
        seen = self.images(images, return_tensors="pt")
        counts = iter(int(grid.prod()) // self.images.merge_size**2 for grid in seen["image_grid_thw"])
        pieces = [each.split(self.token) for each in text]
        whole = [rest[0] + "".join(self.token * next(counts) + own for own in rest[1:]) for rest in pieces]
        return transformers.BatchFeature({**self.tokenizer(whole, **more), **seen})


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 1.2, 0.8, 1.0],
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        },
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        scheduler=dynamic(shift_terminal=0.02),
        vae=vae,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer(2048),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        transformer=transformer, scheduler=schedule(shift=3.0), vae=autoencoder(4), text_encoder=qwen3(3).model,
        tokenizer=tokenizer(512, chat=True),
    )  # fmt: skip


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4,
    )  # fmt: skip
    gemma = transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    return diffusers.SanaPipeline(
        transformer=transformer, scheduler=schedule(shift=3.0), vae=vae, text_encoder=gemma, tokenizer=tokenizer(512)
    )


def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 1.2, 0.8, 1.0],
    )  # fmt: skip
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=VOCABULARY, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    )
    return diffusers.WanPipeline(
        transformer=transformer, scheduler=schedule(shift=3.0), vae=vae, text_encoder=text, tokenizer=tokenizer(512)
    )


def anyflow() -> Any:
    """Wan's other parts, with a transformer of two times."""
    parts = wan()
    transformer = diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.AnyFlowPipeline(
        transformer=transformer, scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=3.0), vae=parts.vae,
        text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
    )  # fmt: skip


def wan_of_two() -> Any:
    """As Wan 2.2-A14B: one transformer for the first half of an Euler trajectory of four steps, one for the second."""
    pipe, other = wan(), wan()
    pipe.register_modules(transformer_2=other.transformer)
    pipe.register_to_config(boundary_ratio=0.875)
    return pipe


TINY: dict[str, Callable[[], Any]] = {
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
    "FluxKontextPipeline": lambda: flux(diffusers.FluxKontextPipeline),
    "Flux2KleinPipeline": flux2_klein,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
    "SanaPipeline": sana,
    "WanPipeline": wan,
    "AnyFlowPipeline": anyflow,
    **EDITS,
    **MORE,
    **IMAGES,
    **tiny_video.VIDEO,
    **SOUND,
}


# of the families that make videos
FRAMES = {"WanPipeline": {"frames": 5}, "AnyFlowPipeline": {"frames": 5}, **tiny_video.FRAMES}


def small(name: str) -> dict[str, Any]:
    """The size of a family's small samples: of pictures and videos in pixels, of sounds in seconds."""
    return {"seconds": 1.0} if name in SOUND else {"height": 32, "width": 32, **FRAMES.get(name, {})}


def tiny(name: str, seed: int = 0) -> Any:
    """The pipeline of a family, the same for the same seed; every parameter is random, zeros too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = (TINY | {"of two": wan_of_two})[name]()
        transformers = [pipe.transformer, *([pipe.transformer_2] if name == "of two" else [])]
        for parameter in [each for part in transformers for each in part.parameters()]:
            if not parameter.any():  # output layers start at zero, and would hide everything
                torch.nn.init.normal_(parameter, std=0.2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def halved(pipe: Any) -> Any:
    """In bf16 as diffusers loads it: some parameters stay in float32, and buffers that are in no file as they were."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    made = [(module, key) for part in parts for module in part.modules() for key in module._non_persistent_buffers_set]
    kept = [(module, key, module._buffers[key]) for module, key in made]
    pipe.to(torch.bfloat16)
    for module, key, buffer in kept:
        module._buffers[key] = buffer
    for part in [each for each in pipe.components.values() if isinstance(each, diffusers.ModelMixin)]:
        exact = set(part._keep_in_fp32_modules or ())
        for name, held in part.named_parameters():
            if exact & set(name.split(".")):
                held.data = held.data.float()
    return pipe
