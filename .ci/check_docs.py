"""Check the built site: python .ci/check_docs.py FOLDER

Every page must work without a network: scripts, styles, fonts and images come from the site itself. Links lead
elsewhere only if a reader clicks them. One line per fault; exit code 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
HARMLESS = {"canonical", "prev", "next", "alternate"}  # kinds of link that a browser does not load


class Loads(HTMLParser):
    """The addresses that a page loads from other servers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address) and given.get("rel") not in HARMLESS:
            self.found.append(address)


def faults(folder: Path) -> list[str]:
    """One sentence per address from outside, in pages and style sheets."""
    found = []
    for page in sorted(folder.rglob("*.html")):
        loads = Loads()
        loads.feed(page.read_text("utf-8"))
        found += [f"{page} loads {address}" for address in loads.found]
    for sheet in sorted(folder.rglob("*.css")):
        found += [
            f"{sheet} loads {each}"
            for each in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)", sheet.read_text("utf-8"))
        ]
    return found


if __name__ == "__main__":
    site = Path(sys.argv[1])
    told = faults(site)
    print("\n".join(told) or f"{site}: {len(list(site.rglob('*.html')))} pages, which load nothing from other servers")
    sys.exit(bool(told))
