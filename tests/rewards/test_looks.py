"""What images look like, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowward import rewards


def scored(name: str, images: Tensor, prompts: list[str] | None = None) -> list[float]:
    return list(rewards.load([name])(images, prompts or ["a"] * len(images)).tolist())


def plain(*colours: tuple[float, float, float]) -> Tensor:
    """One-coloured images [B, 3, 4, 4]."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 4, 4).clone()


def halves() -> Tensor:
    """Black above, white below."""
    images = torch.zeros(1, 3, 4, 4)
    images[:, :, 2:] = 1
    return images


def test_brightness() -> None:
    assert scored("brightness", plain((0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0))) == pytest.approx(
        [0, 1, 0.299, 0.587]
    )
    assert scored("brightness", halves()) == pytest.approx([0.5])


def test_contrast() -> None:
    assert scored("contrast", halves()) == pytest.approx([0.5]) and scored("contrast", plain((1, 0, 0))) == [0.0]


def test_colourfulness() -> None:
    """Grey has none; one pure colour has the length of its means alone."""
    found = scored("colourfulness", plain((0.4, 0.4, 0.4), (1, 0, 0), (0, 0, 1)))
    assert found == pytest.approx([0.0, 0.3 * math.hypot(1, 0.5), 0.3], abs=1e-6)
    both = torch.cat([plain((1, 0, 0)), plain((0, 1, 0))], -1)  # R - G is 1 or -1, (R + G) / 2 - B is 1/2
    assert scored("colourfulness", both) == pytest.approx([1 + 0.3 * 0.5])


def test_variety_compares_the_images_of_a_prompt() -> None:
    """Distances of .5 between grey and the rest, 1 between black and white; an only image has none."""
    images = plain((0, 0, 0), (0.5, 0.5, 0.5), (1, 1, 1), (1, 1, 1))
    assert scored("variety", images, ["a", "a", "a", "b"]) == pytest.approx([0.75, 0.5, 0.75, 0.0])
    order = [3, 1, 0, 2]
    shuffled = scored("variety", images[order], [["a", "a", "a", "b"][k] for k in order])
    assert shuffled == pytest.approx([0.0, 0.5, 0.75, 0.75])


def test_colours_beyond_the_range_are_cut() -> None:
    for name in ("brightness", "contrast", "colourfulness", "variety"):
        images = torch.cat([plain((2, 2, 2)), plain((-1, -1, -1))])
        assert scored(name, images) == scored(name, images.clamp(0, 1))
