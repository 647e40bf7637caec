"""A hash of the code of a user's reward, as it was loaded. Code of flowward itself has none: it has a version."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

OWN = Path(__file__).parents[1]
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
LOADED = "__flowward_sha256__"  # in a module: the hash of its file when it was first asked for


def code_of(reward: Any) -> str | None:
    """A short SHA-256 of the file of a reward's function or class, and of the user's files that it imports.

    None if it has no file: code of flowward, of a notebook, of a script that Python runs, or that is not Python.
    """
    space = _namespace(reward)
    if not (file := _file(space)) or OWN in file.parents or space.get("__name__") == "__main__":
        return None
    found = sorted(_hashes(space, {}).values())
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16]


def _namespace(reward: Any) -> dict[str, Any]:
    """The global names of the module that a reward comes from; empty if there are none."""
    while isinstance(reward, partial):
        reward = reward.func
    if isinstance(reward, MethodType):
        reward = reward.__func__
    if isinstance(reward, FunctionType):
        return reward.__globals__
    kind = type(reward)
    own = next((each for each in vars(kind).values() if isinstance(each, FunctionType)), None)
    return own.__globals__ if own else vars(sys.modules.get(kind.__module__, ModuleType("")))


def _file(space: Mapping[str, Any]) -> Path | None:
    file = space.get("__file__")
    return Path(file).absolute() if isinstance(file, str) and Path(file).is_file() else None


def _hashes(space: dict[str, Any], found: dict[Path, str]) -> dict[Path, str]:
    """The hash of each file, of this module and of those that it imports."""
    file = _file(space)
    if file is None or file in found:
        return found
    if LOADED not in space:  # later the file may have been edited, but the code that runs is this one
        space[LOADED] = hashlib.sha256(file.read_bytes()).hexdigest()
    found[file] = space[LOADED]
    for module in _imports(space):
        other = _file(vars(module))
        if other and not any(folder in other.parents for folder in (OWN, *LIBRARIES)):
            _hashes(vars(module), found)
    return found


def _imports(space: Mapping[str, Any]) -> Iterator[ModuleType]:
    """The modules that a module has by name, and those of the functions and classes that it has."""
    for value in list(space.values()):
        if isinstance(value, ModuleType):
            yield value
        elif isinstance(value, FunctionType | type):
            module = sys.modules.get(value.__module__)
            if isinstance(module, ModuleType):
                yield module
