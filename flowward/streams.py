"""Random numbers as pure functions of what they are for.

A stream is named by a word and numbers, such as ("noise", seed, iteration, prompt, sample). Nothing depends on the
order in which numbers are asked for, so batches, ranks, branches and a resumed run all see the same ones.

One word, one number of parts: numpy's seeding pads with zeros, so ("a", 1) and ("a", 1, 0) would be the same stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Key = tuple[str | int, ...]


def _entropy(key: Key) -> list[int]:
    return [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]


def generator(*key: str | int) -> torch.Generator:
    """A torch generator at the head of the stream `key` (words and non-negative integers)."""
    state = np.random.SeedSequence(_entropy(key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def numpy_generator(*key: str | int) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(_entropy(key))


def normal(shape: Sequence[int], keys: Iterable[Key]) -> Tensor:
    """Standard normal float32 [N, *shape], one stream per row."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(*key)) for key in keys])


@dataclass(frozen=True)
class Noise:
    """All the noise of a batch of B samples: one key per sample, whose last number counts samples of one prompt."""

    shape: tuple[int, ...]  # of one sample
    keys: tuple[Key, ...]
    device: torch.device | str = "cpu"

    def start(self, siblings: int | None = 1) -> Tensor:
        """Where the samples start, [B, ...]; `siblings` consecutive samples of a prompt (None: all) start together."""
        first = ((*head, int(last) - int(last) % siblings if siblings else 0) for *head, last in self.keys)
        return normal(self.shape, first).to(self.device)

    def step(self, number: int) -> Tensor:
        """What a stochastic sampler adds in step `number`, [B, ...]."""
        return normal(self.shape, ((f"{word} step", *rest, number) for word, *rest in self.keys)).to(self.device)

    def roots(self, leaves: int) -> Noise:
        """The noise of trees with so many consecutive samples each, [B / leaves] of them, numbered within a prompt."""
        return Noise(
            self.shape, tuple((*head, int(last) // leaves) for *head, last in self.keys[::leaves]), self.device
        )

    def branch(self, name: int, children: int, number: int) -> Tensor:
        """What `children` of every tree add in step `number` of the branch `name`, [B * children, ...]."""
        keys = (
            (f"{word} branch", *rest, name, child, number) for word, *rest in self.keys for child in range(children)
        )
        return normal(self.shape, keys).to(self.device)
