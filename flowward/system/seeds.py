"""Keys of random streams, and numpy's generators for them. This needs no torch; streams.py has torch's generators.

A key is a word and numbers, such as ("noise", seed, iteration, prompt, sample).

Keys with the same word must have the same length: numpy's seeding pads with zeros, so ("a", 1) and ("a", 1, 0) would
give the same stream.
"""

from __future__ import annotations

import zlib

import numpy as np

Key = tuple[str | int, ...]


def entropy(key: Key) -> list[int]:
    """What numpy seeds the stream `key` with: one number per part."""
    return [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]


def numpy_generator(*key: str | int) -> np.random.Generator:
    """A numpy generator at the start of the stream `key` (words and non-negative integers)."""
    return np.random.default_rng(entropy(key))
