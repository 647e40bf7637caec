"""One LoRA in the layouts that other programs write, and what a model computes with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowward.process.policy import Policy

Matrices = Mapping[str, tuple[Tensor, Tensor]]  # by layer: A [r, in], B [out, r]


def matrices(network: Any, *ends: str, rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """Random ones for the linear layers whose names end so."""
    draw = torch.Generator().manual_seed(1)
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(ends):
            a, b = (
                torch.randn(rank, layer.in_features, generator=draw),
                torch.randn(layer.out_features, rank, generator=draw),
            )
            found[name] = (0.3 * a, 0.3 * b)
    return found


def merge(network: Any, lora: Matrices, scale: float) -> None:
    """W + scale B A."""
    with torch.no_grad():
        for name, (a, b) in lora.items():
            network.get_submodule(name).weight += scale * b @ a


def answer(policy: Policy, weights: str = "policy", texts: tuple[str, str] = ("a circle", "two rings")) -> Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor([0.3, 0.95]), policy.encode(texts), weights)


def write(
    file: Path, lora: Matrices, prefix: str, ends: tuple[str, str], flat: bool = False, alpha: float | None = None,
    header: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, pair in lora.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{stem}.{end}.weight": each.clone() for end, each in zip(ends, pair, strict=True)}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, header or {"format": "pt"})
    return file


PEFT, KOHYA, NAMED = ("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")


def _peft_folder(folder: Path, lora: Matrices) -> Path:
    write(folder / "adapter_model.safetensors", lora, "base_model.model.", PEFT)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["to_q"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _stabilised(folder: Path, lora: Matrices) -> Path:
    _peft_folder(folder / "lora", lora)
    config = {"r": 2, "lora_alpha": 2**0.5, "use_rslora": True, "alpha_pattern": {"add_q_proj": 2**1.5}}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _metadata(**values: Any) -> dict[str, str]:
    told = {f"transformer.{key}": value for key, value in values.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(told)}


LAYOUTS: dict[str, tuple[float, Callable[[Path, Matrices], Path]]] = {  # scale, and what writes it
    "diffusers": (1, lambda folder, lora: write(folder / "x.safetensors", lora, "transformer.", PEFT)),
    "diffusers with alpha": (
        0.5,
        lambda folder, lora: (
            write(
                folder / "pytorch_lora_weights.safetensors",
                lora,
                "transformer.",
                PEFT,
                header=_metadata(r=2, lora_alpha=1),
            ).parent
        ),
    ),
    "kohya": (
        0.5,
        lambda folder, lora: write(folder / "x.safetensors", lora, "lora_unet_", KOHYA, True, 1.0).parent,
    ),
    "kohya without alpha tensors": (
        0.25,
        lambda folder, lora: write(
            folder / "x.safetensors", lora, "lora_unet_", KOHYA, True, header={"ss_network_alpha": "0.5"}
        ),
    ),
    "ai-toolkit": (1, lambda folder, lora: write(folder / "x.safetensors", lora, "diffusion_model.", PEFT)),
    "peft": (4, _peft_folder),
    "peft with the name of the adapter": (
        1,
        lambda folder, lora: write(folder / "x.safetensors", lora, "base_model.model.", NAMED),
    ),
    "onetrainer": (
        1.5,
        lambda folder, lora: write(folder / "x.safetensors", lora, "lora_transformer_", KOHYA, True, 3.0),
    ),
    "bare names": (1, lambda folder, lora: write(folder / "x.safetensors", lora, "", KOHYA)),
}
