"""The table of prompt sets: a name, a file or a data set becomes a PromptSet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..system.errors import unknown
from . import drawbench, files, geneval, ocr, scenes
from .picks import number
from .prompt import PromptSet

BUILT_IN: dict[str, Callable[[], PromptSet]] = {
    "scenes": lambda: scenes.made(held_out=False),
    "scenes-held-out": lambda: scenes.made(held_out=True),
    "geneval": lambda: geneval.made(held_out=False),
    "geneval-held-out": lambda: geneval.made(held_out=True),
    "ocr": lambda: ocr.made(held_out=False),
    "ocr-held-out": lambda: ocr.made(held_out=True),
    "drawbench-style": drawbench.made,
}
HELD_OUT = 20  # one of so many prompts is held out of a set that is split
HUB = "hf:"


def load(name_or_path: str) -> PromptSet:
    """A built-in set by name, a file, a data set of the hub (`hf:owner/name[:split]`), or a part of these.

    A file is UTF-8 text with one prompt per line (empty lines are skipped), or by its ending JSON lines (.jsonl,
    .ndjson) or Parquet (.parquet), which may bring categories and metadata: see prompts/files.py. `train:NAME` and
    `held-out:NAME` are two parts of a set, 95 and 5 % of it, by a hash of each text: see `split`.

    Raises:
        ValueError: no such set or file; or it is empty, broken, or holds a prompt twice (a text file); the message says
            where.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]()
    part, colon, whole = name_or_path.partition(":")
    if colon and part in ("train", "held-out"):
        if whole in BUILT_IN:
            raise ValueError(f"only files and data sets are split: '{whole}' is built in, {_parts_of(whole)}")
        return split(load(whole), held_out=part == "held-out")
    if name_or_path.startswith(HUB):
        return files.hub(name_or_path.removeprefix(HUB))
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ValueError(unknown("prompt set", name_or_path, BUILT_IN) + " (or name a text file, one prompt per line)")
    if not path.is_file():
        raise ValueError(f"there is no prompt file at {path}")
    return files.READERS.get(path.suffix.lower(), files.text_file)(path)


def _parts_of(name: str) -> str:
    held_out = f"{name}-held-out"
    return f"with '{held_out}' beside it" if held_out in BUILT_IN else "and is one part"


def split(whole: PromptSet, held_out: bool) -> PromptSet:
    """The prompts that are held out (5 %), or the others: by each text, and name of its source, alone.

    So lines may be added to a file, removed or sorted, and no prompt changes sides.

    Raises:
        ValueError: that part is empty.
    """
    names = [each if isinstance(each, str) else f"{each.text} {each.source.name}" for each in whole]
    kept = [i for i, name in enumerate(names) if (number(name) % HELD_OUT == 0) == held_out]
    name = f"{whole.name}-{'held-out' if held_out else 'train'}"
    if not kept:
        raise ValueError(f"{name} is empty: {len(whole)} prompts are too few to be split")
    return PromptSet(
        name,
        tuple(whole.texts[i] for i in kept),
        tuple(whole.categories[i] for i in kept),
        metadata=tuple(whole.metadata[i] for i in kept) if whole.metadata else (),
        sources=tuple(whole.sources[i] for i in kept) if whole.sources else (),
    )
