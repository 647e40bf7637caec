"""A prompt file with images to edit, and a model that edits them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowward.models.families import FAMILIES

KONTEXT = "FluxKontextPipeline"
EDITS = [name for name, family in FAMILIES.items() if 0 not in family.sources]
LINES = [
    {"prompt": "a red cat", "source": "a.png", "category": "colour"},
    {"prompt": "a red cat", "source": "sub/b.png", "kind": "animal"},
    {"prompt": "two dog", "source": "a.png", "metadata": {"count": 2}},
]


def paint(path: Path, brightness: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((24, 32, 3), round(255 * brightness), np.uint8)).save(path)
    return path


def written(folder: Path, lines: Sequence[dict[str, Any]] = LINES, dark: float = 0.2) -> Path:
    """A file of edits, and its images."""
    paint(folder / "a.png", dark)
    paint(folder / "sub" / "b.png", 0.8)
    file = folder / "edits.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file
