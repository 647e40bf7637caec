"""Text from outside on a terminal: shown, never obeyed."""

from __future__ import annotations

import re
import sys

# control characters but tab and newline; marks that turn the direction of writing; halves of characters
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with \x1b and the like in the place of what a terminal would obey."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def tell(sentence: str) -> None:
    """Print a sentence of the program on standard error."""
    print(f"flowward: {visible(sentence)}", file=sys.stderr, flush=True)
