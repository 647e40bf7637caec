"""Pictures of samples that are no images: curves and heat maps, or what a user's function draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT = 240, 150  # of a plot, in pixels
LEFT, RIGHT, TOP, BOTTOM = 30, 6, 6, 6  # margins
FINE = 3  # drawn so many times larger, and reduced for smooth lines
MOST_CURVES = 8  # of more rows, a heat map is shown
INK, GREY = (36, 39, 44), (211, 214, 218)
COLOURS = ((47, 111, 187), (214, 106, 32), (31, 138, 76), (200, 50, 43), (120, 80, 180), (20, 150, 160),
           (180, 140, 0), (110, 110, 110))  # fmt: skip


def plotted(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Plots [B, 3, HEIGHT, WIDTH] in [0, 1] of samples [B, ...].

    A sample [T], [C, T] or [T, C] with at most MOST_CURVES channels is shown as C curves over its longer axis. Any
    other sample is a heat map, whose rows are all of its axes but the last.
    """
    rows = [_rows(each) for each in samples.detach().float().cpu()]
    drawn = [_curves(each) if len(each) <= MOST_CURVES else _heat(each) for each in rows]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def by(draw: Callable[[Tensor, str], Any]) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Pictures [B, 3, H, W] in [0, 1] by a user's function of (sample, prompt).

    It returns a PIL image or an array [H, W, 3] of bytes; all of the same size.
    """

    def drawn(samples: Tensor, prompts: Sequence[str]) -> Tensor:
        found = [_bytes(draw(sample, prompt)) for sample, prompt in zip(samples, prompts, strict=True)]
        if len(sizes := {each.shape for each in found}) > 1:
            raise ValueError(f"draw must return pictures of one size, but it returned {sorted(sizes)}")
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255

    return drawn


def _bytes(picture: Any) -> NDArray[np.uint8]:
    found = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        raise ValueError(
            "draw must return a PIL image or an array [H, W, 3] of bytes (uint8), not "
            f"{type(picture).__name__} {list(found.shape)} of {found.dtype}"
        )
    return found


def _rows(sample: Tensor) -> NDArray[np.float32]:
    """[C, T] of a sample [...]."""
    values = sample.nan_to_num().numpy()
    if values.ndim < 2:
        return values.reshape(1, -1)
    flat = values.reshape(-1, values.shape[-1])
    return flat.T if values.ndim == 2 and flat.shape[0] > flat.shape[1] else flat


def limit(values: NDArray[np.float32]) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that no value exceeds: plots of like samples are then alike."""
    most = float(np.abs(values).max()) if values.size else 0.0
    if most == 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(most))
    return float(next(step * power for step in (1, 2, 5, 10) if most <= step * power * (1 + 1e-6)))


def _curves(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A curve per row, on a scale from -limit to limit."""
    image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    draw, most, count = ImageDraw.Draw(image), limit(rows), rows.shape[1]
    left, right, top, bottom = LEFT * FINE, (WIDTH - RIGHT) * FINE, TOP * FINE, (HEIGHT - BOTTOM) * FINE
    middle = (top + bottom) / 2
    draw.rectangle((left, top, right, bottom), outline=GREY, width=FINE)
    draw.line((left, middle, right, middle), fill=GREY, width=FINE)
    across = np.linspace(left, right, max(2, count))
    for number, row in enumerate(rows):
        down = middle - np.repeat(row, 2 if count == 1 else 1) / most * (bottom - top) / 2
        points = list(zip(across.tolist(), down.tolist(), strict=True))
        draw.line(points, fill=COLOURS[number], width=2 * FINE, joint="curve")
    return _labelled(image, most)


def _heat(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blue below 0, red above, white at 0."""
    most = limit(rows)
    share = np.clip(rows / most, -1, 1)[..., None]
    low, high, white = (np.array(each, np.float32) for each in (COLOURS[0], COLOURS[3], (255, 255, 255)))
    pixels = np.where(share < 0, white - share * (low - white), white + share * (high - white)).round()
    image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    size = ((WIDTH - LEFT - RIGHT) * FINE, (HEIGHT - TOP - BOTTOM) * FINE)
    cells = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    image.paste(cells, (LEFT * FINE, TOP * FINE))
    return _labelled(image, most)


def _labelled(image: Image.Image, most: float) -> NDArray[np.uint8]:
    """The plot at its size, with the ends of its scale."""
    plot = image.reduce(FINE)
    draw, font = ImageDraw.Draw(plot), ImageFont.load_default(10)
    for text, down in ((f"{most:g}", TOP + 4), ("0", HEIGHT / 2), (f"{-most:g}", HEIGHT - BOTTOM - 4)):
        draw.text((LEFT - 4, down), text, fill=INK, font=font, anchor="rm")
    return np.asarray(plot)
