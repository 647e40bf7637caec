"""Prompts shared by training and evaluation: scores on them say little about new prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..prompts import BUILT_IN, PromptSet


def leak(
    trained: PromptSet, measured: PromptSet, chosen: Sequence[int], sources: tuple[str, str] | None = None
) -> str | None:
    """A warning if training and evaluation share prompts; otherwise None.

    Args:
        chosen: the evaluated prompts, as indices. Other prompts do not count, nor do training categories with weight 0.
        sources: the two arguments of `prompts.load` (default: the names of built-in sets).
    """
    never = {name for name, weight in trained.weights.items() if weight == 0}
    drawn = {prompt for prompt, category in zip(trained, trained.categories, strict=True) if category not in never}
    asked = dict.fromkeys(measured[i] for i in chosen)
    shared = sum(prompt in drawn for prompt in asked)
    if not shared:
        return None
    which = "the one prompt" if len(asked) == 1 else f"{shared:,} of the {len(asked):,} prompts"
    said = f"{which} of the evaluation {'is' if shared == 1 else 'are'} also {'a ' * (shared == 1)}training prompt"
    said += f"{'s' * (shared > 1)}, so the scores say less about new prompts"
    made_from = sources or tuple(each.name if each.name in BUILT_IN else "" for each in (trained, measured))
    todo = " and ".join(_advice(*made_from))
    return f"{said}{f': {todo}' if todo else ''}"


def _advice(trained: str, measured: str) -> list[str]:
    """What to change so that no prompt is shared; empty if no other prompt set helps."""
    if "" in (trained, measured):
        return []
    one, other = trained.removesuffix("-held-out"), measured.removesuffix("-held-out")
    if trained in BUILT_IN or measured in BUILT_IN:
        if one != other or f"{one}-held-out" not in BUILT_IN:
            return []
        wished = one, f"{one}-held-out"
    else:  # files are split by a hash of each text, so training and held-out parts never share a text
        wished = f"train:{_whole(trained)}", f"held-out:{_whole(measured)}"
    change = {f"train on {wished[0]}": trained != wished[0], f"evaluate on {wished[1]}": measured != wished[1]}
    return [what for what, needed in change.items() if needed]


def _whole(name: str) -> str:
    return name.removeprefix("train:").removeprefix("held-out:")
