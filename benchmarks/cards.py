"""Which recipe fits on which card: the table of docs/cards.md, from counts in benchmarks/cards.yaml.

    python benchmarks/cards.py count [MODEL ...]    # count anew, two minutes or more for each recipe on one core
    python benchmarks/cards.py                      # write the table from the counts

Counted as `flowward memory` does, from configurations of published size (published.py). A card of 24 GB has 22 for a
run, one of 80 GB has 72. The memory of the reward comes on top: PickScore takes 4 GB where it is loaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "cards.yaml", HERE.parent / "docs" / "cards.md"
BEGIN, END = "<!-- counted -->", "<!-- /counted -->"
LIMITS = {24: 22.0, 80: 72.0}  # GB of a card, and those for a run
RECIPES: Mapping[str, tuple[str, ...]] = {  # by the model in published.py
    "sd3.5-medium": ("sd3.5-medium/advantageflow-pickscore",),
    "flux.1-dev": ("flux.1-dev/advantageflow-pickscore", "flux.1-dev/advantageflow-pickscore-24gb"),
    "flux.2-klein": ("flux.2-klein/advantageflow-pickscore",),
    "flux.2-dev": ("flux.2-dev/advantageflow-pickscore", "flux.2-dev/advantageflow-pickscore-24gb"),
    "qwen-image": ("qwen-image/advantageflow-ocr", "qwen-image/advantageflow-ocr-24gb"),
    "z-image": ("z-image/advantageflow-pickscore", "z-image/advantageflow-pickscore-24gb"),
    "wan2.2-5b": ("wan2.2-5b/advantageflow-pickscore", "wan2.2-5b/advantageflow-pickscore-24gb"),
    "wan2.2-14b": ("wan2.2-14b/advantageflow-pickscore", "wan2.2-14b/advantageflow-pickscore-24gb"),
    "hunyuanvideo-1.5": (
        "hunyuanvideo-1.5/advantageflow-pickscore",
        "hunyuanvideo-1.5/advantageflow-pickscore-24gb",
    ),
    "ltx": ("ltx/advantageflow-pickscore", "ltx/advantageflow-pickscore-24gb"),
    "flux.1-kontext": ("flux.1-kontext/advantageflow-judge", "flux.1-kontext/advantageflow-judge-24gb"),
    "qwen-image-edit": ("qwen-image-edit/advantageflow-judge", "qwen-image-edit/advantageflow-judge-24gb"),
}


def count(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each recipe of a model, with GB at most of each of its batches."""
    import published

    from flowward.commands import memory
    from flowward.models.families import FAMILIES
    from flowward.training import config, config_files, recipes

    memory.COUNTED = (1, 2)  # beyond them memory grows in proportion
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published.configurations(model, folder / "model")
        edits = FAMILIES[json.loads((folder / "model" / "model_index.json").read_text())["_class_name"]].sources[0] > 0
        texts = str(_edits(folder)) if edits else "drawbench-style"
        for recipe in RECIPES[model]:
            given = config_files.read([recipes.located(recipe)])
            settings = config.from_dict({**given, "model": str(folder / "model"), "prompts": texts})
            found = memory.batches(replace(settings, run=replace(settings.run, memory=LIMITS[80])))
            yield (
                recipe,
                {
                    what: {
                        size: round(law(size) / 1e9, 1) for size in found.sizes[what] if law(size) <= 1e9 * LIMITS[80]
                    }
                    for what, law in found.taken.items()
                },
            )


def _edits(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder / "source.png")
    file = folder / "edits.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"edit {n}", "source": "source.png"}) + "\n" for n in range(64)))
    return file


def table(found: Mapping[str, Any]) -> str:
    lines = [
        "| recipe | least | one card of 24 GB | one card of 80 GB |",
        "| --- | --- | --- | --- |",
    ]
    for model in RECIPES:
        for recipe in RECIPES[model]:
            if recipe in found:
                lines.append(f"| `{recipe}` | {_least(found[recipe])} | " + " | ".join(_cells(found[recipe])) + " |")
    return "\n".join(lines)


def _least(taken: Mapping[str, Any]) -> str:
    """GB of the smallest batches."""
    smallest = [min(own.values()) for own in taken.values() if own]
    return f"{max(smallest):.1f} GB" if len(smallest) == len(taken) else "more than 72 GB"


def _cells(taken: Mapping[str, Any]) -> Iterator[str]:
    for limit in LIMITS.values():
        most = [max((size for size, own in law.items() if own <= limit), default=None) for law in taken.values()]
        yield "does not fit" if None in most else "{} samples, {} points at once".format(*most)


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with the table of these counts."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


def main() -> None:
    found = yaml.safe_load(RESULTS.read_text()) if RESULTS.is_file() else {}
    if sys.argv[1:2] == ["count"]:
        for model in sys.argv[2:] or RECIPES:
            for recipe, taken in count(model):
                print(recipe, taken, flush=True)
                found[recipe] = taken
                RESULTS.write_text(yaml.safe_dump(found, sort_keys=False, width=120))
    PAGE.write_text(written(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
