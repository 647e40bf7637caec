"""Questions by name: the built-in world, files and data sets; the right answer is in the metadata, under `answer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..prompts import PromptSet
from ..prompts import loading as prompt_table
from . import rewards, world

BUILT_IN: dict[str, Callable[[], PromptSet]] = {
    "world": world.questions,
    "world-held-out": world.held_out,
}
COLUMN = "question"  # the usual key of a question


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
    if name in prompt_table.BUILT_IN:
        raise ValueError(f"'{name}' are prompts for images; questions are {', '.join(BUILT_IN)}, or a file")
    found = _read(name, column)
    about = found.about(range(len(found))) or [{}] * len(found)
    rewards.refuse(found.texts, about, name)
    return found


def _read(name: str, column: str | None) -> PromptSet:
    if column is None:
        try:
            return prompt_table.load(name, COLUMN)
        except ValueError:  # perhaps they have another key
            pass
    try:
        return prompt_table.load(name, column)
    except ValueError as error:
        said = str(error).replace("prompt-column", "question-column").replace("prompt set", "set of questions")
        raise ValueError(said) from error


def located(name: str) -> str:
    """The name for `load` with an absolute path, if it is a file."""
    return name if name in BUILT_IN else prompt_table.located(name)


def weighted(found: PromptSet, weights: tuple[str, ...]) -> PromptSet:
    """With sampling weights of categories, each written `category=weight`."""
    return found.weighted(weights) if weights else replace(found)
