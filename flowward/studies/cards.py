"""GPUs by their usual names: memory, and how fast they compute network passes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..system import tables
from ..training.speed import PEAKS
from .shipped import FOLDER
from .sizes import Size

USABLE = 0.9  # of a card, as `--memory auto` has it
LEAST, MOST = 1.0, 1000.0  # GB of a card
PREFIXES = re.compile(r"^(nvidia|geforce|rtx|tesla)+")


@dataclass(frozen=True)
class Card:
    """One GPU."""

    name: str
    memory: float  # GB
    device: str | None = None  # as torch reports it; None: its speed is not known

    @property
    def usable(self) -> float:
        return USABLE * self.memory


@dataclass(frozen=True)
class Passes:
    """Network passes per training image."""

    sampling: float  # forward
    training: float  # forward and backward
    frozen: float  # forward, of frozen copies: at most

    def __str__(self) -> str:
        return f"{self.sampling:.4g} passes to sample, {self.training:.4g} to train, {self.frozen:.4g} of frozen copies"


@dataclass(frozen=True)
class Pace:
    """Seconds of a training image, and where the number is from."""

    seconds: float
    basis: str


def named(text: str) -> Card | None:
    """The card of a name such as H100, or of its memory, such as 24 or 24GB; None for `none`.

    Raises:
        ValueError: it is neither.
    """
    wanted = _plain(text)
    if wanted == "none":
        return None
    known = {_plain(name): name for name in _cards()}
    if wanted in known:
        name = known[wanted]
        own = _cards()[name]
        return Card(name, float(own["memory"]), own.get("device"))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gb|g)?", text.strip().lower().replace(" ", ""))
    if found and LEAST <= float(found[1]) <= MOST:
        return Card(f"{float(found[1]):g} GB", float(found[1]))
    raise ValueError(f"unknown --gpu '{text}': give its memory, such as 24GB, or none, or one of {', '.join(_cards())}")


def _plain(text: str) -> str:
    return PREFIXES.sub("", re.sub(r"[^a-z0-9]", "", text.lower()))


@cache
def _cards() -> Mapping[str, Any]:
    found: Mapping[str, Any] = tables.load(FOLDER / "cards.yaml")
    return found


def pace(card: Card, model: str, size: Size, way: str, passes: Passes) -> Pace | None:
    """How long an image takes on this card; None if the card's speed is not known. Rewards are not counted.

    Args:
        way: options that make the model fit (sizes.WAYS).
    """
    measured, peaks = tables.load(FOLDER / "speed.yaml"), tables.load(PEAKS)
    if card.device is None:
        return None
    faster = peaks[card.device]["bf16"] / peaks[measured["device"]]["bf16"]
    forward = size.forward / measured["forward"] / measured["forwards"]
    both = size.both / measured["both"] / measured["boths"]
    for option, (alone, trained) in measured["slower"].items():
        if option in way:
            forward, both = forward * alone, both * trained
    decoded = (size.side / measured["side"]) ** 2 / measured["decoded"]
    seconds = ((passes.sampling + passes.frozen) * forward + passes.training * both + decoded) / faster
    here, same = card.device == measured["device"], model == measured["model"]
    if here and same:
        return Pace(seconds, f"from passes of this model measured on an {card.name}")
    unlike = [what for what, known in (("this card", here), ("this model", same)) if not known]
    return Pace(seconds, f"an estimate from SD3.5 Medium on an H200, not measured on {' or '.join(unlike)}")
