"""Turn a judge's answer into a number: by a pattern, a winner, log-probabilities or JSON.

Each reader gives the fields that the request needs (`request`) and parses one choice of the answer (`read`). It never
guesses an answer that it cannot parse.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, with_config

from .wording import CLOSES, CUT_OFF, OPENS, Unreadable, number, readings, spoken

__all__ = ["MASS", "STRICT", "VERSION", "Json", "Number", "Unreadable", "Winner", "YesNo"]

STRICT = ConfigDict(extra="forbid")  # an unknown key in a template is an error
VERSION = 2  # of reading; part of a template's identity, because other scores come from equal answers
MASS = 0.5  # probability of yes and no together, below which the first token is no verdict


def _scaled(value: float, scale: tuple[float, float]) -> float:
    """Map a value to [0, 1]. Raise Unreadable if it is outside the scale."""
    low, high = scale
    if not low <= value <= high:  # the text of a huge integer is long
        raise Unreadable(f"{str(value)[:20]} is not between {low:g} and {high:g}")
    return (value - low) / (high - low)


def _check(scale: tuple[float, float]) -> None:
    if not (math.isfinite(scale[0]) and scale[0] < scale[1] < math.inf):
        raise ValueError(f"the scale must go from a smaller to a larger number, not from {scale[0]:g} to {scale[1]:g}")


@with_config(STRICT)
@dataclass(frozen=True)
class Number:
    """A number in the text: the first group of the last match of a pattern."""

    kind: Literal["number"]
    pattern: str
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        _check(self.scale)
        if _compiled(self.pattern).groups < 1:
            raise ValueError(f"the pattern '{self.pattern}' has no group; put the number in parentheses")

    def request(self) -> dict[str, Any]:
        return {}

    def read(self, choice: Mapping[str, Any]) -> float:
        said = spoken(choice)
        for text in readings(said):
            if found := list(re.finditer(self.pattern, text)):
                return _scaled(number(found[-1], self.scale), self.scale)
        raise Unreadable(f"there is no score in '{said[-200:]}'")


@with_config(STRICT)
@dataclass(frozen=True)
class Winner:
    """The better of two images, by the pattern that matches last: 1 for the first image, 0 for the second, tie 0.5."""

    kind: Literal["winner"]
    first: str
    second: str
    tie: str

    def __post_init__(self) -> None:
        for pattern in (self.first, self.second, self.tie):
            _compiled(pattern)

    def request(self) -> dict[str, Any]:
        return {}

    def read(self, choice: Mapping[str, Any]) -> float:
        said = spoken(choice)
        for text in readings(said):
            found = [
                (match.end(), score)
                for pattern, score in ((self.first, 1.0), (self.second, 0.0), (self.tie, 0.5))
                for match in re.finditer(pattern, text)
            ]
            if found:
                return max(found)[1]
        raise Unreadable(f"there is no verdict in '{said[-200:]}'")


@with_config(STRICT)
@dataclass(frozen=True)
class YesNo:
    """P(yes) / (P(yes) + P(no)) at the first token, each summed over its spellings (case, spaces and quotes).

    If the model thinks first and max_tokens lets it finish, this is the first token after its thought.
    """

    kind: Literal["yes-no"]
    positive: tuple[str, ...] = ("yes",)
    negative: tuple[str, ...] = ("no",)
    top: int = 20
    """use this many alternatives of the first token; others count as probability 0"""

    def request(self) -> dict[str, Any]:
        return {"max_tokens": 1, "logprobs": True, "top_logprobs": self.top}

    def read(self, choice: Mapping[str, Any]) -> float:
        try:
            tokens = _likely(_first(choice["logprobs"]["content"], choice.get("finish_reason")))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise Unreadable("it has no log-probabilities for its first token") from error
        yes, no = (
            sum(p for token, p in tokens.items() if _bare(token) in set(map(_bare, spellings)))
            for spellings in (self.positive, self.negative)
        )
        if yes + no < MASS:
            likely = ", ".join(
                f"{token!r} {p:.2g}" for token, p in sorted(tokens.items(), key=lambda each: -each[1])[:3]
            )
            raise Unreadable(
                f"{self.positive[0]} and {self.negative[0]} together have only probability {yes + no:.2g} at the first "
                f"token ({likely}); this model thinks before it answers: close its thought, or raise max_tokens"
            )
        return yes / (yes + no)


@with_config(STRICT)
@dataclass(frozen=True)
class Json:
    """A number in a JSON answer; the server enforces the schema (structured output)."""

    kind: Literal["json"]
    schema: dict[str, Any]
    scale: tuple[float, float]
    field: str = "score"

    def __post_init__(self) -> None:
        _check(self.scale)

    def request(self) -> dict[str, Any]:
        held = {"name": "judgement", "schema": self.schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": held}}

    def read(self, choice: Mapping[str, Any]) -> float:
        text = spoken(choice)
        found = [each[self.field] for each in _objects(text) if self.field in each]
        if not found:
            raise Unreadable(f"there is no JSON with `{self.field}` in '{text[-200:]}'")
        value = found[-1]
        if type(value) not in (int, float):
            raise Unreadable(f"`{self.field}` is {str(value)[:50]!r}")
        return _scaled(value, self.scale)


def _first(content: list[Mapping[str, Any]], reason: Any) -> Mapping[str, Any]:
    """The token in which the model speaks: the first one, or the first after its thought.

    Raises:
        Unreadable: the thought is not finished.
    """
    text, starts = "", []
    for each in content:
        starts.append(len(text))
        text += each["token"]
    closed = max((match.end() for match in CLOSES.finditer(text)), default=0)
    if len(content) > 1 and not closed and OPENS.match(text.lstrip()):
        cut = f" (finish_reason {reason})" if reason in CUT_OFF else ""
        raise Unreadable(f"its thought is not finished{cut}; raise max_tokens in the template's request")
    after = [each for each, start in zip(content, starts, strict=True) if start >= closed]
    return next((each for each in after if each["token"].strip()), after[0])


def _likely(first: Mapping[str, Any]) -> dict[str, float]:
    """The probabilities of a token and its alternatives.

    Raises:
        TypeError, ValueError, OverflowError: a token is no text, or its log-probability no number up to 0.
    """
    found = {}
    for each in [first, *first["top_logprobs"]]:
        token, log = each["token"], float(each["logprob"])
        if not isinstance(token, str) or not log < 1e-3:  # rounding may leave a little above 0
            raise ValueError(token)
        found[token] = math.exp(log)
    return found


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, in order; a model may put words or backticks around them."""
    found, at = [], text.find("{")
    while at >= 0:
        try:
            value, end = DECODER.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError if an object says something twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _bare(token: str) -> str:
    """A token in lower case, without surrounding spaces, quotes, punctuation and tokenizer marks."""
    return token.strip(" \n\t\"'`*.,:;!?▁Ġ").lower()


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
