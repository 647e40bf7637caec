"""Prompts that a run is trained on and measured on: of these a score says little about other prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..prompts import BUILT_IN, PromptSet


def leak(
    trained: PromptSet, measured: PromptSet, chosen: Sequence[int], sources: tuple[str, str] | None = None
) -> str | None:
    """A sentence where prompts that are trained on are measured on too; None where there are none.

    Args:
        chosen: the prompts of the images that are measured, as indices. Others do no harm, nor do those of a category
            that is never drawn.
        sources: what `prompts.load` made the two sets from (default: the names of sets that are built in).
    """
    never = {name for name, weight in trained.weights.items() if weight == 0}
    drawn = {prompt for prompt, category in zip(trained, trained.categories, strict=True) if category not in never}
    asked = dict.fromkeys(measured[i] for i in chosen)
    shared = sum(prompt in drawn for prompt in asked)
    if not shared:
        return None
    which = "the one prompt" if len(asked) == 1 else f"{shared:,} of the {len(asked):,} prompts"
    said = f"{which} that the run is measured on {'is' if shared == 1 else 'are'} trained on too, so its scores"
    made_from = sources or tuple(each.name if each.name in BUILT_IN else "" for each in (trained, measured))
    todo = " and ".join(_advice(*made_from))
    return f"{said} say less of prompts that it has never seen{f': {todo}' if todo else ''}"


def _advice(trained: str, measured: str) -> list[str]:
    """What to change, so that no prompt is shared; nothing where no change of one name does it."""
    if "" in (trained, measured):
        return []
    one, other = trained.removesuffix("-held-out"), measured.removesuffix("-held-out")
    if trained in BUILT_IN or measured in BUILT_IN:
        if one != other or f"{one}-held-out" not in BUILT_IN:
            return []
        wished = one, f"{one}-held-out"
    else:  # files are split by a hash of each text, so that no part of one shares a text with the other part of any
        wished = f"train:{_whole(trained)}", f"held-out:{_whole(measured)}"
    change = {f"train on {wished[0]}": trained != wished[0], f"measure on {wished[1]}": measured != wished[1]}
    return [what for what, needed in change.items() if needed]


def _whole(name: str) -> str:
    return name.removeprefix("train:").removeprefix("held-out:")
