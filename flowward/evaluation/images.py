"""Image grids: every image with its prompt and, if there is one, its verdict."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..prompts.pictures import collage
from ..system.whole_files import replacing
from . import fonts
from .fonts import Font

MARGIN, GAP = 20, 16  # pixels around the grid, and between its cells
TEXT, SMALL = 13, 12  # font sizes of prompts and of verdicts
MOST_LINES = 2  # of a prompt, and of a verdict
INK, HAIRLINE, GREEN, RED = "#24272c", "#d3d6da", "#1f8a4c", "#c8322b"
_WIDE = "\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uff60"  # scripts without spaces between words
PIECES = re.compile(f" ?[{_WIDE}]| ?[^ {_WIDE}]+")  # where lines can be broken


def stills(images: Tensor) -> Tensor:
    """Images unchanged; for videos [N, F, 3, H, W], the first, the middle and the last frame, side by side."""
    if images.ndim != 5:
        return images
    frames = images.shape[1]
    return torch.cat([images[:, at] for at in sorted({0, frames // 2, frames - 1})], -1)


def beside(images: Tensor, sources: Sequence[Sequence[Path]]) -> Tensor:
    """The stills of images, each to the right of its source images, if there are any: several share one picture.

    Raises:
        ValueError: a source is not an image.
    """
    images = stills(images)
    if not any(sources):
        return images
    before = torch.stack([collage(each, (images.shape[-2], images.shape[-1])) for each in sources])
    return torch.cat([before, images], -1)


def labelled_grid(
    images: Tensor,
    captions: Sequence[str],
    marks: Sequence[str | None] | None = None,
    columns: int = 6,
    tile: int = 144,
    sources: Sequence[Sequence[Path]] = (),
) -> Image.Image:
    """Images in rows, each with its prompt below.

    Grids of the same prompts have the same size, whatever the verdicts are, so they can be shown side by side.

    Args:
        images: float [N, 3, H, W] in [0, 1], or videos [N, F, 3, H, W], shown by their first, middle and last frame.
            Small ones are enlarged by a whole factor, large ones reduced to `tile`.
        captions: N prompts.
        marks: N verdicts: None if there is none, "" if the image is right, otherwise the error in it.
        tile: longest side of an image, and width of a caption, in pixels.
        sources: the source images of each of N edits, if any; they are shown to the left of the edited image.

    Raises:
        ValueError: the images have another shape, there are none, the lists differ in length, or a source is not an
            image.
    """
    images, tile = beside(images, sources), tile * (2 if any(sources) else 1)
    _refuse_unequal(images, captions, marks)
    pictures = [_fitted(array, tile) for array in _bytes(images)]
    marks = marks or [None] * len(captions)
    texts = [_lines(caption, TEXT, tile) for caption in captions]
    notes = [_lines(mark or "", SMALL, tile) for mark in marks]

    columns = min(columns, len(pictures))
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    note_height = MOST_LINES * _line_height(SMALL) if any(mark is not None for mark in marks) else 0
    caption_height = [max(len(texts[i][0]) for i in row) * _line_height(TEXT) for row in rows]
    heights = [pictures[0].height + 8 + text + note_height for text in caption_height]
    width = 2 * MARGIN + columns * tile + (columns - 1) * GAP
    grid = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + (len(rows) - 1) * GAP), "white")
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            _cell(grid, MARGIN + column * (tile + GAP), y, pictures[i], marks[i], texts[i], notes[i])
        y += height + GAP
    return grid


def pictures(images: Tensor) -> list[Image.Image]:
    """Each image [N, 3, H, W] or video (its stills) as a picture of its own size."""
    return [Image.fromarray(pixels) for pixels in _bytes(stills(images))]


def thumbnails(images: Tensor, longest: int = 192) -> list[bytes]:
    """Each image [N, 3, H, W] or video (its stills) as a small file: a PNG if small enough, else a reduced JPEG."""
    found = []
    for pixels in _bytes(stills(images)):
        picture, kind = Image.fromarray(pixels), "PNG"
        if max(picture.size) > longest:
            picture, kind = _fitted(pixels, longest), "JPEG"
        with io.BytesIO() as file:
            picture.save(file, kind, quality=88)
            found.append(file.getvalue())
    return found


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically.

    Raises:
        OSError: the file cannot be written; an existing file at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as partial:
            image.save(partial, format="PNG")
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _refuse_unequal(images: Tensor, captions: Sequence[str], marks: Sequence[str | None] | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"a grid needs at least one image, shape [N, 3, H, W], not {list(images.shape)}")
    for what, items in (("captions", captions), ("marks", captions if marks is None else marks)):
        if len(items) != len(images):
            raise ValueError(f"there are {len(images)} images, but {len(items)} {what}")


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] in [0, 1] -> [N, H, W, 3]."""
    pixels = images.detach().float().nan_to_num().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (pixels * 255).round().astype(np.uint8)


def _fitted(pixels: NDArray[np.uint8], tile: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest > tile:
        size = [max(1, round(side * tile / longest)) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = tile // longest  # with a whole factor, all pixels of a small image keep the same size
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _cell(
    grid: Image.Image,
    x: int,
    y: int,
    picture: Image.Image,
    mark: str | None,
    caption: tuple[list[str], Font],
    note: tuple[list[str], Font],
) -> None:
    """One image with its frame, its badge and the lines below."""
    draw = ImageDraw.Draw(grid)
    colour, frame = (HAIRLINE, 1) if mark is None else (RED if mark else GREEN, 2)
    corner = (x + picture.width, y + picture.height)
    draw.rectangle((x - frame, y - frame, corner[0] + frame - 1, corner[1] + frame - 1), fill=colour)
    grid.paste(picture, (x, y))
    if mark is not None:
        badge = _badge(right=not mark)
        grid.paste(badge, (corner[0] - badge.width + 6, y - 6), badge)
    y = corner[1] + 8
    for (lines, font), size, ink in ((caption, TEXT, INK), (note, SMALL, RED)):
        for line in lines:
            draw.text((x, y), line, fill=ink, font=font)
            y += _line_height(size)


def _badge(right: bool, size: int = 18) -> Image.Image:
    """A white tick on green or a white cross on red, drawn large and reduced for smooth edges."""
    full = 8 * size
    badge = Image.new("RGBA", (full, full), (255, 255, 255, 0))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, full - 1, full - 1), fill="white")
    edge = full // 12
    draw.ellipse((edge, edge, full - 1 - edge, full - 1 - edge), fill=GREEN if right else RED)
    strokes = [[(0.29, 0.52), (0.44, 0.67), (0.72, 0.36)]]
    if not right:
        strokes = [[(0.34, 0.34), (0.66, 0.66)], [(0.34, 0.66), (0.66, 0.34)]]
    for stroke in strokes:
        draw.line([(u * full, v * full) for u, v in stroke], fill="white", width=full // 10, joint="curve")
    return badge.resize((size, size), Image.Resampling.LANCZOS)


def _lines(text: str, size: int, width: int) -> tuple[list[str], Font]:
    """A text in lines, with the font to draw it."""
    drawable, font = fonts.shown(text, size)
    return _wrapped(drawable, font, width), font


def _line_height(size: int) -> int:
    return round(1.3 * size)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """At most MOST_LINES lines no wider than `width`; an ellipsis marks a cut."""
    pieces = PIECES.findall(" ".join(text.split()))
    lines: list[str] = []
    while pieces and len(lines) < MOST_LINES:
        line = pieces.pop(0).strip()
        while pieces and font.getlength(line + pieces[0]) <= width:
            line += pieces.pop(0)
        lines.append(_shortened(line, font, width, more=bool(pieces) and len(lines) == MOST_LINES - 1))
    return lines


def _shortened(line: str, font: Font, width: int, more: bool) -> str:
    if not more and font.getlength(line) <= width:
        return line
    kept = line[:width]  # no character is narrower than a pixel
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"
