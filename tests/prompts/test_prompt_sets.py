"""The built-in sets that are made by rules: GenEval's categories and texts to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flowward import prompts, rewards
from flowward.prompts import geneval, ocr

PAIRS = ("two_object", "position", "color_attr")  # categories of GenEval with two objects
GENEVAL_FIRST = ("a photo of a parking meter", "a photo of a bus")
OCR_FIRST = 'a wooden sign above a shop door that says "Magic Theatre Society"'


def test_sets_made_by_rules_are_the_same_on_every_call() -> None:
    for name, made, size in (
        ("geneval", geneval.made, 4546),
        ("ocr", ocr.made, 3600),
    ):
        train, held_out = prompts.load(name), prompts.load(f"{name}-held-out")
        again = made.__wrapped__(False)
        assert again == train and len(train) == size
        assert not set(train.texts) & set(held_out.texts)
        assert len(set(train.texts)) == len(train) and len(set(held_out.texts)) == len(held_out)
        assert set(train.categories) == set(held_out.categories)
    drawbench = prompts.load("drawbench-style")
    assert len(drawbench) == len(set(drawbench.texts)) == 63 and len(set(drawbench.categories)) == 9
    # whatever Python, numpy and machine: a change here would move prompts from one set to the other
    assert prompts.load("geneval").texts[:2] == GENEVAL_FIRST
    assert prompts.load("ocr-held-out").texts[0] == OCR_FIRST


def meaning(about: Mapping[str, Any]) -> object:
    """What a picture must hold, the same for 'a left of b' and 'b right of a'."""
    things = [(each["class"], each["count"], each.get("color")) for each in about["include"]]
    relation = about["include"][-1].get("position", [None])[0]
    mirrored = {"right of": "left of", "below": "above"}
    if relation in mirrored:
        things, relation = things[::-1], mirrored[relation]
    return (relation, tuple(things)) if relation else (None, frozenset(things))


@pytest.mark.parametrize("name", ["geneval", "geneval-held-out"])
def test_every_prompt_of_geneval_says_what_its_metadata_say(name: str) -> None:
    mine = prompts.load(name)
    for text, category, about in zip(mine.texts, mine.categories, mine.metadata, strict=True):
        include = about["include"]
        assert about["tag"] == category
        nouns = [
            geneval.several(each["class"], each["count"])
            if each["count"] > 1
            else geneval.one(each["class"], each.get("color", ""))
            for each in include
        ]
        relation = include[-1].get("position")
        if relation:
            assert relation[1] == 0 and category == "position"
            assert text == f"a photo of {nouns[1]} {relation[0]} {nouns[0]}"
        else:
            assert text == f"a photo of {' and '.join(nouns)}"
        assert all(each["class"] in geneval.CLASSES for each in include)
        assert len({each["class"] for each in include}) == len(include) == (1 + (category in PAIRS))
        assert all(("color" in each) == (category in ("colors", "color_attr")) for each in include)
        assert not any(each["class"] == "person" and "color" in each for each in include)
        assert category != "color_attr" or include[0]["color"] != include[1]["color"]
        count = include[0]["count"]
        expected = [{"class": include[0]["class"], "count": count + 1}] if category == "counting" else []
        assert about.get("exclude", []) == expected and (count > 1) == (category == "counting")


def test_no_meaning_is_in_both_sets() -> None:
    train, held_out = ([meaning(about) for about in prompts.load(name).metadata] for name in ("geneval",
                       "geneval-held-out"))  # fmt: skip
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
    assert not set(train) & set(held_out)
    words = [{about["text"] for about in prompts.load(name).metadata} for name in ("ocr", "ocr-held-out")]
    assert not words[0] & words[1]
    assert not any(one in other for one in words[1] for other in words[0])  # nor is one the beginning of another


def test_every_combination_has_one_number() -> None:
    for kind in geneval.CATEGORIES:
        if kind.size < 10_000:
            texts = [text for place in range(kind.size) for text, _ in kind.make(place)]
            assert len(set(texts)) == len(texts)
    pairs = [geneval._pair(place, 6) for place in range(30)]
    assert len(set(pairs)) == 30 and all(a < b < 6 for a, b, _ in pairs) and {rest for *_, rest in pairs} == {0, 1}
    assert len(geneval.CLASSES) == 80


def test_articles_and_plurals() -> None:
    assert [geneval.one(name) for name in ("apple", "skis", "bus")] == ["an apple", "a pair of skis", "a bus"]
    assert geneval.one("scissors", "orange") == "a pair of orange scissors"
    assert geneval.one("umbrella", "red") == "a red umbrella" and geneval.one("car", "orange") == "an orange car"
    several = [geneval.several(name, 3) for name in ("bus", "bench", "person", "knife", "skis", "cup", "toothbrush")]
    assert several == ["three buses", "three benches", "three people", "three knives", "three pairs of skis",
                       "three cups", "three toothbrushes"]  # fmt: skip


@pytest.mark.parametrize("name", ["ocr", "ocr-held-out"])
def test_every_prompt_of_ocr_quotes_its_text(name: str) -> None:
    mine = prompts.load(name)
    for text, about in zip(mine.texts, mine.metadata, strict=True):
        assert text.count('"') == 2 and text.split('"')[1] == about["text"]
    rewards.refuse(rewards.make("ocr"), mine.texts)  # each can be read from the prompt alone
