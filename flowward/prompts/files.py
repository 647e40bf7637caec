"""Prompts from text files, JSON lines, Parquet files, and data sets of the Hugging Face hub.

Rows of the last three are mappings. The text is under `prompt` (or `text`, or `caption`), the category under
`category` (or `tag`, as in GenEval's file), and the metadata under `metadata`. Without `metadata`, all other keys are
the metadata. In files, but not in data sets of the hub, `source` is the path of an image to edit, relative to the file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .given import of
from .image_files import refuse_broken
from .prompt import SOURCE, Prompt, PromptSet, prompt_of, source_of, text_of

Row = tuple[int, Mapping[str, Any]]  # the number of the line or row, and its content
TEXT = ("prompt", "text", "caption")
CATEGORY = ("category", "tag")
NAMES = " or ".join(f"'{name}'" for name in TEXT)


def text_file(path: Path) -> PromptSet:
    """Read a UTF-8 file with one prompt per line; empty lines are skipped.

    Raises:
        ValueError: the file is empty, not UTF-8, or contains a prompt twice.
    """
    numbered = list(_lines(path))
    if not numbered:
        raise ValueError(f"prompt file {path} contains no prompt")
    first: dict[str, int] = {}
    for number, text in numbered:
        if text in first:
            raise ValueError(
                f"prompt file {path} contains '{text}' twice, in lines {first[text]} and {number}; remove one of them"
            )
        first[text] = number
    return of(path.name, list(first))


def json_lines(path: Path) -> PromptSet:
    """Read a file with one JSON mapping per line.

    Raises:
        ValueError: a line is not a mapping with a text, its source is not an image, or there is no line.
    """
    return collected(path.name, f"prompt file {path}", "line", _parsed(path), path.parent)


def parquet(path: Path) -> PromptSet:
    """Read a Parquet file with one prompt per row; columns with binary data, such as images, are skipped.

    Raises:
        ValueError: pyarrow is not installed, the file is not Parquet, it has no column with texts, or a source is not
            an image.
    """
    what = f"prompt file {path}"
    try:
        import pyarrow.parquet as reader
    except ImportError as error:
        raise ValueError(f"{what} needs pyarrow: pip install 'flowward[data]'") from error
    try:
        table = reader.read_table(path, columns=_readable(reader.read_schema(path)))
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{what} cannot be read as Parquet: {_first_line(error)}") from error
    return _of_table(path.name, what, table, path.parent)


def hub(name: str) -> PromptSet:
    """Load `owner/name` or `owner/name:split` (default `train`), also from a local folder. Its code is not executed.

    Raises:
        ValueError: datasets is not installed, the data set or split does not exist, or it has no column with texts.
    """
    where, _, split = name.partition(":")
    if not where:
        raise ValueError("no data set after 'hf:'; write hf:owner/name or hf:folder")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"data set {where} needs the package datasets: pip install 'flowward[data]'") from error
    try:
        found = load_dataset(where, split=split or "train")  # nosec B615  # the user's choice
    except Exception as error:  # the hub, the network or the files may fail
        raise ValueError(f"data set {where} cannot be loaded: {_first_line(error)}") from error
    table = found.data.table
    return _of_table(name, f"data set {name}", table.select(_readable(table.schema)))


def collected(name: str, what: str, unit: str, rows: Iterable[Row], folder: Path | None = None) -> PromptSet:
    """Build a set from rows. Repeated prompts keep their first row; a note about them is printed on standard error.

    Args:
        folder: sources are relative to it; None: a `source` is ordinary metadata.

    Raises:
        ValueError: a row has no text, a category or metadata of a wrong type, or a source that is not an image; or
            there is no row. The message contains `what` and the number of the `unit` (line, row).
    """
    first: dict[Prompt, tuple[str, Mapping[str, Any]]] = {}
    look = cache(refuse_broken)  # check each image once
    total = 0
    for number, row in rows:
        total += 1
        try:
            prompt, category, about = _split(row, folder)
            if source := source_of(prompt):
                look(source)
        except ValueError as error:
            raise ValueError(f"{what}, {unit} {number}: {error}") from error
        first.setdefault(prompt, (category, about))
    if not first:
        raise ValueError(f"{what} contains no prompt")
    if total > len(first):
        print(f"flowward: {what}: dropped {total - len(first)} of {total} prompts as duplicates", file=sys.stderr)
    categories, metadata = zip(*first.values(), strict=True)
    sources = tuple(source_of(prompt) for prompt in first)
    return PromptSet(
        name,
        tuple(text_of(prompt) for prompt in first),
        categories,
        metadata=metadata if any(metadata) else (),
        sources=sources if any(sources) else (),
    )


def _split(row: Mapping[str, Any], folder: Path | None) -> tuple[Prompt, str, Mapping[str, Any]]:
    """Prompt, category and metadata of a row."""
    key = next((key for key in TEXT if key in row), None)
    if key is None:
        raise ValueError(f"no key {NAMES}")
    text, category = row[key], next((row[name] for name in CATEGORY if row.get(name) is not None), "all")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'{key}' must be text, not {text!r}")
    if not isinstance(category, str):
        raise ValueError(f"the category must be text, not {category!r}")
    source = _source(row, folder) if folder else None
    about = row.get("metadata")
    if about is None:
        others = (key, "metadata", CATEGORY[0], *([SOURCE] if folder else []))
        about = {name: value for name, value in row.items() if name not in others and value is not None}
    if not isinstance(about, dict):
        raise ValueError(f"'metadata' must be a mapping, not {about!r}")
    return prompt_of(text.strip(), source), category, about


def _source(row: Mapping[str, Any], folder: Path) -> Path | None:
    name = row.get(SOURCE)
    if name is None:
        return None
    path = Path(os.path.abspath(folder / name)) if isinstance(name, str) and name else None
    if path is None or not path.is_file():
        raise ValueError(
            f"'{SOURCE}' must be the path of an image to edit, but there is no file {path or repr(name)} "
            "(put other data under 'metadata')"
        )
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} is not UTF-8 text (byte {error.start})") from error
    return ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())


def _parsed(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"prompt file {path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise ValueError(f"prompt file {path}, line {number}: not a JSON object: {line[:40]}")
        yield number, row


def _of_table(name: str, what: str, table: Any, folder: Path | None = None) -> PromptSet:
    if not set(TEXT) & set(table.column_names):
        raise ValueError(f"{what} has no column {NAMES}")
    return collected(name, what, "row", enumerate(table.to_pylist(), 1), folder)


def _readable(schema: Any) -> list[str]:
    """Names of the columns without binary data."""
    return [field.name for field in schema if not _binary(field.type)]


def _binary(kind: Any) -> bool:
    return "binary" in str(kind)  # the column's type, or a type nested in it


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _not_text(path: Path) -> PromptSet:
    """Raise ValueError: read as text, its headings and punctuation would silently become prompts."""
    raise ValueError(
        f"prompt file {path}: {path.suffix} files are not supported; use one prompt per line (.txt), "
        "JSON lines (.jsonl) or Parquet (.parquet)"
    )


READERS: Mapping[str, Callable[[Path], PromptSet]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".parquet": parquet,
    **dict.fromkeys((".json", ".csv", ".tsv", ".yaml", ".yml"), _not_text),
}
"""readers by file extension; any other file is read as text"""
