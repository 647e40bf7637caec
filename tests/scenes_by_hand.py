"""Requests picked at random, and pictures of the built-in world drawn by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowward.prompts.scenes import COLOURS, SHAPES, Request, prompts
from flowward.scenes.render import MAX_OBJECTS, Layout, draw

Array = NDArray[np.float32]


def requests(category: str) -> list[Request]:
    """All requests of a category, in a fixed order."""
    return list({prompt.request: None for prompt in prompts().values() if prompt.request.category == category})


def some(category: str, count: int, rng: np.random.Generator) -> list[Request]:
    choices = requests(category)
    return [choices[index] for index in rng.integers(len(choices), size=count)]


def scene(*objects: tuple[str, str, float, float, float], paper: float = 0.9) -> Array:
    """One picture [3, SIZE, SIZE] of objects (shape, colour, x, y, radius), the later ones on top."""
    layout = Layout(
        shape=np.full((1, MAX_OBJECTS), -1, np.int64),
        colour=np.zeros((1, MAX_OBJECTS), np.int64),
        centre=np.zeros((1, MAX_OBJECTS, 2), np.float32),
        radius=np.ones((1, MAX_OBJECTS), np.float32),
        background=np.array([paper], np.float32),
    )
    for slot, (shape, colour, x, y, radius) in enumerate(objects):
        layout.shape[0, slot], layout.colour[0, slot] = SHAPES.index(shape), COLOURS.index(colour)
        layout.centre[0, slot], layout.radius[0, slot] = (x, y), radius
    return draw(layout)[0]
