"""Tiny pipelines of the families that make sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_pipelines as tiny  # which imports this module: its names are there once the functions are called
import torch
import transformers
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder


def t5_gemma() -> Any:
    """transformers makes the encoder from the config of the whole model, and keeps the whole config."""
    half = {
        "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64,
    }  # fmt: skip
    config = transformers.T5GemmaConfig(
        encoder=half, decoder=half, is_encoder_decoder=False, vocab_size=tiny.VOCABULARY
    )
    return transformers.T5GemmaEncoderModel(config)


def stable_audio_3() -> Any:
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=16, depth=2, num_heads=2, cond_token_dim=16, global_cond_dim=16, local_add_cond_dim=5,
        timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=3,
    )  # fmt: skip
    vae = diffusers.AutoencoderSAME(
        patch_size=4, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(4,), encoder_transformer_depths=(1,),
        latent_dim=4, dim_heads=8, sampling_rate=800,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vae.parameters():  # blocks and mappings begin at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
        vae.bottleneck.running_std.fill_(1.4)
    return diffusers.StableAudio3Pipeline(
        vae=vae, text_encoder=t5_gemma(), tokenizer=tiny.tokenizer(24),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8, max_val=8.0),
        transformer=transformer, scheduler=tiny.schedule(num_train_timesteps=1),
    )  # fmt: skip


def oobleck() -> Any:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=4, sampling_rate=200,
    )  # fmt: skip


def ace_step() -> Any:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}
    transformer = diffusers.AceStepTransformer1DModel(
        hidden_size=16, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=4,
        encoder_hidden_size=24, **heads,
    )  # fmt: skip
    encoder = AceStepConditionEncoder(
        hidden_size=24, text_hidden_dim=16, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, sliding_window=4, **heads,
    )  # fmt: skip
    encoder.silence_latent.normal_()
    return diffusers.AceStepPipeline(
        vae=oobleck(), text_encoder=tiny.qwen3(1).model, tokenizer=tiny.tokenizer(2048), transformer=transformer,
        condition_encoder=encoder, scheduler=tiny.schedule(num_train_timesteps=1),
    )  # fmt: skip


def longcat_audio() -> Any:
    transformer = diffusers.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4, ff_mult=2.0
    )
    vae = diffusers.LongCatAudioDiTVae(
        channels=4, c_mults=[1, 2], strides=[2, 4], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=8,
        sample_rate=200,
    )  # fmt: skip
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=tiny.VOCABULARY, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    )
    return diffusers.LongCatAudioDiTPipeline(
        vae=vae, text_encoder=text, tokenizer=tiny.tokenizer(24), transformer=transformer,
        scheduler=tiny.schedule(invert_sigmas=True),
    )  # fmt: skip


SOUND: dict[str, Callable[[], Any]] = {
    "StableAudio3Pipeline": stable_audio_3,
    "AceStepPipeline": ace_step,
    "LongCatAudioDiTPipeline": longcat_audio,
}
