"""Tiny pipelines of newer families of image models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import torch
import transformers
from tokenizers.processors import TemplateProcessing

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'][0]['text'] }} {% endfor %}"


def bare(length: int = 512) -> Any:
    """A tokenizer that adds no marks, with a template for messages in parts."""
    made = tiny.tokenizer(length)
    made.chat_template = CHAT
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    return made


def qwen(length: int = 2048) -> Any:
    """A tokenizer that adds no marks, and knows those of Qwen's chats, as lines of its templates have them."""
    made = bare(length)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "\n", "<|image_pad|>"]})
    return made


def text(layers: int) -> dict[str, Any]:
    """Sizes of a small language model."""
    return {
        "vocab_size": tiny.VOCABULARY + 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
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


def video_autoencoder(z: int = 4) -> Any:
    """Of Wan 2.2's kind: 16 times smaller."""
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=z, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 1.2, 0.8, 1.0], is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=16,
    )  # fmt: skip


def longcat_image() -> Any:
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    return diffusers.LongCatImagePipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(16),
        text_encoder=tiny.qwen_image().text_encoder, tokenizer=bare(1024), text_processor=None,
    )  # fmt: skip


def qwen3_vl(layers: int, kind: Any) -> Any:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 4}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 1e4}
    return kind(transformers.Qwen3VLConfig(
        text_config={**text(layers), "rope_scaling": rope}, vision_config=vision, tie_word_embeddings=True
    ))  # fmt: skip


def krea2() -> Any:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.Krea2Pipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.qwen_image().vae,
        text_encoder=qwen3_vl(3, transformers.Qwen3VLModel), tokenizer=qwen(), text_encoder_select_layers=(0, 1, 3),
    )  # fmt: skip


def ernie_image() -> Any:
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return diffusers.ErnieImagePipeline(
        transformer=transformer, scheduler=tiny.schedule(shift=3.0), vae=tiny.flux2_klein().vae,
        text_encoder=mistral3(3, transformers.Mistral3Model), tokenizer=tiny.tokenizer(40),
    )  # fmt: skip


def bria_fibo() -> Any:
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 6, 6], text_encoder_dim=16,
    )  # fmt: skip
    config = transformers.SmolLM3Config(**{**text(1), "vocab_size": 128_001}, pad_token_id=0)  # the begin of a text
    return diffusers.BriaFiboPipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=video_autoencoder(),
        text_encoder=transformers.SmolLM3Model(config), tokenizer=tiny.tokenizer(4096),
    )  # fmt: skip


class Processor:
    """What a processor of Qwen3-VL does with texts alone; the one in transformers takes nothing without torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: None = None, videos: None = None, **more: Any) -> Any:
        return self.tokenizer(text, **more)

    @classmethod
    def from_pretrained(cls, *where: Any, **more: Any) -> Processor:
        return cls(qwen())

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids))

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **more: Any) -> Any:
        """Of a batch of one, as that one gives it."""
        said = [
            each["content"] if isinstance(each["content"], str) else each["content"][0]["text"] for each in messages
        ]
        marked = zip(messages, said, strict=True)
        whole = "".join(f"<|im_start|>{each['role']}\n{words}<|im_end|>\n" for each, words in marked)
        return [self.tokenizer(whole)["input_ids"]] if tokenize else whole


@torch.no_grad()
def calm(layer: Any) -> None:
    """Let an embedding of the time have no fast waves: some networks round the time in half precision."""
    layer.weight.unflatten(1, (2, -1))[..., : layer.in_features // 4] = 0


def nucleus_image() -> Any:
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, joint_attention_dim=16, axes_dims_rope=(4, 6, 6), mlp_ratio=6,
        dense_moe_strategy="leave_first_block_dense", num_experts=2, moe_intermediate_dim=8, capacity_factors=2.0,
    )  # fmt: skip
    calm(transformer.time_text_embed.timestep_embedder.linear_1)
    for held in transformer.transformer_blocks[1].img_mlp.experts.parameters():
        torch.nn.init.normal_(held, std=0.2)  # made empty
    return diffusers.NucleusMoEImagePipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.qwen_image().vae,
        text_encoder=qwen3_vl(8, transformers.Qwen3VLForConditionalGeneration), processor=Processor(qwen()),
    )  # fmt: skip


def bria_fibo2() -> Any:
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=48, injection_layer_ids=(1,),
        perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=4, gist_step=1, gist_min_text_len=4,
        gist_max_text_len=30, axes_dims=(4, 6, 6), axes_lens=(32, 32, 32),
    )  # fmt: skip
    return diffusers.BriaFibo2Pipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.flux2_klein().vae,
        text_encoder=qwen3_vl(35, transformers.Qwen3VLForConditionalGeneration), processor=Processor(qwen()),
    )  # fmt: skip


def qwen_image21() -> Any:
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    calm(transformer.time_text_embed.timestep_embedder.linear_1)
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 1.2, 0.8, 1.0],
    )  # fmt: skip
    return diffusers.QwenImage21Pipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=vae,
        text_encoder=qwen3_vl(2, transformers.Qwen3VLForConditionalGeneration), processor=Processor(qwen()),
    )  # fmt: skip


def kandinsky5() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
    )  # fmt: skip
    reader = tiny.qwen_image().text_encoder
    reader.resize_token_embeddings(tiny.VOCABULARY + 4)
    return diffusers.Kandinsky5T2IPipeline(
        transformer=transformer, vae=autoencoder_of_8(), text_encoder=reader, tokenizer=Processor(qwen()),
        text_encoder_2=tiny.clip(16, False), tokenizer_2=tiny.tokenizer(), scheduler=tiny.schedule(shift=3.0),
    )  # fmt: skip


def long_clip() -> Any:
    known = tiny.clip(16, True).config
    known.max_position_embeddings = 218
    return transformers.CLIPTextModelWithProjection(known)


def hidream() -> Any:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        caption_channels=[32, 16], text_emb_dim=32, num_routed_experts=2, num_activated_experts=2,
        axes_dims_rope=(4, 6, 6), max_resolution=(32, 32), llama_layers=[0, 1],
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text(2), attn_implementation="eager"))
    return diffusers.HiDreamImagePipeline(
        transformer=transformer, scheduler=tiny.dynamic(), vae=tiny.autoencoder(4),
        text_encoder=long_clip(), tokenizer=tiny.tokenizer(218), text_encoder_2=long_clip(),
        tokenizer_2=tiny.tokenizer(218), text_encoder_3=tiny.t5(32), tokenizer_3=tiny.tokenizer(512),
        text_encoder_4=llama, tokenizer_4=tiny.tokenizer(512),
    )  # fmt: skip


def autoencoder_of_8() -> Any:
    """Halves both sides three times."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False, layers_per_block=1,
    )  # fmt: skip


IMAGES: dict[str, Callable[[], Any]] = {
    "Flux2Pipeline": flux2,
    "LongCatImagePipeline": longcat_image,
    "Krea2Pipeline": krea2,
    "ErnieImagePipeline": ernie_image,
    "BriaFiboPipeline": bria_fibo,
    "NucleusMoEImagePipeline": nucleus_image,
    "BriaFibo2Pipeline": bria_fibo2,
    "QwenImage21Pipeline": qwen_image21,
    "Kandinsky5T2IPipeline": kandinsky5,
    "HiDreamImagePipeline": hidream,
}
