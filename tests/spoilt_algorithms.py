"""Algorithms with a deliberate mistake in their loss, and the laws that they break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowward.algorithms import AdvantageFlow
from flowward.verify import Check, Report

Loss = tuple[Tensor, dict[str, Tensor]]


def broken(found: Report, words: str) -> list[Check]:
    """The failures whose law has these words in it."""
    return [each for each in found.failures if words in each.law]


def spoilt(right: Any, change: Callable[..., Any]) -> Any:
    """The class of an algorithm whose loss is replaced by change(loss, models, points)."""

    class Spoilt(right):
        def loss(self, models: Any, points: Any) -> Loss:
            loss, watched = super().loss(models, points)
            return change(loss, models, points), watched

    return Spoilt


def mine(change: Callable[..., Any], **setting: Any) -> Any:
    """An algorithm of one's own, spoilt in one place."""
    return spoilt(AdvantageFlow, change)(**setting)
