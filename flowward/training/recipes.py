"""Recipes: config files for real models that come with flowward, by names such as sd3.5-medium/flow_grpo-ocr."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ..system.tables import load, shipped


def every() -> dict[str, Path]:
    """All recipes: MODEL/NAME to the file."""
    files = sorted(shipped("recipes").glob("*/*.yaml"), key=lambda file: (file.parent.name, file.stem))
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def given(file: Path) -> dict[str, Any]:
    """What a shipped recipe says, over the one beside it that is its `base`: sections are joined key by key.

    It is read without torch. For settings that are complete and checked: config_files.read.
    """
    own = dict(load(file))
    base = own.pop("base", None)
    if base is None:
        return own
    under = given(file.parent / base)
    joined = {key: {**under[key], **value} for key, value in own.items() if isinstance(value, dict) and key in under}
    return {**under, **own, **joined}


def located(name: str, folder: Path = Path()) -> Path:
    """The file that `name` means: a path from `folder`, or a recipe with or without `recipes/` and `.yaml`.

    Raises:
        ValueError: there is no such file, and no such recipe.
    """
    file, known = folder / name, every()
    if file.exists():
        return file
    recipe = name.removeprefix("recipes/").removesuffix(".yaml")
    if recipe in known:
        return known[recipe]
    near = difflib.get_close_matches(recipe, known, n=1)
    hint = f"did you mean the recipe {near[0]}?" if near else "flowward list recipes lists the recipes"
    raise ValueError(f"there is no config file {name}; {hint}")
