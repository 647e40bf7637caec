"""Prompts: what a prompt is, and where sets of them come from. `load` reads a name, a file or a data set.

prompt.py: a prompt, and a set of prompts. given.py: sets from texts of your own. loading.py: the table of names.
scenes.py: the language of the built-in world. geneval.py: objects, counts, colours, places, with the metadata that the
`geneval` rewards read. ocr.py: signs, posters and labels, with the text to show. drawbench.py: a small set in the
categories of DrawBench. picks.py: which of many combinations a set takes, the same on every machine.
files.py: text, JSON lines, Parquet, and data sets of the Hugging Face hub. pictures.py: image files.
"""

from __future__ import annotations

from .given import of
from .loading import BUILT_IN, load, split
from .prompt import SOURCE, Edit, Prompt, PromptSet, prompt_of, refuse_others, source_of, text_of

__all__ = [
    "BUILT_IN",
    "SOURCE",
    "Edit",
    "Prompt",
    "PromptSet",
    "load",
    "of",
    "prompt_of",
    "refuse_others",
    "source_of",
    "split",
    "text_of",
]
