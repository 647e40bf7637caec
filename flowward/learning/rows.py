"""Rows of points: tensors of equal length that are cut together, and where a velocity is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from torch import Tensor

from ..process.policy import Condition

PROBE = 5 / 1000  # how far from a point the slope of its velocity is measured, in t (arXiv:2607.15273)


@dataclass(frozen=True)
class Rows:
    """B rows that a loss is evaluated on. Tensors are [B, ...]; everything else belongs to the whole."""

    known: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)  # velocities that need no evaluation
    fresh: bool = field(default=False, kw_only=True)  # the policy is still what drew the samples
    same: frozenset[str] = field(default=frozenset(), kw_only=True)  # copies that are what the policy is now

    def __len__(self) -> int:
        return next(len(value) for each in fields(self) if isinstance(value := getattr(self, each.name), Tensor))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        def part(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: tensor[rows] for name, tensor in value.items()}
            return value[rows] if isinstance(value, Tensor | Condition) else value

        return type(self)(**{each.name: part(getattr(self, each.name)) for each in fields(self)})

    def split(self, size: int) -> Iterator[Self]:
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def knowing(self, known: Mapping[str, Tensor]) -> Self:
        return replace(self, known={**self.known, **known})


@dataclass(frozen=True)
class Batch(Rows):
    """Rows at which a velocity is asked for."""

    x_t: Tensor  # [B, ...]
    t: Tensor  # [B] in [0, 1]
    condition: Condition  # B rows

    def place(self, name: str) -> tuple[Tensor, Tensor, Condition]:
        """x, t and condition of a place: here the point itself, whatever the name."""
        return self.x_t, self.t, self.condition


def around(t: Tensor) -> tuple[Tensor, Tensor]:
    """The times behind and ahead of t [B] between which a slope is measured: PROBE away, inside [0, 1]."""
    return (t - PROBE).clamp_min(0), (t + PROBE).clamp_max(1)
