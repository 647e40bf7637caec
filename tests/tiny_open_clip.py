"""The model of tiny_clip as open_clip has it, written from the paper in plain torch: what a conversion is held to."""

from __future__ import annotations

import tiny_clip
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """What open_clip calls a residual attention block, from the paper: pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int, act: str):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.act = act

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](
            y * torch.sigmoid(1.702 * y) if self.act == "quick_gelu" else nn.functional.gelu(y)
        )


class Tower(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, act: str):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, hidden, act) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, act: str):
        super().__init__()
        self.class_embedding, self.positional_embedding = (
            nn.Parameter(torch.zeros(48)),
            nn.Parameter(torch.zeros(17, 48)),
        )
        self.conv1 = nn.Conv2d(3, 48, 8, 8, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(48), nn.LayerNorm(48)
        self.transformer = Tower(48, 3, 96, act)
        self.proj = nn.Parameter(torch.zeros(48, 24))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """The architecture under open_clip's names."""

    def __init__(self, act: str):
        super().__init__()
        self.visual = Visual(act)
        self.token_embedding = nn.Embedding(len(tiny_clip.VOCABULARY), 32)
        self.positional_embedding = nn.Parameter(torch.zeros(tiny_clip.LENGTH, 32))
        self.transformer, self.ln_final = Tower(32, 2, 64, act), nn.LayerNorm(32)
        self.text_projection, self.logit_scale = nn.Parameter(torch.zeros(32, 24)), nn.Parameter(torch.zeros(()))

    def text(self, tokens: Tensor) -> Tensor:
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


def network(act: str = "gelu") -> OpenClip:
    with torch.random.fork_rng(devices=[]):
        made = OpenClip(act).eval()
    tiny_clip.fill(made)
    return made
