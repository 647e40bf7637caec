"""The automatic checker of scenes-64: what was found in a picture, against a request.

Strict verdict: the objects and words are exactly the requested ones, there is nothing else in the picture, and all
relations hold. Soft score in [0, 1]: found and requested things are assigned to each other; each pair is scored by its
shape (half) and the attributes that were asked for (half); the sum is divided by the larger of the two counts.
Relations, if there are any, determine half of the score.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...prompts.scenes64 import COLOURS, SHAPES, TEXTURES, Relation, Request, Thing
from ..judging import Rules, Verdict, offset_margin, refuse_unequal
from .letters import LETTERS
from .looking import Found, look

MIN_OFFSET = 8.0  # pixels between centres, for a relation
SMALL, LARGE = 9.0, 10.0  # largest radius of a small object, smallest of a large one

Array = NDArray[np.float32]
_KNOWN = {"colour": COLOURS, "texture": TEXTURES}


def size_of(found: Found) -> str:
    """'small', 'large', or 'of middle size'."""
    return "small" if found.radius <= SMALL else "large" if found.radius >= LARGE else "of middle size"


def _likeness(found: Found, wanted: Thing) -> float:
    """Similarity of a found and a requested thing, in [0, 1]."""
    if wanted.word or found.text:
        return _spelling(found, wanted) if wanted.word and found.text else 0.0
    parts = [
        found.scores[name][known.index(asked)] for name, known in _KNOWN.items() if (asked := getattr(wanted, name))
    ]
    if wanted.size:
        large = float(np.clip((found.radius - SMALL + 1) / (LARGE - SMALL + 2), 0, 1))
        parts.append(large if wanted.size == "large" else 1 - large)
    return float(found.scores["shape"][SHAPES.index(wanted.shape)] * (0.5 + 0.5 * np.mean(parts or [1.0])))


def _spelling(found: Found, wanted: Thing) -> float:
    """Half for being a word, half for its letters in their places."""
    assert found.text
    letters = found.text.letters
    right = sum(letters[i, LETTERS.index(letter)] for i, letter in enumerate(wanted.word[: len(letters)]))
    return 0.5 + 0.5 * float(right) / max(len(letters), len(wanted.word))


def margin(relation: Relation, at: list[Found]) -> float:
    """How clearly a relation holds between things, in pixels: 0 at the limit, negative if it does not hold.

    As in GenEval, an offset must be large enough, and not mainly along the other axis. Between two others is the middle
    60 % of the line that connects them, and at most 35 % of its length aside.
    """
    places = [np.array([each.x, each.y]) for each in at]
    if relation.kind == "between":
        line, offset = places[2] - places[1], places[0] - places[1]
        length = max(float(np.hypot(*line)), 1e-3)
        along, aside = float(line @ offset) / length, abs(float(line[0] * offset[1] - line[1] * offset[0])) / length
        return min(0.3 * length - abs(along - 0.5 * length), 0.35 * length - aside, length - 2 * MIN_OFFSET)
    dx, dy = places[1] - places[0]
    return float(offset_margin(dx, dy, relation.kind, MIN_OFFSET))


def _margins(request: Request, mine: Mapping[int, Found]) -> list[float]:
    """How clearly each relation holds, in pixels; with a thing that was not found -inf."""
    return [
        margin(each, [mine[i] for i in each.of]) if set(each.of) <= mine.keys() else -np.inf
        for each in request.relations
    ]


def _complaint(found: tuple[Found, ...], request: Request, margins: list[float]) -> str:
    """The first error, in words; empty if the picture matches the request exactly."""
    for each in found:
        if each.unclear:
            return "a word cannot be read" if each.text else f"an object has no clear {each.unclear}"
    if len(found) != request.count:
        return f"{len(found)} object{'s' * (len(found) > 1)} instead of {request.count}"
    extra, missing = list(found), []
    for thing in request.things:
        for _ in range(thing.count):
            match = next((each for each in extra if not _difference(each, thing)), None)
            if match is None:
                missing.append(thing)
            else:
                extra.remove(match)
    if missing:
        thing = missing[0]
        same = next((each for each in extra if each.shape == thing.shape), None)
        return _difference(same, thing) if same else f"{_name(extra[0])} instead of {_name(thing)}"
    for relation, clear in zip(request.relations, margins, strict=True):
        if clear < 0:
            first, *others = (_name(request.things[index]) for index in relation.of)
            return f"{first} is not {relation.kind} {' and '.join(others)}"
    return ""


def _difference(found: Found, wanted: Thing) -> str:
    """In what a found thing differs from a requested one: 'star is red, not blue'; empty in nothing."""
    if found.shape != wanted.shape:
        return f"{_name(found)} instead of {_name(wanted)}"
    if wanted.word:
        return "" if found.word == wanted.word else f'the word is "{found.word.upper()}", not "{wanted.word.upper()}"'
    for name in ("colour", "texture", "size"):
        asked, own = getattr(wanted, name), size_of(found) if name == "size" else getattr(found, name)
        if asked not in (None, own):
            return f"{found.shape} is {own}, not {asked}"
    return ""


def _name(thing: Found | Thing) -> str:
    return f'the word "{thing.word.upper()}"' if thing.word else thing.shape


judge = Rules(_likeness, _margins, _complaint, clear=8.0).judge


def check(images: Array, requests: list[Request]) -> list[Verdict[Found]]:
    """Check pictures [B, 3, SIZE, SIZE] in [0, 1] against one request each.

    Raises:
        ValueError: the numbers of pictures and requests differ, or the pictures have another shape.
    """
    refuse_unequal(images, requests)
    return [judge(found, request) for found, request in zip(look(images), requests, strict=True)]
