"""Prompt sets from a list of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import scenes, scenes64
from .language import Sentence
from .prompt import Prompt, PromptSet, sources_of, text_of


def of(name: str, given: Sequence[Prompt]) -> PromptSet:
    """Build a set from distinct prompts; texts of the built-in worlds keep their categories."""
    texts, sources = [text_of(each) for each in given], tuple(sources_of(each) for each in given)
    known: Mapping[str, Sentence[Any]] = scenes.prompts()
    if any(text not in known for text in texts):  # the larger language has all sentences of the smaller one
        known = scenes64.prompts()
    categories = tuple(known[t].request.category if t in known else "all" for t in texts)
    return PromptSet(name, tuple(texts), categories, sources=sources if any(sources) else ())
