"""Links of a page to files outside docs/: to the page of an example, else to the source code."""

from __future__ import annotations

import posixpath
import re

LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")
SOURCE = "https://github.com/flowward/flowward/blob/main/"


def inside(text: str, page: str) -> str:
    """The text of a page, whose path in docs/ is given, with links that lead somewhere on the site."""

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), found[1]))
        folder, _, name = target.partition("/")
        if folder == "docs":
            return found[0]
        if folder == "examples" and name:
            up = posixpath.relpath(f"examples/{posixpath.splitext(name)[0]}.md", posixpath.dirname(page) or ".")
            return f"]({up})"
        return f"]({SOURCE}{target}{found[2] or ''})"

    return LINK.sub(moved, text)
