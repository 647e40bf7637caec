"""Find the objects and words in pictures. It sees only the pixels.

1. The colour of the paper is a plane, fitted to the border. Pixels that differ from it are foreground.
2. Small dark components are letters: see reading.py. They are taken out.
3. The rest is split into components, as in the smaller world. The colour of a component is the one whose two tones its
   inner pixels are nearest to; between these tones, the pattern is compared with all textures in all phases. The shape
   is the silhouette (with the component's area and centroid) with the largest intersection over union.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...prompts.scenes64 import COLOURS, PATTERNED, SHAPES, TEXTURES
from ..components import MIN_AREA, Regions, components, overlaps, roundness, share, softmax, unit_area
from ..judging import looked
from . import reading
from .layout import SIZE
from .textures import DARK, TONES, phases

BORDER_SPREAD = 0.05  # a border with a larger mean absolute deviation from a plane is not paper
OUTLIER = 0.10  # border pixels with a larger deviation do not count in the second fit
MIN_OBJECT = 60  # covered pixels; smaller components have no shape (the smallest drawn object covers 100)
MAX_COMPONENTS = 10  # with more components or words, the picture is noise
COLOUR_REACH = 0.20  # largest mean RGB distance from the two tones of a colour to be that colour
SECOND_COLOUR = 0.20  # a pixel at this RGB distance from all mixtures of paper and a tone has another colour
STEEPNESS = 1.35  # sharpens edges before shapes are compared
MIN_OVERLAP = 0.84  # smallest overlap with a silhouette to be an object
NO_OVERLAP = 0.72  # with at most this overlap, a component has no shape
MIN_ROUND = 0.70  # smallest over largest moment of inertia
PLAIN = 0.14  # standard deviation between the tones below which an object is plain
MIN_PATTERN = 0.50  # smallest correlation with a pattern to be that texture
NO_PATTERN = 0.30
CHUNK = 128  # pictures per chunk
_REACH = 18  # half-width of a component's window in pixels
_SIDE = 2 * _REACH + 1
_PLANE = np.zeros((3, 3, 3), bool)
_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_TWO_TONES = np.array([[name in PATTERNED] for name in COLOURS])

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """One object or word in a picture."""

    shape: str  # the best match, or "word"
    colour: str
    texture: str
    x: float  # centroid, pixels
    y: float
    radius: float  # of the silhouette, pixels
    overlap: float  # with the best silhouette; of a word, that of its worst letter
    unclear: str  # "shape", "colour", "texture" or "word" if it matches none closely enough, otherwise empty
    scores: dict[str, NDArray[np.floating]]  # similarity to each shape, colour and texture, in [0, 1]
    text: reading.Text | None = None

    @property
    def word(self) -> str:
        """The letters of a word; empty for a shape."""
        return self.text.word if self.text else ""


def _border() -> tuple[Mask, NDArray[np.float64]]:
    edge = np.ones((SIZE, SIZE), bool)
    edge[1:-1, 1:-1] = False
    axis = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1
    basis = np.stack([np.ones((SIZE, SIZE)), *np.broadcast_arrays(axis[None, :], axis[:, None])], 2)
    return edge, basis


_EDGE, _BASIS = _border()
_PATTERNS = [phases(texture, _SIDE).reshape(-1, _SIDE * _SIDE) for texture in TEXTURES[1:]]


def look(images: Array) -> list[tuple[Found, ...] | None]:
    """Find the objects and words of each picture in a batch [B, 3, SIZE, SIZE]; None if a picture is unreadable.

    A picture is unreadable if its border is not paper, if it has too many components, or if it contains NaN or
    infinity. Values outside [0, 1] are clipped, as on a screen.

    Raises:
        ValueError: the batch has another shape.
    """
    return looked(images, SIZE, CHUNK, _look)


def _paper(images: Array) -> tuple[Array, Mask]:
    """The colour of the paper [B, 3, H, W], a plane, and whether the border is even enough to be paper [B]."""
    border, basis = images[:, :, _EDGE].astype(np.float64), _BASIS[_EDGE]
    squares = (basis[:, :, None] * basis[:, None]).reshape(-1, 9)
    plane = border @ np.linalg.pinv(basis).T  # [B, 3, 3]
    typical = np.median(border, 2, keepdims=True)
    for near in (border - typical, border - plane @ basis.T):
        kept = (np.abs(near).max(1) < 2 * OUTLIER).astype(np.float64)  # [B, pixels]
        normal = (kept @ squares).reshape(-1, 3, 3) + 1e-3 * np.eye(3)
        right = (border * kept[:, None]) @ basis  # [B, channels, 3]
        plane = np.linalg.solve(normal, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    calm = np.abs(border - plane @ basis.T).mean((1, 2)) < BORDER_SPREAD
    flat = plane.astype(np.float32) @ _BASIS.reshape(-1, 3).T.astype(np.float32)
    return flat.reshape(images.shape), calm


def _look(images: Array) -> list[tuple[Found, ...] | None]:
    """`look` for one chunk, with all components of all its pictures at once."""
    finite = np.all(np.isfinite(images), axis=(1, 2, 3))
    images = np.clip(np.where(finite[:, None, None, None], images, 0), 0, 1)
    paper, calm = _paper(images)
    delta = images - paper
    legible = finite & calm
    contrast = np.sqrt((delta**2).sum(1)) * legible[:, None, None]
    middle = paper[:, :, SIZE // 2, SIZE // 2]
    words, written = reading.read(delta, middle, contrast)
    labels, touching = components(np.where(written, 0, contrast))
    boxes = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=len(touching))
    picture = np.array([0] + [box[0].start for box in boxes], np.int64)
    kept = np.flatnonzero(area >= MIN_AREA)[1:]  # label 0 is the paper
    legible &= [some is not None for some in words]
    number = np.bincount(picture[kept], minlength=len(images)) + [len(some or ()) for some in words]
    legible &= number <= MAX_COMPONENTS
    kept = kept[legible[picture[kept]]]
    found = [[_text(word) for word in some or ()] for some in words]
    if len(kept):
        where = [boxes[label - 1] for label in kept]
        region = Regions.cut(delta, contrast, labels, kept, picture[kept], where, _REACH)
        for row, thing in zip(
            picture[kept], _describe(region, _local(paper, picture[kept], where), touching[kept]), strict=True
        ):
            found[row].append(thing)
    return [tuple(each) if ok else None for each, ok in zip(found, legible, strict=True)]


def _local(paper: Array, picture: NDArray[np.int64], boxes: list[tuple[slice, slice, slice]]) -> Array:
    """The colour of the paper [N, 3] in the middle of each box."""
    y, x = (np.array([(box[axis].start + box[axis].stop) // 2 for box in boxes]) for axis in (1, 2))
    return paper[picture, :, np.minimum(y, SIZE - 1), np.minimum(x, SIZE - 1)]


def _text(text: reading.Text) -> Found:
    unclear = "" if text.clear else "word"
    return Found("word", "black", "plain", text.x, text.y, 0.0, text.overlap, unclear, {}, text)


def _describe(region: Regions, paper: Array, touching: Mask) -> list[Found]:
    """Colour, texture, position and shape of N components at once."""
    inner = ndimage.binary_erosion(region.mine, _PLANE)
    few = inner.sum((1, 2)) < 9
    inner[few] = region.mine[few]
    distance, tone = _tones((region.delta + paper[:, None, None]).reshape(len(paper), -1, 3))  # [N, pixels, colours]
    weight = inner.reshape(len(paper), -1) / np.maximum(inner.sum((1, 2)), 1)[:, None]
    stray = np.einsum("np,npk->nk", weight, distance)
    nearest = stray.argmin(1)
    own = np.arange(len(nearest)), slice(None), nearest
    mottled = _mottled(region, TONES[nearest] - paper, DARK[nearest] - paper)
    texture_score, level, spread = _textures(tone[own], weight)
    deep = (spread < PLAIN) & (level > 0.4)  # all of it is darker than its colour

    cover = np.clip((share(region.delta, TONES[nearest] - paper) - 0.5) * STEEPNESS + 0.5, 0, 1) * region.reach
    area = np.maximum(cover.sum((1, 2)), 1e-3)
    axis = np.arange(_SIDE, dtype=np.float32) + 0.5
    x, y = (cover * axis).sum((1, 2)) / area, (cover * axis[:, None]).sum((1, 2)) / area
    dx, dy = axis - x[:, None], axis - y[:, None]
    overlap = overlaps(SHAPES, cover, dx, dy, area)
    sized = ~region.too_big & (area >= MIN_OBJECT)
    overlap[~sized | touching | mottled | (roundness(cover, dx, dy) < MIN_ROUND)] = 0.0
    best, kind = overlap.argmax(1), texture_score.argmax(1)
    likeness = np.clip((overlap.max(1) - NO_OVERLAP) / (MIN_OVERLAP - NO_OVERLAP), 0, 1)
    nearness = np.clip(2 - stray.min(1) / COLOUR_REACH, 0, 1) * ~deep
    scores = {
        "shape": likeness[:, None] * softmax(overlap / 0.03),
        "colour": nearness[:, None] * softmax(-stray / 0.05),
        "texture": texture_score,
    }
    clear = {"shape": likeness, "colour": nearness, "texture": texture_score.max(1)}
    return [
        Found(
            shape=SHAPES[best[i]],
            colour=COLOURS[nearest[i]],
            texture=TEXTURES[kind[i]],
            x=float(x[i] + region.corner[i, 0]),
            y=float(y[i] + region.corner[i, 1]),
            radius=float(np.sqrt(area[i] / unit_area(SHAPES[best[i]])[0])),
            overlap=float(overlap[i, best[i]]),
            unclear=next((name for name, values in clear.items() if values[i] < 1), ""),
            scores={name: values[i] for name, values in scores.items()},
        )
        for i in range(len(area))
    ]


def _tones(pixels: Array) -> tuple[Array, Array]:
    """Distance of pixels [N, P, 3] to the line between both tones of each colour, and their place on it, [N, P, K]."""
    line = np.where(_TWO_TONES, DARK - TONES, 0)
    length = (line**2).sum(1)
    along = pixels @ line.T - (TONES * line).sum(1)
    tone = np.clip(along / np.maximum(length, 1e-6), 0, 1)
    square = (pixels**2).sum(2)[..., None] - 2 * pixels @ TONES.T + (TONES**2).sum(1)
    square = square - 2 * tone * along + tone**2 * length
    return np.sqrt(np.maximum(square, 0)), tone


def _mottled(region: Regions, tone: Array, dark: Array) -> Mask:
    """Whether a component [N] has more than a speck of a colour other than its two tones [N, 3], relative to paper."""
    off = np.full(region.mine.shape, np.inf, np.float32)
    for paint in (tone, 0.5 * (tone + dark), dark):
        rest = region.delta - share(region.delta, paint)[..., None] * paint[:, None, None]
        off = np.minimum(off, (rest**2).sum(3))
    other: Mask = (region.mine & (off > SECOND_COLOUR**2)).sum((1, 2)) >= MIN_AREA
    return other


def _textures(tone: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Similarity to each texture [N, textures] in [0, 1], and the mean and standard deviation of `tone` [N, P]."""
    mean = (weight * tone).sum(1, keepdims=True)
    centred = weight * (tone - mean)
    spread = np.sqrt(np.maximum((centred * (tone - mean)).sum(1), 0))
    likeness = []
    for patterns in _PATTERNS:
        average = weight @ patterns.T
        deviation = np.sqrt(np.maximum(average - average**2, 1e-4))  # patterns are 0 or 1
        likeness.append(((centred @ patterns.T) / (deviation * np.maximum(spread, 1e-3)[:, None])).max(1))
    found = np.stack(likeness, 1)
    clear = np.clip((found - NO_PATTERN) / (MIN_PATTERN - NO_PATTERN), 0, 1)
    pattern = np.clip((spread - 0.5 * PLAIN) / (0.5 * PLAIN), 0, 1)[:, None]
    best = np.clip(1 - (found.max(1, keepdims=True) - found) / 0.1, 0, 1)
    plain = np.clip((2 * PLAIN - spread) / PLAIN, 0, 1)
    scores = np.concatenate([plain[:, None], pattern * clear * best], 1)
    scores[spread < PLAIN, 1:] *= 0.5  # the verdict changes here: only one texture scores 1
    scores[spread >= PLAIN, 0] *= 0.5
    return scores, mean[:, 0], spread
