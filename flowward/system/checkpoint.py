"""State on disk: nested dicts, lists, numbers and tensors in one safetensors file, written whole or not at all.

Nothing is pickled, so a checkpoint from a stranger cannot run code. A hash of the content is stored with it, so that a
file that the disk or a copy has changed is not taken for a good one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .whole_files import permit, reason, replacing

_TREE, _HASH = "flowward", "sha256"  # keys of the metadata
THREADS = 4  # that hash tensors at once; hashing is as fast as a disk, so a large checkpoint should not wait for one


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (dicts, lists, tuples, None, str, int, float, bool and tensors) to `path`, in an existing folder.

    Raises:
        OSError: the file could not be written (disk full, no permission); an older file at `path` is untouched.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_pack(state, "", tensors), allow_nan=False)
    tensors = tensors or {"_": torch.zeros(1)}
    try:
        with replacing(path, durable=True) as partial:
            save_file(tensors, partial, {_TREE: tree, _HASH: _hash(tree, tensors)})
            permit(partial)
    except (SafetensorError, OSError) as error:  # safetensors reports a full disk as its own kind of error
        raise OSError(f"cannot write {path}: {reason(error)}") from error


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is missing, truncated, changed since it was written, or not a flowward checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if (tree := about.get(_TREE)) is None:
                raise ValueError(f"{path} is a safetensors file, but not a flowward checkpoint")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint at {path}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged and cannot be read ({error})") from error
    if _HASH in about and about[_HASH] != _hash(tree, tensors):  # older files have none
        raise ValueError(f"{path} is damaged: its content has changed since it was written (its hash does not match)")
    try:
        state = _unpack(json.loads(tree), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description of the state cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: it contains no state")
    return state


def _hash(tree: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the tree, and of names, types, shapes and numbers of all tensors."""
    names = sorted(tensors)
    with ThreadPoolExecutor(THREADS) as threads:
        digests = threads.map(_digest, [tensors[name] for name in names])
        known = [[name, *digest] for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256(json.dumps([tree, known]).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> tuple[str, list[int], str]:
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), list(tensor.shape), hashlib.sha256(data.data).hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The nested state as JSON; each tensor moves to `tensors`, and its name takes its place."""
    if isinstance(value, torch.Tensor):
        while name in tensors:  # keys may contain dots, so two paths can give the same name
            name += "'"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, because JSON would turn the integer keys of an optimiser into strings
        return {"dict": [[key, _pack(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}".lstrip("."), tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no number for it
    return {"value": value}


def _unpack(tree: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "dict" in tree:
        return {key: _unpack(item, tensors) for key, item in tree["dict"]}
    if "list" in tree:
        return [_unpack(item, tensors) for item in tree["list"]]
    if "tuple" in tree:
        return tuple(_unpack(item, tensors) for item in tree["tuple"])
    if "float" in tree:
        return float(tree["float"])
    return tree["value"]
