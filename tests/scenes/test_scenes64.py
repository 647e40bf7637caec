"""The larger built-in world: its language, its pictures, and the checker that sees only pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from flowward.prompts import scenes
from flowward.prompts.scenes64 import (
    CATEGORIES,
    COLOURS,
    COUNTS,
    MAX_WORDS,
    PATTERNED,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Relation,
    Request,
    Thing,
    parse,
    prompts,
    split,
    vocabulary,
)
from flowward.rewards.images.scenes import Balance, SceneNet, Scenes, Soft, Strict
from flowward.scenes.large.checker import Verdict, check, margin
from flowward.scenes.large.layout import INK, KINDS, MAX_OBJECTS, SIZE, Layout, layouts, misread
from flowward.scenes.large.letters import HEIGHT, LETTERS, glyphs, written
from flowward.scenes.large.looking import Found, look
from flowward.scenes.large.render import draw, render

Array = NDArray[np.float32]


def some(category: str, count: int, rng: np.random.Generator) -> list[Request]:
    choices = list({prompt.request: None for prompt in prompts().values() if prompt.request.category == category})
    return [choices[index] for index in rng.integers(len(choices), size=count)]


def scene(*objects: tuple[str, str, float, float, float], texture: str = "plain") -> Array:
    """One picture [3, SIZE, SIZE] of objects (shape or word, colour, x, y, radius) on even paper."""
    kind = np.full((1, MAX_OBJECTS), -1, np.int64)
    colour, centre = np.zeros_like(kind), np.zeros((1, MAX_OBJECTS, 2), np.float32)
    radius = np.ones((1, MAX_OBJECTS), np.float32)
    for slot, (name, paint, x, y, r) in enumerate(objects):
        kind[0, slot], colour[0, slot] = KINDS.index(name), COLOURS.index(paint)
        centre[0, slot], radius[0, slot] = (x, y), r
    paper, slope = np.full((1, 3), 0.92, np.float32), np.zeros((1, 2), np.float32)
    return draw(Layout(kind, colour, np.full_like(kind, TEXTURES.index(texture)), centre, radius, paper, slope))[0]


def verdict(picture: Array, prompt: str) -> Verdict:
    return check(picture[None], [parse(prompt).request])[0]


# --- the language


def test_the_language_has_all_sentences_of_the_smaller_world() -> None:
    assert set(scenes.prompts()) < set(prompts())
    shared = set(scenes.prompts())
    assert all(prompts()[text].request.category == scenes.prompts()[text].request.category for text in shared)
    assert len(prompts()) == 19280 and {p.request.category for p in prompts().values()} == set(CATEGORIES)
    assert max(len(text.split()) for text in prompts()) == MAX_WORDS


def test_no_content_is_on_both_sides_of_the_split_and_training_has_every_word() -> None:
    assert set(split(False)) | set(split(True)) == set(prompts()) and not set(split(False)) & set(split(True))
    for category in CATEGORIES[1:]:
        train, held_out = ({prompts()[t].request for t in split(side, category)} for side in (False, True))
        assert not train & held_out
        assert len(held_out) / len(train | held_out) == pytest.approx(0.2, abs=0.05)
    assert {word for text in split(False) for word in text.lower().split()} == set(vocabulary())
    things = [thing for text in split(False) for thing in prompts()[text].request.things]
    assert {thing.shape for thing in things} == {*SHAPES, "word"} and {thing.count for thing in things} == {1, *COUNTS}
    assert {thing.word for thing in things} == {"", *WORDS}
    assert {thing.texture for thing in things} == {None, *TEXTURES} and {thing.size for thing in things} == {
        None,
        *SIZES,
    }


def test_what_differs_only_in_who_is_where_is_held_out_together() -> None:
    held_out = {prompt.request: prompt.held_out for prompt in prompts().values()}
    for request, side in held_out.items():
        if request.category in ("position", "three_objects"):
            one, two, *more = request.things
            other = replace(request, things=(two, one, *more))
            assert held_out.get(other, side) == side
        elif request.category == "texture_attribution":
            a, b = request.things
            turned = (replace(a, texture=b.texture), replace(b, texture=a.texture))
            assert held_out[replace(request, things=turned)] == side


def test_the_split_never_moves() -> None:
    digest = hashlib.sha256("\n".join(split(True)).encode()).hexdigest()
    assert digest == "47f80b722f898de6ffa5f326213b59cfcb0f09bcfc8851fd51a8322627495993"


def test_ways_to_say_a_relation_of_three() -> None:
    row = parse("a star left of a ring left of a cross").request
    things = Thing("star"), Thing("ring"), Thing("cross")
    assert row == Request("three_objects", things, (Relation("left of", (0, 1)), Relation("left of", (1, 2))))
    assert parse("a cross right of a ring right of a star").request == row
    between = parse("a ring between a star and a cross").request
    assert {parse("a ring between a cross and a star").request.relations} == {between.relations}
    corner = parse("a star right of a ring and above a cross").request
    assert corner.relations == (Relation("left of", (1, 0)), Relation("above", (0, 2)))
    assert parse("a star above a cross and right of a ring").request == corner


def test_words_are_quoted_and_read_in_any_case() -> None:
    assert parse('the word "sun" above a ring') is prompts()['the word "SUN" above a ring']
    with pytest.raises(ValueError, match=r"not a prompt of the scenes-64 world; the nearest one is .*\"SUN\""):
        parse('the word "SUM" above a ring')
    assert {letter for word in WORDS for letter in word} == set(LETTERS)


# --- pictures


@pytest.mark.parametrize("category", CATEGORIES)
def test_layouts_hold_what_was_asked_for_inside_the_picture(category: str) -> None:
    rng = np.random.default_rng(1)
    wanted = some(category, 100, rng)
    layout = layouts(wanted, rng)
    for row, request in enumerate(wanted):
        n = request.count
        things = [thing for thing in request.things for _ in range(thing.count)]
        assert [KINDS[kind] for kind in layout.kind[row, :n]] == [thing.word or thing.shape for thing in things]
        assert (layout.kind[row, n:] == -1).all()
        for slot, thing in enumerate(things):
            assert thing.colour in (None, COLOURS[layout.colour[row, slot]])
            assert (thing.texture or "plain") == TEXTURES[layout.texture[row, slot]]
            assert not thing.word or layout.colour[row, slot] == INK
            if layout.texture[row, slot]:
                assert COLOURS[layout.colour[row, slot]] in PATTERNED
    assert (layout.centre >= 0).all() and (layout.centre <= SIZE).all()


def test_pictures_depend_on_the_generator_alone_and_lie_in_the_unit_interval() -> None:
    wanted = [request for category in CATEGORIES for request in some(category, 5, np.random.default_rng(0))]
    one, two, other = (render(wanted, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.shape == (len(wanted), 3, SIZE, SIZE) and one.dtype == np.float32
    assert (one == two).all() and (one != other).any((1, 2, 3)).all()
    assert one.min() >= 0 and one.max() <= 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_misread_differs_in_one_respect(category: str) -> None:
    rng = np.random.default_rng(2)
    ways: Counter[str] = Counter()
    for request in some(category, 300, rng):
        wrong = misread(request, rng)
        assert wrong != request and 1 <= wrong.count <= MAX_OBJECTS
        names = ("shape", "colour", "texture", "size", "word")
        differ = [n for n in names if sorted(str(getattr(t, n)) for t in request.things)
                  != sorted(str(getattr(t, n)) for t in wrong.things)]  # fmt: skip
        way = "count" if wrong.count != request.count else differ[0] if differ else "relation"
        assert way == "count" or len(differ) <= 1
        ways[way] += 1
    asked = {request.category for request in some(category, 5, rng)}
    assert asked == {category} and ways["shape"] and ways["count"]


def test_letters_are_told_from_each_other() -> None:
    flat = glyphs().reshape(len(LETTERS), -1)
    both, either = np.minimum(flat[:, None], flat).sum(2), np.maximum(flat[:, None], flat).sum(2)
    assert ((both / either)[~np.eye(len(LETTERS), dtype=bool)] < 0.87).all()
    assert written("sun").shape == (HEIGHT, 28)


# --- the checker


@pytest.mark.parametrize("category", CATEGORIES)
def test_checker_accepts_right_pictures_and_no_others(category: str) -> None:
    rng = np.random.default_rng(CATEGORIES.index(category))
    wanted = some(category, 120, rng)
    pictures = render(wanted, rng)
    blurred = ndimage.gaussian_filter(pictures, (0, 0, 0.7, 0.7)) + rng.normal(0, 0.02, pictures.shape)
    other = render([misread(request, rng) for request in wanted], rng)
    right, soft, wrong = (np.mean([v.strict for v in check(x, wanted)]) for x in (pictures, blurred, other))
    assert right >= 0.99 and soft >= 0.98 and wrong == 0


@pytest.mark.parametrize(
    ("drawn", "prompt", "reason"),
    [
        ("a red star", "a red star", ""),
        ("a red star", "a blue star", "star is red, not blue"),
        ("a red star", "a red heart", "star instead of heart"),
        ("three stars", "two stars", "3 objects instead of 2"),
        ("a striped red ring", "a dotted red ring", "ring is striped, not dotted"),
        ("a checked blue heart", "a checked red heart", "heart is blue, not red"),
        ("a small star", "a large star", "star is small, not large"),
        ("a circle above a heart", "a heart above a circle", "heart is not above circle"),
        (
            "a star between a ring and a cross",
            "a ring between a star and a cross",
            "ring is not between cross and star",
        ),
        (
            "a star left of a ring left of a cross",
            "a ring left of a star left of a cross",
            "ring is not left of star",
        ),
        ('the word "SUN"', 'the word "SUN"', ""),
        ('the word "SUN"', 'the word "SEA"', 'the word is "SUN", not "SEA"'),
        ('the word "SUN" above a star', 'a star above the word "SUN"', 'star is not above the word "SUN"'),
        ("a star", 'the word "SUN"', 'star instead of the word "SUN"'),
        ('the word "CAT"', "a ring", 'the word "CAT" instead of ring'),
    ],
)
def test_every_misreading_is_said(drawn: str, prompt: str, reason: str) -> None:
    rng = np.random.default_rng(0)
    pictures = render([parse(drawn).request] * 8, rng)
    for each in check(pictures, [parse(prompt).request] * 8):
        assert each.reason == reason and each.strict == (not reason)
        assert (each.soft > 0.95) == (not reason)


def test_a_misspelt_word_scores_by_its_letters() -> None:
    words = ["sun", "sky", "dog"]
    scores = [verdict(scene((word, "black", 32, 32, 1)), 'the word "SUN"').soft for word in words]
    assert scores[0] > 0.99 > scores[1] > scores[2] >= 0.5


def test_neither_small_nor_large() -> None:
    assert verdict(scene(("star", "red", 32, 32, 9.5)), "a large star").reason == "star is of middle size, not large"


def test_two_tones_of_one_colour_are_a_texture_and_two_colours_are_not_an_object() -> None:
    for texture in TEXTURES:
        found = look(scene(("heart", "pink", 30, 30, 12), texture=texture)[None])[0]
        assert found and [(each.shape, each.colour, each.texture) for each in found] == [("heart", "pink", texture)]
    both = scene(("square", "red", 26, 32, 8), ("square", "blue", 38, 32, 8))
    assert verdict(both, "a square").reason == "an object has no clear shape"


@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_scores_nothing() -> None:
    rng = np.random.default_rng(0)
    bad = np.stack([np.full((3, SIZE, SIZE), value, np.float32) for value in (0, 0.5, 1, np.nan, np.inf)])
    noise = (0.9 + 0.3 * rng.normal(size=(5, 3, SIZE, SIZE))).astype(np.float32)
    for pictures in (bad, noise, rng.random((5, 3, SIZE, SIZE), np.float32)):
        assert [v.soft for v in check(pictures, [parse("a circle").request] * 5)] == [0] * 5
    assert look(np.zeros((0, 3, SIZE, SIZE), np.float32)) == []
    with pytest.raises(ValueError, match=r"pictures of shape \[B, 3, 64, 64\]"):
        look(np.zeros((1, 3, 32, 32), np.float32))


def test_soft_score_stays_in_the_unit_interval_whatever_the_picture() -> None:
    rng = np.random.default_rng(6)
    wanted = [request for category in CATEGORIES for request in some(category, 20, rng)]
    other = [wanted[index] for index in rng.permutation(len(wanted))]
    mixed = 0.6 * render(wanted, rng) + 0.4 * render(other, rng)
    for pictures in (render(other, rng), mixed):
        assert all(0 <= v.soft <= 1 and v.strict <= (v.soft > 0.5) for v in check(pictures, wanted))


# --- the rewards


def test_rewards_know_the_world_by_the_size_of_the_picture() -> None:
    rng = np.random.default_rng(12)
    texts = [text for category in CATEGORIES for text in split(True, category)[:4]]
    wanted = [parse(text).request for text in texts]
    pictures = render([misread(request, rng) if row % 2 else request for row, request in enumerate(wanted)], rng)
    results, images = check(pictures, wanted), torch.from_numpy(pictures)
    assert Strict()(images, texts).tolist() == [float(v.strict) for v in results]
    assert Soft()(images, texts).tolist() == pytest.approx([v.soft for v in results])
    assert Scenes()(images, texts).tolist() == pytest.approx([0.5 * v.strict + 0.5 * v.soft for v in results])
    assert Strict().explain(images, texts) == [v.reason for v in results]
    assert Balance()(images, texts).shape == (len(texts),)
    with pytest.raises(ValueError, match="needs pictures of 32 x 32 or 64 x 64 pixels, not 16 x 16"):
        Strict()(torch.zeros(1, 3, 16, 16), ["a circle"])


def test_rewards_refuse_what_no_world_knows() -> None:
    reward: Any
    for reward in (Strict(), Soft(), Scenes()):
        reward.refuse(['the word "SUN"', "a circle"])
        with pytest.raises(ValueError, match="'a cat' is not a prompt of the scenes world"):
            reward.refuse(["a circle", "a cat"])
    with pytest.raises(ValueError, match="'a star' is not a prompt of the scenes world"):
        SceneNet().refuse(["a star"])


def test_the_packaged_ocr_reads_the_words() -> None:
    pytest.importorskip("rapidocr")
    from flowward.rewards.text.ocr import StrictOCR

    texts = [f'the word "{word.upper()}"' for word in WORDS]
    images = torch.from_numpy(render([parse(text).request for text in texts], np.random.default_rng(0)))
    assert StrictOCR()(images, texts).tolist() == [1.0] * len(texts)
    assert StrictOCR()(images, texts[1:] + texts[:1]).tolist() == [0.0] * len(texts)


def at(x: float, y: float) -> Found:
    return Found("ring", "red", "plain", x, y, 10.0, 0.9, "", {})


@pytest.mark.parametrize(
    ("kind", "places", "clear"),
    [
        ("left of", [(10, 10), (30, 15)], 12),  # 20 pixels, of which 8 are needed
        ("left of", [(10, 10), (20, 24)], 2),  # 10 along are enough
        ("left of", [(10, 10), (20, 34)], -4),  # mainly along the other axis
        ("above", [(10, 10), (12, 40)], 22),
        ("above", [(10, 40), (12, 10)], -62),
        ("between", [(30, 10), (10, 10), (50, 10)], 12),  # in the middle of 40: 0.3 of it to either side
        ("between", [(30, 20), (10, 10), (50, 10)], 4),  # 10 aside, of at most 14
        ("between", [(30, 26), (10, 10), (50, 10)], -2),  # 16 aside
        ("between", [(46, 10), (10, 10), (50, 10)], -4),  # too near to one end
    ],
)
def test_how_clearly_a_relation_holds(kind: str, places: list[tuple[float, float]], clear: float) -> None:
    things = [at(*place) for place in places]
    assert margin(Relation(kind, tuple(range(len(places)))), things) == pytest.approx(clear)
