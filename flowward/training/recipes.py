"""Recipes: config files for real models that come with flowward, by names such as sd3.5-medium/flow_grpo-ocr."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..system.tables import shipped


def every() -> dict[str, Path]:
    """All recipes: MODEL/NAME to the file."""
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(shipped("recipes").glob("*/*.yaml"))}


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
