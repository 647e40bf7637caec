"""Grids: sizes, verdicts, captions that do not fit, and files that appear whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor, ImageFont

from flowward.evaluation import images
from flowward.evaluation.images import GAP, GREEN, HAIRLINE, MARGIN, RED, labelled_grid, save
from flowward.prompts.scenes import prompts


def count(grid: Image.Image, colour: str) -> int:
    wanted = ImageColor.getrgb(colour)
    return sum(number for number, found in grid.getcolors(grid.width * grid.height) if found == wanted)


def test_the_grid_has_room_for_every_picture() -> None:
    grid = labelled_grid(torch.rand(7, 3, 32, 32), ["a circle"] * 7, columns=3, tile=100)
    assert grid.width == 2 * MARGIN + 3 * 100 + 2 * GAP
    assert grid.height > 3 * 96  # three rows of 32 x 3 pixels
    assert labelled_grid(torch.rand(2, 3, 32, 32), ["a", "b"]).width == 2 * MARGIN + 2 * 144 + GAP


def test_small_pictures_keep_square_pixels_and_large_ones_shrink_in_proportion() -> None:
    pixels = images._bytes(torch.tensor([[[[0.0, 1.0]]] * 3]))
    enlarged = images._fitted(pixels[0], 145)
    assert enlarged.size == (144, 72)
    assert sorted(enlarged.getcolors()) == [(72 * 72, (0, 0, 0)), (72 * 72, (255, 255, 255))]
    assert images._fitted(images._bytes(torch.rand(1, 3, 150, 300))[0], 144).size == (144, 72)


def test_verdicts_show_and_do_not_change_the_size() -> None:
    pictures, captions = torch.full((2, 3, 32, 32), 0.5), ["a circle", "two rings"]
    plain = labelled_grid(pictures, captions)
    right = labelled_grid(pictures, captions, ["", ""])
    wrong = labelled_grid(pictures, captions, ["3 objects, not 2", "the cross is not left of the ring"])
    assert count(plain, HAIRLINE) > 0 and count(plain, GREEN) == count(plain, RED) == 0
    assert count(right, GREEN) > 0 and count(right, RED) == 0
    assert count(wrong, RED) > 0 and count(wrong, GREEN) == 0
    assert right.size == wrong.size
    bottom = (0, wrong.height - 60, wrong.width, wrong.height)
    assert count(wrong.crop(bottom), RED) > 0 == count(right.crop(bottom), RED)  # the words beneath


def test_a_caption_is_never_cut_without_an_ellipsis() -> None:
    font = ImageFont.load_default(images.TEXT)
    assert images._wrapped("a circle", font, 144) == ["a circle"]
    long = images._wrapped("a photograph of a castle on a hill at sunset, with a river and a mill", font, 144)
    word = images._wrapped("x" * 5000, font, 144)
    assert len(long) == 2 and long[1].endswith("…")
    assert word[0].endswith("…")
    assert all(font.getlength(line) <= 144 for line in long + word)
    assert images._wrapped("", font, 144) == []
    assert images._lines("Café — naïve", images.TEXT, 144)[0] == ["Cafe - naive"]


def test_every_prompt_of_the_scenes_world_fits() -> None:
    font = ImageFont.load_default(images.TEXT)
    for text in prompts():
        assert " ".join(images._wrapped(text, font, 144)) == text


@pytest.mark.parametrize(
    ("shape", "captions", "marks", "message"),
    [
        ((2, 1, 8, 8), ["a", "b"], None, "shape"),
        ((0, 3, 8, 8), [], None, "at least one"),
        ((2, 3, 8, 8), ["a"], None, "2 images, but 1 captions"),
        ((2, 3, 8, 8), ["a", "b"], [None], "2 images, but 1 marks"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    shape: tuple[int, ...], captions: list[str], marks: list[None] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_grid(torch.rand(*shape), captions, marks)


def test_a_file_appears_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "000000.png"
    save(labelled_grid(torch.rand(1, 3, 8, 8), ["a"]), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [p.name for p in path.parent.iterdir()] == ["000000.png"]
