"""The built-in worlds: what training a base model, and judging its pictures, needs to know of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..prompts import scenes, scenes64
from ..prompts.language import Language
from . import checker
from . import render as small
from .design import LARGE, SMALL, Design
from .judging import Verdict
from .large import checker as large_checker
from .large import layout
from .large import render as large

Array = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """A language, pictures of its requests, their checker, and the sizes of the networks that learn to draw them."""

    language: Language[Any]
    render: Callable[[list[Any], np.random.Generator], Array]  # pictures of requests
    misread: Callable[[Any, np.random.Generator], Any]  # another request, wrong in one respect
    check: Callable[[Array, list[Any]], Sequence[Verdict[Any]]]  # pictures against requests
    design: Design
    fine: tuple[str, ...] = ()  # categories with fine detail: the autoencoder sees more of them


_FINE = ("textures", "texture_attribution", "words")
WORLDS = {
    "scenes": World(scenes.LANGUAGE, small.render, small.misread, checker.check, SMALL),
    "scenes-64": World(scenes64.LANGUAGE, large.render, layout.misread, large_checker.check, LARGE, _FINE),
}


def of_size(height: int, width: int) -> World:
    """The world whose pictures have this size.

    Raises:
        ValueError: there is none.
    """
    for world in WORLDS.values():
        if (height, width) == (world.design.size, world.design.size):
            return world
    sizes = " or ".join(f"{each.design.size} x {each.design.size}" for each in WORLDS.values())
    raise ValueError(f"the checker needs pictures of {sizes} pixels, not {height} x {width}")
