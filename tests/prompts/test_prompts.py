"""Which prompts come when, in training and in evaluation."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from flowward import prompts
from flowward.prompts import PromptSet, prompt
from flowward.prompts.scenes import CATEGORIES

MIXED = PromptSet("mixed", tuple("abcdefghij"), tuple("xxxxxyyyzz"))  # 5 x, 3 y, 2 z
ONE = PromptSet("one", tuple("abcdefg"), ("all",) * 7)


def drawn(mine: PromptSet, count: int, iterations: int, seed: int = 0) -> list[int]:
    return [i for iteration in range(iterations) for i in mine.draw(seed, iteration, count)]


def test_an_iteration_depends_on_seed_and_number_alone() -> None:
    torch.manual_seed(1)
    first = [MIXED.draw(0, iteration, 7) for iteration in range(5)]
    torch.manual_seed(2)
    backwards = [PromptSet(MIXED.name, MIXED.texts, MIXED.categories).draw(0, i, 7) for i in reversed(range(5))]
    assert first == backwards[::-1]
    assert len({tuple(ONE.draw(seed, 0, 7)) for seed in range(9)}) > 5
    assert ONE.draw(0, 0, 7) != ONE.draw(0, 1, 7)  # every round is shuffled anew


def test_categories_take_turns() -> None:
    for mine, names in ((MIXED, "xyz"), (prompts.load("scenes"), CATEGORIES)):
        categories = [mine.categories[i] for i in drawn(mine, 5, 12)]
        assert categories == [names[k % len(names)] for k in range(60)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 20])
def test_no_text_comes_twice_before_all_others_have_come(count: int) -> None:
    assert all(sorted(drawn(ONE, count, 60)[start : start + 7]) == list(range(7)) for start in range(0, 57 - 7, 7))
    order = drawn(MIXED, count, 90)
    for name, size in (("x", 5), ("y", 3), ("z", 2)):
        mine = [i for i in order if MIXED.categories[i] == name]
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size])) == size


def test_more_prompts_than_there_are_texts() -> None:
    assert Counter(ONE.draw(0, 0, 14)) == dict.fromkeys(range(7), 2)


def test_a_category_of_weight_w_has_w_turns_in_a_round() -> None:
    weighted = MIXED.weighted(["x=3", "z=0"])
    assert [weighted.categories[i] for i in drawn(weighted, 4, 2)] == list("xyxx" * 2)
    order = drawn(weighted, 5, 60)
    mine = [i for i in order if weighted.categories[i] == "x"]
    assert all(sorted(mine[start : start + 5]) == list(range(5)) for start in range(0, len(mine) - 4, 5))
    even = {"x": 1, "y": 1, "z": 1}
    assert drawn(PromptSet("even", MIXED.texts, MIXED.categories, even), 7, 9) == drawn(MIXED, 7, 9)
    assert PromptSet("m", MIXED.texts, MIXED.categories).spread(6) == weighted.spread(6)  # an evaluation has none


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["w=2"], "unknown prompt category 'w'"),
        (["x"], "'x' is not a category weight; write category=number, e.g. x=2"),
        (["x=-1"], "'x=-1' is not a category weight"),
        (["x=1.5"], "'x=1.5' is not a category weight"),
        (["x=0", "y=0", "z=0"], "nothing to train on"),
    ],
)
def test_a_bad_weight_is_refused(given: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MIXED.weighted(given)


def test_the_split_is_by_content() -> None:
    train, held_out = prompts.load("scenes"), prompts.load("scenes-held-out")
    assert not set(train.texts) & set(held_out.texts)
    assert set(train.categories) == set(held_out.categories) == set(CATEGORIES)
    assert (train.name, held_out.name) == ("scenes", "scenes-held-out")


# Evaluation


def test_an_evaluation_spreads_evenly() -> None:
    for count in (1, 4, 6, 10, 31, 100):
        chosen = MIXED.spread(count)
        assert chosen == MIXED.spread(count) and len(chosen) == count
        share = Counter(MIXED.categories[i] for i in chosen)
        assert max(share.values()) - min(share[name] for name in "xyz") <= 1
        for name in "xyz":
            times = Counter(i for i in chosen if MIXED.categories[i] == name)
            members = MIXED.categories.count(name)
            assert len(times) == min(members, share[name])
            assert not times or max(times.values()) - min(times.values()) <= 1
    assert MIXED.spread(6) == [0, 5, 8, 2, 6, 9]


def test_a_small_evaluation_walks_through_a_large_set() -> None:
    held_out = prompts.load("scenes-held-out")
    chosen = held_out.spread(36)
    assert len(set(chosen)) == 36
    for name in CATEGORIES:
        members = [i for i, own in enumerate(held_out.categories) if own == name]
        mine = [members.index(i) for i in chosen if held_out.categories[i] == name]
        steps = {b - a for a, b in pairwise(mine)}
        assert mine[0] == 0 and max(steps) - min(steps) <= 1, name


def test_walking_is_drawing() -> None:
    for mine in (MIXED, MIXED.weighted(["x=3", "z=0"])):
        walk = mine.walk(5)
        assert [next(walk) for _ in range(60)] == drawn(mine, 12, 5, seed=5)
        assert next(mine.walk(5, 17)) == drawn(mine, 1, 18, seed=5)[-1]


def test_an_epoch_is_shuffled_once_however_many_categories_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    shuffled = prompt._shuffled
    monkeypatch.setattr(prompt, "_shuffled", lambda *key: asked.append(key) or shuffled(*key))
    names = tuple(f"category {k % 100}" for k in range(300))
    found = PromptSet("many", tuple(f"text {k}" for k in range(300)), names)
    drawn = [index for k in range(30) for index in found.draw(7, k, 20)]  # two epochs of three texts per category
    assert sorted(drawn[:300]) == sorted(drawn[300:]) == list(range(300))
    assert len(asked) == len(set(asked)) == 200
    assert found.draw(7, 0, 20) == drawn[:20] and found.draw(8, 0, 20) != drawn[:20]


def test_places_are_those_of_each_prompt() -> None:
    found = PromptSet("edits", ("a", "a"), ("all", "all"), sources=((), (Path("x.png"),)))
    assert [found.places[each] for each in found] == [0, 1]
