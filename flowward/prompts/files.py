"""Prompts from text files, JSON lines, Parquet files, and data sets of the Hugging Face hub.

Rows of the last three are mappings: the text stands under `prompt` (or `text`, or `caption`), the category under
`category` (or `tag`, as in GenEval's file), the metadata under `metadata`, or they are all the other keys. In
files, not on the hub, `source` names an image to edit, relative to the file.
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
from .pictures import refuse_broken
from .prompt import SOURCE, Prompt, PromptSet, prompt_of, source_of, text_of

Row = tuple[int, Mapping[str, Any]]  # the number of its line or row, and what it says
TEXT = ("prompt", "text", "caption")
CATEGORY = ("category", "tag")
NAMES = " or ".join(f"'{name}'" for name in TEXT)


def text_file(path: Path) -> PromptSet:
    """A UTF-8 file with one prompt per line; empty lines are skipped.

    Raises:
        ValueError: the file is empty, not UTF-8, or holds a prompt twice.
    """
    numbered = list(_lines(path))
    if not numbered:
        raise ValueError(f"prompt file {path} holds no prompt")
    first: dict[str, int] = {}
    for number, text in numbered:
        if text in first:
            raise ValueError(f"prompt file {path} holds '{text}' twice, in lines {first[text]} and {number}")
        first[text] = number
    return of(path.name, list(first))


def json_lines(path: Path) -> PromptSet:
    """One mapping per line.

    Raises:
        ValueError: a line is no mapping with a text, or its source no image; or there is none.
    """
    return collected(path.name, f"prompt file {path}", "line", _parsed(path), path.parent)


def parquet(path: Path) -> PromptSet:
    """One prompt per row; columns with binary data, such as images, are not read.

    Raises:
        ValueError: pyarrow is not installed, the file is no Parquet file, it has no column with texts, or a source is
            no image.
    """
    what = f"prompt file {path}"
    try:
        import pyarrow.parquet as reader
    except ImportError as error:
        raise ValueError(f"{what} needs pyarrow: pip install 'flowward[data]'") from error
    try:
        table = reader.read_table(path, columns=_readable(reader.read_schema(path)))
    except Exception as error:  # of a package that is not ours
        raise ValueError(f"{what} is no Parquet file that can be read: {_said(error)}") from error
    return _of_table(path.name, what, table, path.parent)


def hub(name: str) -> PromptSet:
    """`owner/name`, or `owner/name:split` (default `train`); of a local folder as well. No code of it is executed.

    Raises:
        ValueError: datasets is not installed, there is no such data set or split, or it has no column with texts.
    """
    where, _, split = name.partition(":")
    if not where:
        raise ValueError("name a data set of the hub, or a folder of one: hf:owner/name")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"data set {where} needs the package datasets: pip install 'flowward[data]'") from error
    try:
        found = load_dataset(where, split=split or "train")
    except Exception as error:  # the hub, the network, the files: they fail in many ways
        raise ValueError(f"data set {where} cannot be loaded: {_said(error)}") from error
    table = found.data.table
    return _of_table(name, f"data set {name}", table.select(_readable(table.schema)))


def collected(name: str, what: str, unit: str, rows: Iterable[Row], folder: Path | None = None) -> PromptSet:
    """A set from rows. A prompt that comes again is merged with its first row, and that is said on standard error.

    Args:
        folder: that sources are relative to; None: a `source` is metadata like any other.

    Raises:
        ValueError: a row has no text, or a category or metadata of another kind, or a source that is no image; or there
            is no row. The message names `what` and the number of its `unit` (line, row).
    """
    first: dict[Prompt, tuple[str, Mapping[str, Any]]] = {}
    look = cache(refuse_broken)  # at each image once
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
        raise ValueError(f"{what} holds no prompt")
    if total > len(first):
        print(f"flowward: {what}: {total - len(first)} of {total} prompts came before, and are merged", file=sys.stderr)
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
        raise ValueError(f"there is no {NAMES}")
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
            f"'{SOURCE}' must name an image to edit, and there is none at {path or repr(name)} "
            "(what is no image belongs under 'metadata')"
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
            raise ValueError(f"prompt file {path}, line {number}: not a mapping, but {line[:40]}")
        yield number, row


def _of_table(name: str, what: str, table: Any, folder: Path | None = None) -> PromptSet:
    if not set(TEXT) & set(table.column_names):
        raise ValueError(f"{what} has no column {NAMES}")
    return collected(name, what, "row", enumerate(table.to_pylist(), 1), folder)


def _readable(schema: Any) -> list[str]:
    """The columns without binary data."""
    return [field.name for field in schema if not _binary(field.type)]


def _binary(kind: Any) -> bool:
    return "binary" in str(kind)  # of the column, or of anything in it


def _said(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _not_text(path: Path) -> PromptSet:
    """Raises ValueError: line by line its punctuation and headings would become prompts, which nobody notices."""
    raise ValueError(
        f"prompt file {path}: {path.suffix} is not read; write one prompt per line (.txt), JSON lines (.jsonl) or "
        "Parquet (.parquet)"
    )


READERS: Mapping[str, Callable[[Path], PromptSet]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".parquet": parquet,
    **dict.fromkeys((".json", ".csv", ".tsv", ".yaml", ".yml"), _not_text),
}
"""by the ending of the name; any other file is text"""
