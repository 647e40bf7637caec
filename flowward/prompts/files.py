"""Prompts from files: plain text, JSON lines, CSV, TSV and Parquet, by the end of the file's name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .columns import parquet, separated
from .given import of
from .lines import json_rows, text_lines
from .prompt import PromptSet
from .rows import TEXT, collected

Reader = Callable[[Path, str | None, bool], PromptSet]  # file, the column with the texts, and `once` (rows.py)
BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # characters that no text has
ADVICE = "use one prompt per line (.txt), JSON lines (.jsonl), a table with headings (.csv, .tsv) or Parquet (.parquet)"


def read(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Read a file of prompts.

    Args:
        column: the column or key of the texts, in any case (None: `prompt`, `text` or `caption`).
        once: a text that comes twice is an error.

    Raises:
        ValueError: the file does not exist, is of an unknown kind, or see the reader of its kind.
    """
    if not path.is_file():
        raise ValueError(f"there is no prompt file at {path}")
    return READERS.get(path.suffix.lower(), _unknown)(path, column, once)


def text_file(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Read a UTF-8 file with one prompt per line; empty lines are skipped.

    Raises:
        ValueError: the file is empty, not plain text, contains a prompt twice, or a column is named.
    """
    what = f"prompt file {path}"
    if column:
        raise ValueError(f"{what} is plain text and has no columns: leave out the name of the prompt column")
    numbered = list(text_lines(path, what))
    if not numbered:
        raise ValueError(f"{what} contains no prompt")
    _refuse_table(numbered[0][1], what)
    first: dict[str, int] = {}
    for number, text in numbered:
        if text in first:
            raise ValueError(f"{what} contains '{text}' twice, in lines {first[text]} and {number}; remove one of them")
        if strange := BINARY.search(text):
            raise ValueError(f"{what}, line {number}: not plain text, it has the character {strange[0]!r}; {ADVICE}")
        first[text] = number
    return of(path.name, list(first))


def _refuse_table(line: str, what: str) -> None:
    """Raise ValueError if the first line of a text is an object of JSON lines, or headings of a table."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        found = None
    if isinstance(found, dict):
        raise ValueError(f"{what} contains JSON lines; give it a name that ends in .jsonl")
    for mark, ending in (("\t", ".tsv"), (",", ".csv")):
        cells = [cell.strip(' "').casefold() for cell in line.split(mark)]
        if len(cells) > 1 and {TEXT[0], f"{TEXT[0]}s"} & set(cells):
            raise ValueError(f"{what} begins with headings, as a table does; give it a name that ends in {ending}")


def json_lines(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Read a file with one JSON mapping per line.

    Raises:
        ValueError: a line is not a mapping with a text, its source is not an image, or there is no line.
    """
    what = f"prompt file {path}"
    return collected(path.name, what, "line", json_rows(path, what), path.parent, column, once)


def _unknown(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Raise ValueError: read as text, its headings and punctuation would silently become prompts."""
    raise ValueError(f"prompt file {path}: {path.suffix} files are not supported; {ADVICE}")


READERS: Mapping[str, Reader] = {
    **dict.fromkeys(("", ".txt", ".text", ".prompt", ".prompts", ".list", ".lst"), text_file),
    **dict.fromkeys((".jsonl", ".ndjson"), json_lines),
    **dict.fromkeys((".csv", ".tsv"), separated),
    ".parquet": parquet,
}
"""readers by file extension; other files are refused"""
