"""Functions and classes of the user's own files and packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import named


def find(kind: str, name: str) -> Any:
    """The function or class `package.module:NAME` or `path/to/file.py:NAME`; errors call it a `kind`.

    Raises:
        ValueError: it cannot be imported, or is not callable.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"give the function or class in {name} as well; write {name}:NAME")
    try:
        module = _of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # a user's file may fail in any way
        raise ValueError(f"cannot import {kind} '{name}': {named(error)}") from error
    if not callable(found := getattr(module, attribute, None)):
        raise ValueError(f"{kind} '{name}': {where} has no function '{attribute}'")
    return found


def _of_file(path: Path) -> ModuleType:
    """Run a file as a new module, registered under its file name (`mine.py`), which no import can clash with.

    It must be registered: dataclasses with string annotations (`from __future__ import annotations`) look it up.
    """
    spec = importlib.util.spec_from_file_location(path.name, path)
    assert spec and spec.loader
    module = sys.modules[path.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
