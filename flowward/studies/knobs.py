"""The settings that a search tries: learning rate, and what else sets the strength of an algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..algorithms.presets import facts
from ..system.nested import nested
from ..training.config import settings_type

RATES = 3.0  # the largest factor between a tried learning rate and the preset's
BASES = (2, 3)  # of the Halton sequence, one per knob


def knobs(algorithm: str) -> dict[str, tuple[float, float]]:
    """Where to search: names of settings, with their least and their greatest value."""
    rate = settings_type(algorithm)().run.learning_rate
    own = {f"algorithm.{name}": (float(low), float(high)) for name, (low, high) in facts(algorithm).knobs.items()}
    return {"run.learning_rate": (rate / RATES, rate * RATES), **own}


def trials(algorithm: str, count: int) -> Iterator[dict[str, Any]]:
    """The settings of each trial: first the preset, then points of a Halton sequence on a logarithmic scale.

    The points of n trials are the first ones of more trials, so a search can be extended. Its first point is left out:
    it is the middle of the first range, the learning rate of the preset.
    """
    yield {}
    for number in range(1, count):
        found: dict[str, Any] = {}
        for base, (name, (low, high)) in zip(BASES, knobs(algorithm).items(), strict=False):
            share = halton(number + 1, base)
            found[name] = float(f"{low * math.exp(share * math.log(high / low)):.3g}")
        yield nested(found)


def halton(number: int, base: int) -> float:
    """The radical inverse of a number: its digits in a base, mirrored at the point (Halton, 1960)."""
    found, scale = 0.0, 1.0
    while number:
        scale /= base
        number, digit = divmod(number, base)
        found += digit * scale
    return found
