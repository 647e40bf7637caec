"""Patterns on objects: a darker tone of their colour, in stripes, dots or checks.

A pattern is cut out of a sheet that covers the picture. So its phase does not depend on the place of the object; the
checker accepts every phase.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...prompts.scenes64 import COLOURS, PALETTE, TEXTURES

Array = NDArray[np.float32]
DARKER = 0.55  # brightness of the darker tone, relative to the colour
_PERIOD = 4  # of stripes and dots; checks are squares of this size
TONES = np.array([PALETTE[name] for name in COLOURS], np.float32)
DARK = np.stack([tone * DARKER for tone in TONES])


def sheet(texture: str, size: int, x: int = 0, y: int = 0) -> Array:
    """Share of the darker tone in each pixel of a sheet [size, size] that is shifted by x, y pixels."""
    rows, columns = np.mgrid[:size, :size]
    rows, columns = rows + y, columns + x
    if texture == "striped":
        return (rows % _PERIOD < _PERIOD // 2).astype(np.float32)
    if texture == "dotted":
        return ((rows % _PERIOD < 2) & (columns % _PERIOD < 2)).astype(np.float32)
    if texture == "checked":
        return ((rows // _PERIOD + columns // _PERIOD) % 2).astype(np.float32)
    return np.zeros((size, size), np.float32)


def phases(texture: str, size: int) -> Array:
    """All different shifts of a sheet, [phases, size, size]; of stripes, also the upright ones."""
    moves = range(2 * _PERIOD)
    every = [sheet(texture, size, x, y) for x in moves for y in moves]
    if texture == "striped":
        every += [each.T for each in every]
    return np.unique(np.stack(every), axis=0)


def sheets(size: int) -> Array:
    """The sheets of all TEXTURES, [textures, size, size]."""
    return np.stack([sheet(texture, size) for texture in TEXTURES])
