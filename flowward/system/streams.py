"""Random numbers as pure functions of a key.

Nothing depends on the order of calls, so batches, ranks, branches and a resumed run all get the same numbers. What a
key is: seeds.py.
"""

from __future__ import annotations

import numpy as np
import torch

from .seeds import Key, entropy

__all__ = ["Key", "generator"]


def generator(*key: str | int) -> torch.Generator:
    """A torch generator at the start of the stream `key` (words and non-negative integers)."""
    state = np.random.SeedSequence(entropy(key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
