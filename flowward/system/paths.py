"""Paths as people write them."""

from __future__ import annotations

import re
from pathlib import Path

_HOME = re.compile(r"(?:^|(?<==))~(?=/|$)")  # at the start of a word, or of a value as in template=~/mine.yaml


def expanded(word: str) -> str:
    """A word with the home folder in the place of ~; shells do not do this inside a word, and YAML never does."""
    return _HOME.sub(lambda found: str(Path.home()), word) if "~" in word else word
