"""Random numbers as pure functions of what they are for.

A stream is named by a word and numbers, such as ("noise", seed, iteration, prompt, sample). Nothing depends on the
order in which numbers are asked for, so batches, ranks, branches and a resumed run all see the same ones.

One word, one number of parts: numpy's seeding pads with zeros, so ("a", 1) and ("a", 1, 0) would be the same stream.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

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
