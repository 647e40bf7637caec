"""Questions by name: the built-in world, files and data sets; the right answer is in the metadata, under `answer`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..prompts import PromptSet
from ..prompts import loading as prompt_table
from ..system.errors import unknown
from . import rewards, world

BUILT_IN: dict[str, Callable[[], PromptSet]] = {
    "world": world.questions,
    "world-held-out": world.held_out,
}
COLUMN = "question"  # the usual key of a question
OTHER_KEY = re.compile(rf"no (key|column) '{COLUMN}'|has no columns")  # said of a file with another key
PARTS = ("train:", "held-out:")


def load(name: str, column: str | None = None) -> PromptSet:
    """Load questions: `world`, `world-held-out`, a file or hf:owner/name (as prompts are), or a part of one.

    Args:
        column: the key of the questions (None: `question`, `prompt` or `text`).

    Raises:
        ValueError: they cannot be read, a question has no answer, or comes twice.
    """
    if name in BUILT_IN:
        if column:
            raise ValueError(f"the questions '{name}' are built in and have no column '{column}': leave it out")
        return BUILT_IN[name]()
    part, _, whole = name.partition(":") if name.startswith(PARTS) else ("", "", name)
    if whole in prompt_table.BUILT_IN:
        raise ValueError(f"'{whole}' are prompts for images; questions are {', '.join(BUILT_IN)}, or a file")
    if part and whole in BUILT_IN:
        raise ValueError(f"'{whole}' is built in and cannot be split: use 'world' and 'world-held-out'")
    if not whole.startswith(prompt_table.HUB) and not Path(whole).suffix and not Path(whole).exists():
        raise ValueError(unknown("set of questions", Path(whole).name, BUILT_IN) + " (or give a file, .jsonl or .csv)")
    found = _read(name, column)
    about = found.about(range(len(found))) or [{}] * len(found)
    rewards.refuse(found.texts, about, name)
    return found


def _read(name: str, column: str | None) -> PromptSet:
    try:
        return prompt_table.load(name, column or COLUMN, once=True)
    except ValueError as error:
        said = str(error)
    if column is None and OTHER_KEY.search(said):
        with suppress(ValueError):
            return prompt_table.load(name, once=True)
        said += "; name another one with --question-column"
    raise ValueError(_in_our_words(said))


def _in_our_words(said: str) -> str:
    said = said.replace("prompt-column", "question-column").replace("prompt set", "set of questions")
    return re.sub(r"\bprompt (file|column)", r"question \1", said).replace("contains no prompt", "contains no question")


def located(name: str) -> str:
    """The name for `load` with an absolute path, if it is a file."""
    return name if name in BUILT_IN else prompt_table.located(name)


def weighted(found: PromptSet, weights: tuple[str, ...]) -> PromptSet:
    """With sampling weights of categories, each written `category=weight`."""
    return found.weighted(weights) if weights else replace(found)
