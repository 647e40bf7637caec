"""A tiny checkpoint of ImageReward under its own names, and what it computes, from the papers in plain torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import tiny_clip
import torch
import transformers
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear

SEEN, READ, HIDDEN, PATCH, LAYERS = 128, 64, 96, 56, 2  # widths of the two models; heads are 64 wide
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "two", "birds", "sea", "under", "tree"]


def state() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, SEEN),
        "blip.visual_encoder.pos_embed": (1, (224 // PATCH) ** 2 + 1, SEEN),
        "blip.visual_encoder.patch_embed.proj.weight": (SEEN, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": (SEEN,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(WORDS), READ),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, READ),
    }

    def affine(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    norm("blip.visual_encoder.norm", SEEN)
    norm("blip.text_encoder.embeddings.LayerNorm", READ)
    for number in range(LAYERS):
        block = f"blip.visual_encoder.blocks.{number}"
        norm(f"{block}.norm1", SEEN)
        norm(f"{block}.norm2", SEEN)
        affine(f"{block}.attn.qkv", 3 * SEEN, SEEN)
        affine(f"{block}.attn.proj", SEEN, SEEN)
        affine(f"{block}.mlp.fc1", HIDDEN, SEEN)
        affine(f"{block}.mlp.fc2", SEEN, HIDDEN)
        layer = f"blip.text_encoder.encoder.layer.{number}"
        for attention, into in (("attention", READ), ("crossattention", SEEN)):
            affine(f"{layer}.{attention}.self.query", READ, READ)
            affine(f"{layer}.{attention}.self.key", READ, into)
            affine(f"{layer}.{attention}.self.value", READ, into)
            affine(f"{layer}.{attention}.output.dense", READ, READ)
            norm(f"{layer}.{attention}.output.LayerNorm", READ)
        affine(f"{layer}.intermediate.dense", HIDDEN, READ)
        affine(f"{layer}.output.dense", READ, HIDDEN)
        norm(f"{layer}.output.LayerNorm", READ)
    for number, (out, into) in zip((0, 2, 4), ((16, READ), (8, 16), (1, 8)), strict=True):
        affine(f"mlp.layers.{number}", out, into)
    made = {}
    for number, (name, shape) in enumerate(shapes.items()):
        value = tiny_clip.formula(shape, 0.29 * (number % 13) + 0.007 * number)
        is_norm = "norm" in name.lower().split(".")[-2]
        if is_norm and name.endswith("weight"):
            made[name] = 1 + 0.2 * value
        elif len(shape) == 1:
            made[name] = 0.2 * value
        elif name.endswith(("cls_token", "pos_embed")):
            made[name] = 0.005 * value  # so small that it matters what a norm adds to their variance
        elif "embeddings" in name:
            made[name] = value
        else:
            large = 2.0 if "patch" in name else 4.0 if "cross" in name else 1.5
            made[name] = value * large * value[0].numel() ** -0.5
    return made


def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def save(folder: Path) -> str:
    """A folder with the checkpoint and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {**state(), "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}, folder / "ImageReward.pt"
    )
    tokenizer().save_pretrained(folder)
    return str(folder)


def score(state: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> Tensor:
    """Of images [B, 3, 224, 224] that have been prepared, and tokens [B, L] without padding."""

    def affine(x: Tensor, name: str) -> Tensor:
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v))
        return (((q @ k.mT) / math.sqrt(64)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    eye = "blip.visual_encoder"
    patches = conv2d(
        pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=PATCH
    )
    x = torch.cat([state[f"{eye}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1)
    x = x + state[f"{eye}.pos_embed"]
    for number in range(LAYERS):
        block = f"{eye}.blocks.{number}"
        x = x + affine(
            attended(*affine(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)), f"{block}.attn.proj"
        )
        x = x + affine(gelu(affine(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    x = norm(x, f"{eye}.norm", 1e-6)
    words = "blip.text_encoder.embeddings"
    y = (
        state[f"{words}.word_embeddings.weight"][tokens]
        + state[f"{words}.position_embeddings.weight"][: tokens.shape[1]]
    )
    y = norm(y, f"{words}.LayerNorm", 1e-12)
    for number in range(LAYERS):
        layer = f"blip.text_encoder.encoder.layer.{number}"
        for attention, seen in (("attention", None), ("crossattention", x)):
            of, to = f"{layer}.{attention}.self", f"{layer}.{attention}.output"
            source = y if seen is None else seen
            mixed = attended(affine(y, f"{of}.query"), affine(source, f"{of}.key"), affine(source, f"{of}.value"))
            y = norm(affine(mixed, f"{to}.dense") + y, f"{to}.LayerNorm", 1e-12)
        inner = affine(gelu(affine(y, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        y = norm(inner + y, f"{layer}.output.LayerNorm", 1e-12)
    z = y[:, 0]
    for number in (0, 2, 4):
        z = affine(z, f"mlp.layers.{number}")
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072
