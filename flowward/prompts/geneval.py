"""Prompts of GenEval's six categories, with metadata that describe the required content of an image.

Categories, their names and the format of the metadata are those of Ghosh et al., 2023 (arXiv:2310.11513). The same
rewards can therefore read GenEval's own prompt file. These prompts are generated from the 80 classes of COCO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from .picks import number, picks
from .prompt import PromptSet

_WORDS = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop computer_mouse tv_remote computer_keyboard cell_phone microwave "
    "oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
CLASSES = tuple(name.replace("_", " ") for name in _WORDS.split())
"""COCO's 80 objects in COCO's order, with GenEval's names"""
COCO = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's own names that differ from GenEval's"""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
PAIRED = ("skis", "scissors")  # "a skis" is not English
PLURALS = {"person": "people", "sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}

Metadata = dict[str, Any]
Prompt = tuple[str, Metadata]


def one(name: str, colour: str = "") -> str:
    """'an apple', 'a red apple', 'a pair of black scissors'."""
    noun = f"{colour} {name}".strip()
    if name in PAIRED:
        return f"a pair of {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def several(name: str, count: int) -> str:
    """'three buses', 'two pairs of skis'."""
    if name in PAIRED:
        return f"{NUMBERS[count]} pairs of {name}"
    ending = "es" if name.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{NUMBERS[count]} {PLURALS.get(name, name + ending)}"


@dataclass(frozen=True)
class Category:
    """All prompts of one category, numbered.

    Prompts with the same meaning share a number, so they are on the same side of the split.
    """

    name: str
    size: int
    make: Callable[[int], list[Prompt]]  # a number -> its one or two prompts with the same meaning
    train: int  # size of the training set
    held_out: int  # size of the held-out set

    def prompts(self, held_out: bool) -> Iterator[Prompt]:
        """One prompt for each number in the set."""
        chosen = picks(f"geneval {self.name}", self.size, self.held_out + self.train)
        for place in chosen[: self.held_out] if held_out else chosen[self.held_out :]:
            same = self.make(place)
            text, about = same[number(f"{self.name} wording {place}") % len(same)]
            yield f"a photo of {text}", {"tag": self.name, **about}


def _include(*clauses: Metadata) -> Metadata:
    return {"include": list(clauses)}


def _clause(name: str, colour: str = "") -> Metadata:
    return {"class": name, "count": 1, **({"color": colour} if colour else {})}


def _pair(place: int, kinds: int) -> tuple[int, int, int]:
    """Decode a number into an unordered pair a < b below `kinds` and the rest: (a, b, rest)."""
    rest, place = divmod(place, kinds * (kinds - 1) // 2)
    b = (1 + math.isqrt(1 + 8 * place)) // 2  # the pairs below b are b (b - 1) / 2
    return place - b * (b - 1) // 2, b, rest


def _single(place: int) -> list[Prompt]:
    name = CLASSES[place]
    return [(one(name), _include(_clause(name)))]


def _two(place: int) -> list[Prompt]:
    a, b, _ = _pair(place, len(CLASSES))
    return [(f"{one(CLASSES[x])} and {one(CLASSES[y])}", _include(_clause(CLASSES[x]), _clause(CLASSES[y])))
            for x, y in ((a, b), (b, a))]  # fmt: skip


def _counting(place: int) -> list[Prompt]:
    name, count = CLASSES[place // len(NUMBERS)], 2 + place % len(NUMBERS)
    about = {"include": [{"class": name, "count": count}], "exclude": [{"class": name, "count": count + 1}]}
    return [(several(name, count), about)]


COLOURED = CLASSES[1:]  # all but `person`


def _colours(place: int) -> list[Prompt]:
    name, colour = COLOURED[place // len(COLOURS)], COLOURS[place % len(COLOURS)]
    return [(one(name, colour), _include(_clause(name, colour)))]


def _position(place: int) -> list[Prompt]:
    """'A left of B' and 'B right of A' mean the same. As in GenEval, the metadata list the positioned object second."""
    a, b, rest = _pair(place, len(CLASSES))
    relation = RELATIONS[rest]
    mirrored = RELATIONS[rest ^ 1]
    return [
        (f"{one(CLASSES[x])} {where} {one(CLASSES[y])}",
         _include(_clause(CLASSES[y]), {**_clause(CLASSES[x]), "position": [where, 0]}))
        for x, where, y in ((a, relation, b), (b, mirrored, a))
    ]  # fmt: skip


def _attribution(place: int) -> list[Prompt]:
    a, b, rest = _pair(place, len(COLOURED))
    first, second = divmod(rest, len(COLOURS) - 1)
    things = [(COLOURED[a], COLOURS[first]), (COLOURED[b], COLOURS[second + (second >= first)])]
    return [(f"{one(*x)} and {one(*y)}", _include(_clause(*x), _clause(*y))) for x, y in (things, things[::-1])]


_PAIRS = len(CLASSES) * (len(CLASSES) - 1) // 2
_COLOURED_PAIRS = len(COLOURED) * (len(COLOURED) - 1) // 2

CATEGORIES = (
    Category("single_object", len(CLASSES), _single, 64, 16),
    Category("two_object", _PAIRS, _two, 1200, 100),
    Category("counting", len(CLASSES) * len(NUMBERS), _counting, 192, 48),
    Category("colors", len(COLOURED) * len(COLOURS), _colours, 690, 100),
    Category("position", _PAIRS * len(RELATIONS), _position, 1200, 100),
    Category("color_attr", _COLOURED_PAIRS * len(COLOURS) * (len(COLOURS) - 1), _attribution, 1200, 100),
)


@cache
def made(held_out: bool) -> PromptSet:
    """`geneval` (4546 prompts) or `geneval-held-out` (464). Prompts with the same meaning are never in both."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        (text, kind.name, about) for kind in CATEGORIES for text, about in kind.prompts(held_out)
    ]
    texts, categories, metadata = zip(*rows, strict=True)
    return PromptSet("geneval-held-out" if held_out else "geneval", texts, categories, metadata=metadata)
