"""Attention of the built-in transformers by plain products, for float32 on a processor."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn


class PlainAttention(JointAttnProcessor2_0):
    """diffusers' joint attention of pictures and words, with two products and a softmax.

    torch's own function by products scales both queries and keys, and then looks for rows in which everything is
    masked; nothing is masked here. Its fused kernel makes a training step with 24 tokens slower (docs/notes/speed.md).
    """

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any
    ) -> tuple[Tensor, Tensor]:
        """Pictures [B, P, width] and words [B, W, width] -> what each of them reads, of the same shapes."""
        seen, read = hidden_states, encoder_hidden_states
        q = [attn.norm_q(_split(attn, attn.to_q(seen))), attn.norm_added_q(_split(attn, attn.add_q_proj(read)))]
        k = [attn.norm_k(_split(attn, attn.to_k(seen))), attn.norm_added_k(_split(attn, attn.add_k_proj(read)))]
        v = [_split(attn, attn.to_v(seen)), _split(attn, attn.add_v_proj(read))]
        found = attended(*(torch.cat(each, 2) for each in (q, k, v))).transpose(1, 2).flatten(2)
        pictures, words = found.split([seen.shape[1], read.shape[1]], 1)
        return attn.to_out[0](pictures), words if attn.context_pre_only else attn.to_add_out(words)


def _split(attn: Attention, x: Tensor) -> Tensor:
    """[B, tokens, width] -> [B, heads, tokens, width / heads]"""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of contiguous [B, heads, tokens, D]."""
    queries, keys, values = (each.flatten(0, 1) for each in (q, k, v))
    # with beta 0 the first argument is not read: the product is scaled while it is written
    scores = torch.baddbmm(q.new_zeros(()), queries, keys.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), values).view_as(q)


def plain(transformer: nn.Module) -> None:
    """Let a built-in transformer attend by plain products; its weights stay where they are."""
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.set_processor(PlainAttention())
