"""Where each argument of an observed network comes from: the sample, the time, the prompt, the guidance, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .maps import Map
from .times import Clock

LENGTHS = "lengths"  # tensor of a condition: how long each of its tensors is, [N, tensors, 2], as bytes
BYTE = 256  # what half precision counts to


@dataclass(frozen=True)
class Row:
    """What the arguments for one row are made from."""

    x: Tensor  # [1, ...]
    t: Tensor  # []
    words: Mapping[str, Any]  # the arguments that follow the prompt
    guidance: float


class Leaf(Protocol):
    """One argument, or one entry of an argument that is a list or dict."""

    def value(self, row: Row) -> Any: ...


@dataclass(frozen=True)
class Constant:
    """The same in every call."""

    same: Any

    def value(self, row: Row) -> Any:
        return self.same


@dataclass(frozen=True)
class FromSample:
    """Numbers of the sample; beside them, those of a source may stand."""

    map: Map
    dtype: torch.dtype
    beside: str | None = None  # the name of the argument with everything that is not of the sample

    def value(self, row: Row) -> Tensor:
        rest = None if self.beside is None else row.words[self.beside]
        return self.map(row.x, rest)[0].to(self.dtype)


@dataclass(frozen=True)
class FromTime:
    """Follows the time."""

    clock: Clock
    dtype: torch.dtype

    def value(self, row: Row) -> Tensor:
        found = self.clock(row.t)
        return found if self.dtype.is_floating_point else found.round().to(self.dtype)


@dataclass(frozen=True)
class FromGuidance:
    """a + b g."""

    a: Tensor
    b: Tensor
    dtype: torch.dtype

    def value(self, row: Row) -> Tensor:
        return (self.a + self.b * row.guidance).to(row.t.device, self.dtype)


@dataclass(frozen=True)
class FromPrompt:
    """Follows the prompt."""

    name: str

    def value(self, row: Row) -> Any:
        return row.words[self.name]


@dataclass(frozen=True)
class Stored:
    """How an argument that follows the prompt is stored as a row of a condition, and read from it.

    The axis that follows the length of the text comes first, where rows are padded. Whole numbers are stored as bytes,
    which half precision has exactly. None, as some pipelines give for a mask without zeros, has the length 0.
    """

    name: str
    like: Any  # of one prompt
    axis: int = 0  # that follows the length of the text

    def write(self, value: Any) -> Tensor:
        """A row [length, ...] of float32.

        Raises:
            ValueError: a whole number is below 0, or has more than two bytes.
        """
        found = torch.as_tensor(self.like if value is None else value)
        if value is None and not found.ndim:
            raise ValueError(f"the argument {self.name} of its transformer is None for this prompt only")
        if found.ndim:
            found = found.movedim(self.axis, 0)[: 0 if value is None else None]
        if found.is_floating_point():
            return found.float()
        whole = found.long()
        if bool((whole < 0).any()) or bool((whole >= BYTE**2).any()):
            raise ValueError(f"the argument {self.name} of its transformer has a number outside 0 to {BYTE**2 - 1}")
        return torch.stack([whole // BYTE, whole % BYTE], -1).float()

    def read(self, row: Tensor, length: int) -> Any:
        """The argument, from a row that may be padded."""
        like = torch.as_tensor(self.like)
        if not length:
            return None
        if like.ndim:
            row = row[:length]
        if not like.is_floating_point():
            pair = row.round().long()
            row = pair[..., 0] * BYTE + pair[..., 1]
        if not isinstance(self.like, Tensor):
            return type(self.like)(row.item())
        return (row.movedim(0, self.axis) if like.ndim else row).to(like.dtype)

    def length(self, row: Tensor) -> int:
        """Of a row that is not padded."""
        return len(row) if torch.as_tensor(self.like).ndim else 1
