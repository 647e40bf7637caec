"""The language of the larger built-in world: eight shapes, textures, sizes, relations of three, and words to be drawn.

A *request* is the content of a prompt. The first six categories are those of GenEval (Ghosh et al., 2023,
arXiv:2310.11513), as in the smaller world (scenes.py); five more are of this world. The split is by content; contents
that are few (single objects, single words) are split by phrasing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations

from .language import Language, Sentence, plural, with_article
from .scenes import COLOURS, PALETTE

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("large", "small")
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
WORDS = (
    *("up", "go", "on", "no", "hi"),
    *("sun", "sky", "sea", "art", "cat", "dog", "fox", "ice", "tea", "bus", "key"),
    *("tree", "fish", "bird", "lake", "gold", "stop", "open", "rain"),
)
PATTERNED = tuple(colour for colour in COLOURS if colour != "black")  # a pattern is a darker tone of the colour
CATEGORIES = (
    *("single_object", "two_objects", "counting", "colors", "position", "color_attribution"),
    *("textures", "texture_attribution", "sizes", "three_objects", "words"),
)
MAX_WORDS = 10
MAX_OBJECTS = 5

_OPPOSITE = {"left of": "right of", "above": "below"}
_ALONE = ("{a}", "one {}", "a single {}")
_PHRASINGS = {
    "left of": ("{} left of {}", "{} to the left of {}"),
    "right of": ("{} right of {}", "{} to the right of {}"),
    "above": ("{} above {}", "{} over {}"),
    "below": ("{} below {}", "{} under {}"),
}
_TWO = ("{} and {}", "{} with {}", "{} next to {}")


@dataclass(frozen=True)
class Thing:
    """`count` objects of one shape, or a word; what is None is not specified."""

    shape: str  # one of SHAPES, or "word"
    colour: str | None = None
    count: int = 1
    texture: str | None = None
    size: str | None = None
    word: str = ""  # in lower case; it is drawn in capital letters


@dataclass(frozen=True)
class Relation:
    """`left of` or `above` between two things, or `between`: the first lies between the other two."""

    kind: str
    of: tuple[int, ...]  # indices of things


@dataclass(frozen=True)
class Request:
    """The required content of a picture: exactly these things, in all of these relations."""

    category: str
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()

    @property
    def count(self) -> int:
        """Number of objects in the picture; a word is one."""
        return sum(thing.count for thing in self.things)


Prompt = Sentence[Request]


def _requests() -> Iterator[Request]:
    pairs = list(combinations(SHAPES, 2))
    for shape in SHAPES:
        yield Request("single_object", (Thing(shape),))
    for a, b in pairs:
        yield Request("two_objects", (Thing(a), Thing(b)))
    for shape in SHAPES:
        for count in COUNTS:
            yield Request("counting", (Thing(shape, count=count),))
    for shape in SHAPES:
        for colour in COLOURS:
            yield Request("colors", (Thing(shape, colour),))
    for kind in _OPPOSITE:
        for a, b in permutations(SHAPES, 2):
            yield Request("position", (Thing(a), Thing(b)), (Relation(kind, (0, 1)),))
    for a, b in pairs:
        for p, q in permutations(COLOURS, 2):
            yield Request("color_attribution", (Thing(a, p), Thing(b, q)))
    yield from _patterned(pairs)
    for size in SIZES:
        for shape in SHAPES:
            yield Request("sizes", (Thing(shape, size=size),))
    for a in SHAPES:
        for b in SHAPES:
            yield Request("sizes", (Thing(a, size="large"), Thing(b, size="small")))
    yield from _threes()
    yield from _written()


def _patterned(pairs: list[tuple[str, str]]) -> Iterator[Request]:
    for shape in SHAPES:
        for colour in PATTERNED:
            for texture in TEXTURES[1:]:
                yield Request("textures", (Thing(shape, colour, texture=texture),))
    for a, b in pairs:
        for p, q in permutations(TEXTURES, 2):
            yield Request("texture_attribution", (Thing(a, texture=p), Thing(b, texture=q)))


def _threes() -> Iterator[Request]:
    """One between two others; three in a row or column; one left of another and above a third."""
    for a in SHAPES:
        for b, c in combinations(SHAPES, 2):
            if a not in (b, c):
                yield Request("three_objects", (Thing(a), Thing(b), Thing(c)), (Relation("between", (0, 1, 2)),))
    for a, b, c in permutations(SHAPES, 3):
        things = Thing(a), Thing(b), Thing(c)
        for kind in _OPPOSITE:
            yield Request("three_objects", things, (Relation(kind, (0, 1)), Relation(kind, (1, 2))))
        for across in ((0, 1), (1, 0)):
            for down in ((0, 2), (2, 0)):
                yield Request("three_objects", things, (Relation("left of", across), Relation("above", down)))


def _written() -> Iterator[Request]:
    for word in WORDS:
        yield Request("words", (Thing("word", word=word),))
        for shape in SHAPES:
            for order in ((0, 1), (1, 0)):
                yield Request("words", (Thing("word", word=word), Thing(shape)), (Relation("above", order),))


def _noun(thing: Thing) -> str:
    if thing.count > 1:
        return f"{COUNTS[thing.count]} {plural(thing.shape)}"
    return " ".join(word for word in (thing.size, thing.texture, thing.colour, thing.shape) if word)


def _named(thing: Thing) -> str:
    """With its article: 'a striped red ring', 'the word "SUN"'."""
    return f'the word "{thing.word.upper()}"' if thing.word else with_article(_noun(thing))


def _texts(request: Request) -> Iterator[str]:
    """All phrasings of a request."""
    names = [_named(thing) for thing in request.things]
    if request.category == "counting":
        yield from (phrase.format(_noun(request.things[0])) for phrase in ("{}", "exactly {}", "a group of {}"))
    elif request.category == "words" and len(names) == 1:
        yield from (phrase.format(names[0]) for phrase in ("{}", "only {}", "a picture of {}"))
    elif len(names) == 1:
        more = ("only {a}", "just one {}") if request.category == "single_object" else ()
        yield from (phrase.format(_noun(request.things[0]), a=names[0]) for phrase in (*_ALONE, *more))
    elif len(names) == 2:
        yield from _of_two(names, request.relations)
    else:
        yield from _of_three(names, request.relations)


def _of_two(names: list[str], relations: tuple[Relation, ...]) -> Iterator[str]:
    if not relations:
        for phrase in _TWO:
            yield phrase.format(*names)
            yield phrase.format(*names[::-1])
        return
    a, b = (names[index] for index in relations[0].of)
    for phrase in _PHRASINGS[relations[0].kind]:
        yield phrase.format(a, b)
    for phrase in _PHRASINGS[_OPPOSITE[relations[0].kind]]:
        yield phrase.format(b, a)


def _of_three(names: list[str], relations: tuple[Relation, ...]) -> Iterator[str]:
    a, b, c = names
    first, last = relations[0], relations[-1]
    if first.kind == "between":
        yield f"{a} between {b} and {c}"
        yield f"{a} between {c} and {b}"
    elif first.kind == last.kind:
        yield f"{a} {first.kind} {b} {first.kind} {c}"
        yield f"{c} {_OPPOSITE[first.kind]} {b} {_OPPOSITE[first.kind]} {a}"
    else:
        across, down = (r.kind if r.of[0] == 0 else _OPPOSITE[r.kind] for r in relations)
        yield f"{a} {across} {b} and {down} {c}"
        yield f"{a} {down} {c} and {across} {b}"


def _unit(request: Request) -> str:
    """A key shared by requests that are held out together: equal up to swapping positions or attributes.

    So no shortcut helps: a model that learned from "a ring left of a cross" where rings and crosses go, without reading
    "left", would fail on the held-out prompts.
    """
    bare = [replace(thing, colour=None, texture=None, size=None) for thing in request.things]
    loose = [sorted(str(getattr(thing, name)) for thing in request.things) for name in ("colour", "texture", "size")]
    kinds = sorted({relation.kind for relation in request.relations})
    return repr((request.category, sorted(map(repr, bare)), loose, kinds))


LANGUAGE = Language("scenes-64", CATEGORIES, _requests, _texts, _unit, frozenset({"single_object"}))
prompts, split, made, parse, vocabulary = (
    LANGUAGE.prompts,
    LANGUAGE.split,
    LANGUAGE.made,
    LANGUAGE.parse,
    LANGUAGE.vocabulary,
)
__all__ = ["COLOURS", "PALETTE", "PATTERNED", "SHAPES", "Prompt", "Relation", "Request", "Thing", "parse", "prompts"]
