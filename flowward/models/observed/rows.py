"""How the arguments of a network for one row become those for several, and back.

It is learned from a call with one row and a call with two equal rows: tensors are joined along one axis, usually the
first, a list becomes longer, and the rest stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Any  # an axis, "same", "listed", "unknown" (None: other prompts may have a tensor), or a dict or list of rules


class Unlike(ValueError):
    """Two calls do not have the same form."""


def learned(one: Any, two: Any, name: str = "") -> Rule:
    """The rule that makes `two`, the arguments for two equal rows, from `one`, those for a row.

    Raises:
        Unlike: there is none.
    """
    match one:
        case Tensor():
            if not isinstance(two, Tensor) or one.ndim != two.ndim:
                raise Unlike(f"{name} has another form for two prompts")
            if one.shape == two.shape:
                return "same"
            grown = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
            if len(grown) != 1 or two.shape[grown[0]] != 2 * one.shape[grown[0]]:
                raise Unlike(f"{name} is {list(one.shape)} for one prompt, and {list(two.shape)} for two")
            return grown[0]
        case dict():
            if not isinstance(two, dict) or one.keys() != two.keys():
                raise Unlike(f"{name} has other entries for two prompts")
            return {key: learned(one[key], two[key], f"{name} {key}".strip()) for key in one}
        case list() | tuple():
            if len(two) == 2 * len(one) and one:
                return "listed"
            if len(two) != len(one):
                raise Unlike(f"{name} has {len(one)} entries for one prompt, and {len(two)} for two")
            return [learned(a, b, name) for a, b in zip(one, two, strict=True)]
    if one is None and two is None:
        return "unknown"
    if one != two:
        raise Unlike(f"{name} is {one} for one prompt, and {two} for two")
    return "same"


def joined(rows: Sequence[Any], rule: Rule) -> Any:
    """The arguments for several rows."""
    first = rows[0]
    match rule:
        case "same":
            return first
        case "unknown":
            return first if first is None else joined(rows, 0)
        case int():
            return first if first is None or len(rows) == 1 else torch.cat(list(rows), rule)
        case "listed":
            return type(first)(each for row in rows for each in row)
        case dict():
            return {key: joined([row[key] for row in rows], each) for key, each in rule.items()}
    return type(first)(joined([row[number] for row in rows], each) for number, each in enumerate(rule))


def split(several: Any, rule: Rule, many: int) -> list[Any]:
    """The arguments of each row: the inverse of `joined`."""
    match rule:
        case "same" | "unknown":
            return [several] * many
        case int():
            return [None] * many if several is None else list(several.chunk(many, rule))
        case "listed":
            each = len(several) // many
            return [several[row * each : (row + 1) * each] for row in range(many)]
        case dict():
            if several.keys() != rule.keys():
                raise Unlike("there are other entries with guidance")
            parts = {key: split(several[key], each, many) for key, each in rule.items()}
            return [{key: part[row] for key, part in parts.items()} for row in range(many)]
    if len(several) != len(rule):
        raise Unlike("there are other entries with guidance")
    parts_ = [split(several[number], each, many) for number, each in enumerate(rule)]
    return [type(several)(part[row] for part in parts_) for row in range(many)]


def count(several: Any, one: Any, rule: Rule) -> int:
    """How many rows a call has."""
    match rule:
        case "same" | "unknown":
            return 0
        case int():
            return 0 if several is None or one is None else int(several.shape[rule] // one.shape[rule])
        case "listed":
            return len(several) // len(one)
        case dict():
            return max((count(several.get(key), one[key], each) for key, each in rule.items()), default=0)
    return max((count(several[number], one[number], each) for number, each in enumerate(rule)), default=0)
