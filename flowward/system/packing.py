"""Nested state as JSON (dicts, lists, tuples, None, str, int, float, bool); tensors stand beside it by their names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch


def packed(state: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """The state as a JSON text, and its tensors (not copied) by their places in it, such as `weights.policy.bias`."""
    tensors: dict[str, torch.Tensor] = {}
    return json.dumps(_pack(dict(state), "", tensors), allow_nan=False), tensors


def unpacked(tree: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: `packed` has not made this text, or a tensor is missing.
    """
    return _unpack(json.loads(tree), tensors)


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The nested state as JSON; each tensor moves to `tensors`, and its name takes its place."""
    if isinstance(value, torch.Tensor):
        while name in tensors:  # keys may contain dots, so two paths can give the same name
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, because JSON would turn the integer keys of an optimiser into strings
        return {"dict": [[key, _pack(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}".lstrip("."), tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no number for it
    return {"value": value}


def _unpack(tree: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
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
