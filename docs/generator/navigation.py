"""The navigation of mkdocs.yml, in which a folder stands for all of its pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

FIRST = ("index.md", "README.md")  # of a folder


def whole(nav: Any, pages: Sequence[str]) -> Any:
    """The navigation with the pages in the place of each folder, in the order in which they are given."""
    if isinstance(nav, dict):
        return {title: whole(part, pages) for title, part in nav.items()}
    if isinstance(nav, list):
        return [each for part in nav for each in _spliced(part, pages)]
    return _inside(nav, pages) if nav.endswith("/") else nav


def _spliced(part: Any, pages: Sequence[str]) -> Iterable[Any]:
    found = whole(part, pages)
    return found if isinstance(part, str) and isinstance(found, list) else [found]


def _inside(folder: str, pages: Sequence[str]) -> list[str]:
    own = [page for page in pages if page.rpartition("/")[0] == folder.rstrip("/")]
    return sorted(own, key=lambda page: page.rpartition("/")[2] not in FIRST)
