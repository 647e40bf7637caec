"""A trained planner on disk, for transformers, peft, vLLM and SGLang."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.lora import LoRA
from ..system import whole_files

if TYPE_CHECKING:
    from .language import Language

PREFIX = "base_model.model."  # peft's, before the names of layers


def save(language: Language, folder: Path, weights: str = "policy") -> None:
    """Write a peft adapter (adapter_config.json, adapter_model.safetensors), or a whole model with its tokenizer.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained: Any = language.weights
    if isinstance(trained, LoRA):
        _adapter(trained, folder, weights, language.base)
        return
    with trained.network(weights) as network:
        network.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)


def _adapter(trained: LoRA, folder: Path, weights: str, base: str) -> None:
    from safetensors.torch import save as packed

    tensors = {
        f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in trained.export(weights).items()
    }
    whole_files.write(folder / "adapter_model.safetensors", packed(tensors, {"format": "pt"}))
    trained.config.base_model_name_or_path = base
    trained.config.task_type = "CAUSAL_LM"
    trained.config.save_pretrained(str(folder))
