"""CLIP models so small that they run in no time, with weights from a formula: they are the same with every library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from flowward import rewards

PROMPTS = ["a cat", "two birds", "a cat", "a dog under a tree that is far longer than the text model reads", "sea"]
LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), START, END]


def formula(shape: tuple[int, ...], salt: float) -> Tensor:
    """Numbers that look random: sines of multiples of the golden ratio, in double precision."""
    count = int(np.prod(shape))
    values = np.sin(np.arange(1, count + 1) * 1.618033988749895 * (1 + salt) + 7 * salt) * 1.4
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def fill(network: nn.Module) -> None:
    """Weights as large as an initialisation would make them, biases and norms too, all from the formula."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(network.named_parameters()):
            value = formula(tuple(weight.shape), 0.37 * (number % 17) + 0.011 * number)
            if name.endswith("logit_scale"):
                weight.fill_(np.log(100.0))
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * value)
            elif weight.ndim < 2:
                weight.copy_(0.3 * value)
            else:
                weight.copy_(value * (weight[0].numel() ** -0.5 if "embedding.weight" not in name else 0.5))


def config(act: str = "gelu", image: int = 32) -> transformers.CLIPConfig:
    return transformers.CLIPConfig(
        text_config={
            "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": LENGTH, "hidden_act": act,
            "bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1,
            "pad_token_id": len(VOCABULARY) - 1,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": image, "patch_size": 8, "hidden_act": act,
        },
        projection_dim=24,
    )  # fmt: skip


def tokenizer() -> Any:
    return transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(VOCABULARY)}, merges=[], model_max_length=LENGTH,
        pad_token=END,
    )  # fmt: skip


def processor(image: int = 32, **more: Any) -> dict[str, Any]:
    """preprocessor_config.json, as the hub has it."""
    return {
        "crop_size": {"height": image, "width": image}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 1 / 255, "do_rescale": True, "size": {"shortest_edge": image}, **more,
    }  # fmt: skip


def network(act: str = "gelu") -> transformers.CLIPModel:
    with torch.random.fork_rng(devices=[]):
        made = transformers.CLIPModel(config(act)).eval()
    fill(made)
    return made


def save(folder: Path, act: str = "gelu") -> str:
    """A folder with everything: weights, tokenizer, image processor."""
    network(act).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor()))
    return str(folder)


def save_head(path: Path, width: int = 24) -> str:
    """Linear layers under the names of LAION's predictor."""
    state = {}
    for number, (rows, columns) in zip((0, 2, 4), ((16, width), (8, 16), (1, 8)), strict=True):
        state[f"layers.{number}.weight"] = 3 * formula((rows, columns), 0.1 * number) / columns**0.5
        state[f"layers.{number}.bias"] = formula((rows,), 0.3 * number + 0.05)
    torch.save(state, path)
    return str(path)


def images() -> Tensor:
    """One per prompt, on the 8-bit grid, so that PIL sees the same; smooth, so that where PIL rounds matters little."""
    coarse = torch.rand(len(PROMPTS), 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56), mode="bicubic").clamp(0, 1) * 255).round() / 255


def made(name: str, folder: str, head: str, **more: Any) -> Any:
    """A reward on the model in a folder, and on the head of the aesthetic one."""
    options: dict[str, Any] = {"pickscore": {"processor": folder}, "aesthetic": {"head": head}}.get(name, {})
    options = {"model": folder, **options, **more}
    return rewards.load([name], [f"{name}.{key}={value}" for key, value in options.items()])


def unit(features: Any) -> Tensor:
    """Features as transformers gives them, whatever its version, of length 1."""
    return nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)
