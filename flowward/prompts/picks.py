"""Choices that follow from a hash of text, so they are the same on every machine, for every version of numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator


def number(text: str) -> int:
    """A fixed number in [0, 2^64) for a text, as good as drawn by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def picks(name: str, size: int, count: int) -> list[int]:
    """`count` different numbers below `size`, in an order that looks random; a longer list begins with a shorter one.

    Raises:
        ValueError: there are not so many.
    """
    if count > size:
        raise ValueError(f"{name}: there are {size} to choose from, not {count}")
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
