"""Where things are: random places and sizes for requests, so that nothing touches and relations are clear."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...prompts.scenes64 import (
    COLOURS,
    MAX_OBJECTS,
    PATTERNED,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Relation,
    Request,
    Thing,
)
from .letters import HEIGHT, PITCH, WIDTH

SIZE = 64
KINDS = (*SHAPES, *WORDS)  # what is drawn: a shape or a word
INK = COLOURS.index("black")  # colour of words
RADIUS = {1: (8.0, 14.0), 2: (7.5, 12.5), 3: (7.0, 10.5), 4: (6.8, 9.5), 5: (6.6, 8.6)}  # by number of objects
LARGE, SMALL = (11.0, 13.5), (6.6, 8.0)  # radius of objects whose size is asked for
PATTERN_RADIUS = (9.5, 13.0)
GAP = 3.0  # empty pixels between two objects; the distance to the border is 2
MARGIN = 2.0
PAPER = (0.86, 0.96)  # brightness
TINT = (0.95, 1.0)  # of each channel of the paper
SLOPE = 0.035  # change of the brightness from the centre to a border, at most
_WIDER = {"diamond": 1.15, "star": 1.1}  # half extent over radius
_TRIES = 64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """A batch of scenes as numbers: B pictures of at most M objects."""

    kind: NDArray[np.int64]  # [B, M] index into KINDS, -1 for no object
    colour: NDArray[np.int64]  # [B, M] index into COLOURS
    texture: NDArray[np.int64]  # [B, M] index into TEXTURES
    centre: Array  # [B, M, 2] x, y in pixels
    radius: Array  # [B, M]
    paper: Array  # [B, 3] colour at the centre
    slope: Array  # [B, 2] relative change of brightness from the centre to the right and the lower border


@dataclass(frozen=True)
class _Drawn:
    """One object of a picture, before it has a place."""

    kind: int
    colour: int
    texture: int
    radius: tuple[float, float]  # range
    half: tuple[float, float]  # half extents: x, y; of a shape, over its radius


def _objects(request: Request, rng: np.random.Generator) -> list[_Drawn]:
    """The objects of a request; an unspecified colour is drawn, one per thing."""
    found: list[_Drawn] = []
    for thing in request.things:
        if thing.word:
            half = (PITCH * len(thing.word) - (PITCH - WIDTH)) / 2, HEIGHT / 2
            found.append(_Drawn(KINDS.index(thing.word), INK, 0, (1.0, 1.0), half))
            continue
        textured = thing.texture not in (None, "plain")
        open_ = PATTERNED if textured else COLOURS
        colour = thing.colour or open_[int(rng.integers(len(open_)))]
        radius = RADIUS[request.count] if not textured else PATTERN_RADIUS
        if thing.size:
            radius = {"large": LARGE, "small": SMALL}[thing.size]
        wide = _WIDER.get(thing.shape, 1.0)
        texture = TEXTURES.index(thing.texture or "plain")
        drawn = _Drawn(KINDS.index(thing.shape), COLOURS.index(colour), texture, radius, (wide, wide))
        found += [drawn] * thing.count
    return found


def holds(relation: Relation, centre: Array, half: Array) -> NDArray[np.bool_]:
    """In which placements [..., n, 2] a relation is clear."""
    at = [centre[..., index, :] for index in relation.of]
    if relation.kind == "between":
        middle, one, other = at
        line, offset = other - one, middle - one
        length = np.maximum((line**2).sum(-1), 1e-3)
        share = (line * offset).sum(-1) / length
        aside = np.abs(line[..., 0] * offset[..., 1] - line[..., 1] * offset[..., 0]) / length
        return (share > 0.3) & (share < 0.7) & (aside < 0.2)
    axis = 0 if relation.kind == "left of" else 1
    offset = at[1] - at[0]
    along, across = offset[..., axis], np.abs(offset[..., 1 - axis])
    reach = half[..., relation.of[0], axis] + half[..., relation.of[1], axis] + GAP
    return (along >= reach) & (across <= 0.8 * along)


def _admissible(centre: Array, half: Array, relations: tuple[Relation, ...]) -> NDArray[np.bool_]:
    """Which placements [..., n, 2] of boxes neither touch nor break their relations."""
    good = np.ones(centre.shape[:-2], bool)
    for i in range(centre.shape[-2]):
        for j in range(i):
            reach = half[..., i, :] + half[..., j, :] + GAP
            good &= (np.abs(centre[..., i, :] - centre[..., j, :]) >= reach).any(-1)
    for relation in relations:
        good &= holds(relation, centre, half)
    return good


def _placed(
    objects: list[list[_Drawn]], relations: tuple[Relation, ...], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Centres [B, n, 2] and radii [B, n] of pictures with equally many objects: rejection sampling of all at once."""
    low = np.array([[each.radius[0] for each in row] for row in objects])
    high = np.array([[each.radius[1] for each in row] for row in objects])
    wide = np.array([[each.half for each in row] for row in objects])
    whole = np.array([[each.kind >= len(SHAPES) for each in row] for row in objects])[:, None, :, None]
    count, n = low.shape
    centre, radius = np.zeros((count, n, 2), np.float32), np.ones((count, n), np.float32)
    rows = np.arange(count)
    while len(rows):
        r = low[rows, None] + (high - low)[rows, None] * rng.random((len(rows), _TRIES, n))
        half = wide[rows, None] * r[..., None]
        first, last = half + MARGIN, SIZE - MARGIN - half
        xy = first + (last - first) * rng.random(half.shape)
        xy = np.where(whole[rows], np.round(xy - half) + half, xy)  # letters stand on whole pixels
        good = _admissible(xy, half, relations)
        done, hit = good.any(1), good.argmax(1)
        centre[rows[done]], radius[rows[done]] = xy[done, hit[done]], r[done, hit[done]]
        rows = rows[~done]
    return centre, radius


def layouts(requests: list[Request], rng: np.random.Generator) -> Layout:
    """Random pictures of requests: sizes, places, open colours and paper drawn afresh; nothing touches."""
    count = len(requests)
    objects = [_objects(request, rng) for request in requests]
    kind = np.full((count, MAX_OBJECTS), -1, np.int64)
    colour, texture = np.zeros_like(kind), np.zeros_like(kind)
    centre = np.zeros((count, MAX_OBJECTS, 2), np.float32)
    radius = np.ones((count, MAX_OBJECTS), np.float32)
    alike: defaultdict[tuple[int, tuple[Relation, ...]], list[int]] = defaultdict(list)
    for row, (request, own) in enumerate(zip(requests, objects, strict=True)):
        n = len(own)
        kind[row, :n] = [each.kind for each in own]
        colour[row, :n] = [each.colour for each in own]
        texture[row, :n] = [each.texture for each in own]
        alike[n, request.relations].append(row)
    for (n, relations), rows in alike.items():
        centre[rows, :n], radius[rows, :n] = _placed([objects[row] for row in rows], relations, rng)
    paper = rng.uniform(*PAPER, (count, 1)) * rng.uniform(*TINT, (count, 3))
    slope = rng.uniform(-SLOPE, SLOPE, (count, 2))
    return Layout(kind, colour, texture, centre, radius, paper.astype(np.float32), slope.astype(np.float32))


def misread(request: Request, rng: np.random.Generator) -> Request:
    """Change a request in one respect, as in a wrong caption.

    The change is drawn uniformly among the applicable ones: another shape, colour, texture, size or word, one object
    more or fewer, or two things that change places.
    """
    which = int(rng.integers(len(request.things)))
    thing = request.things[which]
    ways = ["word"] if thing.word else ["shape", "count"]
    ways += [name for name in ("colour", "texture", "size") if getattr(thing, name)]
    ways += ["relation"] * bool(request.relations)
    way = ways[int(rng.integers(len(ways)))]
    if way == "relation":
        one, two, *more = request.things
        return replace(request, things=(two, one, *more))
    if way == "count":
        return _miscounted(request, which, rng)
    things = list(request.things)
    known = {"word": WORDS, "shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}[way]
    if way == "colour" and thing.texture not in (None, "plain"):
        known = PATTERNED
    used = {thing.size} if way == "size" else {getattr(each, way) for each in things}
    others = [each for each in known if each not in used]
    changed: dict[str, Any] = {way: others[int(rng.integers(len(others)))]}
    things[which] = replace(thing, **changed)
    return replace(request, things=tuple(things))


def _miscounted(request: Request, which: int, rng: np.random.Generator) -> Request:
    """One object more or fewer of one thing; without the relations, if they cannot be told any more."""
    things = list(request.things)
    fewer = request.count == MAX_OBJECTS or (request.count > 1 and rng.random() < 0.5)
    things[which] = replace(things[which], count=things[which].count + (-1 if fewer else 1))
    kept = tuple(thing for thing in things if thing.count)
    whole = len(kept) == len(things) and all(thing.count == 1 for thing in kept)
    return replace(request, things=kept, relations=request.relations if whole else ())


__all__ = ["INK", "KINDS", "MAX_OBJECTS", "SIZE", "Layout", "Thing", "holds", "layouts", "misread"]
