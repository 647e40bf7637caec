"""Tables on the terminal, as wide as it is; where words would be broken, a list instead. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2  # characters between columns


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", right: Sequence[str] = ()
) -> RenderableType:
    """Rows of text under their columns, of which `right` are numbers. No word is broken, and no name in column 1."""
    cells = [list(row) for row in rows]
    widths = _widths([columns, *cells], width() - 2)
    if widths is None:
        return _stacked(columns, cells, title)
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    made.padding = (0, GAP - 1, 0, 0)
    heads, *lines = [
        [Text("\n".join(_wrapped(cell, wide))) for cell, wide in zip(row, widths, strict=True)]
        for row in [columns, *cells]
    ]
    for name, head, wide in zip(columns, heads, widths, strict=True):
        made.add_column(head, justify="right" if name in right else "left", width=wide, no_wrap=True)
    for line in lines:
        made.add_row(*line)
    return made


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Of each column, so that all fit into `room` characters; None where a word would not."""
    columns = list(zip(*rows, strict=True))
    whole = [max(len(line) for cell in column for line in [*cell.splitlines(), ""]) for column in columns]
    least = [max(len(part) for cell in column for part in [*map(str.rstrip, _parts(cell)), ""]) for column in columns]
    found = [whole[0], *least[1:]]
    left = room - GAP * (len(whole) - 1) - sum(found)
    if left < 0:
        return None
    for _ in range(left):  # one by one to the column that has to break its lines most
        worst = max(range(len(found)), key=lambda number: whole[number] / max(1, found[number]))
        found[worst] += found[worst] < whole[worst]
    return found


def _parts(line: str) -> list[str]:
    """What is never broken: words, with the space after them; a hyphen ends one, but in names that one may copy."""
    found = []
    for word in line.split():
        own = [word] if re.search(r"[/='\[]|--", word) else re.split(r"(?<=[a-z]-)(?=[a-z])", word)
        found += [*own[:-1], f"{own[-1]} "]
    return found


def _wrapped(text: str, wide: int) -> list[str]:
    """Its lines, broken where they are longer."""
    found = []
    for line in text.splitlines():
        found.append("")
        for part in _parts(line):
            if found[-1] and len(found[-1]) + len(part.rstrip()) > wide:
                found.append("")
            found[-1] += part
    return [line.rstrip() for line in found]


def _cell(text: str, wide: int) -> Text:
    return Text("\n".join(_wrapped(text, wide)))


def _stacked(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Text:
    """A paragraph per row: its name, and a line for every other column that says something."""
    lines = [*_wrapped(title, width()), ""] if title else []
    for name, *cells in rows:
        lines.append(name)
        for head, cell in zip(columns[1:], cells, strict=True):
            first, *others = _wrapped(f"{head}: {cell}", width() - 4)
            lines += [f"  {first}", *(f"    {line}" for line in others)] if cell else []
    return Text("\n".join([*lines, ""]), no_wrap=True)


def width() -> int:
    """Columns of the terminal."""
    return Console().width


def short(path: Path) -> Path:
    """From the current folder, where it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def say(*parts: RenderableType) -> None:
    """Print tables and texts. A reader who stops reading is a BrokenPipeError, as of any `print`."""
    console = Console(highlight=False)
    with console.capture() as found:
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, Text))
    print("\n".join(line.rstrip() for line in found.get().splitlines()))
