"""Prompt sets from a list of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from .prompt import Prompt, PromptSet, source_of, text_of
from .scenes import prompts


def of(name: str, given: Sequence[Prompt]) -> PromptSet:
    """Build a set from distinct prompts; texts of the built-in world keep their categories."""
    known, texts, sources = prompts(), [text_of(each) for each in given], tuple(source_of(each) for each in given)
    categories = tuple(known[t].request.category if t in known else "all" for t in texts)
    return PromptSet(name, tuple(texts), categories, sources=sources if any(sources) else ())
