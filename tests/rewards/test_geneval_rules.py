"""GenEval's rules on objects put there by hand, and the metadata that they are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from geneval_clauses import CAT, clause

from flowward import prompts
from flowward.prompts.geneval import CLASSES
from flowward.rewards.objects.geneval import requests
from flowward.rewards.objects.geneval_rules import (
    Box,
    Found,
    Request,
    coloured,
    intersection_over_union,
    kept,
    reason,
    relations,
    share,
)

# Where one box lies, seen from another


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ((0, 40, 20, 60), {"left of"}),
        ((80, 40, 100, 60), {"right of"}),
        ((40, 0, 60, 20), {"above"}),
        ((40, 80, 60, 100), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # both cosines are (40 - 4) / 56.6 = 0.64
        ((80, 0, 100, 20), {"right of", "above"}),
        ((40, 40, 60, 60), set()),  # the same box
        ((36.1, 40, 56.1, 60), set()),  # 3.9 apart, the margin is 0.1 * (20 + 20) = 4
        ((34, 40, 54, 60), set()),  # 6 apart: (6 - 4) / 6 is not above a half
        ((30, 40, 50, 60), {"left of"}),  # 10 apart: (10 - 4) / 10 is
        ((31, 40, 51, 60), {"left of"}),  # 9 apart: 5 / 9
        ((32, 40, 52, 60), set()),  # 8 apart: exactly a half
        ((0, 15, 20, 35), {"left of"}),  # dx 40, dy 25: cosines 36 / 47.2 and 21 / 47.2 = 0.44
        ((0, 12, 20, 32), {"left of"}),  # dy 28: 24 / 48.8 = 0.49
        ((0, 10, 20, 30), {"left of", "above"}),  # dy 30: 26 / 50 = 0.52
    ],
)
def test_relations_by_hand(one: Box, expected: set[str]) -> None:
    assert relations(one, (40, 40, 60, 60)) == expected


def some_boxes(count: int) -> list[Box]:
    corners = np.random.default_rng(0).uniform(0, 100, (count, 2, 2))
    return [(*low.tolist(), *high.tolist()) for low, high in zip(corners.min(1), corners.max(1), strict=True)]


def test_relations_turn_with_the_picture() -> None:
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    turned = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}
    boxes = some_boxes(24)
    for one in boxes:
        for other in boxes:
            found = relations(one, other)
            assert relations(other, one) == {mirrored[each] for each in found}
            assert relations(transposed(one), transposed(other)) == {turned[each] for each in found}
            assert relations(scaled(one), scaled(other)) == found
            assert not {"left of", "right of"} <= found and not {"above", "below"} <= found


def transposed(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def scaled(box: Box) -> Box:
    """Twice as large, and elsewhere."""
    return 2 * box[0] + 7, 2 * box[1] - 3, 2 * box[2] + 7, 2 * box[3] - 3


def test_overlaps_by_hand() -> None:
    assert intersection_over_union((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert intersection_over_union((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert intersection_over_union((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert intersection_over_union((0, 0, 0, 0), (0, 0, 0, 0)) == 0


# Which objects count


def found(*scores: float, box: Box = (0, 0, 10, 10)) -> list[Found]:
    return [Found(box, score) for score in scores]


def test_objects_below_the_threshold_do_not_count() -> None:
    objects = {"cat": found(0.2, 0.9, 0.31), "dog": found(0.3)}
    assert kept(objects, 0.3) == {"cat": found(0.9, 0.31)}  # the surest first, and above, not at
    assert kept(objects, 0.9) == {}
    assert len(kept({"cat": found(*[0.5] * 20)}, 0.3)["cat"]) == 16


def test_boxes_are_suppressed_where_it_is_asked_for() -> None:
    near = [Found((0, 0, 10, 10), 0.5), Found((1, 0, 11, 10), 0.9), Found((50, 0, 60, 10), 0.7)]
    assert len(kept({"cat": near, "dog": near}, 0.3)["cat"]) == 3  # the paper's evaluation suppresses none
    assert kept({"cat": near}, 0.3, overlap=0.8)["cat"] == [near[1], near[2]]
    assert len(kept({"cat": near}, 0.3, overlap=0.82)["cat"]) == 3  # 90 / 110 = 0.818
    assert len(kept({"cat": near[:1], "dog": near[1:2]}, 0.3, overlap=0.5)) == 2  # other classes do not matter


# The six categories, each right and wrong

LEFT, MIDDLE, RIGHT = (0, 40, 20, 60), (40, 40, 60, 60), (80, 40, 100, 60)


def at(*boxes: Box) -> list[Found]:
    return [Found(box, 0.99 - 0.01 * place) for place, box in enumerate(boxes)]


def judged(
    about: Mapping[str, Any], objects: Mapping[str, Sequence[Found]], colours: Mapping[int, Sequence[str]] | None = None
) -> tuple[str, float]:
    request = Request.of("a prompt", about)
    asked = coloured(request, objects)
    assert {number: len(each) for number, each in asked.items()} == {
        number: len(each) for number, each in (colours or {}).items()
    }
    return reason(request, objects, colours or {}), share(request, objects, colours or {})


DOG = {"include": [clause("cat"), clause("dog")]}
THREE = {"tag": "counting", "include": [clause("cup", 3)], "exclude": [clause("cup", 4)]}
RED = {"include": [clause("car", color="red")]}
PLACED = {"include": [clause("cat"), clause("dog", position=["left of", 0])]}
BOTH = {"include": [clause("car", color="red"), clause("cup", color="blue")]}


@pytest.mark.parametrize(
    ("about", "objects", "colours", "wrong", "earned"),
    [
        (CAT, {"cat": at(LEFT)}, {}, "", 1),
        (CAT, {"cat": at(LEFT), "dog": at(RIGHT)}, {}, "", 1),  # others may be there
        (CAT, {"dog": at(LEFT)}, {}, "no cat", 0),
        (CAT, {"cat": at(LEFT, RIGHT)}, {}, "", 0),  # at least one for the benchmark, exactly one for the share
        (DOG, {"cat": at(LEFT), "dog": at(RIGHT)}, {}, "", 1),
        (DOG, {"cat": at(LEFT)}, {}, "no dog", 1 / 2),
        (DOG, {}, {}, "no cat; no dog", 0),
        (THREE, {"cup": at(LEFT, MIDDLE, RIGHT)}, {}, "", 1),
        (THREE, {"cup": at(LEFT, MIDDLE)}, {}, "2 of 3 cup", 2 / 3),
        (THREE, {"cup": at(*[LEFT] * 4)}, {}, "4 cup, must be fewer than 4", 2 / 3),
        (THREE, {"cup": at(*[LEFT] * 9)}, {}, "9 cup, must be fewer than 4", 0),  # never below 0
        (RED, {"car": at(LEFT)}, {0: ["red"]}, "", 1),
        (RED, {"car": at(LEFT)}, {0: ["blue"]}, "car is blue, not red", 1 / 2),
        (RED, {}, {}, "no car", 0),
        (RED, {"car": at(LEFT, RIGHT)}, {0: ["red"]}, "", 0),  # the surest is red, but there are two
        (PLACED, {"cat": at(MIDDLE), "dog": at(LEFT)}, {}, "", 1),
        (PLACED, {"cat": at(MIDDLE), "dog": at(RIGHT)}, {}, "dog is not left of cat", 2 / 3),
        (PLACED, {"cat": at(MIDDLE)}, {}, "no dog", 1 / 3),
        (PLACED, {"dog": at(LEFT)}, {}, "no cat; dog is not left of cat", 1 / 3),
        (PLACED, {"cat": at(MIDDLE, LEFT), "dog": at(LEFT)}, {}, "", 1 / 3),  # of the surest cat, but there are two
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["red"], 1: ["blue"]}, "", 1),
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["blue"], 1: ["red"]},
         "car is blue, not red; cup is red, not blue", 1 / 2),
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["red"], 1: ["red"]}, "cup is red, not blue", 3 / 4),
        (BOTH, {"car": at(LEFT)}, {0: ["red"]}, "no cup", 1 / 2),
    ],
)  # fmt: skip
def test_judgements_by_hand(about: Any, objects: Any, colours: dict[int, list[str]], wrong: str, earned: float) -> None:
    said, share_ = judged(about, objects, colours)
    assert said == wrong
    assert share_ == pytest.approx(earned)


def test_what_the_benchmark_combines() -> None:
    two_red = {"include": [clause("car", 2, color="red")]}
    assert judged(two_red, {"car": at(LEFT, RIGHT)}, {0: ["red", "blue"]}) == (
        "car is red and blue, not red", pytest.approx((1 + 1 / 2) / 2))  # fmt: skip
    every = {"include": [clause("cat"), clause("dog", 2, position=["left of", 0])]}
    assert judged(every, {"cat": at(RIGHT), "dog": at(LEFT, MIDDLE)}) == ("", 1)
    assert judged(every, {"cat": at(MIDDLE), "dog": at(LEFT, RIGHT)})[0] != ""  # both dogs must be left of it
    no_dog = {"include": [clause("cat")], "exclude": [clause("dog", 1)]}
    assert judged(no_dog, {"cat": at(LEFT)}) == ("", 1)
    assert judged(no_dog, {"cat": at(LEFT), "dog": at(RIGHT)}) == ("1 dog, must be fewer than 1", 1 / 2)
    red_target = {"include": [clause("cat", color="red"), clause("dog", position=["left of", 0])]}
    said, earned = judged(red_target, {"cat": at(MIDDLE), "dog": at(LEFT)}, {0: ["blue"]})
    assert said == "cat is blue, not red; dog is not left of cat"  # there is no right target
    assert earned == pytest.approx(2 / 4)


def test_a_whole_share_is_a_right_picture() -> None:
    """On pictures with objects at random, for prompts of all categories."""
    rng = np.random.default_rng(0)
    mine, boxes = prompts.load("geneval-held-out"), some_boxes(40)
    whole = right = 0
    for i in mine.spread(300):
        request = Request.of(mine.texts[i], mine.metadata[i])
        for _ in range(4):
            objects = {
                each.name: [Found(boxes[rng.integers(40)], float(rng.uniform(0.91, 1)))
                            for _ in range(rng.integers(each.count + 2))] for each in request.include
            }  # fmt: skip
            objects = kept(objects, 0.9)
            colours = {n: [str(rng.choice((request.include[n].colour, "red"))) for _ in each]
                       for n, each in coloured(request, objects).items()}  # fmt: skip
            said, earned = reason(request, objects, colours), share(request, objects, colours)
            assert 0 <= earned <= 1
            assert earned < 1 or not said
            assert share(request, {}, {}) <= earned
            whole, right = whole + (earned == 1), right + (not said)
    assert 100 < whole < right < 1000


# Metadata


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, "has no GenEval metadata"),
        ({}, "has no GenEval metadata"),
        ({"text": "x"}, "has no GenEval metadata"),
        ({"include": [{"class": "zebra crossing", "count": 1}]}, "does not name one of COCO's 80 classes"),
        ({"include": ["cat"]}, "does not name one of COCO's 80 classes"),
        ({"include": [{"class": "cat"}]}, "the count must be an integer of at least 1, not None"),
        ({"include": [clause("cat", 0)]}, "at least 1, not 0"),
        ({"include": [clause("cat", True)]}, "at least 1, not True"),
        ({"include": [clause("cat", color="beige")]}, "the colour must be one of red, "),
        ({"include": [clause("cat", position=["left of", 0])]}, "number of an earlier clause, not ['left of', 0]"),
        ({"include": [clause("cat"), clause("dog", position=["near", 0])]}, "a position must be one of left of, "),
        ({"include": [clause("cat"), clause("dog", position="left of")]}, "a position must be"),
        ({"include": [clause("cat")], "exclude": [{"class": "dog"}]}, "the count must be"),
        ({"include": 3}, "has invalid GenEval metadata"),
    ],
)  # fmt: skip
def test_other_metadata_are_refused(about: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        requests(["a right one", "a wrong one"], [CAT, about])
    assert said in str(error.value) and "the prompt 'a wrong one' has" in str(error.value)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
        *((name, name) for name in CLASSES),
    ],
)
def test_classes_have_cocos_names_too(name: str, right: str) -> None:
    request = Request.of("x", {"include": [clause(name)], "exclude": [clause(name, 2)]})
    assert request.include[0].name == request.exclude[0].name == right


@pytest.mark.parametrize("name", ["geneval", "geneval-held-out"])
def test_the_built_in_prompts_are_understood(name: str) -> None:
    mine = prompts.load(name)
    asked = requests(mine.texts, mine.metadata)
    assert {request.tag for request in asked} == set(mine.categories)
    assert len(set(asked)) == len(mine)
