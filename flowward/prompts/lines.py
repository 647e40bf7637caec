"""Lines of UTF-8 text, and JSON lines: the one reader for prompts, preference pairs and exemplars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..system import plain_json

Row = tuple[int, Mapping[str, Any]]  # the number of the line or row, and its content
MARK = "\ufeff"  # the byte order mark that Windows writes; in the middle, where files were joined


def text_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """(number, content) of each line that is not blank, without surrounding white space.

    Only a line feed ends a line (also one after or instead of a carriage return). Other separators of Unicode, such as
    U+2028 and U+0085, are part of the text.

    Args:
        what: the file's name in messages.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start})") from error
    return ((number, text) for number, line in enumerate(lines, 1) if (text := line.strip().lstrip(MARK).lstrip()))


def json_rows(path: Path, what: str) -> Iterator[Row]:
    """(number, object) of each line that is not blank; every value is plain JSON (see `plain_json.parsed`).

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or a line is not a JSON object.
    """
    for number, line in text_lines(path, what):
        try:
            row = plain_json.parsed(line)
        except ValueError as error:
            raise ValueError(f"{what}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{what}, line {number}: not a JSON object: {line[:40]}")
        yield number, row
