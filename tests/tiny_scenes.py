"""A model in the layout of the shipped one that takes no time: two blocks of width 32, thin convolutions, untrained."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tiny_runs import TWO_TIMES

from flowward.prompts.scenes import vocabulary
from flowward.scenes import network
from flowward.scenes.design import LATENT_CHANNELS

WHOLE = network.new_autoencoder().config


def transformer() -> network.SD3Transformer2DModel:
    return network.SD3Transformer2DModel(
        sample_size=network.LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=network.LATENT_SIZE // 2,
        qk_norm="rms_norm",
    )


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(**{**WHOLE, "block_out_channels": (4, 4, 4), "norm_num_groups": 2, "shift_factor": 0.0})


def saved(folder: Path) -> None:
    """Save it, and beside it the same with two times; the weights are the same each time."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = network.Networks(transformer(), autoencoder(), network.WordEncoder(vocabulary(), 32))
        networks.save(folder)
        networks.transformer = network.TwoTimeTransformer.of(networks.transformer)
        torch.nn.init.normal_(networks.transformer.time_text_embed.jump_gate)
        networks.save(Path(f"{folder}{TWO_TIMES}"))
