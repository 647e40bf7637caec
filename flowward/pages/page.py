"""From values to a self-contained HTML page: the templates, what they include, and number formats.

Python computes values, the templates under templates/ hold all HTML, and all values are escaped.
Style sheets and scripts under assets/ become part of each page, so that it works offline.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .parts import Axis

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Line = dict[str, Any]  # one of metrics.jsonl


def render(template: str, axes: Sequence[Axis] = (), **values: Any) -> str:
    """The page of a template; `axes` are those that its charts' series name.

    With axes or `charts=True`, the page contains Plotly's code (1.2 MB) once.
    """
    values = {"charts": bool(axes), "axes": {axis.key: axis.values() for axis in axes}, **values}
    made = environment().get_template(template).render(values)
    return made.encode("utf-8", "replace").decode("utf-8")  # text from outside may have halves of surrogate pairs


@cache
def environment() -> Environment:
    """Made when the first page is, since only commands that write one need Jinja."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("flowward.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"unbroken": text, "data": _data}
    made.globals |= {"asset": _asset}
    return made


@cache
def _asset(name: str) -> Markup:
    """A file of assets/, which is part of the program and therefore not escaped."""
    from markupsafe import Markup

    return Markup(files("flowward.pages").joinpath("assets", name).read_text("utf-8"))  # nosec B704


def _data(value: Any) -> Markup:
    """JSON for a <script type="application/json">, which no text inside can end."""
    from markupsafe import Markup

    said = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(said.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # nosec B704


def text(words: str) -> str:
    """Text without line breaks inside an interval or between a number and its % sign."""
    return re.sub(r"(\[[\d.+−-]+,) ", "\\1\u00a0", words.replace(" %", "\u00a0%"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """9.4 s, 5 min 48 s, 2 h 05 min"""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
