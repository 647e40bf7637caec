"""What the training of a base model needs to know of a built-in world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..prompts import scenes, scenes64
from ..prompts.language import Language
from . import render as small
from .large import layout
from .large import render as large
from .network import LARGE, SMALL, Design

Array = NDArray[np.float32]
Check = Callable[[Array, list[Any]], list[Any]]


@dataclass(frozen=True)
class World:
    """A language, pictures of its requests, and the sizes of the networks that learn to draw them."""

    language: Language[Any]
    render: Callable[[list[Any], np.random.Generator], Array]  # pictures of requests
    misread: Callable[[Any, np.random.Generator], Any]  # another request, wrong in one respect
    design: Design


WORLDS = {
    "scenes": World(scenes.LANGUAGE, small.render, small.misread, SMALL),
    "scenes-64": World(scenes64.LANGUAGE, large.render, layout.misread, LARGE),
}
