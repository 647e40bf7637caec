"""The options of a command are read once in a process, not anew for each of thousands of command lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def kept() -> Iterator[None]:
    """Inside, tyro goes through the fields of a type and of its defaults once (60 ms for those of `train`).

    What it finds is frozen, and a function of the type and the defaults alone.
    """
    from tyro._parsers import ParserSpecification

    make, known = ParserSpecification.from_callable_or_type, dict[Any, ParserSpecification]()

    def found(f: Any, *, parent_classes: set[Any], intern_prefix: str, default_instance: Any, **given: Any) -> Any:
        given |= {"parent_classes": parent_classes, "intern_prefix": intern_prefix}
        if parent_classes or intern_prefix:  # a part of a command's options
            return make(f, default_instance=default_instance, **given)
        key = (f, repr(default_instance))
        if key not in known:
            known[key] = make(f, default_instance=default_instance, **given)
        return known[key]

    with patch.object(ParserSpecification, "from_callable_or_type", staticmethod(found)):
        yield
