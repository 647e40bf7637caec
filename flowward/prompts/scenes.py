"""The language of the built-in world: the possible contents of a prompt, and their phrasings.

A *request* is the content of a prompt: which objects, how many, their colours and relation. A *prompt* is one of
several phrasings of it. The six categories are those of GenEval (Ghosh et al., 2023, arXiv:2310.11513). The split into
training and held-out prompts is by content: no phrasing of a held-out request is trained on. So a held-out score
measures composition and not memory. (Single objects have only six contents, so they are split by phrasing as well.)
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .prompt import PromptSet

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
HELD_OUT_SHARE = 0.2

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


@dataclass(frozen=True)
class Prompt:
    """A sentence of the language, its meaning, and its side of the split."""

    text: str
    request: Request
    held_out: bool


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


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _noun(thing: Thing) -> str:
    if thing.count > 1:
        return f"{COUNTS[thing.count]} {_plural(thing.shape)}"
    return f"{thing.colour} {thing.shape}" if thing.colour else thing.shape


def _with_article(thing: Thing) -> str:
    noun = _noun(thing)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _texts(request: Request) -> Iterator[str]:
    """All phrasings of a request."""
    if request.category in ("single_object", "counting", "colors"):
        for phrase in _PHRASINGS[request.category]:
            yield phrase.format(_noun(request.things[0]), a=_with_article(request.things[0]))
        return
    a, b = (_with_article(thing) for thing in request.things)
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


def _rank(key: str) -> str:
    """A fixed pseudo-random order, the same on every machine and Python version."""
    return hashlib.sha256(key.encode()).hexdigest()


@cache
def prompts() -> dict[str, Prompt]:
    """All sentences of the language: text -> Prompt, in a fixed order (category by category)."""
    found: dict[str, Prompt] = {}
    requests = list(_requests())
    for category in CATEGORIES:
        mine = [request for request in requests if request.category == category]
        units = [(_unit(r), r, list(_texts(r))) for r in mine]
        if category == "single_object":
            units = [(key + text, r, [text]) for key, r, texts in units for text in texts]
        keys = sorted({key for key, _, _ in units}, key=_rank)
        held_out = set(keys[: round(HELD_OUT_SHARE * len(keys))])
        for key, request, texts in units:
            for text in texts:
                found[text] = Prompt(text, request, key in held_out)
    return found


@cache
def split(held_out: bool, category: str | None = None) -> tuple[str, ...]:
    """The texts of one side of the split, of all categories or one."""
    return tuple(
        p.text for p in prompts().values() if p.held_out == held_out and category in (None, p.request.category)
    )


def made(held_out: bool) -> PromptSet:
    """One side of the split, as a PromptSet."""
    mine = [prompt for prompt in prompts().values() if prompt.held_out == held_out]
    name = "scenes-held-out" if held_out else "scenes"
    return PromptSet(name, tuple(p.text for p in mine), tuple(p.request.category for p in mine))


def parse(text: str) -> Prompt:
    """The meaning of a prompt.

    Raises:
        ValueError: the text is not a sentence of this language; the message contains the nearest one.
    """
    key = " ".join(text.lower().split())
    found = prompts()
    if key not in found:
        near = difflib.get_close_matches(key, list(found), n=1, cutoff=0.0)
        raise ValueError(f"'{text}' is not a prompt of the scenes world; the nearest one is '{near[0]}'")
    return found[key]


@cache
def vocabulary() -> tuple[str, ...]:
    """All words of the language, sorted; the text encoder's ids start at 1 (0 is padding)."""
    return tuple(sorted({word for text in prompts() for word in text.split()}))


MAX_WORDS = 8
