"""Models: `load` a name, a folder or an id of the hub as a Policy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.errors import unknown
from .loading import Loading

if TYPE_CHECKING:
    from ..process.policy import Policy
    from ..system.precision import Wish

BUILT_IN = ("scenes",)
LORA_FILE = "pytorch_lora_weights.safetensors"  # what diffusers' load_lora_weights looks for in a folder


def is_pipeline(name_or_path: str) -> bool:
    """Whether a name stands for a pipeline of diffusers, in a folder or on the hub."""
    folder = Path(name_or_path)
    return (folder / "model_index.json").is_file() or (not folder.exists() and name_or_path.count("/") == 1)


def adapters(name: str) -> Path | None:
    """The file of LoRA adapters that a folder or file stands for; None where it is something else."""
    path = Path(name)
    file = path / LORA_FILE if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() else None


def load(
    name_or_path: str,
    lora_rank: int | None = None,
    precision: Wish = "auto",
    seed: int = 0,
    loading: Loading | None = None,
) -> Policy:
    """A model ready to sample and to train.

    Args:
        name_or_path: `scenes` (the built-in model), a folder made by `flowward pretrain scenes`, the folder of a
            pipeline of diffusers, or its id on the hub (owner/name).
        lora_rank: train LoRA adapters of this rank; None trains all weights.
        precision: of the networks (`auto`: bf16 where the device has it); solver states and losses are float32.
        seed: of the adapters' first weights.
        loading: size, device and the like, of a model of diffusers.

    Raises:
        ValueError: there is no such model, or it leaves no such choice.
    """
    loading, folder = loading or Loading(), Path(name_or_path)
    if is_pipeline(name_or_path):
        from . import pipelines

        return pipelines.load(name_or_path, lora_rank, precision, seed, loading)
    built_in = name_or_path == "scenes"
    if not built_in and not (folder / "text_encoder" / "config.json").is_file():
        if (folder / "config.yaml").is_file():
            raise ValueError(
                f"{name_or_path} is a run and no model: train goes on with it by "
                f"--resume {name_or_path}, and flowward.trained.load gives its policy in Python"
            )
        what = " (or the folder of a pretrained model, or owner/name of a model on the hub)"
        raise ValueError(unknown("model", name_or_path, BUILT_IN) + what)
    if chosen := [each.name for each in fields(Loading) if getattr(loading, each.name) != each.default]:
        raise ValueError(f"the built-in model leaves no choice of {' and '.join(chosen)}: leave it out")
    from ..system.precision import resolve
    from .scenes import SHIPPED, ScenesPolicy

    return ScenesPolicy(name_or_path, SHIPPED if built_in else folder, lora_rank, resolve(precision), seed)


__all__ = ["BUILT_IN", "LORA_FILE", "Loading", "adapters", "is_pipeline", "load"]
