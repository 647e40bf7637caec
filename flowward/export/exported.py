"""Read an export of `flowward export`: the facts about it, and its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import models
from ..evaluation.outcome import counted
from ..models import modules
from ..models.adapters import Adapters
from ..models.loading import MODEL, Loading
from ..models.names import header_of
from ..process.policy import Policy
from ..system import strict_json
from ..system.precision import Wish

FACTS = "flowward.json"  # next to merged weights


def merged(name: str) -> Path | None:
    """The folder of merged weights, from its path or that of its transformer; None for anything else."""
    path = Path(name)
    folder = path.parent if path.name == "transformer" else path
    return folder if (folder / FACTS).is_file() and (folder / "transformer").is_dir() else None


def facts(name: str) -> dict[str, Any]:
    """The facts stored in an export (adapters or merged weights): base model, algorithm, reward, iterations ...

    Empty for anything else.

    Raises:
        ValueError: the file cannot be read.
    """
    if file := models.lora_file(name):
        return read(file)
    if (module := Path(name) / modules.FILE).is_file():
        return read(module)
    folder = merged(name) or (Path(name) if _has_palette(Path(name)) else None)
    if folder is None:
        return {}
    try:
        found = strict_json.loads((folder / FACTS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / FACTS} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{folder / FACTS} is damaged: it does not contain a JSON object")
    return found


def palette(name: str) -> dict[str, Path]:
    """The files of an exported palette by the objectives of its adapters; empty for anything else.

    Raises:
        ValueError: it cannot be read.
    """
    folder = Path(name)
    if not _has_palette(folder):
        return {}
    named = facts(name).get("palette")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ValueError(f"{folder / FACTS} is damaged: it does not name the files of a palette")
    if missing := [file for file in named.values() if not (folder / file).is_file()]:
        raise ValueError(f"{folder} lacks {missing[0]}, an adapter of its palette: export the run again")
    return {own: folder / file for own, file in named.items()}


def _has_palette(folder: Path) -> bool:
    """Whether the facts in a folder name a palette; those of merged weights do not."""
    try:
        return b'"palette": {' in (folder / FACTS).read_bytes()
    except OSError:
        return False


def sentence(facts: dict[str, Any]) -> str:
    """A phrase such as: made from BASE by ALGORITHM for ocr, 50 iterations, weights ema"""
    reward = facts.get("reward") or []
    parts = [
        f"made from {facts.get('base_model', 'an unnamed model')}",
        f" by {facts['algorithm']}" if facts.get("algorithm") else "",
        f" for {' + '.join([reward] if isinstance(reward, str) else map(str, reward))}" if reward else "",
        f", {counted(facts['iterations'], 'iteration')}" if "iterations" in facts else "",
        f", weights {facts['weights']}" if "weights" in facts else "",
    ]
    return "".join(parts)


def read(file: Path) -> dict[str, Any]:
    """The facts that `export.lora` stored in the file header; empty for other files."""
    found: dict[str, Any] = strict_json.loads(header_of(file).get("flowward", "{}"))
    return found


def load(name: str, precision: Wish = "auto", loading: Loading | None = None) -> Policy | None:
    """The model of an export's folder or file; None if it is not an export.

    Raises:
        ValueError: it is damaged, was not written by flowward, or its base model has changed since training.
    """
    if file := models.lora_file(name):
        policy = _with_adapters(file, precision, loading)
    elif folder := merged(name):
        policy = _with_weights(folder, facts(name), precision, loading)
    else:
        return None
    policy.name = name
    return policy


def _with_adapters(file: Path, precision: Wish, loading: Loading | None) -> Policy:
    """The base model named in the header of `file`, with these adapters as its policy."""
    about = read(file)
    _refuse_nameless(about, file)
    return _base(about, Adapters(start=str(file), reference="base"), precision, loading)


def _with_weights(folder: Path, about: dict[str, Any], precision: Wish, loading: Loading | None) -> Policy:
    """The base model with these merged weights instead of its own."""
    _refuse_nameless(about, folder / FACTS)
    policy = _base(about, None, precision, loading)
    for name, part in transformers(policy).items():
        try:
            tensors: dict[str, Tensor] = {}
            for file in (folder / name).glob("*.safetensors"):  # large weights are stored in several files
                tensors |= load_file(file)
            part.load_state_dict(tensors)
        except (OSError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder / name} cannot be loaded as weights of {about['base_model']}: {said}") from error
    return policy


def transformers(policy: Policy) -> dict[str, nn.Module]:
    """The trained networks, by the names of their folders."""
    from ..models.diffusers import DiffusersPolicy

    if isinstance(policy, DiffusersPolicy):
        return policy.family.transformers
    with policy.weights.network("policy") as network:
        return {"transformer": network}


def _base(about: dict[str, Any], adapters: Adapters | None, precision: Wish, loading: Loading | None) -> Policy:
    """The base model, with the image size and text length of training unless `loading` sets others.

    Raises:
        ValueError: the base model has changed since training.
    """
    loading = loading or Loading()
    kept = [name for name in MODEL if name != "quantise" and getattr(loading, name) is None]
    given = {name: about[name] for name in kept if about.get(name) is not None}
    if "size" in given:
        given["size"] = tuple(given["size"])
    policy = models.load(about["base_model"], None, precision, 0, replace(loading, **given), adapters)
    same = about.get("base") in (None, policy.identity["base"])
    rounded = about.get("quantise") or loading.quantise or loading.variant not in (None, about.get("variant"))
    if not same and not rounded:
        raise ValueError(
            f"this export was trained on another version of {about['base_model']}: use the base model of the training "
            "(--revision, --variant)"
        )
    return policy


def _refuse_nameless(about: dict[str, Any], file: Path) -> None:
    if "base_model" not in about:
        lora = f"; train from it with --model BASE --init-lora {file}" if file.suffix == ".safetensors" else ""
        raise ValueError(f"{file} does not name its base model: it was not written by `flowward export`{lora}")
