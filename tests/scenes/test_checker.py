"""The checker of the built-in world, which looks only at pixels: what it accepts, what it scores, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scenes_by_hand import Array, scene, some
from scipy import ndimage

from flowward.prompts.scenes import CATEGORIES, COLOURS, PALETTE, SHAPES, Request, Thing, parse
from flowward.scenes.checker import Found, Verdict, check, judge, look
from flowward.scenes.render import BACKGROUND, MAX_OBJECTS, SIZE, Layout, draw, layouts, misread, render, silhouette


def verdict(picture: Array, prompt: str) -> Verdict:
    return check(picture[None], [parse(prompt).request])[0]


def names(found: tuple[Found, ...] | None) -> list[str]:
    assert found is not None
    return sorted(f"{each.colour} {each.shape}" for each in found)


# --- the checker on drawn pictures


def rates(category: str, count: int, seed: int = 0) -> tuple[float, float, float]:
    """Share accepted of right pictures, of slightly blurred and noisy ones, and of pictures of another prompt."""
    rng = np.random.default_rng((seed, CATEGORIES.index(category)))
    wanted = some(category, count, rng)
    pictures = render(wanted, rng)
    soft = ndimage.gaussian_filter(pictures, (0, 0, 0.7, 0.7)) + rng.normal(0, 0.02, pictures.shape)
    other = render([misread(request, rng) for request in wanted], rng)
    right, blurred, wrong = (np.mean([v.strict for v in check(x, wanted)]) for x in (pictures, soft, other))
    return float(right), float(blurred), float(wrong)


@pytest.mark.short
@pytest.mark.parametrize("category", CATEGORIES)
def test_checker_accepts_right_pictures_and_no_others(category: str) -> None:
    right, blurred, wrong = rates(category, 600)
    assert right >= 0.99
    assert blurred >= 0.99
    assert wrong <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("category", CATEGORIES)
def test_checker_at_full_number(category: str) -> None:
    right, blurred, wrong = rates(category, 5000, seed=1)
    assert right >= 0.99
    assert blurred >= 0.99
    assert wrong <= 0.005


def test_findings_are_the_layout() -> None:
    rng = np.random.default_rng(5)
    wanted = [request for category in CATEGORIES for request in some(category, 100, rng)]
    layout = layouts(wanted, rng)
    for row, found in enumerate(look(draw(layout))):
        assert found is not None and all(each.is_object for each in found)
        left = list(found)
        for slot in range(wanted[row].count):
            x, y = layout.centre[row, slot]
            match = min(left, key=lambda each: np.hypot(each.x - x, each.y - y))
            left.remove(match)
            drop = layout.radius[row, slot] * (0.23 if match.shape == "triangle" else 0)  # centroid below centre
            assert match.shape == SHAPES[layout.shape[row, slot]] and match.colour == COLOURS[layout.colour[row, slot]]
            assert np.hypot(match.x - x, match.y - y - drop) < 1
            assert match.area == pytest.approx(silhouette_area(layout, row, slot), rel=0.12)
        assert not left


def silhouette_area(layout: Layout, row: int, slot: int) -> float:
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = layout.centre[row, slot]
    dx, dy = np.meshgrid(axis - x, axis - y)
    return float(
        silhouette(layout.shape[row, slot : slot + 1], dx[None], dy[None], layout.radius[row, slot : slot + 1]).sum()
    )


def test_verdict_depends_on_the_picture_alone() -> None:
    """Not on the company in the batch, and not on how it is cut into chunks."""
    rng = np.random.default_rng(6)
    wanted = some("color_attribution", 300, rng)
    pictures = render(wanted, rng)
    together = [v.soft for v in check(pictures, wanted)]
    alone = [check(pictures[i : i + 1], wanted[i : i + 1])[0].soft for i in range(0, 300, 17)]
    assert alone == pytest.approx(together[::17], abs=1e-5)


# --- hand-made right and wrong pictures

RED_LEFT_OF_BLUE = (("circle", "red", 8, 16, 5), ("square", "blue", 23, 16, 5))


@pytest.mark.parametrize(
    ("prompt", "objects", "reason"),
    [
        ("a red circle and a blue square", RED_LEFT_OF_BLUE, ""),
        ("a circle left of a square", RED_LEFT_OF_BLUE, ""),
        ("a square right of a circle", RED_LEFT_OF_BLUE, ""),
        ("a circle and a square", RED_LEFT_OF_BLUE, ""),
        ("a square left of a circle", RED_LEFT_OF_BLUE, "square is not left of circle"),
        ("a circle above a square", RED_LEFT_OF_BLUE, "circle is not above square"),
        ("a blue circle and a red square", RED_LEFT_OF_BLUE, "circle is red, not blue"),
        ("a red circle and a green square", RED_LEFT_OF_BLUE, "square is blue, not green"),
        ("a red circle and a blue diamond", RED_LEFT_OF_BLUE, "square instead of diamond"),
        ("a circle", RED_LEFT_OF_BLUE, "2 objects instead of 1"),
        ("three circles", RED_LEFT_OF_BLUE, "2 objects instead of 3"),
        ("two circles", RED_LEFT_OF_BLUE, "square instead of circle"),
        ("a circle and a square", (*RED_LEFT_OF_BLUE, ("ring", "pink", 16, 26, 4.5)), "3 objects instead of 2"),
        ("a circle and a square", RED_LEFT_OF_BLUE[:1], "1 object instead of 2"),
        ("a circle left of a square", RED_LEFT_OF_BLUE[:1], "1 object instead of 2"),
        ("a triangle above a cross", (("triangle", "red", 12, 8, 5), ("cross", "red", 14, 22, 5)), ""),
        (
            "a cross above a triangle",
            (("triangle", "red", 12, 8, 5), ("cross", "red", 14, 22, 5)),
            "cross is not above",
        ),
        ("a ring below a cross", (("ring", "black", 12, 22, 5), ("cross", "yellow", 14, 8, 5)), ""),
        (
            "a circle left of a square",
            (("circle", "red", 10, 8, 5), ("square", "red", 17, 24, 5)),
            "circle is not left",
        ),
    ],
)
def test_hand_made_pictures(
    prompt: str, objects: tuple[tuple[str, str, float, float, float], ...], reason: str
) -> None:
    result = verdict(scene(*objects), prompt)
    assert result.strict == (not reason)
    assert result.reason.startswith(reason) and bool(result.reason) == bool(reason)
    assert len(result.reason) <= 32
    assert names(result.found) == sorted(f"{colour} {shape}" for shape, colour, *_ in objects)
    assert result.soft > 0.9 if result.strict else result.soft < 0.8


def test_a_picture_without_paper_or_with_too_much_in_it_cannot_be_made_out() -> None:
    object_ = ("circle", "red", 9, 9, 5)
    two_papers, crowd = scene(object_), scene(object_)
    two_papers[:, :, 20:] = 0.6
    for row in range(18, 28, 4):
        for column in range(4, 28, 4):
            crowd[:, row : row + 3, column : column + 3] = 0.1
    for picture in (two_papers, crowd):
        assert verdict(picture, "a red circle").reason == "the picture is unreadable"


def test_something_extra_that_is_no_object_is_refused() -> None:
    picture = scene(("circle", "red", 9, 9, 5))
    assert verdict(picture, "a red circle").strict
    line, bar, corner, grey = (picture.copy() for _ in range(4))
    line[:, 26, 4:28] = 0.1  # a scribble one pixel wide
    bar[:, 20:24, 14:28] = 0.1
    corner[:, 29:, 29:] = 0.1
    grey[:, 20:28, 20:28] = 0.5
    for spoilt, reason in ((line, "shape"), (bar, "shape"), (corner, "shape"), (grey, "colour")):
        result = verdict(spoilt, "a red circle")
        assert not result.strict and result.reason == f"an object has no clear {reason}"
        assert result.soft < 0.6
    tail = picture.copy()
    tail[:, 9, 14:26] = picture[:, 9, 9, None]  # a scribble that grows out of the circle
    assert not verdict(tail, "a red circle").strict


def test_soft_score_orders_pictures_as_a_person_would() -> None:
    prompt = "a red circle and a blue square"
    square = ("square", "blue", 23, 16, 5)
    nothing, missing, wrong_shape, wrong_colour, right = (
        verdict(scene(*objects), prompt).soft
        for objects in (
            (("ring", "green", 8, 16, 5),),
            (square,),
            (("cross", "red", 8, 16, 5), square),
            (("circle", "green", 8, 16, 5), square),
            (("circle", "red", 8, 16, 5), square),
        )
    )
    assert 0 <= nothing < 0.05 < missing <= wrong_shape + 0.01 < wrong_colour < right <= 1
    assert missing == pytest.approx(0.5, abs=0.02) and wrong_colour == pytest.approx(0.75, abs=0.02)


def test_soft_score_counts() -> None:
    places = ((7, 7), (24, 7), (7, 24), (24, 24))
    scores = [verdict(scene(*(("ring", "red", x, y, 4.6) for x, y in places[:n])), "three rings") for n in range(5)]
    assert [score.soft for score in scores] == pytest.approx([0, 1 / 3, 2 / 3, 1, 3 / 4], abs=0.02)
    assert [score.strict for score in scores] == [False, False, False, True, False]


def test_soft_score_rises_as_a_relation_comes_true() -> None:
    offsets = (-14, -6, 2, 6, 8, 10, 14)
    pictures = [scene(("ring", "red", 16 - d / 2, 9, 4.5), ("cross", "blue", 16 + d / 2, 23, 4.5)) for d in offsets]
    scores = [verdict(picture, "a ring left of a cross").soft for picture in pictures]
    assert scores == sorted(scores) and scores[0] == pytest.approx(0.5, abs=0.02) and scores[-1] > 0.9


def test_soft_score_stays_in_the_unit_interval_whatever_the_picture() -> None:
    rng = np.random.default_rng(7)
    wanted = [request for category in CATEGORIES for request in some(category, 40, rng)]
    drawn = render([misread(request, rng) for request in wanted], rng)
    for pictures in (
        drawn,
        drawn + 0.05,
        1 - drawn,
        drawn * rng.random((len(drawn), 1, 1, 1)),
        drawn[:, :, ::-1].copy(),
    ):
        found = check(pictures.astype(np.float32), wanted)
        assert all(0 <= v.soft <= 1 and (v.soft > 0.9 or not v.strict) for v in found)


# --- pictures that are nothing


@pytest.mark.parametrize("value", [0.0, 0.4, 0.9, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.filterwarnings("error")
def test_a_blank_picture_scores_nothing(value: float) -> None:
    result = verdict(np.full((3, SIZE, SIZE), value, np.float32), "a circle")
    assert (result.strict, result.soft) == (False, 0.0)
    assert result.reason in ("the picture is empty", "the picture is unreadable")


@pytest.mark.parametrize("strength", [0.01, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5, 2.0])
@pytest.mark.filterwarnings("error")
def test_noise_scores_nothing(strength: float) -> None:
    rng = np.random.default_rng(8)
    wanted = [request for category in CATEGORIES for request in some(category, 20, rng)]
    for noise in (rng.normal(0, strength, (120, 3, SIZE, SIZE)), rng.uniform(-1, 1, (120, 3, SIZE, SIZE)) * strength):
        for paper in (0.5, 0.88):
            results = check((paper + noise).astype(np.float32), wanted)
            assert not any(v.strict or v.soft for v in results)


@pytest.mark.filterwarnings("error")
def test_smooth_blobs_are_never_accepted() -> None:
    rng = np.random.default_rng(9)
    wanted = [request for category in CATEGORIES for request in some(category, 30, rng)]
    for width in (1, 2, 3, 5):
        blobs = ndimage.gaussian_filter(rng.normal(size=(180, 3, SIZE, SIZE)), (0, 0, width, width))
        for strength in (0.1, 0.3, 0.6):
            pictures = 0.88 + strength * blobs / blobs.std()
            pictures[:, :, [0, -1]] = pictures[:, :, :, [0, -1]] = 0.88
            results = check(pictures.astype(np.float32), wanted)
            assert not any(v.strict for v in results) and np.mean([v.soft for v in results]) < 0.05


@pytest.mark.filterwarnings("error")
def test_one_bad_pixel_spoils_its_picture_only() -> None:
    pictures = np.stack([scene(("circle", "red", 16, 16, 6))] * 5)
    pictures[1, 0, 5, 5], pictures[2, 1, 0, 0], pictures[3, 2, 31, 31] = np.nan, np.inf, -np.inf
    pictures[4, 0, 5, 5] = 1e30  # a number like any other: it is shown as 1, a speck
    results = check(pictures, [parse("a circle").request] * 5)
    assert [v.strict for v in results] == [True, False, False, False, True]
    assert [v.soft for v in results[1:4]] == [0, 0, 0] and results[1].reason == "the picture is unreadable"


def merged(count: int, same: bool, rng: np.random.Generator) -> tuple[Array, list[Request], list[Request]]:
    """Pictures of two objects side by side that overlap, and the two kindest requests: for one of them, for both.

    `same`: of one colour, and half of them of one shape; otherwise of two colours.
    """
    radius = rng.uniform(4.4, 6, count).astype(np.float32)
    angle = rng.integers(4, size=count) * np.pi / 2 + rng.normal(0, 0.25, count)
    distance = radius * rng.uniform(1.05, 1.4, count)
    offset = (distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / 2).astype(np.float32)
    centre = rng.uniform(13, 19, (count, 1, 2)).astype(np.float32) + np.stack([-offset, offset], 1)
    shape, colour = rng.integers(len(SHAPES), size=(count, 2)), rng.integers(len(COLOURS), size=(count, 2))
    if same:
        colour[:, 1] = colour[:, 0]
        shape[::2, 1] = shape[::2, 0]
    else:
        colour[:, 1] = (colour[:, 0] + 1 + rng.integers(len(COLOURS) - 1, size=count)) % len(COLOURS)
    empty = np.full((count, 2), -1)
    layout = Layout(
        shape=np.concatenate([shape, empty], 1),
        colour=np.concatenate([colour, empty], 1),
        centre=np.concatenate([centre, np.zeros_like(centre)], 1),
        radius=np.repeat(radius[:, None], MAX_OBJECTS, 1),
        background=rng.uniform(*BACKGROUND, count).astype(np.float32),
    )
    one = [Request("single_object", (Thing(SHAPES[a]),)) for a, _ in shape]
    two = [Request("two_objects", (Thing(SHAPES[a]), Thing(SHAPES[b]))) for a, b in shape]
    return draw(layout), one, two


@pytest.mark.parametrize("same", [True, False], ids=["one colour", "two colours"])
def test_merged_objects_score_nothing(same: bool) -> None:
    pictures, one, two = merged(1500, same, np.random.default_rng(10))
    found = look(pictures)
    for wanted in (one, two):
        results = [judge(each, request) for each, request in zip(found, wanted, strict=True)]
        assert not any(v.strict for v in results)
        assert not any(v.soft > 0 for v in results)


def test_two_squares_side_by_side_are_neither_one_nor_two() -> None:
    pair = scene(("square", "red", 10.6, 16, 6), ("square", "red", 21.4, 16, 6))  # 10.8 wide each: flush
    apart = scene(("square", "red", 9, 16, 6), ("square", "red", 22, 16, 6))
    for prompt in ("two squares", "a square", "three squares"):
        assert verdict(pair, prompt).soft == 0
    assert verdict(apart, "two squares").strict


def test_tips_of_two_diamonds_may_meet() -> None:
    touching = scene(("diamond", "green", 9, 16.5, 5), ("diamond", "green", 21, 16.5, 5))  # tips at 14.75 and 15.25
    assert verdict(touching, "two diamonds").strict
    overlapping = scene(("diamond", "green", 10, 16.5, 5), ("diamond", "green", 20, 16.5, 5))
    assert verdict(overlapping, "two diamonds").soft == 0
    corners = scene(("square", "blue", 10, 10, 5 / 0.9), ("square", "blue", 20, 20, 5 / 0.9))  # meet at (15, 15)
    assert verdict(corners, "two squares").strict


@pytest.mark.parametrize("figure", ["L", "T", "U", "H", "X", "C", "frame", "triangle upside down", "two in a row"])
def test_other_figures_are_not_objects(figure: str) -> None:
    axis = np.arange(SIZE) + 0.5 - SIZE / 2
    x, y, around = np.abs(axis)[None], axis[:, None], np.hypot(axis[None], axis[:, None])
    box = np.maximum(x, np.abs(y)) < 6
    covered = {
        "L": box & ~((axis[None] > -1) & (y < 1)),
        "T": box & ((y < -2) | (x < 2)),
        "U": box & ((y > 2) | (x > 2)),
        "H": box & ((np.abs(y) < 2) | (x > 2)),
        "X": box & (np.abs(x - np.abs(y)) < 2.6),
        "C": (around > 3.5) & (around < 7) & ~((axis[None] > 0) & (np.abs(y) < 2)),
        "frame": box & (np.maximum(x, np.abs(y)) > 3),
        "triangle upside down": (y > -6) & (1.85 * x + y < 6),
        "two in a row": np.hypot(x - 4, y) < 4.5,
    }[figure]
    picture = scene()
    picture[:, covered] = np.array(PALETTE["blue"], np.float32)[:, None]
    results = [verdict(picture, f"a blue {shape}") for shape in SHAPES]
    assert not any(v.strict for v in results)
    assert max(v.soft for v in results) <= (0.35 if figure == "frame" else 0.05)


def test_a_whole_field_or_a_cut_off_object_is_not_an_object() -> None:
    field = np.full((3, SIZE, SIZE), 0.9, np.float32)
    field[:, 2:-2, 2:-2] = np.array(PALETTE["red"], np.float32)[:, None, None]
    assert verdict(field, "a red square").soft == 0
    for x, y in ((0, 16), (31, 16), (16, 1), (16, 32), (1, 31)):
        result = verdict(scene(("circle", "red", x, y, 6)), "a red circle")
        assert not result.strict and result.soft < 0.2


@pytest.mark.parametrize("paper", [0.15, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_paper_may_be_dark_or_bright(paper: float) -> None:
    objects = ("circle", "yellow", 9, 16, 5), ("square", "red", 22, 16, 5)
    picture = scene(*objects, paper=paper)
    assert verdict(picture, "a yellow circle and a red square").strict


def test_values_a_little_out_of_range_and_small_colour_errors_do_no_harm() -> None:
    rng = np.random.default_rng(11)
    wanted = some("color_attribution", 300, rng)
    pictures = render(wanted, rng)
    wide = pictures * 1.4 - 0.2  # 40 % more contrast, so that most colours leave the range
    tinted = pictures + rng.normal(0, 0.03, (300, 3, 1, 1)).astype(np.float32)
    for changed in (wide, tinted):
        assert np.mean([v.strict for v in check(changed, wanted)]) > 0.98


def test_an_empty_batch_and_wrong_shapes() -> None:
    assert check(np.zeros((0, 3, SIZE, SIZE), np.float32), []) == []
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\], not \[2, 3, 64, 64\]"):
        look(np.zeros((2, 3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="2 pictures need as many requests, not 1"):
        check(np.zeros((2, 3, SIZE, SIZE), np.float32), [parse("a circle").request])
