"""What pages are made of, as values: tiles, tables, charts and pictures. templates/parts.html.j2 draws each of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}  # of image files, by their first bytes


@dataclass(frozen=True)
class Tile:
    """A figure in large print, and what it is."""

    number: str
    said: str


@dataclass(frozen=True)
class Table:
    """Plain text in rows. The first `left` columns are words, the others numbers (right-aligned)."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    about: str = "table"  # its name for screen readers
    sortable: bool = False  # by a click on the head of a column: by the first number of each cell, or by its words


@dataclass(frozen=True)
class Axis:
    """What the points of one or more series are plotted against: the reader chooses one of the three."""

    key: str  # unique on the page
    iteration: Sequence[float]
    samples: Sequence[float] = ()  # trained on so far, images or episodes; empty: unknown
    seconds: Sequence[float] = ()  # wall time so far; empty: unknown
    run: str = ""  # name of the run, on pages with several

    def values(self) -> dict[str, Any]:
        named = {"iteration": self.iteration, "samples": self.samples, "seconds": self.seconds}
        found: dict[str, Any] = {name: rounded(own) for name, own in named.items() if own}
        return found | ({"run": self.run} if self.run else {})


@dataclass(frozen=True)
class Series:
    """A curve, or a row of dots."""

    y: Sequence[float | None]
    axis: str = ""  # key of its Axis; not needed in a chart of categories
    name: str = ""  # in the legend, such as the name of a run
    low: Sequence[float | None] = ()  # ends of an interval around each y, or empty
    high: Sequence[float | None] = ()
    said: Sequence[str] = ()  # each y as text (default: four digits)
    key: str = ""  # its column in the table that readers can save; empty: none
    colour: int = 0  # number of the colour and the symbol: the same for the same run in all charts


@dataclass(frozen=True)
class Chart:
    """Curves against iterations, samples or wall time; or, with `categories`, dots with intervals, one row each."""

    title: str
    series: Sequence[Series]
    categories: Sequence[str] = ()
    limits: tuple[float, float] | None = None  # ends of the y axis (default: as the values need)
    suffix: str = ""  # of the numbers at the axis, such as " %"
    dots: bool = False  # few points: mark each
    smooth: bool = False  # noisy: the reader can smooth it
    log: bool = True  # a logarithmic axis makes sense, if all values are above 0
    height: int = 200  # pixels
    x: str = ""  # title of the x axis, if there is only one (default: what the reader chose)

    def data(self) -> dict[str, Any]:
        """For assets/charts.js. What is empty or left at its default is left out."""
        spec = {
            "title": self.title,
            "series": [_plain(each) for each in self.series],
            "categories": list(self.categories),
            "limits": self.limits,
            "suffix": self.suffix,
            "dots": self.dots,
            "smooth": self.smooth,
            "log": self.log and self.limits is None,
            "x": self.x,
        }
        return {name: value for name, value in spec.items() if value}


def _plain(series: Series) -> dict[str, Any]:
    said = {
        "y": rounded(series.y),
        "axis": series.axis,
        "name": series.name,
        "low": rounded(series.low),
        "high": rounded(series.high),
        "said": list(series.said),
        "key": series.key,
        "colour": series.colour,
    }
    return {name: value for name, value in said.items() if value}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six digits, which is more than a screen can show; None for what is not finite."""
    return [
        None if x is None or not math.isfinite(x) else x if isinstance(x, int) else float(f"{x:.6g}") for x in values
    ]


@dataclass(frozen=True)
class Fact:
    """One line below a picture."""

    name: str
    value: str
    verdict: Literal["right", "wrong", ""] = ""


@dataclass(frozen=True)
class Shot:
    """A picture with its label below: a model, or a moment of training."""

    image: str  # a data: address, see `embedded`
    alt: str
    label: str = ""
    facts: Sequence[Fact] = ()
    mark: int | None = None  # the colour of its model, if it has one; the label says the same
    small: bool = False  # few pixels, which stay sharp when enlarged
    later: bool = False  # the slider changes it
    sound: str = ""  # a data: address of a WAV file, for a player below the picture


@dataclass(frozen=True)
class Card:
    """Pictures of one prompt side by side."""

    prompt: str
    shots: Sequence[Shot]
    about: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cards, in a grid; the arrow keys of the enlarged view move through all pictures of a gallery."""

    cards: Sequence[Card]
    title: str = ""
    columns: int = 1  # pictures side by side in a card
    open: int = 9  # cards that are always visible; the rest can be unfolded


def embedded(data: bytes) -> str:
    """An image file, or a sound in a WAV file, as a data: address."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
