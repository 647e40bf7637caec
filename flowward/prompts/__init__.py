"""Prompts and prompt sets. `load` reads a built-in set, a file or a Hugging Face data set.

prompt.py: a prompt, and a set of prompts. given.py: sets from your own texts. loading.py: the table of names.
language.py: closed languages. scenes.py, scenes64.py: those of the built-in worlds. geneval.py: objects, counts,
colours and positions, with the metadata for the `geneval` rewards. ocr.py: signs, posters and labels, with the text to
show. drawbench.py: a small set in the categories of DrawBench. picks.py: reproducible pseudo-random choices. files.py:
files by their kind. lines.py: lines of text and of JSON. columns.py: CSV, TSV, Parquet and Hugging Face data sets.
rows.py: rows to a prompt set. image_files.py: checks and hashes of image files. pixels.py: modes, alpha and profiles of
images. pictures.py: images as tensors.
"""

from __future__ import annotations

from .given import of
from .loading import BUILT_IN, load, located, split
from .prompt import (
    SOURCE,
    SOURCES,
    Edit,
    Prompt,
    PromptSet,
    Sources,
    described,
    prompt_of,
    refuse_numbers,
    refuse_others,
    sources_of,
    text_of,
)

__all__ = [
    "BUILT_IN",
    "SOURCE",
    "SOURCES",
    "Edit",
    "Prompt",
    "PromptSet",
    "Sources",
    "described",
    "load",
    "located",
    "of",
    "prompt_of",
    "refuse_numbers",
    "refuse_others",
    "sources_of",
    "split",
    "text_of",
]
