"""What the checkers of all worlds share: components of a picture, windows around them, overlaps with silhouettes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .silhouettes import cover as covered

CONTRAST = 0.15  # smallest RGB distance from the paper to be foreground, and from its own colour to be another colour
PALE = 0.30  # at this RGB distance from the paper a pixel is paint, not a soft edge (pink, the palest paint: 0.34)
EDGE = 0.40  # below PALE, a pixel with less than this share of the strongest contrast within 2 pixels is a soft edge
MIN_AREA = 6  # pixels; smaller components are specks

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
_PLANE = np.zeros((3, 3, 3), bool)  # 4-connectivity inside a picture, none between pictures
_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def solid(contrast: Array, most: float) -> Mask:
    """Pixels that are neither paper nor a soft edge: with contrast `most`, or EDGE of the most within 2 pixels."""
    nearby = ndimage.maximum_filter(contrast, (1, 5, 5))
    found: Mask = contrast > np.clip(EDGE * nearby, CONTRAST, most)
    return found


def components(contrast: Array) -> tuple[NDArray[np.int32], Mask]:
    """Labels [B, H, W] of the components, 0 for paper and soft edges; and whether component i touches another.

    Bodies consist of 2 x 2 squares. Thinner foreground does not join two bodies, but they touch if one of its pixels
    is next to both. Thin foreground away from every body (a scribble) is a component itself.
    """
    foreground = solid(contrast, PALE)
    square = foreground[:, :-1] & foreground[:, 1:]
    square = square[:, :, :-1] & square[:, :, 1:]  # [B, H - 1, W - 1] where a 2 x 2 square fits
    body = np.zeros_like(foreground)
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            body[:, rows, columns] |= square
    labels, bodies = ndimage.label(body, _PLANE)
    lines, number = ndimage.label(foreground & ~ndimage.binary_dilation(body, _PLANE), _PLANE)
    touching = np.zeros(bodies + number + 1, bool)
    beside = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    beside = np.stack([beside[:, 1:-1, :-2], beside[:, 1:-1, 2:], beside[:, :-2, 1:-1], beside[:, 2:, 1:-1]])
    beside = beside[:, foreground & ~body]  # [4, thin pixels]
    most = beside.max(0)
    touching[beside[:, ((beside > 0) & (beside < most)).any(0)]] = True
    touching[0] = False
    return np.where(lines > 0, lines + bodies, labels), touching


@dataclass(frozen=True)
class Regions:
    """N components, each in a window of its own; W = 2 `half` + 1."""

    delta: Array  # [N, W, W, 3] colour minus paper
    contrast: Array  # [N, W, W] its length
    mine: Mask  # [N, W, W] pixels of the component
    reach: Mask  # [N, W, W] the component and the pixels of its soft edge
    corner: NDArray[np.int64]  # [N, 2] x, y of the window
    too_big: Mask  # [N] whether the component does not fit into the window

    @classmethod
    def cut(
        cls,
        delta: Array,
        contrast: Array,
        labels: NDArray[np.int32],
        kept: NDArray[np.int64],
        picture: NDArray[np.int64],
        boxes: list[tuple[slice, slice, slice]],
        half: int,
    ) -> Regions:
        """Cut out the windows of the components `kept`, each in its `picture` and box, of half-width `half`."""
        span = np.array([[[b[2].start, b[2].stop], [b[1].start, b[1].stop]] for b in boxes])  # [N, (x, y), (from, to)]
        corner = span.sum(2) // 2 - half
        side = np.arange(2 * half + 1) + half  # in coordinates of the padded pictures
        rows = (corner[:, 1, None] + side)[:, :, None]
        columns = (corner[:, 0, None] + side)[:, None, :]
        which = picture[:, None, None]
        edge = ((0, 0), (half, half), (half, half))
        region = np.pad(labels, edge)[which, rows, columns]
        mine = region == kept[:, None, None]
        reach = ndimage.binary_dilation(mine, _PLANE) & ((region == 0) | mine)
        delta = np.pad(np.moveaxis(delta, 1, 3), (*edge, (0, 0)))[which, rows, columns]
        contrast = np.pad(contrast, edge)[which, rows, columns]
        too_big = (span[:, :, 1] - span[:, :, 0]).max(1) > 2 * half - 1
        return cls(delta, contrast, mine, reach, corner, too_big)


def share(delta: Array, paint: Array) -> Array:
    """Share of paint [N, 3] in each pixel [N, W, W], in [0, 1]; colours are relative to the paper."""
    power = np.maximum((paint**2).sum(1), 1e-3)
    return np.clip((delta @ (paint / power[:, None])[:, None, :, None])[..., 0], 0, 1)


def roundness(cover: Array, dx: Array, dy: Array) -> Array:
    """Smallest over largest moment of inertia [N]: 1 for a round component, small for a long one."""
    xx, yy = np.einsum("nhw,nw->n", cover, dx**2), np.einsum("nhw,nh->n", cover, dy**2)
    xy = np.einsum("nhw,nw,nh->n", cover, dx, dy)
    spread = np.hypot(xx - yy, 2 * xy)
    return (xx + yy - spread) / np.maximum(xx + yy + spread, 1e-3)


@cache
def unit_area(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and the distance of its centroid below its centre."""
    n = 400
    axis = (((np.arange(n) + 0.5) / n - 0.5) * 240).astype(np.float32)
    dx, dy = np.broadcast_to(axis[None, None, :], (1, n, n)), np.broadcast_to(axis[None, :, None], (1, n, n))
    cover = covered((shape,), np.zeros(1, np.int64), dx, dy, np.array([100.0], np.float32))[0]
    pixel = (240 / n / 100) ** 2
    return float(cover.sum() * pixel), float((cover * dy[0] / 100).sum() / cover.sum())


def overlaps(shapes: Sequence[str], cover: Array, dx: Array, dy: Array, area: Array) -> Array:
    """Intersection over union [N, shapes] of covers [N, W, W] with the silhouettes of the same area and centroid."""
    return np.stack([_overlap(shape, cover, dx, dy, area) for shape in shapes], 1)


def _overlap(shape: str, cover: Array, dx: Array, dy: Array, area: Array) -> Array:
    size, drop = np.float32(unit_area(shape)[0]), np.float32(unit_area(shape)[1])
    radius = np.sqrt(area / size).astype(np.float32)
    dy = dy + drop * radius[:, None]
    across, down = np.broadcast_to(dx[:, None, :], cover.shape), np.broadcast_to(dy[:, :, None], cover.shape)
    model = covered((shape,), np.zeros(len(area), np.int64), across, down, radius)
    return np.minimum(cover, model).sum((1, 2)) / np.maximum(np.maximum(cover, model).sum((1, 2)), 1e-3)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
