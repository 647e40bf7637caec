"""Prompts from tables with a column of texts: CSV, TSV, Parquet, data sets of the hub and on disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..system.plain_json import plain
from .lines import Row
from .prompt import PromptSet
from .rows import collected, keys_of

PLAIN = ("string", "large_string", "string_view", "bool", "null", *(f"{sign}int{bits}" for sign in ("", "u")
         for bits in (8, 16, 32, 64)))  # fmt: skip
LINES = ("text", "harbor")  # readers of datasets that take every line, or a whole file, for a text


def separated(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Read a CSV or TSV file with a line of headings; all values are text, and empty ones are left out.

    Raises:
        ValueError: the file cannot be read, a row has another number of values than headings, or there is no column
            with texts.
    """
    what = f"prompt file {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            return collected(path.name, what, "line", _cells(rows, what, column), path.parent, column, once)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from error


def _cells(rows: Any, what: str, column: str | None) -> Iterator[Row]:
    """(line where the row ends, values by heading)."""
    names: list[str] = []
    try:
        for cells in rows:
            if not any(cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                _refuse_names(names, what, column)
            elif len(cells) != len(names):
                raise ValueError(f"{what}, line {rows.line_num}: {len(cells)} values, but {len(names)} headings")
            else:
                yield rows.line_num, {name: cell or None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise ValueError(f"{what}, line {rows.line_num}: not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (after line {rows.line_num})") from error


def parquet(path: Path, column: str | None = None, once: bool = False) -> PromptSet:
    """Read a Parquet file with one prompt per row; columns with binary data, such as images, are skipped.

    Raises:
        ValueError: pyarrow is not installed, the file is not Parquet, it has no column with texts, a value has no place
            in JSON, or a source is not an image.
    """
    what = f"prompt file {path}"
    try:
        import pyarrow.parquet as reader
    except ImportError as error:
        raise ValueError(f"{what} needs pyarrow: pip install 'flowward[data]'") from error
    try:
        names = _readable(reader.read_schema(path))
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{what} cannot be read as Parquet: {_first_line(error)}") from error
    _refuse_names(names, what, column)
    try:
        table = reader.ParquetFile(path).read(names)
    except Exception as error:
        raise ValueError(f"{what} cannot be read as Parquet: {_first_line(error)}") from error
    return collected(path.name, what, "row", _rows(table, what), path.parent, column, once)


def hub(name: str, column: str | None = None, once: bool = False) -> PromptSet:
    """Load `owner/name` or `owner/name:split` (default `train`), or a local folder. Its code is not executed.

    A folder may have been written by `save_to_disk` of the package datasets, or hold CSV, TSV, JSON or Parquet files.

    Raises:
        ValueError: datasets is not installed, the data set or split does not exist, it has no column with texts, or a
            value has no place in JSON.
    """
    where, split = (name, "") if os.path.isdir(name) else name.partition(":")[::2]
    if not where:
        raise ValueError("no data set after 'hf:'; write hf:owner/name or hf:folder")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ValueError(f"data set {where} needs the package datasets: pip install 'flowward[data]'") from error
    try:
        found = _loaded(where, split)
    except Exception as error:  # the hub, the network or the files may fail
        raise ValueError(f"data set {where} cannot be loaded: {_first_line(error)}") from error
    what, names = f"data set {name}", _readable(found.features.arrow_schema)
    _refuse_names(names, what, column)
    table = found.select_columns(names).with_format("arrow")[:]
    return collected(name, what, "row", _rows(table, what), column=column, once=once)


def _loaded(where: str, split: str) -> Any:
    """A split of a data set, in any way it is stored."""
    from datasets import load_dataset

    if any((Path(where) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _saved(where, split)
    found = load_dataset(where, split=split or "train")  # nosec B615  # the user's choice
    if found.info.builder_name in LINES:
        raise ValueError("it has no table, only text files; give the file of prompts itself (FILE.txt)")
    return found


def _saved(where: str, split: str) -> Any:
    """A split of a folder that `save_to_disk` wrote."""
    from datasets import DatasetDict, load_from_disk

    whole = load_from_disk(where)
    if not isinstance(whole, DatasetDict):
        if split and split != str(whole.split):
            raise ValueError(f"it was saved without splits; leave out ':{split}'")
        return whole
    if (split or "train") not in whole:
        raise ValueError(f"it has no split '{split or 'train'}', only {', '.join(whole)}")
    return whole[split or "train"]


def _refuse_names(names: list[str], what: str, column: str | None) -> None:
    """Raise ValueError if there is no column with texts, or two have one name."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{what} has two columns '{twice[0]}'; rename one of them")
    try:
        keys_of(tuple(names), column, "column")
    except ValueError as error:
        raise ValueError(f"{what} has {error}") from error


def _rows(table: Any, what: str) -> Iterator[Row]:
    """The rows of an Arrow table, as plain JSON."""
    columns = {name: _plain(name, table.column(name), what) for name in table.column_names}
    rows = zip(*columns.values(), strict=True)
    return ((number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, 1))


def _plain(name: str, column: Any, what: str) -> list[Any]:
    """The values of a column in JSON's types."""
    try:
        values: list[Any] = column.to_pylist()
    except Exception as error:  # dates out of range, invalid UTF-8, keys that come twice
        row = _first_unreadable(column)
        raise ValueError(
            f"{what}, row {row}: '{name}' of type {column.type} cannot be read: {_first_line(error)}"
        ) from error
    if str(column.type) in PLAIN:
        return values
    found = []
    for row, value in enumerate(values, 1):
        try:
            found.append(plain(value, name))
        except ValueError as error:
            raise ValueError(f"{what}, row {row}: {error}") from error
    return found


def _first_unreadable(column: Any) -> int:
    """The number of the first row whose value Python cannot hold."""
    for row in range(len(column)):
        try:
            column[row].as_py()
        except Exception:
            return row + 1
    return 0


def _readable(schema: Any) -> list[str]:
    """Names of the columns without binary data."""
    return [field.name for field in schema if not _binary(field.type)]


def _binary(kind: Any) -> bool:
    return "binary" in str(kind)  # the column's type, or a type nested in it


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
