"""Trained weights as files that diffusers loads, which say where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import __version__, models, strict_json
from .models import LORA_FILE
from .models.diffusers import DiffusersPolicy
from .models.loading import Loading
from .models.policy import Policy
from .models.weights import LoRA
from .precision import Wish


def lora(policy: Policy, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write the adapters of `policy` as `pipeline.load_lora_weights(folder)` reads them.

    `about` goes into the header of the file, as JSON under the key `flowward`.

    Raises:
        ValueError: all weights were trained.
        OSError: it cannot be written.
    """
    trained = policy.weights
    if not isinstance(trained, LoRA):
        raise ValueError("all weights of this model were trained, so there is no LoRA to export")
    pipe: Any = diffusers.StableDiffusion3Pipeline
    if isinstance(policy, DiffusersPolicy):
        pipe = type(policy.family.pipe)
    described = strict_json.dumps({"version": __version__, **(about or {})})
    for name, tensors in _by_component(policy, trained.export("policy")).items():
        _write(pipe, folder if name == "transformer" else folder / name, tensors, trained, described)
    return folder / LORA_FILE


def _by_component(policy: Policy, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Those of each transformer of a pipeline; where there are two, names begin with their component's."""
    names = list(policy.family.transformers) if isinstance(policy, DiffusersPolicy) else ["transformer"]
    if len(names) == 1:
        return {names[0]: tensors}
    return {
        name: {
            key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
        } for name in names
    }  # fmt: skip


def _write(pipe: Any, folder: Path, tensors: dict[str, Tensor], trained: LoRA, described: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipe.save_lora_weights(
        folder,
        transformer_lora_layers=tensors,
        transformer_lora_adapter_metadata=trained.config.to_dict(),
    )
    file = folder / LORA_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is not a mapping)
    partial = folder / f".{LORA_FILE}.partial"
    save_file(tensors, partial, {**header, "flowward": described})
    partial.replace(file)


def merged(policy: Policy, folder: Path) -> Path:
    """Write the whole transformer (or both), adapters merged into it; the policy cannot be trained any more.

    Raises:
        OSError: it cannot be written.
    """
    with policy.weights.network("policy") as network:
        if isinstance(policy.weights, LoRA):
            network.fuse_lora(adapter_names=["policy"])  # type: ignore[operator]
            network.unload_lora()  # type: ignore[operator]
        parts: dict[str, Any] = {"transformer": network}
        if isinstance(policy, DiffusersPolicy):
            parts = policy.family.transformers
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    return folder / "transformer"


def read(file: Path) -> dict[str, Any]:
    """What `lora` wrote beside the weights; empty for files of others."""
    found: dict[str, Any] = json.loads(_header(file).get("flowward", "{}"))
    return found


def _header(file: Path) -> dict[str, str]:
    """Raises ValueError where it is no safetensors file."""
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def load(file: Path, precision: Wish = "auto", loading: Loading | None = None) -> Policy:
    """The base model that `lora` wrote into the header of `file`, with these adapters as its policy.

    Raises:
        ValueError: the file is damaged or not from here, or its base model is not the one that it was trained on.
    """
    about, header = read(file), _header(file)
    if "base_model" not in about:
        raise ValueError(f"{file} does not name its base model: it is not what `flowward export` writes")
    if about.get("revision") and loading and not loading.revision:
        loading = replace(loading, revision=about["revision"])
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    if (other := file.parent / "transformer_2" / file.name).is_file():  # a pipeline of two
        tensors = {f"transformer.{key}": tensor for key, tensor in tensors.items()}
        tensors |= {key.replace("transformer.", "transformer_2.", 1): each for key, each in load_file(other).items()}
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key}
    if len(ranks) != 1:
        raise ValueError(f"{file} does not hold adapters of one rank")
    policy = models.load(about["base_model"], ranks.pop(), precision, loading=loading)
    alpha = json.loads(header.get("lora_adapter_metadata", "{}")).get("transformer.lora_alpha")
    assert isinstance(policy.weights, LoRA)
    if alpha not in (None, policy.weights.config.lora_alpha):
        raise ValueError(f"the adapters of {file} have lora_alpha {alpha}, not twice their rank")
    policy.weights.load("policy", tensors)
    policy.name = str(file)
    return policy
