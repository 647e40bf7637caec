"""Which batches of a run fit on a card, and which options make them fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..training.fit import divisors
from .cards import Card
from .sizes import Memory, Size
from .starts import Counts, even


@dataclass(frozen=True)
class Fit:
    """Batches on a card."""

    way: str  # options that the model is loaded with (sizes.WAYS)
    rollout_batch: int  # images sampled at once
    microbatch: int  # points per training pass
    peak: float  # GB, estimated


def counted(settings: Any, size: Size) -> bool:
    """Whether these settings are of what was counted: adapters, and this image size."""
    return settings.adapters is not None and settings.loading.size in (None, (size.side, size.side))


def fits(settings: Any, counts: Counts, size: Size, card: Card) -> Iterator[Fit]:
    """For every way of loading the model in which a batch fits, the largest batches, the fastest way first."""
    for way, memory in size.memory.items():
        if _left_out(settings, way):
            continue
        if found := _largest(settings, counts, size, memory, card.usable):
            yield Fit(way, *found)


def _left_out(settings: Any, way: str) -> bool:
    """Whether the settings have an option that this way of loading has not."""
    own = settings.loading
    kept = own.gradient_checkpointing and "--gradient-checkpointing" not in way
    return kept or (own.quantise is not None and f"--quantise {own.quantise}" not in way)


def least(settings: Any, counts: Counts, size: Size) -> float:
    """GB that the smallest batches need, with all options."""
    return min(
        max(_training(memory, size, settings, counts.indivisible), _sampling(memory, settings, _leaves(settings)))
        for memory in size.memory.values()
    )


def _leaves(settings: Any) -> int:
    leaves: int = settings.algorithm.rollout.bound(even).leaves
    return leaves


def _largest(settings: Any, counts: Counts, size: Size, memory: Memory, limit: float) -> tuple[int, int, float] | None:
    """Images sampled at once, points per pass, and GB."""
    drawn = [n for n in divisors(settings.run.images, _leaves(settings)) if _sampling(memory, settings, n) <= limit]
    trained = [n for n in divisors(counts.points, counts.indivisible) if _training(memory, size, settings, n) <= limit]
    if not drawn or not trained:
        return None
    peak = max(_sampling(memory, settings, drawn[-1]), _training(memory, size, settings, trained[-1]))
    return drawn[-1], trained[-1], peak


def _sampling(memory: Memory, settings: Any, images: int) -> float:
    rollout = settings.algorithm.rollout.bound(even)
    return memory.sampling(images // rollout.leaves * rollout.breadth)


def _training(memory: Memory, size: Size, settings: Any, points: int) -> float:
    return memory.training(points * size.evaluations(settings.algorithm.guidance))
