"""GenEval's rules (Ghosh et al., 2023, arXiv:2310.11513): do the detected objects satisfy the prompt?

There are two scores. `reason` is the benchmark's pass/fail verdict: enough objects of each class, fewer than the
excluded number, and the right colour and position for the most confident objects. `share` is the reward of Flow-GRPO
(arXiv:2505.05470): the mean over the conditions. There colour and position count only if the number is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...prompts.geneval import CLASSES, COCO, COLOURS, RELATIONS

MARGIN = 0.1  # minimum distance of centres for a relation, as a fraction of the summed widths or heights
SLANT = 0.5  # minimum cosine to an axis: 60 degrees
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Found:
    """A detected object."""

    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None  # [H, W]


Objects = Mapping[str, Sequence[Found]]
"""objects by class, most confident first"""
Colours = Mapping[int, Sequence[str]]
"""colours of the objects from `coloured`, by clause number"""


@dataclass(frozen=True)
class Clause:
    """A number of objects of a class, optionally with a colour and a position relative to an earlier clause."""

    name: str
    count: int
    colour: str | None = None
    relation: tuple[str, int] | None = None

    @classmethod
    def of(cls, given: Any, earlier: int = 0) -> Clause:
        """Parse {"class": ..., "count": ..., "color": ..., "position": [relation, number of a clause]}.

        The class may also have COCO's own name, such as `mouse` for `computer mouse`.

        Raises:
            ValueError: it has another form, or the number is not one of the `earlier` clauses.
        """
        name = given.get("class") if isinstance(given, Mapping) else None
        name = COCO.get(name, name) if isinstance(name, str) else ""
        if name not in CLASSES:
            raise ValueError(f"{given!r} does not name one of COCO's 80 classes")
        count, colour, relation = (given.get(key) for key in ("count", "color", "position"))
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"the count must be an integer of at least 1, not {count!r}")
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"the colour must be one of {', '.join(COLOURS)}, not {colour!r}")
        if relation is None:
            return cls(name, count, colour)
        where, number = relation if isinstance(relation, Sequence) and len(relation) == 2 else ("", -1)
        if where not in RELATIONS or number not in range(earlier):
            raise ValueError(
                f"a position must be one of {', '.join(RELATIONS)} with the number of an earlier clause, "
                f"not {relation!r}"
            )
        return cls(name, count, colour, (str(where), int(number)))


@dataclass(frozen=True)
class Request:
    """The objects that a picture must contain, and those that it must not."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()  # this many objects of a class, or more, are wrong

    @classmethod
    def of(cls, prompt: str, about: Any) -> Request:
        """Parse the metadata of a prompt.

        Raises:
            ValueError: it is not GenEval metadata; the message names the prompt.
        """
        if not isinstance(about, Mapping) or not about.get("include"):
            raise ValueError(f"the prompt '{prompt}' has no GenEval metadata ('tag', 'include', 'exclude')")
        try:
            include = tuple(Clause.of(each, earlier) for earlier, each in enumerate(about["include"]))
            return cls(str(about.get("tag", "")), include, tuple(map(Clause.of, about.get("exclude") or ())))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the prompt '{prompt}' has invalid GenEval metadata: {error}") from error


def kept(objects: Objects, confidence: float, most: int = 16, overlap: float = 1.0) -> dict[str, list[Found]]:
    """The objects that count: with a score above `confidence`, at most `most` of a class.

    If overlap is below 1, boxes are suppressed: an object is dropped if a more confident one of its class overlaps it
    by at least `overlap` (intersection over union).
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
    """Intersection over union of two boxes, in [0, 1]; 0 if both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / union if union > 0 else 0.0


def relations(one: Box, other: Box) -> set[str]:
    """The position of the first box relative to the second: none, one or two of RELATIONS.

    The distance of the centres is reduced in x by a tenth of the summed widths, in y by a tenth of the summed heights.
    The rest, divided by the whole distance, must be more than a half.
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
    """The objects whose colour matters, by clause number: the most confident ones, as many as wanted."""
    return {
        number: objects[clause.name][: clause.count]
        for number, clause in enumerate(request.include)
        if clause.colour and len(objects.get(clause.name, ())) >= clause.count
    }


def reason(request: Request, objects: Objects, colours: Colours) -> str:
    """The reasons why the benchmark fails the picture; empty if it passes."""
    wrong: list[str] = []
    matched: list[Sequence[Found] | None] = []
    for number, clause in enumerate(request.include):
        mine = objects.get(clause.name, ())[: clause.count]
        problem = _problem(request, number, mine, colours.get(number, ()), matched)
        matched.append(None if problem else mine)
        wrong += [problem] if problem else []
    for clause in request.exclude:
        count = len(objects.get(clause.name, ()))
        wrong += [f"{count} {clause.name}, must be fewer than {clause.count}"] if count >= clause.count else []
    return "; ".join(wrong)


def _problem(
    request: Request,
    number: int,
    mine: Sequence[Found],
    colours: Sequence[str],
    matched: Sequence[Sequence[Found] | None],
) -> str:
    clause = request.include[number]
    if len(mine) < clause.count:
        return f"{len(mine)} of {clause.count} {clause.name}" if clause.count > 1 else f"no {clause.name}"
    if clause.colour and list(colours).count(clause.colour) < clause.count:
        return f"{clause.name} is {' and '.join(dict.fromkeys(colours))}, not {clause.colour}"
    if clause.relation and not _placed(mine, matched[clause.relation[1]], clause.relation[0]):
        return f"{clause.name} is not {clause.relation[0]} {request.include[clause.relation[1]].name}"
    return ""


def _placed(mine: Iterable[Found], others: Sequence[Found] | None, relation: str) -> bool:
    return others is not None and all(relation in relations(one.box, other.box) for one in mine for other in others)


def share(request: Request, objects: Objects, colours: Colours) -> float:
    """The fraction of the conditions that are met, in [0, 1]; 1 only if the benchmark passes the picture.

    A count earns 1 - |found - wanted| / wanted, at least 0. If the count is exact, a colour earns the fraction of
    objects with that colour. A position earns 1 if it is right and its target meets all its conditions. An exclusion is
    its own condition, unless its class is also included: then the exact count covers it.
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
