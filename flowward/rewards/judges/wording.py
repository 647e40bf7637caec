"""The part of an answer that counts: what a model says after its thought, without markup, and the whole numbers in it.

Chat models think aloud, write in bold, and put numbers into boxes. A number is read only if it has one meaning: 4/5 on
a scale to 5 is 4, and 3,5 is 3.5, but 4/10, 3-4, 40 % and 4,000 are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

CUT_OFF = frozenset({"length", "max_tokens", "model_length"})  # finish reasons: the limit of tokens was reached
STOPPED = frozenset({"content_filter", "abort", "error"})  # finish reasons: something else ended the answer
OPENS = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)
CLOSES = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷", re.IGNORECASE)
MARKUP = re.compile(
    r"\\(?:boxed|text|textbf|mathbf)\{|\}|[*`$\"“”]+|__+|\\[()\[\]]|</?(?:b|i|em|strong|code)>", re.IGNORECASE
)
JOINT = "\0"  # in the place of markup between two letters or digits, which must not become one word

GAP = r"[^\S\r\n]*"  # spaces, but no new line
DIGITS = r"(?:\d++(?:[.,]\d++)*+|\.\d++)(?:[eE][-+]?\d++)?+"
WRITTEN = re.compile(
    rf"(?<![^\W_])(?<![.,{JOINT}])(?P<value>[-+−–]?{DIGITS})"
    rf"(?>(?:{GAP}\(?(?P<link>/|out{GAP}of|of|to|or|[-–—~±]){GAP}(?P<other>[-+−–]?{DIGITS}))?)"
    rf"(?>(?:{GAP}(?P<unit>%|‰|percent\b))?)",
    re.IGNORECASE,
)
GOES_ON = re.compile(
    rf"{JOINT}|[*_`'’]*{GAP}(?:[/%‰\d½¼¾⅓⅔]|out{GAP}of)|[.,:]\d", re.IGNORECASE
)  # it is no whole number


class Unreadable(Exception):
    """An answer that contains no score."""


def spoken(choice: Mapping[str, Any]) -> str:
    """The text of a finished answer, after the thought.

    Raises:
        Unreadable: the answer is not finished, is empty, or is only a thought.
    """
    reason = choice.get("finish_reason")
    if isinstance(reason, str) and reason in CUT_OFF | STOPPED:
        cure = "; raise max_tokens in the template's request" if reason in CUT_OFF else ""
        raise Unreadable(f"it is not finished (finish_reason {reason}){cure}")
    message = choice.get("message")
    content = _joined(message.get("content")) if isinstance(message, Mapping) else ""
    said = CLOSES.split(content)[-1]
    if OPENS.search(said):
        raise Unreadable("its thought is not finished; raise max_tokens in the template's request")
    if not said.strip():
        refusal = message.get("refusal") if isinstance(message, Mapping) else None
        raise Unreadable(
            f"the model refuses: {refusal[:200]}"
            if isinstance(refusal, str)
            else f"it is empty (finish_reason {reason})"
        )
    return said


def _joined(content: Any) -> str:
    """The text of a message, which some servers send in parts."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def readings(said: str) -> Iterator[str]:
    """The text without markup, then as it is: a template's pattern may name the markup."""
    yield MARKUP.sub(lambda found: JOINT if _between_words(said, *found.span()) else "", said)
    yield said


def _between_words(text: str, start: int, end: int) -> bool:
    return text[start - 1 : start].isalnum() and text[end : end + 1].isalnum()


def number(found: re.Match[str], scale: tuple[float, float]) -> float:
    """The number that the first group of a match is in, as a whole.

    Raises:
        Unreadable: it is a part of something else, or can be read in more than one way.
    """
    text, at = found.string, found.start(1)
    covering = next((each for each in WRITTEN.finditer(text) if each.start() <= at < each.end()), None)
    if covering is None:
        raise Unreadable(f"'{found[0][-50:]}' has no number in its place")
    shown = text[covering.start() : covering.end() + 10].replace(JOINT, "*").strip()
    glued = text[covering.end() : covering.end() + 1].isalnum() and found.end() <= covering.end()
    if glued or GOES_ON.match(text, covering.end()):
        raise Unreadable(f"'{shown}' is not a whole number")
    if covering["link"]:
        share = "/" in covering["link"] or covering["link"].lower().endswith("of")
        if not share or _plain(covering["other"]) != scale[1]:
            raise Unreadable(f"'{shown}' is not one number on a scale to {scale[1]:g}")
    if covering["unit"] and (covering["unit"] == "‰" or scale != (0, 100)):
        raise Unreadable(f"'{shown}' is not a number from {scale[0]:g} to {scale[1]:g}")
    return _plain(covering["value"])


def _plain(written: str) -> float:
    """A number as text; one or two digits after a comma are decimals, three could also be thousands."""
    plain = re.sub("[−–]", "-", written)
    plain = plain.replace(",", ".") if re.fullmatch(r"[-+]?\d+,\d{1,2}", plain) else plain
    try:
        return float(plain)
    except ValueError as error:
        raise Unreadable(f"'{written}' can be read in more than one way") from error
