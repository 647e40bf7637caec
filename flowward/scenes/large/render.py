"""Draw pictures of layouts: paper with a gentle light, soft shadows, patterned shapes, and words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...prompts.scenes64 import SHAPES, Request
from ..silhouettes import cover
from .layout import KINDS, MAX_OBJECTS, SIZE, Layout, layouts
from .letters import written
from .textures import DARK, TONES, sheets

SHADOW = 0.07  # darkness
SHADOW_OFFSET = (1.0, 2.0)  # x, y in pixels
SHADOW_SOFTNESS = 5.0  # width of its edge in pixels

Array = NDArray[np.float32]


def draw(layout: Layout) -> Array:
    """Draw pictures [B, 3, SIZE, SIZE] in [0, 1]."""
    picture = _paper(layout)
    for slot in range(MAX_OBJECTS):
        rows = np.flatnonzero((layout.kind[:, slot] >= 0) & (layout.kind[:, slot] < len(SHAPES)))
        if len(rows):
            _shade(picture, layout, rows, slot)
    for slot in range(MAX_OBJECTS):
        rows = np.flatnonzero((layout.kind[:, slot] >= 0) & (layout.kind[:, slot] < len(SHAPES)))
        if len(rows):
            _paint(picture, layout, rows, slot)
        for row in np.flatnonzero(layout.kind[:, slot] >= len(SHAPES)):
            _write(picture[row], layout, int(row), slot)
    return picture


def _paper(layout: Layout) -> Array:
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * 2 / SIZE - 1
    light = 1 + layout.slope[:, 0, None, None] * axis + layout.slope[:, 1, None, None] * axis[:, None]
    return np.minimum(layout.paper[:, :, None, None] * light[:, None], 1).astype(np.float32)


def _covered(layout: Layout, rows: NDArray[np.int64], slot: int, move: tuple[float, float], softness: float) -> Array:
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    full = (len(rows), SIZE, SIZE)
    dx = np.broadcast_to(axis - layout.centre[rows, slot, 0, None, None] - move[0], full)
    dy = np.broadcast_to(axis[:, None] - layout.centre[rows, slot, 1, None, None] - move[1], full)
    return cover(SHAPES, layout.kind[rows, slot], dx, dy, layout.radius[rows, slot], softness)[:, None]


def _shade(picture: Array, layout: Layout, rows: NDArray[np.int64], slot: int) -> None:
    picture[rows] *= 1 - SHADOW * _covered(layout, rows, slot, SHADOW_OFFSET, SHADOW_SOFTNESS)


def _paint(picture: Array, layout: Layout, rows: NDArray[np.int64], slot: int) -> None:
    covered = _covered(layout, rows, slot, (0, 0), 1.0)
    dark = sheets(SIZE)[layout.texture[rows, slot]][:, None]
    tone, deep = (table[layout.colour[rows, slot]][:, :, None, None] for table in (TONES, DARK))
    picture[rows] = (1 - covered) * picture[rows] + covered * ((1 - dark) * tone + dark * deep)


def _write(picture: Array, layout: Layout, row: int, slot: int) -> None:
    ink = written(KINDS[layout.kind[row, slot]])
    height, width = ink.shape
    x, y = (int(v) for v in np.round(layout.centre[row, slot] - np.array([width, height]) / 2))
    part = picture[:, y : y + height, x : x + width]
    part += ink * (TONES[layout.colour[row, slot]][:, None, None] - part)


def render(requests: list[Request], rng: np.random.Generator) -> Array:
    """Draw random pictures [B, 3, SIZE, SIZE] in [0, 1] of requests."""
    return draw(layouts(requests, rng))
