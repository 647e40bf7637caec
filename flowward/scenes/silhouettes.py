"""The silhouettes of all shapes, as signed distances to their outlines. The worlds draw them; the checkers match them.

Coordinates are in pixels relative to the centre of an object, x to the right and y down. An object of radius r fits
into the square of half-width 1.15 r around its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_INNER_RING = 0.5
_ARM = 0.36  # half-width of a cross's arm
_STAR = 1.1  # radius of a star's tips
_NOTCH = 0.5  # radius of a star's inner corners, relative to its tips
_TURNS = tuple(np.array(k, np.float32) for k in ((0.80901699, -0.58778525), (-0.80901699, -0.58778525)))


def _circle(x: Array, y: Array, r: Array) -> Array:
    return np.hypot(np.abs(x), np.abs(y)) - r


def _square(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9 * r


def _triangle(x: Array, y: Array, r: Array) -> Array:
    """Apex up: base on the line y = 0.85 r, apex at y = -r."""
    return np.maximum(y - 0.85 * r, (1.85 * np.abs(x) - y - r) / np.hypot(1.85, 1.0))


def _diamond(x: Array, y: Array, r: Array) -> Array:
    return (np.abs(x) + np.abs(y) - 1.15 * r) / np.sqrt(2.0)


def _cross(x: Array, y: Array, r: Array) -> Array:
    ax, ay = np.abs(x), np.abs(y)
    long, short = np.maximum(ax, ay), np.minimum(ax, ay)
    return np.maximum(long - r, short - _ARM * r)


def _ring(x: Array, y: Array, r: Array) -> Array:
    return np.abs(np.hypot(np.abs(x), np.abs(y)) - (1 + _INNER_RING) / 2 * r) - (1 - _INNER_RING) / 2 * r


def _star(x: Array, y: Array, r: Array) -> Array:
    """Five tips, one of them up: the plane is folded onto half a tip (after Inigo Quilez's sdStar5)."""
    x, y, r = np.abs(x), -y, np.float32(_STAR) * r
    for kx, ky in _TURNS:
        fold = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - fold * kx, y - fold * ky
    x, y = np.abs(x), y - r
    ex, ey = _NOTCH * -_TURNS[0][1], _NOTCH * _TURNS[0][0] - 1
    along = np.clip((x * ex + y * ey) / (ex * ex + ey * ey), 0, r)
    return np.hypot(x - ex * along, y - ey * along) * np.sign(y * ex - x * ey)


def _heart(x: Array, y: Array, r: Array) -> Array:
    """Tip down (after Inigo Quilez's sdHeart, whose heart is 1.1 high)."""
    scale = 2 * r / 1.15
    u, v = np.abs(x) / scale, 0.55 - y / scale
    lobe = np.hypot(u - 0.25, v - 0.75) - np.sqrt(2) / 4
    foot = 0.5 * np.maximum(u + v, 0)
    rest = np.sqrt(np.minimum(u**2 + (v - 1) ** 2, (u - foot) ** 2 + (v - foot) ** 2)) * np.sign(u - v)
    return scale * np.where(u + v > 1, lobe, rest)


DISTANCES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "star": _star,
    "heart": _heart,
}


def cover(
    names: Sequence[str], shape: NDArray[np.int64], dx: Array, dy: Array, radius: Array, softness: float = 1.0
) -> Array:
    """Share of each pixel covered by a shape, [N, H, W] in [0, 1].

    Args:
        names: of the shapes that indices refer to.
        shape: [N] indices into names.
        dx, dy: [N, H, W] pixel centre minus object centre.
        radius: [N] pixels.
        softness: width of the edge in pixels; 1 is anti-aliasing.
    """
    r = radius[:, None, None]
    out = np.empty(np.broadcast_shapes(dx.shape, dy.shape), np.float32)
    for index, name in enumerate(names):
        at = shape == index
        if at.any():
            out[at] = np.clip(0.5 - DISTANCES[name](dx[at], dy[at], r[at]) / softness, 0.0, 1.0)
    return out
