"""Looks at a picture and says what is in it; then whether a request holds. It sees pixels and nothing else.

1. The paper is the median of the border; what differs from it is foreground.
2. Foreground falls into 4-connected components; specks under MIN_AREA pixels are ignored.
3. A component's colour is the palette entry nearest to its strongest pixels; its cover of each pixel follows by
   projection. Its shape is the silhouette (of the component's area, at its centroid) with the best soft overlap
   (intersection over union). The renderer's own silhouettes are used, so drawing and recognising cannot drift apart.
4. A component is an *object* if its overlap is at least MIN_OVERLAP and its colour is near a palette entry.

Strict verdict: the objects are exactly those asked for, there is nothing else in the picture, the relation holds.
Soft score in [0, 1]: best assignment of what was found to what was asked for, each pair scored by shape and colour,
over the larger of the two counts; half of it hangs on the relation where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from .grammar import COLOURS, PALETTE, SHAPES, Request
from .render import SIZE, silhouette

CONTRAST = 0.20  # distance from the paper, in RGB, that counts as foreground
BORDER_SPREAD = 0.05  # a border that varies more than this (mean absolute deviation) is not paper
MIN_AREA = 6  # pixels; less is a speck
MAX_COMPONENTS = 8  # more is noise
COLOUR_REACH = 0.28  # how far from a palette entry a colour may lie
MIN_OVERLAP = 0.80  # of an object with its silhouette, to be accepted
MAX_STRAY = 0.25  # share of an object that may be of another colour than its own
NO_OVERLAP = 0.70  # at or below this a component resembles nothing
MIN_OFFSET = 4.0  # pixels between centres, for a relation
_REACH = 9  # half-width of the window in which a component is compared

Array = NDArray[np.float32]
_PALETTE = np.array([PALETTE[name] for name in COLOURS], np.float32)
_PLANE = np.zeros((3, 3, 3), bool)  # 4-connectivity inside a picture, none between pictures
_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Found:
    """One component of a picture."""

    shape: str  # the best match
    colour: str  # the nearest palette entry
    x: float  # centroid, pixels
    y: float
    area: float  # covered pixels
    overlap: float  # with the best silhouette, in [0, 1]
    is_object: bool  # resembles a shape and a colour closely enough to count
    shape_score: NDArray[np.float64]  # [shapes] in [0, 1]: how much it looks like each
    colour_score: NDArray[np.float64]  # [colours] in [0, 1]


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one picture and one request."""

    strict: bool
    soft: float
    found: tuple[Found, ...]
    reason: str  # empty if strict; otherwise the first thing that is wrong, in words


@cache
def _unit_area(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre."""
    n = 400
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n * 240 - 120
    dx, dy = np.broadcast_to(axis[None, None, :], (1, n, n)), np.broadcast_to(axis[None, :, None], (1, n, n))
    cover = silhouette(np.array([SHAPES.index(shape)]), dx, dy, np.array([100.0], np.float32))[0]
    pixel = (240 / n / 100) ** 2
    return float(cover.sum() * pixel), float((cover * dy[0] / 100).sum() / cover.sum())


_AREA = np.array([_unit_area(name)[0] for name in SHAPES])
_DROP = np.array([_unit_area(name)[1] for name in SHAPES])


def look(images: Array) -> list[tuple[Found, ...] | None]:
    """What is in each picture of a batch [B, 3, SIZE, SIZE] in [0, 1]; None where nothing can be told apart from paper.

    Raises:
        ValueError: the batch has another shape.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"the checker reads pictures of shape [B, 3, {SIZE}, {SIZE}], not {list(images.shape)}")
    count = len(images)
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]], 2)
    paper = np.median(border, 2)  # [B, 3]
    calm = np.abs(border - paper[:, :, None]).mean((1, 2)) < BORDER_SPREAD
    delta = images - paper[:, :, None, None]
    contrast = np.sqrt((delta**2).sum(1))  # [B, H, W]
    labels, number = ndimage.label((contrast > CONTRAST) & calm[:, None, None], _PLANE)
    boxes = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=number + 1)
    picture = np.array([0] + [box[0].start for box in boxes], np.int64)
    kept = np.flatnonzero(area >= MIN_AREA)[1:]  # label 0 is the paper
    crowded = np.bincount(picture[kept], minlength=count) > MAX_COMPONENTS
    kept = kept[~crowded[picture[kept]]]
    out: list[list[Found]] = [[] for _ in range(count)]
    if len(kept):
        region = _Regions.cut(delta, contrast, labels, kept, picture[kept], [boxes[label - 1] for label in kept])
        for row, thing in zip(picture[kept], _describe(region, paper[picture[kept]]), strict=True):
            out[row].append(thing)
    return [None if crowded[row] or not calm[row] else tuple(things) for row, things in enumerate(out)]


@dataclass(frozen=True)
class _Regions:
    """N components, each in a window of its own; W = 2 _REACH + 1."""

    delta: Array  # [N, 3, W, W] colour minus paper
    strength: Array  # [N, W, W] contrast inside the component, 0 outside
    reach: NDArray[np.bool_]  # [N, W, W] the component and the pixels that its soft edge may touch
    corner: NDArray[np.int64]  # [N, 2] x, y of the window
    too_big: NDArray[np.bool_]  # [N] does not fit into the window

    @classmethod
    def cut(
        cls,
        delta: Array,
        contrast: Array,
        labels: NDArray[np.int32],
        kept: NDArray[np.int64],
        picture: NDArray[np.int64],
        boxes: list[tuple[slice, slice, slice]],
    ) -> _Regions:
        span = np.array([[[b[2].start, b[2].stop], [b[1].start, b[1].stop]] for b in boxes])  # [N, (x, y), (from, to)]
        corner = span.sum(2) // 2 - _REACH
        side = np.arange(2 * _REACH + 1) + _REACH  # in coordinates of the padded pictures
        rows = (corner[:, 1, None] + side)[:, :, None]
        columns = (corner[:, 0, None] + side)[:, None, :]
        which = picture[:, None, None]
        edge = ((0, 0), (_REACH, _REACH), (_REACH, _REACH))
        region = np.pad(labels, edge)[which, rows, columns]
        mine = region == kept[:, None, None]
        reach = ndimage.binary_dilation(mine, _PLANE) & ((region == 0) | mine)
        window = np.pad(np.moveaxis(delta, 1, 3), (*edge, (0, 0)))[which, rows, columns]
        strength = np.pad(contrast, edge)[which, rows, columns] * mine
        too_big = (span[:, :, 1] - span[:, :, 0]).max(1) > 2 * _REACH - 1
        return cls(np.moveaxis(window, 3, 1), strength, reach, corner, too_big)


def _describe(region: _Regions, paper: Array) -> list[Found]:
    """Colour, cover, place and shape of N components at once."""
    core = region.strength >= 0.85 * region.strength.max((1, 2))[:, None, None]
    paint = (region.delta * core[:, None]).sum((2, 3)) / core.sum((1, 2))[:, None]  # [N, 3], relative to paper
    power = (paint**2).sum(1)[:, None, None]
    cover = np.clip((region.delta * paint[:, :, None, None]).sum(1) / power, 0, 1) * region.reach
    area = cover.sum((1, 2))
    stray = np.sqrt(((region.delta - cover[:, None] * paint[:, :, None, None]) ** 2).sum(1)) * region.reach
    mottled = stray.sum((1, 2)) > MAX_STRAY * np.sqrt(power[:, 0, 0]) * area

    axis = np.arange(cover.shape[-1], dtype=np.float32) + 0.5
    x, y = (cover * axis).sum((1, 2)) / area, (cover * axis[:, None]).sum((1, 2)) / area
    overlap = np.stack([_overlap(index, cover, x, y, area) for index in range(len(SHAPES))], 1)  # [N, shapes]
    overlap[region.too_big | mottled] = 0.0
    distance = np.linalg.norm((paint + paper)[:, None] - _PALETTE, axis=2)  # [N, colours]

    likeness = np.clip((overlap.max(1) - NO_OVERLAP) / (MIN_OVERLAP - NO_OVERLAP), 0, 1)
    nearness = np.clip(2 - distance.min(1) / COLOUR_REACH, 0, 1)
    shape_score = likeness[:, None] * _softmax(overlap / 0.03)
    colour_score = nearness[:, None] * _softmax(-distance / 0.05)
    best, nearest = overlap.argmax(1), distance.argmin(1)
    return [
        Found(
            shape=SHAPES[best[i]],
            colour=COLOURS[nearest[i]],
            x=float(x[i] + region.corner[i, 0]),
            y=float(y[i] + region.corner[i, 1]),
            area=float(area[i]),
            overlap=float(overlap[i, best[i]]),
            is_object=bool(likeness[i] >= 1 and nearness[i] >= 1),
            shape_score=shape_score[i],
            colour_score=colour_score[i],
        )
        for i in range(len(area))
    ]


def _overlap(index: int, cover: Array, x: Array, y: Array, area: Array) -> Array:
    """Intersection over union [N] of a cover [N, W, W] with the silhouette of its area at its centroid."""
    radius = np.sqrt(area / _AREA[index]).astype(np.float32)
    axis = np.arange(cover.shape[-1], dtype=np.float32) + 0.5
    dx = np.broadcast_to(axis[None, None, :] - x[:, None, None], cover.shape)
    dy = np.broadcast_to(axis[None, :, None] - (y - _DROP[index] * radius)[:, None, None], cover.shape)
    model = silhouette(np.full(len(area), index), dx, dy.astype(np.float32), radius)
    return np.minimum(cover, model).sum((1, 2)) / np.maximum(cover, model).sum((1, 2))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _wanted(request: Request) -> list[tuple[int, int | None]]:
    """One (shape, colour or None) per object asked for."""
    return [
        (SHAPES.index(thing.shape), COLOURS.index(thing.colour) if thing.colour else None)
        for thing in request.things
        for _ in range(thing.count)
    ]


def _relation_margin(a: Found, b: Found, relation: str) -> float:
    """How clearly `a relation b` holds, in pixels: 0 at the limit, negative where it does not.

    As in GenEval the offset must be large enough, and not mainly along the other axis.
    """
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, abs(dy)) if relation == "left of" else (dy, abs(dx))
    return min(along - MIN_OFFSET, 2 * along - across)


def judge(found: tuple[Found, ...] | None, request: Request) -> Verdict:
    """Whether what `look` found is what `request` asks for."""
    if not found:
        return Verdict(False, 0.0, found or (), "nothing can be made out" if found is None else "the picture is empty")
    wanted = _wanted(request)
    shape = np.array([[thing.shape_score[s] for thing in found] for s, _ in wanted])
    colour = np.array([[1.0 if c is None else thing.colour_score[c] for thing in found] for _, c in wanted])
    # an object of the right shape earns half, the other half is its colour
    pair = shape * (0.5 + 0.5 * colour)
    rows, columns = linear_sum_assignment(-pair)
    soft = float(pair[rows, columns].sum()) / max(len(wanted), len(found))
    margin = np.inf
    if request.relation:
        if len(rows) == 2:
            a, b = (found[columns[list(rows).index(i)]] for i in (0, 1))
            margin = _relation_margin(a, b, request.relation)
            soft *= 0.5 + 0.5 * float(np.clip(0.5 + margin / 8, 0, 1))
        else:
            soft *= 0.5
    reason = _complaint(found, request, margin)
    return Verdict(not reason, soft, found, reason)


def _complaint(found: tuple[Found, ...], request: Request, margin: float) -> str:
    """The first thing that is wrong, in words; empty if all of the request holds and nothing is extra."""
    if any(not thing.is_object for thing in found):
        return "something has no clear shape or colour"
    if len(found) != request.count:
        return f"{len(found)} object{'s' * (len(found) > 1)}, not {request.count}"
    left = list(found)
    for thing in request.things:
        for _ in range(thing.count):
            match = next((f for f in left if f.shape == thing.shape and thing.colour in (None, f.colour)), None)
            if match is None:
                return f"no {thing.colour + ' ' if thing.colour else ''}{thing.shape}"
            left.remove(match)
    if margin < 0:
        return f"the {request.things[0].shape} is not {request.relation} the {request.things[1].shape}"
    return ""


def check(images: Array, requests: list[Request]) -> list[Verdict]:
    """Verdicts on pictures [B, 3, SIZE, SIZE] in [0, 1], one request each.

    Raises:
        ValueError: the numbers of pictures and requests differ, or the pictures have another shape.
    """
    if len(images) != len(requests):
        raise ValueError(f"{len(images)} pictures, but {len(requests)} requests")
    return [judge(found, request) for found, request in zip(look(images), requests, strict=True)]
