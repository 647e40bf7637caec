"""The sample pictures of one evaluation of a run, as values for assets/runs.js."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import samples

FEW = 24  # prompts


def of(path: Path, most: int = FEW) -> list[dict[str, Any]]:
    """From a file of samples/; empty if it is damaged or was deleted."""
    saved = samples.read(path)
    found = []
    for each in samples.spread(saved.samples, most) if saved else []:
        facts = [[fact.name, fact.value, fact.verdict] for fact in samples.facts(each)]
        small = each.kind == "png"
        found.append({"number": each.number, "prompt": each.prompt, "about": each.category, "image": each.address,
                      "small": small, "facts": facts})  # fmt: skip
    return found
