"""Models: `load` a name or a folder as a Policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import unknown

if TYPE_CHECKING:
    from ..precision import Wish
    from .policy import Policy

BUILT_IN = ("scenes",)


def load(name_or_path: str, lora_rank: int | None = None, precision: Wish = "auto", seed: int = 0) -> Policy:
    """A model ready to sample and to train.

    Args:
        name_or_path: `scenes` (the built-in model), or a folder made by `flowward pretrain scenes`.
        lora_rank: train LoRA adapters of this rank; None trains all weights.
        precision: of the networks (`auto`: bf16 where the processor has it); solver states and losses are float32.
        seed: of the adapters' first weights.

    Raises:
        ValueError: there is no such model.
    """
    from ..precision import resolve
    from .scenes import SHIPPED, ScenesPolicy

    if name_or_path == "scenes":
        return ScenesPolicy(name_or_path, SHIPPED, lora_rank, resolve(precision), seed)
    folder = Path(name_or_path)
    if (folder / "text_encoder" / "config.json").is_file():
        return ScenesPolicy(name_or_path, folder, lora_rank, resolve(precision), seed)
    raise ValueError(unknown("model", name_or_path, BUILT_IN) + " (or the folder of a pretrained model)")


__all__ = ["BUILT_IN", "load"]
