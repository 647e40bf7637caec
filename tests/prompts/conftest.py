"""Fixtures for tests of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from edit_sets import written

from flowward import prompts
from flowward.prompts import PromptSet


@pytest.fixture
def edits(tmp_path: Path) -> PromptSet:
    """Three edits of two images, from a file."""
    return prompts.load(str(written(tmp_path)))
