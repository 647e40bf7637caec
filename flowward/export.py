"""Trained weights as files that diffusers loads, which say where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from . import __version__
from .models.diffusers import DiffusersPolicy
from .models.weights import LoRA

LORA_FILE = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder


def lora(
    policy: DiffusersPolicy, folder: Path, weights: str = "policy", about: Mapping[str, Any] | None = None
) -> Path:
    """Write adapters as `pipeline.load_lora_weights(folder)` reads them.

    `about` (algorithm, guidance, steps, ...) goes into the header of the file, as JSON under the key `flowward`.

    Raises:
        ValueError: the policy has no adapters, or not these.
    """
    trained = policy.weights
    if not isinstance(trained, LoRA):
        raise ValueError("all weights of this model were trained, so there is no LoRA to export")
    folder.mkdir(parents=True, exist_ok=True)
    type(policy.family.pipe).save_lora_weights(
        folder,
        transformer_lora_layers=trained.export(weights),
        transformer_lora_adapter_metadata=trained.config.to_dict(),
    )
    file = folder / LORA_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is not a mapping)
    said = {"base_model": policy.name, "flowward_version": __version__, **(about or {})}
    whole = folder / f".{LORA_FILE}.part"
    save_file(tensors, whole, {**header, "flowward": json.dumps(said)})
    whole.replace(file)
    return file


def about(file: Path) -> dict[str, Any]:
    """What `lora` wrote beside the weights; empty for other files."""
    with safe_open(file, "pt") as opened:
        found: dict[str, Any] = json.loads((opened.metadata() or {}).get("flowward", "{}"))
    return found
