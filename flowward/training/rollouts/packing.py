"""Tensors as arrays, and back: what is sent to other processes is pickled, and arrays are pickled without a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTHS: dict[int, torch.dtype] = {1: torch.uint8, 2: torch.int16}  # numbers that stand for types which numpy lacks


@dataclass(frozen=True)
class Numbers:
    """A tensor as an array."""

    array: np.ndarray[Any, Any]
    dtype: str
    graded: bool  # whether it asks for gradients


def packed(value: Any) -> Any:
    """The same value with arrays in place of the tensors in it, and in its dataclasses, mappings and sequences."""

    def array(tensor: Tensor) -> Numbers:
        plain, name = tensor.detach().cpu().contiguous(), str(tensor.dtype).removeprefix("torch.")
        if name.startswith(("bfloat", "float8")):
            plain = plain.view(WIDTHS[plain.element_size()])
        return Numbers(plain.numpy(), name, tensor.requires_grad)

    return _replaced(value, Tensor, array)


def unpacked(value: Any) -> Any:
    """The inverse of `packed`; tensors have memory of their own."""

    def tensor(found: Numbers) -> Tensor:
        made = torch.from_numpy(np.array(found.array)).view(getattr(torch, found.dtype))
        return made.requires_grad_(found.graded) if found.graded else made

    return _replaced(value, Numbers, tensor)


def _replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return by(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _replaced(getattr(value, each.name), kind, by) for each in fields(value)})
    if isinstance(value, Mapping):
        return {key: _replaced(item, kind, by) for key, item in value.items()}
    return value
