"""Random numbers as pure functions of a key.

A key is a word and numbers, such as ("noise", seed, iteration, prompt, sample). Nothing depends on the order of calls,
so batches, ranks, branches and a resumed run all get the same numbers.

Keys with the same word must have the same length: numpy's seeding pads with zeros, so ("a", 1) and ("a", 1, 0) would
give the same stream.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

Key = tuple[str | int, ...]


def _entropy(key: Key) -> list[int]:
    return [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]


def generator(*key: str | int) -> torch.Generator:
    """A torch generator at the start of the stream `key` (words and non-negative integers)."""
    state = np.random.SeedSequence(_entropy(key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def numpy_generator(*key: str | int) -> np.random.Generator:
    """A numpy generator at the start of the stream `key`."""
    return np.random.default_rng(_entropy(key))
