"""Read the words in pictures: dark strokes as small as letters, matched with the renderer's own letters.

This reader is exact and fast, and reads nothing but this font. `flowward.rewards` has one for any font: `ocr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..components import solid
from .layout import INK
from .letters import HEIGHT, LETTERS, PITCH, WIDTH, glyphs
from .textures import TONES

LARGEST = HEIGHT + 1  # pixels; a dark component of at most this height and width is a letter, or a part of one
INK_REACH = 0.20  # largest mean RGB distance of a letter from the mixtures of paper and ink
MIN_INK = 0.6  # smallest share of ink in the darkest pixel of a letter
MIN_LETTER = 0.62  # smallest overlap with a letter to be that letter
NO_LETTER = 0.45  # with at most this overlap, there is no letter
STEEPNESS = 1.35
_FAR = 5  # empty pixels after which another word begins
_UP = 4  # difference in height of letters of a word, at most
_LONGEST = 6  # letters
MOST = 3  # words in a picture; with more, it is noise
_AROUND = np.zeros((3, 3, 3), bool)  # 8-connectivity inside a picture, none between pictures
_AROUND[1] = True

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Text:
    """One word in a picture."""

    word: str  # its letters, as far as they can be read
    x: float  # centre, pixels
    y: float
    overlap: float  # of the worst letter with the best match, in [0, 1]
    letters: NDArray[np.floating]  # [n, LETTERS] in [0, 1]: similarity of each letter to each of LETTERS

    @property
    def clear(self) -> bool:
        """Whether every letter is like one of LETTERS."""
        return self.overlap >= MIN_LETTER


def read(delta: Array, paper: Array, contrast: Array) -> tuple[list[list[Text] | None], NDArray[np.bool_]]:
    """The words in each picture (None: more than MOST, so they are noise), and the pixels [B, H, W] that they take.

    Args:
        delta: [B, 3, H, W] colour minus paper.
        paper: [B, 3] colour of the paper.
        contrast: [B, H, W] length of delta.
    """
    ink = TONES[INK] - paper
    power = (ink**2).sum(1)[:, None, None]
    share = np.einsum("bchw,bc->bhw", delta, ink) / power
    off = np.sqrt(np.maximum(contrast**2 - np.clip(share, 0, None) ** 2 * power, 0))
    labels, count = ndimage.label(solid(contrast, 1.0), _AROUND)
    boxes = ndimage.find_objects(labels)
    numbers = np.arange(1, count + 1)
    darkest = np.atleast_1d(ndimage.maximum(share, labels, numbers)) if count else np.zeros(0)
    stray = np.atleast_1d(ndimage.mean(off, labels, numbers)) if count else np.zeros(0)
    strokes: list[list[Box]] = [[] for _ in delta]
    mine = np.zeros(count + 1, bool)
    for index, (picture, rows, columns) in enumerate(boxes):
        small = max(rows.stop - rows.start, columns.stop - columns.start) <= LARGEST
        if small and stray[index] < INK_REACH and darkest[index] > MIN_INK:
            mine[index + 1] = True
            strokes[picture.start].append((columns.start, rows.start, columns.stop, rows.stop))
    cover = np.clip((share - 0.5) * STEEPNESS + 0.5, 0, 1)
    cover = np.pad(cover, ((0, 0), (PITCH, PITCH), (PITCH, PITCH * (_LONGEST + 1))))
    lines = [_lines(some) for some in strokes]
    words = [
        [_word(own, box) for box in some] if len(some) <= MOST else None for own, some in zip(cover, lines, strict=True)
    ]
    return words, ndimage.binary_dilation(mine[labels], _AROUND, 2)


def _lines(strokes: list[Box]) -> list[Box]:
    """The boxes of words: strokes at about the same height with little space between them."""
    found: list[Box] = []
    for left, top, right, bottom in sorted(strokes):
        for index, (x0, y0, x1, y1) in enumerate(found):
            if left - x1 <= _FAR and top < y1 and y0 < bottom and min(abs(top - y0), abs(bottom - y1)) <= _UP:
                found[index] = x0, min(y0, top), max(x1, right), max(y1, bottom)
                break
        else:
            found.append((left, top, right, bottom))
    return found


def _word(cover: Array, box: Box) -> Text:
    """Read the word in a box of a padded picture: letters have one pitch, so only its start has to be found."""
    left, top, right, bottom = box
    count = int(np.clip(round((right - left + PITCH - WIDTH) / PITCH), 1, _LONGEST))
    best: NDArray[np.floating] = np.zeros((count, len(LETTERS)))
    for y in range(top - 2, top + 3):
        for x in range(left - 2, left + 3):
            part = cover[y + PITCH : y + PITCH + HEIGHT, x + PITCH : x + PITCH + PITCH * count]
            cells = part.reshape(HEIGHT, count, PITCH).transpose(1, 0, 2)
            if (likeness := _likeness(cells)).max(1).sum() > best.max(1).sum():
                best = likeness
    word = "".join(LETTERS[index] for index in best.argmax(1))
    clear = np.clip((best - NO_LETTER) / (MIN_LETTER - NO_LETTER), 0, 1)
    close = np.clip(1 - (best.max(1, keepdims=True) - best) / 0.1, 0, 1)
    return Text(word, (left + right) / 2, (top + bottom) / 2, float(best.max(1).min()), clear * close)


def _likeness(cells: Array) -> NDArray[np.floating]:
    """Intersection over union [n, LETTERS] of cells [n, HEIGHT, PITCH] with letters."""
    letters = _cells()
    both = np.minimum(cells[:, None], letters).sum((2, 3))
    either = cells.sum((1, 2))[:, None] + letters.sum((1, 2)) - both
    found: NDArray[np.floating] = both / np.maximum(either, 1e-3)
    return found


@cache
def _cells() -> Array:
    """The letters with the space behind them, [LETTERS, HEIGHT, PITCH]."""
    return np.pad(glyphs(), ((0, 0), (0, 0), (0, PITCH - WIDTH)))
