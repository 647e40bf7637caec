"""The automatic checker: finds the objects in a picture, then checks a request. It sees only the pixels.

1. The paper colour is the median of the border. Pixels that differ from it are foreground.
2. The foreground is split into 4-connected components. A bridge one pixel wide does not join two of them (the tips of
   two diamonds may meet). If it is also one pixel long, the two touch and are not recognised as any shape. Specks
   under MIN_AREA pixels are ignored.
3. A component's colour is the palette entry nearest to its strongest pixels. Projection on that colour gives the
   coverage of each pixel. The shape is the silhouette (with the component's area and centroid) with the largest soft
   intersection over union. The silhouettes are the renderer's own, so drawing and recognition always agree.
4. A component is an *object* if that overlap is at least MIN_OVERLAP, its colour is near a palette entry, and it has
   no second colour.

Strict verdict: the objects are exactly the requested ones, there is nothing else in the picture, and the relation
holds. Soft score in [0, 1]: found and requested objects are assigned to each other; each pair is scored by shape and
colour; the sum is divided by the larger of the two counts. If there is a relation, it determines half of the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..prompts.scenes import COLOURS, PALETTE, SHAPES, Request, Thing
from .components import CONTRAST, MIN_AREA, Array, Mask, Regions, components, overlaps, roundness, share, softmax
from .judging import Rules, Verdict, looked, offset_margin, refuse_unequal
from .render import SIZE

BORDER_SPREAD = 0.05  # a border with a larger mean absolute deviation is not paper
MIN_OBJECT = 24  # covered pixels; smaller components have no shape (the smallest drawn object covers 40)
MAX_COMPONENTS = 8  # with more components, the picture is noise
COLOUR_REACH = 0.28  # largest RGB distance from a palette entry to be that colour
STEEPNESS = 1.35  # sharpens edges before shapes are compared: undoes a blur of about half a pixel
MIN_OVERLAP = 0.82  # smallest overlap with a silhouette to be an object (drawn: 0.9 or more; blurred by 0.7 px: 0.82)
NO_OVERLAP = 0.70  # with at most this overlap, a component has no shape
MIN_ROUND = 0.72  # smallest over largest moment of inertia (drawn: 0.8 or more; two merged objects: at most 0.7)
MIN_OFFSET = 4.0  # pixels between centres, for a relation
CHUNK = 256  # pictures per chunk; more would not fit into the processor's cache
_REACH = 10  # half-width of a component's window in pixels; fits the largest object and a margin

_PALETTE = np.array([PALETTE[name] for name in COLOURS], np.float32)


@dataclass(frozen=True)
class Found:
    """One component of a picture."""

    shape: str  # the best match
    colour: str  # the nearest palette entry
    x: float  # centroid, pixels
    y: float
    area: float  # covered pixels
    overlap: float  # with the best silhouette, in [0, 1]
    unclear: str  # "shape" or "colour" if it matches none closely enough, otherwise empty
    shape_score: NDArray[np.floating]  # [shapes] in [0, 1]: similarity to each shape
    colour_score: NDArray[np.floating]  # [colours] in [0, 1]: similarity to each colour

    @property
    def is_object(self) -> bool:
        """Whether it clearly has one of the shapes and one of the colours."""
        return not self.unclear


def look(images: Array) -> list[tuple[Found, ...] | None]:
    """Find the components of each picture in a batch [B, 3, SIZE, SIZE] in [0, 1]; None if a picture is unreadable.

    A picture is unreadable if its border is not paper, if it has too many components, or if it contains NaN or
    infinity. Values outside [0, 1] are clipped, as on a screen.

    Raises:
        ValueError: the batch has another shape.
    """
    return looked(images, SIZE, CHUNK, _look)


def _look(images: Array) -> list[tuple[Found, ...] | None]:
    """`look` for one chunk, with all components of all its pictures at once."""
    finite = np.all(np.isfinite(images), axis=(1, 2, 3))
    images = np.clip(np.where(finite[:, None, None, None], images, 0), 0, 1)
    paper, calm = _paper(images)
    delta = images - paper[:, :, None, None]
    contrast = np.sqrt((delta**2).sum(1))
    legible = finite & calm
    labels, touching = components(contrast * legible[:, None, None])
    boxes = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=len(touching))
    picture = np.array([0] + [box[0].start for box in boxes], np.int64)
    kept = np.flatnonzero(area >= MIN_AREA)[1:]  # label 0 is the paper
    legible &= np.bincount(picture[kept], minlength=len(images)) <= MAX_COMPONENTS
    kept = kept[legible[picture[kept]]]
    found: list[list[Found]] = [[] for _ in images]
    if len(kept):
        region = Regions.cut(delta, contrast, labels, kept, picture[kept], [boxes[label - 1] for label in kept], _REACH)
        things = _describe(region, paper[picture[kept]], touching[kept])
        for row, thing in zip(picture[kept], things, strict=True):
            found[row].append(thing)
    return [tuple(each) if ok else None for each, ok in zip(found, legible, strict=True)]


def _paper(images: Array) -> tuple[Array, Mask]:
    """The colour of the paper [B, 3], and whether the border is uniform enough to be paper [B]."""
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]], 2)
    paper = np.median(border, 2)
    return paper, np.abs(border - paper[:, :, None]).mean((1, 2)) < BORDER_SPREAD


def _describe(region: Regions, paper: Array, touching: Mask) -> list[Found]:
    """Colour, coverage, position and shape of N components at once."""
    strength = region.contrast * region.mine
    core = (strength >= 0.85 * strength.max((1, 2), keepdims=True)).astype(np.float32)
    paint = np.einsum("nhwc,nhw->nc", region.delta, core) / core.sum((1, 2))[:, None]  # [N, 3] minus paper
    distance = np.linalg.norm((paint + paper)[:, None] - _PALETTE, axis=2)  # [N, colours]
    nearest = distance.argmin(1)
    # a thin, blurred shape never reaches its full colour; relative to the palette colour its area is still right
    full = np.where(distance.min(1)[:, None] < COLOUR_REACH, _PALETTE[nearest] - paper, paint)
    cover = np.clip((share(region.delta, full) - 0.5) * STEEPNESS + 0.5, 0, 1) * region.reach

    area = np.maximum(cover.sum((1, 2)), 1e-3)
    axis = np.arange(cover.shape[-1], dtype=np.float32) + 0.5
    x, y = (cover * axis).sum((1, 2)) / area, (cover * axis[:, None]).sum((1, 2)) / area
    dx, dy = axis - x[:, None], axis - y[:, None]  # [N, W]
    overlap = overlaps(SHAPES, cover, dx, dy, area)  # [N, shapes]
    sized = ~region.too_big & (area >= MIN_OBJECT)
    overlap[~sized | touching | _mottled(region, paint) | (roundness(cover, dx, dy) < MIN_ROUND)] = 0.0
    best = overlap.argmax(1)

    likeness = np.clip((overlap.max(1) - NO_OVERLAP) / (MIN_OVERLAP - NO_OVERLAP), 0, 1)
    nearness = np.clip(2 - distance.min(1) / COLOUR_REACH, 0, 1)
    shape_score = likeness[:, None] * softmax(overlap / 0.03)
    colour_score = nearness[:, None] * softmax(-distance / 0.05)
    return [
        Found(
            shape=SHAPES[best[i]],
            colour=COLOURS[nearest[i]],
            x=float(x[i] + region.corner[i, 0]),
            y=float(y[i] + region.corner[i, 1]),
            area=float(area[i]),
            overlap=float(overlap[i, best[i]]),
            unclear="shape" if likeness[i] < 1 else "colour" if nearness[i] < 1 else "",
            shape_score=shape_score[i],
            colour_score=colour_score[i],
        )
        for i in range(len(area))
    ]


def _mottled(region: Regions, paint: Array) -> Mask:
    """Whether a component [N] contains more than a speck of a colour other than its own, paint [N, 3].

    A pixel on the line between paper and paint is a soft edge. At distance CONTRAST from that line it is another
    colour.
    """
    own = share(region.delta, paint)
    off = region.delta - own[..., None] * paint[:, None, None]
    return (region.reach & ((off**2).sum(3) > CONTRAST**2)).sum((1, 2)) >= MIN_AREA


def _margins(request: Request, mine: Mapping[int, Found]) -> list[float]:
    """How clearly the relation holds, in pixels, if there is one; of an object that was not found -inf."""
    if not request.relation:
        return []
    if not {0, 1} <= mine.keys():
        return [-np.inf]
    a, b = mine[0], mine[1]
    return [offset_margin(b.x - a.x, b.y - a.y, request.relation, MIN_OFFSET)]


def _likeness(found: Found, wanted: Thing) -> float:
    """Similarity of a found and a requested object, in [0, 1]: half for the right shape, half for its colour."""
    colour = found.colour_score[COLOURS.index(wanted.colour)] if wanted.colour else 1.0
    return float(found.shape_score[SHAPES.index(wanted.shape)] * (0.5 + 0.5 * colour))


def _complaint(found: tuple[Found, ...], request: Request, margins: list[float]) -> str:
    """The first error, in words; empty if the picture matches the request exactly."""
    for each in found:
        if not each.is_object:
            return f"an object has no clear {each.unclear}"
    if len(found) != request.count:
        return f"{len(found)} object{'s' * (len(found) > 1)} instead of {request.count}"
    extra, missing = list(found), []
    for thing in request.things:
        for _ in range(thing.count):
            match = next((e for e in extra if e.shape == thing.shape and thing.colour in (None, e.colour)), None)
            if match is None:
                missing.append(thing)
            else:
                extra.remove(match)
    if missing:
        thing = missing[0]
        for each in extra:
            if each.shape == thing.shape:
                return f"{thing.shape} is {each.colour}, not {thing.colour}"
        return f"{extra[0].shape} instead of {thing.shape}"
    if margins and margins[0] < 0:
        first, second = request.things
        return f"{first.shape} is not {request.relation} {second.shape}"
    return ""


judge = Rules(_likeness, _margins, _complaint, clear=4.0).judge


def check(images: Array, requests: list[Request]) -> list[Verdict[Found]]:
    """Check pictures [B, 3, SIZE, SIZE] in [0, 1] against one request each.

    Raises:
        ValueError: the numbers of pictures and requests differ, or the pictures have another shape.
    """
    refuse_unequal(images, requests)
    return [judge(found, request) for found, request in zip(look(images), requests, strict=True)]
