"""What the checkers of all worlds share: looking at a batch, and judging what was found in a picture by a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from .components import Array

F = TypeVar("F")  # what a world finds in a picture
Found = tuple[F, ...] | None  # None: the picture is unreadable


@dataclass(frozen=True)
class Verdict(Generic[F]):
    """The checker's result for one picture and one request."""

    strict: bool
    soft: float
    found: tuple[F, ...]
    reason: str  # empty if strict; otherwise the first error, in words


@dataclass(frozen=True)
class Rules(Generic[F]):
    """How a world compares what was found with a request."""

    likeness: Callable[[F, Any], float]  # of a found and a requested thing, in [0, 1]
    margins: Callable[[Any, Mapping[int, F]], list[float]]
    """of each relation in pixels, from the things found for those requested; 0 at the limit, negative if it fails"""
    complaint: Callable[[tuple[F, ...], Any, list[float]], str]  # the first error, in words
    clear: float  # pixels: a relation with this margin counts fully

    def judge(self, found: Found[F], request: Any) -> Verdict[F]:
        """Check what was found in one picture against a request."""
        if found is None:
            return Verdict(False, 0.0, (), "the picture is unreadable")
        if not found:
            return Verdict(False, 0.0, (), "the picture is empty")
        wanted = [replace(thing, count=1) for thing in request.things for _ in range(thing.count)]
        pair = np.array([[self.likeness(each, thing) for each in found] for thing in wanted])
        rows, columns = linear_sum_assignment(-pair)
        soft = float(pair[rows, columns].sum()) / max(len(wanted), len(found))
        margins = self.margins(request, {int(row): found[at] for row, at in zip(rows, columns, strict=True)})
        if margins:  # the factor is 0.75 at the limit
            soft *= 0.5 + 0.5 * float(np.mean(np.clip(0.5 + np.array(margins) / (2 * self.clear), 0, 1)))
        reason = self.complaint(found, request, margins)
        return Verdict(not reason, soft, found, reason)


def offset_margin(dx: float, dy: float, kind: str, least: float) -> float:
    """How clearly an offset is to the right (`left of`) or down (`above`), in pixels.

    As in GenEval, it must be large enough, at least `least`, and not mainly along the other axis.
    """
    along, across = (dx, abs(dy)) if kind == "left of" else (dy, abs(dx))
    return min(along - least, 2 * along - across)


def looked(images: Array, size: int, chunk: int, look: Callable[[Array], Sequence[Found[F]]]) -> list[Found[F]]:
    """What `look` finds in each picture of a batch [B, 3, size, size], `chunk` pictures at a time.

    Raises:
        ValueError: the batch has another shape.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(f"the checker needs pictures of shape [B, 3, {size}, {size}], not {list(images.shape)}")
    return [found for start in range(0, len(images), chunk) for found in look(images[start : start + chunk])]


def refuse_unequal(images: Array, requests: Sequence[Any]) -> None:
    """Raises ValueError if the numbers of pictures and requests differ."""
    if len(images) != len(requests):
        raise ValueError(f"{len(images)} pictures need as many requests, not {len(requests)}")
