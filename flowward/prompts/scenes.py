"""The language of the built-in world: the possible contents of a prompt, and their phrasings.

A *request* is the content of a prompt: which objects, how many, their colours and relation. A *prompt* is one of
several phrasings of it. The six categories are those of GenEval (Ghosh et al., 2023, arXiv:2310.11513). The split into
training and held-out prompts is by content: no phrasing of a held-out request is trained on. So a held-out score
measures composition and not memory. (Single objects have only six contents, so they are split by phrasing as well.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .language import Language, Sentence, plural, with_article

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PALETTE = {  # RGB in [0, 1]
    "red": (0.84, 0.15, 0.16),
    "orange": (0.95, 0.53, 0.10),
    "yellow": (0.98, 0.84, 0.20),
    "green": (0.16, 0.62, 0.28),
    "blue": (0.15, 0.36, 0.86),
    "purple": (0.50, 0.22, 0.70),
    "pink": (0.97, 0.50, 0.74),
    "black": (0.10, 0.10, 0.12),
}
COLOURS = tuple(PALETTE)
CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
COUNTS = {2: "two", 3: "three", 4: "four"}

_OPPOSITE = {"left of": "right of", "above": "below"}  # "a right of b" is written "b left of a"
_TWO = ("{} and {}", "{} with {}", "{} next to {}")
_PHRASINGS: dict[str, tuple[str, ...]] = {
    "single_object": ("{a}", "one {}", "a single {}", "only {a}", "just one {}"),
    "counting": ("{}", "exactly {}", "a group of {}"),
    "colors": ("{a}", "one {}", "a single {}"),
    "left of": ("{} left of {}", "{} to the left of {}"),
    "right of": ("{} right of {}", "{} to the right of {}"),
    "above": ("{} above {}", "{} over {}"),
    "below": ("{} below {}", "{} under {}"),
}


@dataclass(frozen=True)
class Thing:
    """`count` objects of one shape; `colour` is None if the prompt does not specify it."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Request:
    """The required content of a picture: exactly these things, with things[0] `relation` things[1]."""

    category: str
    things: tuple[Thing, ...]
    relation: str | None = None  # "left of" or "above"; "right of" and "below" are stored with things swapped

    @property
    def count(self) -> int:
        """Number of objects in the picture."""
        return sum(thing.count for thing in self.things)


Prompt = Sentence[Request]


def _requests() -> Iterator[Request]:
    for shape in SHAPES:
        yield Request("single_object", (Thing(shape),))
    pairs = [(a, b) for i, a in enumerate(SHAPES) for b in SHAPES[i + 1 :]]
    for a, b in pairs:
        yield Request("two_objects", (Thing(a), Thing(b)))
    for shape in SHAPES:
        for count in COUNTS:
            yield Request("counting", (Thing(shape, count=count),))
    for shape in SHAPES:
        for colour in COLOURS:
            yield Request("colors", (Thing(shape, colour),))
    for relation in _OPPOSITE:
        for a in SHAPES:
            for b in SHAPES:
                if a != b:
                    yield Request("position", (Thing(a), Thing(b)), relation)
    for a, b in pairs:
        for p in COLOURS:
            for q in COLOURS:
                if p != q:
                    yield Request("color_attribution", (Thing(a, p), Thing(b, q)))


def _noun(thing: Thing) -> str:
    if thing.count > 1:
        return f"{COUNTS[thing.count]} {plural(thing.shape)}"
    return f"{thing.colour} {thing.shape}" if thing.colour else thing.shape


def _texts(request: Request) -> Iterator[str]:
    """All phrasings of a request."""
    if request.category in ("single_object", "counting", "colors"):
        for phrase in _PHRASINGS[request.category]:
            yield phrase.format(_noun(request.things[0]), a=with_article(_noun(request.things[0])))
        return
    a, b = (with_article(_noun(thing)) for thing in request.things)
    if request.relation is None:
        for phrase in _TWO:
            yield phrase.format(a, b)
            yield phrase.format(b, a)
        return
    for phrase in _PHRASINGS[request.relation]:
        yield phrase.format(a, b)
    for phrase in _PHRASINGS[_OPPOSITE[request.relation]]:
        yield phrase.format(b, a)


def _unit(request: Request) -> str:
    """A key shared by requests that are held out together: equal up to swapping positions or colours.

    If only "a ring left of a cross" were trained on, a model could learn where to put rings and crosses without reading
    "left". The held-out "a cross left of a ring" would then measure that shortcut.
    """
    shapes = sorted((thing.shape, thing.count) for thing in request.things)
    colours = sorted(thing.colour or "" for thing in request.things)
    return repr((request.category, shapes, colours, request.relation))


LANGUAGE = Language("scenes", CATEGORIES, _requests, _texts, _unit, frozenset({"single_object"}))
prompts, split, made, parse, vocabulary = (
    LANGUAGE.prompts,
    LANGUAGE.split,
    LANGUAGE.made,
    LANGUAGE.parse,
    LANGUAGE.vocabulary,
)
MAX_WORDS = 8
