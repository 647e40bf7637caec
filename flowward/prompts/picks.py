"""Pseudo-random choices from a hash of text: the same on every machine and for every version of numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator


def number(text: str) -> int:
    """A fixed pseudo-random number in [0, 2^64) for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def picks(name: str, size: int, count: int) -> list[int]:
    """`count` different numbers below `size`, in pseudo-random order; a longer list starts with the shorter one.

    Raises:
        ValueError: count > size.
    """
    if count > size:
        raise ValueError(f"{name}: cannot choose {count} different numbers out of {size}")
    return list(_distinct(name, size, count))


def _distinct(name: str, size: int, count: int) -> Iterator[int]:
    seen: set[int] = set()
    turn = 0
    while len(seen) < count:
        found = number(f"{name} {turn}") % size
        turn += 1
        if found not in seen:
            seen.add(found)
            yield found
