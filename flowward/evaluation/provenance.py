"""The settings that a score depends on, stored next to it, and whether two evaluations can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..prompts import PromptSet
from ..prompts import described as as_written
from ..prompts.image_files import digest
from ..rewards import code_of
from .code_hashes import CODE, code_differs, without_code

LIBRARIES = ("torch", "diffusers", "transformers")
# These may differ, or are checked separately; all other settings must agree.
OWN = ("scores", "model", "weights", "versions", "prompts", "prompts_sha256", "rewards", "guard")
PLACES = (  # where and how fast a reward is computed: does not change its scores
    "device", "batch", "batch_size", "offload", "threads",
    "concurrency", "timeout", "patience", "cache", "key_variable",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of flowward and of the libraries that affect its scores."""
    found = {"flowward": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # installed without metadata
            continue
    return found


def hash_of(prompts: PromptSet) -> str:
    """A short SHA-256 of texts, categories and metadata in their order, which determine the chosen prompts.

    It includes the content of source images, but not their paths.
    """
    described: list[Any] = [prompts.texts, prompts.categories, [dict(about) for about in prompts.metadata]]
    if prompts.sources:
        described.append([as_written(sources, digest) for sources in prompts.sources])
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def described(thing: object) -> dict[str, Any]:
    """The kind of a reward, its options (without secrets, which have `repr=False`), its `identity`, and its code."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    shown = [each.name for each in fields(thing) if each.repr] if is_dataclass(thing) else []
    options = {name: _plain(getattr(thing, name)) for name in shown}
    own = getattr(thing, "identity", None)
    known = {key: _plain(value) for key, value in own.items()} if isinstance(own, Mapping) else {}
    code = {CODE: found} if (found := code_of(thing)) else {}
    return {
        "kind": f"{_lasting(kind.__module__ or '')}.{getattr(kind, '__qualname__', '')}",
        **options,
        **known,
        **code,
    }


def _lasting(module: str) -> str:
    """A module's name without the folders between wing and file, so that a moved reward stays comparable."""
    if not module.startswith("flowward."):
        return module
    package, wing, *rooms = module.split(".")
    return ".".join([package, wing, *rooms[-1:]])


def same_scores(reward: object) -> str:
    """A text that is equal for rewards with equal scores, regardless of where and how fast they are computed.

    Nor does it depend on the code, of which a comment may have changed: see training/inputs.py.
    """
    known = {key: value for key, value in described(reward).items() if key not in PLACES}
    return json.dumps(without_code(known), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """For JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(each) for each in value]
    # the text of other objects may contain a memory address, which differs every time
    return described(value) if is_dataclass(value) or " at 0x" in str(value) else str(value)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The differences that prevent a comparison, each as 'steps (10 and 20)'; empty if there are none.

    Models and weights may differ, since they are compared. The times of a model's own grid belong to the model.
    """
    own = (*OWN, "times") if one.get("grid") == other.get("grid") == "model" else OWN
    found = [
        f"{key} ({_said(one.get(key))} and {_said(other.get(key))})"
        for key in dict.fromkeys([*one, *other])
        if key not in own and one.get(key) != other.get(key)
    ]
    if one.get("prompts_sha256") != other.get("prompts_sha256"):
        names = [str(each.get("prompts")) for each in (one, other)]
        same = f"two versions of {names[0]}" if names[0] == names[1] else " and ".join(names)
        found.append(f"prompts ({same})")
    for name, mine in one.get("rewards", {}).items():
        theirs = other.get("rewards", {}).get(name, mine)
        found += [
            f"{key} of reward {name} ({_said(mine.get(key))} and {_said(theirs.get(key))})"
            for key in dict.fromkeys([*mine, *theirs])
            if key not in (*PLACES, CODE) and without_code(mine.get(key)) != without_code(theirs.get(key))
        ]
    return found


def other_code(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The rewards of both evaluations whose code differs. It may be a comment only, so this is no reason to refuse."""
    mine, theirs = one.get("rewards", {}), other.get("rewards", {})
    return [name for name in mine if code_differs(mine[name], theirs.get(name))]


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def other_versions(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Libraries with different versions, each as 'torch (2.13.0 and 2.14.0)'."""
    mine, theirs = one.get("versions", {}), other.get("versions", {})
    return [
        f"{name} ({_said(mine.get(name))} and {_said(theirs.get(name))})"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]
