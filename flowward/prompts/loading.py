"""Load prompt sets by name, from a file, or from a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..system.errors import unknown
from ..system.paths import absolute
from . import columns, drawbench, files, geneval, ocr, scenes, scenes64
from .picks import number
from .prompt import PromptSet, sources_of, text_of

BUILT_IN: dict[str, Callable[[], PromptSet]] = {
    "scenes": lambda: scenes.made(held_out=False),
    "scenes-held-out": lambda: scenes.made(held_out=True),
    "scenes-64": lambda: scenes64.made(held_out=False),
    "scenes-64-held-out": lambda: scenes64.made(held_out=True),
    "geneval": lambda: geneval.made(held_out=False),
    "geneval-held-out": lambda: geneval.made(held_out=True),
    "ocr": lambda: ocr.made(held_out=False),
    "ocr-held-out": lambda: ocr.made(held_out=True),
    "drawbench-style": drawbench.made,
}
HELD_OUT = 20  # one in 20 prompts is held out when a set is split
HUB = "hf:"


def load(name_or_path: str, column: str | None = None, once: bool = False) -> PromptSet:
    """Load a built-in set by name, a file, a Hugging Face data set (`hf:owner/name[:split]`), or a part of one.

    A file is UTF-8 text with one prompt per line (empty lines are skipped), JSON lines (.jsonl, .ndjson), a table with
    headings (.csv, .tsv) or Parquet (.parquet). All but the first may contain categories and metadata: see
    prompts/rows.py. `train:NAME` and `held-out:NAME` split a set into 95 and 5 %, by a hash of each text: see `split`.

    Args:
        column: the column (or key of JSON lines) with the texts; upper and lower case are equal (None: `prompt`, `text`
            or `caption`).
        once: a text that comes twice is an error, and not dropped.

    Raises:
        ValueError: the set or file does not exist, is empty or broken, has no such column, or a text file contains a
            prompt twice. The message gives the place.
    """
    if name_or_path in BUILT_IN:
        if column:
            raise ValueError(f"the prompt set '{name_or_path}' is built in and has no column '{column}': leave it out")
        return BUILT_IN[name_or_path]()
    part, colon, whole = name_or_path.partition(":")
    if colon and part in ("train", "held-out"):
        if whole in BUILT_IN:
            raise ValueError(f"'{whole}' is built in and cannot be split: {_parts_of(whole)}")
        return split(load(whole, column, once), held_out=part == "held-out")
    if name_or_path.startswith(HUB):
        return columns.hub(name_or_path.removeprefix(HUB), column, once)
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ValueError(unknown("prompt set", name_or_path, BUILT_IN) + " (or give a text file, one prompt per line)")
    return files.read(path, column, once)


def located(name: str) -> str:
    """The name for `load` with the absolute path of its file or folder, if it has one; else the name itself."""
    if name in BUILT_IN:
        return name
    part, colon, whole = name.partition(":")
    if colon and part in ("train", "held-out"):
        return f"{part}:{located(whole)}"
    if name.startswith(HUB):
        where, colon, split = name.removeprefix(HUB).partition(":")
        return f"{HUB}{absolute(where)}{colon}{split}"
    return absolute(name)


def _parts_of(whole: str) -> str:
    held_out = f"{whole}-held-out"
    return f"use '{whole}' and '{held_out}'" if held_out in BUILT_IN else f"use '{whole}'"


def split(whole: PromptSet, held_out: bool) -> PromptSet:
    """The held-out prompts (5 %) or the others. The side of a prompt depends on its text and source names alone.

    So lines can be added, removed or sorted in a file, and no prompt changes sides.

    Raises:
        ValueError: the part is empty.
    """
    names = [" ".join([text_of(each), *(source.name for source in sources_of(each))]) for each in whole]
    kept = [i for i, name in enumerate(names) if (number(name) % HELD_OUT == 0) == held_out]
    name = f"{whole.name}-{'held-out' if held_out else 'train'}"
    if not kept:
        raise ValueError(f"{name} is empty: {len(whole)} prompts are too few to split; use more prompts")
    return PromptSet(
        name,
        tuple(whole.texts[i] for i in kept),
        tuple(whole.categories[i] for i in kept),
        metadata=tuple(whole.metadata[i] for i in kept) if whole.metadata else (),
        sources=tuple(whole.sources[i] for i in kept) if whole.sources else (),
    )
