"""Markdown of a model card, in which names, paths and prompts of a run are shown as text, whatever signs they have."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIGNS = re.compile(r"[\\`*<|&]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(")  # code, emphasis, HTML, cells of a table, links
START = re.compile(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[#>+=~[-]))")  # headings, quotations, lists, targets of links


def text(value: object) -> str:
    """A value within a line: no sign in it is markup, and signs that cannot be shown become �."""
    line = " ".join(str(value).split())
    shown = "".join(sign if sign.isprintable() else "�" for sign in line)
    return SIGNS.sub(lambda found: f"\\{found[0]}", shown)


def paragraph(value: object) -> str:
    """A value as a line of its own."""
    return START.sub(r"\1\\", text(value)) + "\n"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table; cells are shown as text."""
    lines = [list(map(text, head)), ["---"] * len(head), *(list(map(text, row)) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(lines: str, language: str = "") -> str:
    """A block of code; its fence is longer than any in it."""
    ticks = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}{language}\n{lines}\n{fence}\n"
