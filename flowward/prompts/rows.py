"""Rows of a file or data set as a prompt set.

The text is under `prompt` (or `text`, or `caption`), or under a key that the user names. The category is under
`category` (or `tag`, as in GenEval's file). Upper and lower case are equal in these names. The metadata is under
`metadata`; without it, all other keys are the metadata. In files, but not in data sets of the hub, `source` is the path
of an image to edit, relative to the file, or a list of such paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..system.terminal import tell
from .image_files import refuse_broken
from .lines import Row
from .prompt import SOURCE, Prompt, PromptSet, Sources, prompt_of, sources_of, text_of

TEXT = ("prompt", "text", "caption")
CATEGORY = ("category", "tag")
METADATA = "metadata"
NAMES = " or ".join(f"'{name}'" for name in TEXT)
OPTION = "--prompt-column (--evaluation.prompt-column for the evaluation of a run)"


def collected(
    name: str,
    what: str,
    unit: str,
    rows: Iterable[Row],
    folder: Path | None = None,
    column: str | None = None,
    once: bool = False,
) -> PromptSet:
    """Build a set from rows of plain JSON. Repeated prompts keep their first row; a note tells so on standard error.

    Args:
        folder: sources are relative to it; None: a `source` is ordinary metadata.
        column: the key of the text (None: one of TEXT).
        once: a repeated prompt is an error, because its other rows say something too (answers of questions).

    Raises:
        ValueError: a row has no text, a category or metadata of a wrong type, or a source that is not an image; or
            there is no row, or one comes twice. The message contains `what` and the number of the `unit` (line, row).
    """
    first: dict[Prompt, tuple[str, Mapping[str, Any]]] = {}
    places: dict[Prompt, int] = {}
    look = cache(refuse_broken)  # check each image once
    total = 0
    for number, row in rows:
        total += 1
        try:
            keys = keys_of(tuple(row), column)
            prompt = prompt_of(text_in(row, keys.text), sources_in(row, folder) if folder else ())
            for source in sources_of(prompt):
                look(source)
            about = _category(row, keys), _metadata(row, keys, bool(folder))
            if once and prompt in first:
                raise ValueError(f"'{text_of(prompt)[:60]}' comes twice, first in {unit} {places[prompt]}; remove one")
        except ValueError as error:
            raise ValueError(f"{what}, {unit} {number}: {error}") from error
        first.setdefault(prompt, about)
        places.setdefault(prompt, number)
    if not first:
        raise ValueError(f"{what} contains no prompt")
    if total > len(first):
        tell(f"{what}: dropped {total - len(first)} of {total} prompts as duplicates")
    categories, metadata = zip(*first.values(), strict=True)
    sources = tuple(sources_of(prompt) for prompt in first)
    return PromptSet(
        name,
        tuple(text_of(prompt) for prompt in first),
        categories,
        metadata=metadata if any(metadata) else (),
        sources=sources if any(sources) else (),
    )


@dataclass(frozen=True)
class Keys:
    """Which keys of a row hold what."""

    text: str
    categories: tuple[str, ...]  # the first one that has a value
    others: tuple[str, ...]  # metadata of a row without `metadata`


@lru_cache(maxsize=1024)  # rows of a file have few kinds of keys
def keys_of(names: tuple[str, ...], column: str | None = None, kind: str = "key") -> Keys:
    """Find them among the names of a row.

    Args:
        column: the key of the text, in any case (None: one of TEXT).
        kind: `key` or `column`, for messages.

    Raises:
        ValueError: there is none, or more than one that differ only in case.
    """
    texts = named(names, [column] if column else TEXT)
    if not texts:
        wanted = f"'{column}'" if column else NAMES
        there = ", ".join(f"'{name}'" for name in names) or "none"
        raise ValueError(
            f"no {kind} {wanted} (found: {there:.200})" + ("" if column else f"; name another one with {OPTION}")
        )
    categories = named(names, CATEGORY)
    used = {texts[0], METADATA, *(name for name in categories if name.strip().casefold() == CATEGORY[0])}
    return Keys(texts[0], categories, tuple(name for name in names if name not in used))


def named(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the wanted names that are there; if none is, those that differ in case or surrounding spaces alone.

    Raises:
        ValueError: two of them differ from the same wanted name.
    """
    if exact := tuple(each for each in wanted if each in names):
        return exact
    found = []
    for each in wanted:
        alike = [name for name in names if name.strip().casefold() == each.strip().casefold()]
        if len(alike) > 1:
            raise ValueError(f"two keys that differ only in case, '{alike[0]}' and '{alike[1]}'; rename one of them")
        found += alike
    return tuple(found)


def text_in(row: Mapping[str, Any], key: str) -> str:
    """The text under a key, without surrounding white space.

    Raises:
        ValueError: it is missing, blank or not text.
    """
    text = row.get(key)
    if not isinstance(text, str) or not (bare := text.strip()):
        raise ValueError(f"'{key}' must be text, not {text!r:.80}")
    if "\0" in bare:
        raise ValueError(f"'{key}' has a NUL character, which no text has; remove it")
    return bare


def _category(row: Mapping[str, Any], keys: Keys) -> str:
    category = next((row[name] for name in keys.categories if row[name] is not None), "all")
    if not isinstance(category, str):
        raise ValueError(f"the category must be text, not {category!r:.80}")
    return category


def _metadata(row: Mapping[str, Any], keys: Keys, sourced: bool) -> dict[str, Any]:
    about = row.get(METADATA)
    if about is None:
        return {name: row[name] for name in keys.others if row[name] is not None and not (sourced and name == SOURCE)}
    if not isinstance(about, dict):
        raise ValueError(f"'metadata' must be a mapping, not {about!r:.80}")
    return about


def sources_in(row: Mapping[str, Any], folder: Path) -> Sources:
    """The absolute paths of the images to edit, relative to the folder; () if the row has none.

    Raises:
        ValueError: there is no such file, or a list is empty.
    """
    given = row.get(SOURCE)
    if given is None:
        return ()
    if given == []:
        raise ValueError(f"'{SOURCE}' is an empty list: name at least one image to edit, or leave the key out")
    return tuple(_source(each, folder) for each in (given if isinstance(given, list) else [given]))


def _source(name: Any, folder: Path) -> Path:
    path = Path(os.path.abspath(folder / name)) if isinstance(name, str) and name else None
    if path is None or not os.path.isfile(path):  # False for names that no file can have, where Path.is_file raises
        there = str(path) if path else name
        raise ValueError(
            f"'{SOURCE}' must be the path of an image to edit, but there is no file {there!r:.200} "
            "(put other data under 'metadata')"
        )
    return path
