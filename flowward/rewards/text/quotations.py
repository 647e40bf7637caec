"""The quoted parts of a prompt, in straight, typographic and CJK quotation marks."""

from __future__ import annotations

import unicodedata

PAIRS = {
    **{'"': '"', "“": "”", "„": "“”", "”": "”", "«": "»", "»": "«", "＂": "＂"},
    **{"「": "」", "『": "』", "﹁": "﹂", "﹃": "﹄", "〝": "〞〟"},
}
"""opening mark -> marks that may close it"""
SINGLE = {"‘": "’"}
"""only if a prompt has no other: the closing mark is an apostrophe, too"""
INCH = '"”'  # after a digit, these also mean inches
BEFORE = ".,;:!?)]}…"  # after these and letters, a straight mark does not open


def quotations(prompt: str) -> list[str]:
    r"""The quoted texts in their order; empty ones are left out.

    A mark after a digit means inches, unless it closes a quotation: `a 12" pizza with "HOT"` has one quotation. Marks
    inside other marks belong to the text, and so does \" inside straight ones.
    """
    for text, pairs in ((prompt, PAIRS), (prompt.replace('\\"', '"'), PAIRS), (prompt, SINGLE)):
        if found := [each for each in _found(text, pairs) if each.strip()]:
            return found
    return []


def _found(text: str, pairs: dict[str, str]) -> list[str]:
    found, place = [], 0
    while place < len(text):
        end = _end(text, place, pairs) if text[place] in pairs and not _inch(text, place) else None
        if end is not None:
            found.append(text[place + 1 : end].replace('\\"', '"'))
            place = end
        place += 1
    return found


def _inch(text: str, place: int) -> bool:
    """Whether a mark outside a quotation does not open one: it means inches, or is escaped."""
    before = text[place - 1 : place]
    return text[place] in INCH and (before.isnumeric() or before == "\\")


def _end(text: str, start: int, pairs: dict[str, str]) -> int | None:
    """The place of the mark that closes the one at `start`."""
    opening, depth = text[start], 0
    closing = pairs[opening]
    for place in range(start + 1, len(text)):
        if text[place] in closing:
            if _inside(text, place, closing):
                continue
            if not depth:
                return place
            depth -= 1
        elif text[place] == opening:  # “a “b” c”
            depth += 1
    return None


def _inside(text: str, place: int, closing: str) -> bool:
    """Whether a closing mark belongs to the quoted text: escaped, an apostrophe, or inches."""
    before, after = text[place - 1], text[place + 1 : place + 2]
    if text[place] == "’":
        return after.isalnum()
    if before == "\\":
        return True
    return text[place] in INCH and before.isnumeric() and _closed_later(text, place, closing)


def _closed_later(text: str, place: int, closing: str) -> bool:
    """Whether the next mark that does not follow a digit closes, so that the one at `place` means inches."""
    for later in range(place + 1, len(text)):
        if text[later] == "“":
            return False
        if text[later] in closing and not text[later - 1].isnumeric():
            return not _may_open(text, later)
    return False


def _may_open(text: str, place: int) -> bool:
    """Whether a straight mark can be an opening one: not after a letter, a closing bracket or the end of a sentence."""
    before, after = text[place - 1], text[place + 1 : place + 2]
    wide = unicodedata.east_asian_width(before) in "WF"  # text without spaces between words
    return text[place] == '"' and bool(after.strip()) and (wide or not (before.isalnum() or before in BEFORE))
