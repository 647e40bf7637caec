"""The transformer of the built-in model with a second time: where a jump ends.

It is SD3's with one more embedding, of the length t - s of a jump, behind a gate that is 0 at first. So it starts as
the network that it is made from, whatever the length.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding
from torch import Tensor, nn


class TwoTimes(CombinedTimestepTextProjEmbeddings):
    """SD3's embedding of time and pooled text, plus that of the length of a jump."""

    def __init__(self, width: int, pooled: int):
        super().__init__(width, pooled)
        self.jump_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=width)
        self.jump_gate = nn.Parameter(torch.zeros(width))

    def forward(self, timestep: Tensor, pooled_projection: Tensor) -> Tensor:
        """timestep [B, 2]: 1000 t and 1000 s -> [B, width]."""
        t, s = timestep.unbind(1)
        length = self.jump_embedder(self.time_proj(t - s).to(pooled_projection.dtype))
        found: Tensor = super().forward(t, pooled_projection) + self.jump_gate * length
        return found


class TwoTimeTransformer(SD3Transformer2DModel):
    """SD3's transformer whose `timestep` is [B, 2]: it returns the average velocity from t to s."""

    @wraps(SD3Transformer2DModel.__init__)  # type: ignore[misc]  # diffusers reads its signature
    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.time_text_embed = TwoTimes(self.inner_dim, self.config.pooled_projection_dim)

    @classmethod
    def of(cls, network: SD3Transformer2DModel) -> TwoTimeTransformer:
        """The same network with a second time that does nothing yet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the embedding behind the gate is the same in every run
            made: TwoTimeTransformer = cls.from_config(dict(network.config))
        missing, unexpected = made.load_state_dict(network.state_dict(), strict=False)
        assert not unexpected and all("jump_" in name for name in missing)
        return made
