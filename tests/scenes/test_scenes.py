"""The built-in world: its language, its renderer, and the rewards on its pictures."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes_by_hand import Array, scene, some

from flowward.prompts.scenes import (
    CATEGORIES,
    COLOURS,
    COUNTS,
    MAX_WORDS,
    PALETTE,
    SHAPES,
    Request,
    Thing,
    parse,
    prompts,
    split,
    vocabulary,
)
from flowward.rewards.images.scenes import Balance, Scenes, Soft, Strict
from flowward.scenes.checker import check
from flowward.scenes.render import BACKGROUND, MAX_OBJECTS, SIZE, TINT, layouts, misread, render

# --- the language


def test_language_has_thousands_of_prompts_in_six_categories() -> None:
    assert len(prompts()) == 5598
    assert {prompt.request.category for prompt in prompts().values()} == set(CATEGORIES)
    assert len(CATEGORIES) == 6
    assert all(prompt.text == text == " ".join(text.lower().split()) for text, prompt in prompts().items())
    assert max(len(text.split()) for text in prompts()) <= MAX_WORDS


def test_no_content_is_on_both_sides_of_the_split() -> None:
    """Except a single object, where there are only six contents: there no text is on both sides."""
    assert not set(split(False)) & set(split(True))
    assert set(split(False)) | set(split(True)) == set(prompts())
    for category in CATEGORIES[1:]:
        train, held_out = ({prompts()[t].request for t in split(side, category)} for side in (False, True))
        assert not train & held_out
        assert len(held_out) / len(train | held_out) == pytest.approx(0.2, abs=0.03)
    assert len(split(True, "single_object")) == 6


def test_what_differs_only_in_direction_is_held_out_together() -> None:
    """Otherwise a shortcut is rewarded in training (ring and cross: cross left) and punished on the held-out side."""
    held_out = {prompt.request: prompt.held_out for prompt in prompts().values()}
    for request, side in held_out.items():
        if request.relation:
            assert held_out[replace(request, things=request.things[::-1])] == side
        elif request.category == "color_attribution":
            a, b = request.things
            assert held_out[replace(request, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))] == side


def test_train_prompts_hold_everything_the_held_out_ones_are_made_of() -> None:
    train = [prompts()[text].request for text in split(False)]
    things = [thing for request in train for thing in request.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == {None, *COLOURS}
    assert {thing.count for thing in things} == {1, *COUNTS}
    assert {request.relation for request in train} == {None, "left of", "above"}
    assert {word for text in split(False) for word in text.split()} == set(vocabulary())


def test_the_split_never_moves() -> None:
    """Scores on held-out prompts of two versions can be compared only as long as this digest stays."""
    digest = hashlib.sha256("\n".join(split(True)).encode()).hexdigest()
    assert digest == "b633611071ba45ca3c8f2b11079622a36b94fe59574a9a873df2af34bab659f7"


def test_both_ways_to_say_a_relation_are_one_request() -> None:
    same = parse("a square left of a circle").request
    assert same == Request("position", (Thing("square"), Thing("circle")), "left of")
    assert parse("a circle right of a square").request == same
    assert parse("a circle to the right of a square").request == same
    above = parse("a ring above a cross").request
    assert parse("a cross under a ring").request == parse("a cross below a ring").request == above
    assert parse("a ring over a cross").request == above != parse("a cross above a ring").request


def test_parse_forgives_case_and_spaces_and_names_the_nearest_prompt() -> None:
    assert parse("  A Red   CIRCLE ") is prompts()["a red circle"]
    with pytest.raises(ValueError, match=r"'a redd circle' is not a prompt .* nearest one is 'a red circle'"):
        parse("a redd circle")


def test_articles_and_plurals() -> None:
    texts = set(prompts())
    assert {"an orange ring", "a ring", "three crosses", "two rings", "a red cross and an orange ring"} <= texts
    assert not any(" a orange" in f" {text}" for text in texts)
    assert not any(" an " in f" {text}".replace(" an orange", "") for text in texts)


# --- the renderer


@pytest.mark.parametrize("category", CATEGORIES)
def test_layouts_hold_what_was_asked_for_and_nothing_touches(category: str) -> None:
    rng = np.random.default_rng(1)
    wanted = some(category, 300, rng)
    layout = layouts(wanted, rng)
    assert (layout.background >= BACKGROUND[0]).all() and (layout.background <= BACKGROUND[1]).all()
    for row, request in enumerate(wanted):
        n = request.count
        assert (layout.shape[row, n:] == -1).all()
        things = [thing for thing in request.things for _ in range(thing.count)]
        assert [SHAPES[s] for s in layout.shape[row, :n]] == [thing.shape for thing in things]
        for colour, thing in zip(layout.colour[row], things, strict=False):
            assert thing.colour in (None, COLOURS[colour])
        centre, radius = layout.centre[row, :n], layout.radius[row, :n]
        assert (centre >= radius[:, None] + 1).all() and (centre <= SIZE - 1 - radius[:, None]).all()
        for i in range(n):
            for j in range(i):
                assert np.abs(centre[i] - centre[j]).max() >= radius[i] + radius[j] + 2
        if request.relation:
            dx, dy = centre[1] - centre[0]
            along, across = (dx, dy) if request.relation == "left of" else (dy, dx)
            assert along > 8 and abs(across) <= 0.8 * along


def test_pictures_depend_on_the_generator_alone_and_lie_in_the_unit_interval() -> None:
    wanted = some("color_attribution", 50, np.random.default_rng(0))
    one, two, other = (render(wanted, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.shape == (50, 3, SIZE, SIZE) and one.dtype == np.float32
    assert (one == two).all() and (one != other).any((1, 2, 3)).all()
    assert one.min() >= 0 and one.max() <= 1


def test_pictures_never_change() -> None:
    """Pictures of two versions are the same ones, at least on a screen; so are those that models were trained on."""
    wanted = [prompt.request for prompt in list(prompts().values())[::97]]
    pixels = (render(wanted, np.random.default_rng(0)) * 255).round().astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "8c85df0a58960b1f"


def test_paint_is_the_palette_and_paper_the_background() -> None:
    picture = scene(("square", "blue", 10, 16, 6), paper=0.85)
    assert picture[:, 16, 10] == pytest.approx(PALETTE["blue"])
    assert picture[:, 2, 28] == pytest.approx(0.85 * TINT)


@pytest.mark.parametrize("category", CATEGORIES)
def test_misread_differs_in_exactly_one_respect(category: str) -> None:
    rng = np.random.default_rng(2)
    ways = set()
    for request in some(category, 300, rng):
        wrong = misread(request, rng)
        assert 1 <= wrong.count <= MAX_OBJECTS
        one, two = (sorted(r.things, key=repr) for r in (request, wrong))
        if wrong.count != request.count:
            ways.add("count")
            assert abs(wrong.count - request.count) == 1
            assert {(t.shape, t.colour) for t in two} <= {(t.shape, t.colour) for t in one}
        elif one == two:
            ways.add("relation")
            assert wrong == replace(request, things=request.things[::-1]) and request.relation
        else:
            changed = [(a, b) for a, b in zip(request.things, wrong.things, strict=True) if a != b]
            assert len(changed) == 1 and wrong.relation == request.relation
            a, b = changed[0]
            ways.add("shape" if a.shape != b.shape else "colour")
            assert (a.shape != b.shape) + (a.colour != b.colour) == 1 and a.count == b.count
    assert ways == {"shape", "count"} | (
        {"relation"} if category == "position" else {"colour"} if category in ("colors", "color_attribution") else set()
    )


# --- the rewards


def test_rewards_agree_with_the_verdicts() -> None:
    rng = np.random.default_rng(12)
    texts = [text for category in CATEGORIES for text in split(True, category)[:6]]
    wanted = [parse(text).request for text in texts]
    drawn = [misread(request, rng) if row % 2 else request for row, request in enumerate(wanted)]
    pictures = render(drawn, rng)
    results = check(pictures, wanted)
    images = torch.from_numpy(pictures)
    strict, soft = torch.tensor([float(v.strict) for v in results]), torch.tensor([v.soft for v in results])
    assert torch.equal(Strict()(images, texts), strict) and 0 < strict.mean() < 1
    assert torch.allclose(Soft()(images, texts), soft.float())
    assert torch.allclose(Scenes()(images, texts), (0.5 * strict + 0.5 * soft).float())
    assert Strict().explain(images, texts) == [v.reason for v in results]
    assert torch.equal(Scenes()(images.bfloat16().float(), texts) > 0.9, strict > 0)


def test_balance_is_the_place_of_the_visual_weight() -> None:
    def balance(*pictures: Array, prompt: str = "a circle") -> list[float]:
        return Balance()(torch.from_numpy(np.stack(pictures)), [prompt] * len(pictures)).tolist()

    middle, aside, corner = (scene(("circle", "blue", x, y, 5)) for x, y in ((16, 16), (20, 16), (7, 7)))
    pair = scene(("circle", "blue", 7, 16, 5), ("circle", "blue", 25, 16, 5))
    scores = balance(middle, aside, corner)
    assert scores[0] > 0.99 > scores[1] > 0.3 and scores[2] < 0.05
    assert balance(pair)[0] > 0.99
    assert balance(middle, aside, corner, prompt="two rings") == scores
    turned = [aside[:, :, ::-1].copy(), aside.transpose(0, 2, 1).copy()]
    assert balance(*turned) == pytest.approx([scores[1]] * 2, abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_balance_of_nothing_is_zero() -> None:
    blank = torch.full((3, 3, SIZE, SIZE), 0.9)
    blank[1, 0, 3, 3], blank[2, 0, 3, 3] = torch.nan, torch.inf
    assert Balance()(blank, ["a circle"] * 3).tolist() == [0, 0, 0]
    assert Balance()(torch.zeros(0, 3, SIZE, SIZE), []).shape == (0,)
