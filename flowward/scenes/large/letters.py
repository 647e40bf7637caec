"""Capital letters of 8 x 10 pixels, drawn with a pen 2 pixels wide. The renderer writes them; the checker reads them.

Every letter has the same width, and letters stand on whole pixels. So a word is read letter by letter, exactly.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
WIDTH, HEIGHT = 8, 10
PITCH = WIDTH + 2  # from one letter to the next
_PEN = 1.0  # half its width

# The pen's strokes: points x y in pixels from the upper left corner.
_STROKES: dict[str, tuple[str, ...]] = {
    "a": ("1 9  4 1  7 9", "2 6.6  6 6.6"),
    "b": ("1 1  1 9  5.4 9  7 7.6  7 6.2  5.4 5  1 5", "1 1  5 1  6.4 2.2  6.4 3.8  5.4 5"),
    "c": ("7 2.6  5.6 1  2.4 1  1 2.6  1 7.4  2.4 9  5.6 9  7 7.4",),
    "d": ("1 1  1 9  4.6 9  7 6.8  7 3.2  4.6 1  1 1",),
    "e": ("7 1  1 1  1 9  7 9", "1 5  6 5"),
    "f": ("7 1  1 1  1 9", "1 5  6 5"),
    "g": ("7 2.6  5.6 1  2.4 1  1 2.6  1 7.4  2.4 9  5.6 9  7 7.6  7 5.4  4.4 5.4",),
    "h": ("1 1  1 9", "7 1  7 9", "1 5  7 5"),
    "i": ("4 1  4 9", "2 1  6 1", "2 9  6 9"),
    "k": ("1 1  1 9", "7 1  1.6 5.4", "3.2 4.4  7 9"),
    "l": ("1 1  1 9  7 9",),
    "n": ("1 9  1 1  7 9  7 1",),
    "o": ("2.6 1  5.4 1  7 2.6  7 7.4  5.4 9  2.6 9  1 7.4  1 2.6  2.6 1",),
    "p": ("1 9  1 1  5.4 1  7 2.4  7 4.2  5.4 5.6  1 5.6",),
    "r": ("1 9  1 1  5.4 1  7 2.2  7 3.8  5.4 5  1 5", "3.8 5  7 9"),
    "s": ("7 2.4  5.6 1  2.4 1  1 2.2  1 3.8  2.2 5  5.8 5  7 6.2  7 7.8  5.6 9  2.4 9  1 7.6",),
    "t": ("1 1  7 1", "4 1  4 9"),
    "u": ("1 1  1 7.4  2.4 9  5.6 9  7 7.4  7 1",),
    "x": ("1 1  7 9", "7 1  1 9"),
    "y": ("1 1  4 5  7 1", "4 5  4 9"),
}
LETTERS = "".join(_STROKES)


@cache
def glyphs() -> Array:
    """Share of each pixel covered by each of LETTERS, [letters, HEIGHT, WIDTH]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.stack([_drawn(strokes, x, y) for strokes in _STROKES.values()]).astype(np.float32)


def _drawn(strokes: tuple[str, ...], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    nearest = np.full(x.shape, np.inf)
    for stroke in strokes:
        points = np.array(stroke.split(), float).reshape(-1, 2)
        for (ax, ay), (bx, by) in pairwise(points):
            along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
    return np.clip(0.5 + _PEN - nearest, 0, 1)


@cache
def written(word: str) -> Array:
    """Share of each pixel covered by a word, [HEIGHT, PITCH n - 2] for n letters."""
    picture = np.zeros((HEIGHT, PITCH * len(word)), np.float32)
    for index, letter in enumerate(word):
        picture[:, PITCH * index : PITCH * index + WIDTH] = glyphs()[LETTERS.index(letter)]
    return picture[:, : PITCH * len(word) - (PITCH - WIDTH)]
