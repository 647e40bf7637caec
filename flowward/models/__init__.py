"""Models: `load` the built-in model, a folder or a hub id as a Policy."""

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
    """Whether a name refers to a diffusers pipeline, in a folder or on the hub."""
    folder = Path(name_or_path)
    return (folder / "model_index.json").is_file() or (not folder.exists() and name_or_path.count("/") == 1)


def adapters(name: str) -> Path | None:
    """The LoRA file at this path or in this folder; None if there is none."""
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
    """Load a model, ready to sample and to train.

    Args:
        name_or_path: `scenes` (the built-in model), a folder made by `flowward pretrain scenes`, the folder of a
            diffusers pipeline, or its id on the hub (owner/name).
        lora_rank: train LoRA adapters of this rank; None trains all weights.
        precision: of the networks (`auto`: bf16 if the device supports it). Solver states and losses are float32.
        seed: for the initial weights of the adapters.
        loading: options for diffusers models, such as size and device.

    Raises:
        ValueError: the model does not exist, does not support an option, or torch would compute wrong numbers here
            (OMP_DYNAMIC, OMP_THREAD_LIMIT).
    """
    from ..system.threads import refuse_fewer

    refuse_fewer()
    loading, folder = loading or Loading(), Path(name_or_path)
    if is_pipeline(name_or_path):
        from . import pipelines

        return pipelines.load(name_or_path, lora_rank, precision, seed, loading)
    built_in = name_or_path == "scenes"
    if not built_in and not (folder / "text_encoder" / "config.json").is_file():
        if (folder / "config.yaml").is_file():
            raise ValueError(
                f"{name_or_path} is a run folder, not a model; continue its training with --resume {name_or_path}, "
                "or load its policy in Python with flowward.trained.load"
            )
        what = " (or give the folder of a pretrained model, or owner/name for a model on the hub)"
        raise ValueError(unknown("model", name_or_path, BUILT_IN) + what)
    if chosen := [each.name for each in fields(Loading) if getattr(loading, each.name) != each.default]:
        raise ValueError(f"the built-in model does not support {' and '.join(chosen)}; leave out the option")
    from ..system.precision import resolve
    from .scenes import SHIPPED, ScenesPolicy

    return ScenesPolicy(name_or_path, SHIPPED if built_in else folder, lora_rank, resolve(precision), seed)


__all__ = ["BUILT_IN", "LORA_FILE", "Loading", "adapters", "is_pipeline", "load"]
