"""Initial noise and the noise of random steps: every sample has its own random stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..system.streams import Key, generator


def normal(shape: Sequence[int], keys: Iterable[Key]) -> Tensor:
    """Standard normal float32 [N, *shape], with one random stream per row."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(*key)) for key in keys])


@dataclass(frozen=True)
class Noise:
    """All the noise of a batch of B samples. Each sample has a key; its last number counts the samples of a prompt."""

    shape: tuple[int, ...]  # of one sample
    keys: tuple[Key, ...]
    device: torch.device | str = "cpu"

    def start(self, siblings: int | None = 1) -> Tensor:
        """Initial noise, [B, ...]; `siblings` consecutive samples of a prompt (None: all) share the same noise."""
        first = ((*head, int(last) - int(last) % siblings if siblings else 0) for *head, last in self.keys)
        return normal(self.shape, first).to(self.device)

    def step(self, number: int) -> Tensor:
        """Noise that a stochastic sampler adds in step `number`, [B, ...]."""
        return normal(self.shape, ((f"{word} step", *rest, number) for word, *rest in self.keys)).to(self.device)

    def roots(self, leaves: int) -> Noise:
        """The noise of B / leaves trees of `leaves` consecutive samples each, numbered within a prompt."""
        return Noise(
            self.shape, tuple((*head, int(last) // leaves) for *head, last in self.keys[::leaves]), self.device
        )

    def branch(self, name: int, children: int, number: int) -> Tensor:
        """Noise of the `children` of every tree in step `number` of the branch `name`, [B * children, ...]."""
        keys = (
            (f"{word} branch", *rest, name, child, number) for word, *rest in self.keys for child in range(children)
        )
        return normal(self.shape, keys).to(self.device)
