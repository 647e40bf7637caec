"""A model of random weights, small enough that a whole run takes a second."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, even where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model in the shipped model's layout: two blocks of width 32, never trained."""
    import torch  # here, because tests that need no model should not wait for it

    from flowward.scenes import network

    def transformer() -> network.SD3Transformer2DModel:
        return network.SD3Transformer2DModel(
            sample_size=network.LATENT_SIZE,
            patch_size=2,
            in_channels=network.LATENT_CHANNELS,
            out_channels=network.LATENT_CHANNELS,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=network.LATENT_SIZE // 2,
            qk_norm="rms_norm",
        )

    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(network, "new_transformer", transformer)
        networks = network.Networks(
            transformer(), network.new_autoencoder(), network.WordEncoder(network.vocabulary(), 32)
        )
        networks.autoencoder.register_to_config(shift_factor=0.0)
        networks.save(folder)
    return str(folder)
