"""Draw scenes. Every shape has one anti-aliased silhouette, used here for drawing and in the checker for recognition.

Coordinates are in pixels, x to the right and y down, with pixel centres at +0.5. An object of radius r fits into the
square of half-width 1.15 r around its centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..prompts.scenes import COLOURS, PALETTE, SHAPES, Request, Thing
from .silhouettes import cover

SIZE = 32
MAX_OBJECTS = 4
RADIUS = {1: (4.5, 7.0), 2: (4.5, 6.5), 3: (4.3, 5.5), 4: (4.2, 5.0)}  # range in pixels, by number of objects
BACKGROUND = (0.80, 0.95)  # brightness
TINT = np.array([1.0, 0.99, 0.96])  # of the paper
GAP = 2.0  # empty pixels between two objects; the distance to the border is 1

Array = NDArray[np.float32]


def silhouette(shape: NDArray[np.int64], dx: Array, dy: Array, radius: Array) -> Array:
    """Share of each pixel covered by a shape, an index into SHAPES: see `silhouettes.cover`."""
    return cover(SHAPES, shape, dx, dy, radius)


@dataclass(frozen=True)
class Layout:
    """A batch of scenes as numbers: B pictures of at most MAX_OBJECTS objects."""

    shape: NDArray[np.int64]  # [B, M] index into SHAPES, -1 for no object
    colour: NDArray[np.int64]  # [B, M] index into COLOURS
    centre: Array  # [B, M, 2] x, y in pixels
    radius: Array  # [B, M]
    background: Array  # [B] brightness


def concrete(request: Request, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The objects of a request as (shape, colour) indices; an unspecified colour is drawn, one per thing."""
    objects: list[tuple[int, int]] = []
    for thing in request.things:
        colour = COLOURS.index(thing.colour) if thing.colour else int(rng.integers(len(COLOURS)))
        objects += [(SHAPES.index(thing.shape), colour)] * thing.count
    return objects


def misread(request: Request, rng: np.random.Generator) -> Request:
    """Change a request in one respect, as in a wrong caption.

    The change is drawn uniformly among the applicable ones: another shape, another colour, one object more or fewer,
    or the reversed relation.
    """
    things = list(request.things)
    which = int(rng.integers(len(things)))
    thing = things[which]
    ways = ["shape", "count"] + ["colour"] * (thing.colour is not None) + ["relation"] * (request.relation is not None)
    way = ways[int(rng.integers(len(ways)))]
    if way == "shape":
        others = [s for s in SHAPES if s not in {t.shape for t in things}]
        things[which] = replace(thing, shape=others[int(rng.integers(len(others)))])
    elif way == "colour":
        others = [c for c in COLOURS if c not in {t.colour for t in things}]
        things[which] = replace(thing, colour=others[int(rng.integers(len(others)))])
    elif way == "relation":
        return replace(request, things=tuple(things[::-1]))
    elif request.count == MAX_OBJECTS or (request.count > 1 and rng.random() < 0.5):
        things[which] = replace(thing, count=thing.count - 1)
    else:
        things[which] = replace(thing, count=thing.count + 1)
    things = [t for t in things if t.count > 0]
    relation = request.relation if len(things) == 2 and all(t.count == 1 for t in things) else None
    return replace(request, things=tuple(things), relation=relation)


def _admissible(centre: Array, radius: Array, relation: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which candidate placements [..., n, 2] neither touch nor break their relation (0 none, 1 left of, 2 above)."""
    n = radius.shape[-1]
    good = np.ones(centre.shape[:-2], bool)
    for i in range(n):
        for j in range(i + 1, n):
            reach = radius[..., i] + radius[..., j] + GAP
            offset = centre[..., j, :] - centre[..., i, :]
            good &= np.abs(offset).max(-1) >= reach
            if (i, j) == (0, 1):
                for code, axis in ((1, 0), (2, 1)):
                    along, across = offset[..., axis], np.abs(offset[..., 1 - axis])
                    good &= (relation != code) | ((along >= reach) & (across <= 0.8 * along))
    return good


def layouts(requests: list[Request], rng: np.random.Generator) -> Layout:
    """Random pictures of requests: sizes, places, open colours and paper drawn afresh; nothing touches."""
    count = len(requests)
    shape = np.full((count, MAX_OBJECTS), -1, np.int64)
    colour = np.zeros((count, MAX_OBJECTS), np.int64)
    number = np.zeros(count, np.int64)
    relation = np.array([{None: 0, "left of": 1, "above": 2}[r.relation] for r in requests])
    for row, request in enumerate(requests):
        objects = concrete(request, rng)
        number[row] = len(objects)
        shape[row, : len(objects)] = [s for s, _ in objects]
        colour[row, : len(objects)] = [c for _, c in objects]
    centre = np.zeros((count, MAX_OBJECTS, 2), np.float32)
    radius = np.ones((count, MAX_OBJECTS), np.float32)
    for n in range(1, MAX_OBJECTS + 1):
        rows = np.flatnonzero(number == n)
        tries = 8 if n <= 2 else 64
        while len(rows):  # rejection sampling, all rows at once
            r = rng.uniform(*RADIUS[n], (len(rows), 1, n)).astype(np.float32)
            r = np.broadcast_to(r, (len(rows), tries, n))
            low, high = r[..., None] + 1, SIZE - 1 - r[..., None]
            xy = (low + (high - low) * rng.random((len(rows), tries, n, 2))).astype(np.float32)
            good = _admissible(xy, r, relation[rows, None])
            done, first = good.any(1), good.argmax(1)
            hit = rows[done]
            centre[hit, :n] = xy[done, first[done]]
            radius[hit, :n] = r[done, 0]
            rows = rows[~done]
    background = rng.uniform(*BACKGROUND, count).astype(np.float32)
    return Layout(shape, colour, centre, radius, background)


def draw(layout: Layout) -> Array:
    """Draw pictures [B, 3, SIZE, SIZE] in [0, 1]."""
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    picture = (layout.background[:, None] * TINT[None]).astype(np.float32)[:, :, None, None]
    picture = np.broadcast_to(picture, (len(layout.background), 3, SIZE, SIZE)).copy()
    palette = np.array([PALETTE[name] for name in COLOURS], np.float32)
    for slot in range(MAX_OBJECTS):
        rows = np.flatnonzero(layout.shape[:, slot] >= 0)
        if not len(rows):
            continue
        dx = axis[None, None, :] - layout.centre[rows, slot, 0, None, None]
        dy = axis[None, :, None] - layout.centre[rows, slot, 1, None, None]
        full = (len(rows), SIZE, SIZE)
        covered = silhouette(
            layout.shape[rows, slot], np.broadcast_to(dx, full), np.broadcast_to(dy, full), layout.radius[rows, slot]
        )[:, None]
        paint = palette[layout.colour[rows, slot]][:, :, None, None]
        picture[rows] = (1 - covered) * picture[rows] + covered * paint
    return picture


def render(requests: list[Request], rng: np.random.Generator) -> Array:
    """Draw random pictures [B, 3, SIZE, SIZE] in [0, 1] of requests."""
    return draw(layouts(requests, rng))


__all__ = ["BACKGROUND", "MAX_OBJECTS", "SIZE", "Layout", "Thing", "concrete", "draw", "layouts", "misread", "render"]
