"""Tables that lie beside the code as YAML: facts that can be read without importing what they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).parents[1]
"""the folder of the package"""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built


def shipped(name: str) -> Path:
    """A folder that comes with flowward (recipes, examples): inside the package, or beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def load(file: Path) -> Any:
    """What a YAML file says.

    Raises:
        ValueError: it is not YAML; it says where.
        OSError: it cannot be read.
    """
    try:
        return yaml.load(file.read_text("utf-8"), _Loader)  # nosec B506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{file.parent.name}/{file.name}: {error}") from error
