"""GenEval's rules (Ghosh et al., 2023, arXiv:2310.11513): is what is asked for among the objects that were found?

Two judgements. `reason` is the benchmark's verdict: at least so many objects of a class, fewer than what is excluded,
and colour and place hold for the objects that are surest. `share` is the reward of Flow-GRPO (arXiv:2505.05470): the
mean over the conditions, where counts must be met exactly before colour and place can earn anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...prompts.geneval import CLASSES, COLOURS, RELATIONS

MARGIN = 0.1  # how far centres must lie apart before there is a relation, in sums of the two widths or heights
SLANT = 0.5  # the smallest cosine to an axis: 60 degrees
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Found:
    """An object in a picture."""

    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None  # [H, W]


Objects = Mapping[str, Sequence[Found]]
"""by class, the surest first"""
Colours = Mapping[int, Sequence[str]]
"""by the number of a clause, those of the objects that `coloured` names"""


@dataclass(frozen=True)
class Clause:
    """So many objects of a class; each of a colour; each in a relation to those of an earlier clause."""

    name: str
    count: int
    colour: str | None = None
    relation: tuple[str, int] | None = None

    @classmethod
    def of(cls, given: Any, earlier: int = 0) -> Clause:
        """From {"class": ..., "count": ..., "color": ..., "position": [relation, number of a clause]}.

        Raises:
            ValueError: it is something else, or the number is not one of the `earlier` clauses.
        """
        if not isinstance(given, Mapping) or given.get("class") not in CLASSES:
            raise ValueError(f"{given!r} names none of COCO's 80 classes")
        count, colour, relation = (given.get(key) for key in ("count", "color", "position"))
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"the count must be a whole number, at least 1, not {count!r}")
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"the colour must be one of {', '.join(COLOURS)}, not {colour!r}")
        if relation is None:
            return cls(given["class"], count, colour)
        where, number = relation if isinstance(relation, Sequence) and len(relation) == 2 else ("", -1)
        if where not in RELATIONS or number not in range(earlier):
            raise ValueError(
                f"a position must be one of {', '.join(RELATIONS)} with the number of an earlier clause, "
                f"not {relation!r}"
            )
        return cls(given["class"], count, colour, (str(where), int(number)))


@dataclass(frozen=True)
class Request:
    """What a picture must hold, and what it must not."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()  # so many objects of a class, or more, are wrong

    @classmethod
    def of(cls, prompt: str, about: Any) -> Request:
        """From the metadata of a prompt.

        Raises:
            ValueError: they are not GenEval's; the message names the prompt.
        """
        if not isinstance(about, Mapping) or not about.get("include"):
            raise ValueError(f"the prompt '{prompt}' has no metadata of GenEval ('tag', 'include', 'exclude')")
        try:
            include = tuple(Clause.of(each, earlier) for earlier, each in enumerate(about["include"]))
            return cls(str(about.get("tag", "")), include, tuple(map(Clause.of, about.get("exclude") or ())))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the prompt '{prompt}' has other metadata than GenEval's: {error}") from error


def kept(objects: Objects, confidence: float, most: int = 16, overlap: float = 1.0) -> dict[str, list[Found]]:
    """The objects that count: surer than `confidence`, at most `most` of a class.

    Where overlap is below 1, one whose box overlaps that of a surer one of its class by so much (intersection over
    union) is dropped.
    """
    chosen: dict[str, list[Found]] = {}
    for name, found in objects.items():
        ranked = sorted((each for each in found if each.score > confidence), key=lambda each: -each.score)[:most]
        for each in ranked:
            mine = chosen.setdefault(name, [])
            if overlap >= 1 or all(intersection_over_union(each.box, other.box) < overlap for other in mine):
                mine.append(each)
    return chosen


def intersection_over_union(one: Box, other: Box) -> float:
    """Of two boxes, in [0, 1]; 0 where both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / union if union > 0 else 0.0


def relations(one: Box, other: Box) -> set[str]:
    """Where the first box lies, seen from the second: none, one or two of RELATIONS.

    The distance of the centres is shortened in x and in y by a tenth of the two widths, and of the two heights. What is
    left, divided by the whole distance, must be more than a half.
    """
    offset = [(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [one[axis + 2] - one[axis] + other[axis + 2] - other[axis] for axis in (0, 1)]
    distance = math.hypot(*offset)
    if distance == 0:
        return set()
    x, y = (
        math.copysign(max(abs(gap) - MARGIN * size, 0), gap) / distance for gap, size in zip(offset, sizes, strict=True)
    )
    holds = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, cosine in holds.items() if cosine > SLANT}


def coloured(request: Request, objects: Objects) -> dict[int, Sequence[Found]]:
    """The objects whose colours are asked for, by the number of their clause: the surest, as many as are wanted."""
    return {
        number: objects[clause.name][: clause.count]
        for number, clause in enumerate(request.include)
        if clause.colour and len(objects.get(clause.name, ())) >= clause.count
    }


def reason(request: Request, objects: Objects, colours: Colours) -> str:
    """What is wrong, in words; empty where the benchmark counts the picture as right."""
    wrong: list[str] = []
    matched: list[Sequence[Found] | None] = []
    for number, clause in enumerate(request.include):
        mine = objects.get(clause.name, ())[: clause.count]
        problem = _problem(clause, mine, colours.get(number, ()), matched)
        matched.append(None if problem else mine)
        wrong += [problem] if problem else []
    for clause in request.exclude:
        count = len(objects.get(clause.name, ()))
        wrong += [f"{count} of {clause.name}, not fewer than {clause.count}"] if count >= clause.count else []
    return "; ".join(wrong)


def _problem(
    clause: Clause, mine: Sequence[Found], colours: Sequence[str], matched: Sequence[Sequence[Found] | None]
) -> str:
    if len(mine) < clause.count:
        return f"{len(mine)} of {clause.count} {clause.name}" if clause.count > 1 else f"no {clause.name}"
    if clause.colour and list(colours).count(clause.colour) < clause.count:
        return f"{clause.name} is {' and '.join(dict.fromkeys(colours))}, not {clause.colour}"
    if clause.relation and not _placed(mine, matched[clause.relation[1]], clause.relation[0]):
        return f"{clause.name} is not {clause.relation[0]} what it should be"
    return ""


def _placed(mine: Iterable[Found], others: Sequence[Found] | None, relation: str) -> bool:
    return others is not None and all(relation in relations(one.box, other.box) for one in mine for other in others)


def share(request: Request, objects: Objects, colours: Colours) -> float:
    """How many of the conditions hold, in [0, 1]; 1 only where the benchmark counts the picture as right.

    A count earns 1 - |found - wanted| / wanted, at least 0. Where it is exact, a colour earns the share of the objects
    that have it, and a place 1 where it holds (and its target's conditions hold as well). What is excluded is a
    condition of its own unless the class is asked for: an exact count excludes all others.
    """
    earned: list[float] = []
    matched: list[Sequence[Found] | None] = []
    for number, clause in enumerate(request.include):
        mine = objects.get(clause.name, ())
        exact = len(mine) == clause.count
        own = [max(0.0, 1 - abs(len(mine) - clause.count) / clause.count)]
        if clause.colour:
            own.append(list(colours.get(number, ())).count(clause.colour) / clause.count if exact else 0.0)
        if clause.relation:
            own.append(float(exact and _placed(mine, matched[clause.relation[1]], clause.relation[0])))
        matched.append(mine if min(own) == 1 else None)
        earned += own
    asked = {clause.name for clause in request.include}
    for clause in request.exclude:
        if clause.name not in asked:
            earned.append(float(len(objects.get(clause.name, ())) < clause.count))
    return sum(earned) / len(earned)
