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

STRICT = ConfigDict(extra="forbid")  # an unknown key in a template is an error


class Unreadable(Exception):
    """An answer that contains no score."""


def _text(choice: Mapping[str, Any]) -> str:
    content = choice.get("message", {}).get("content")
    if not isinstance(content, str) or not content.strip():
        raise Unreadable(f"it is empty (finish_reason {choice.get('finish_reason')})")
    return content


def _scaled(value: float, scale: tuple[float, float]) -> float:
    """Map a value to [0, 1]. Raise Unreadable if it is outside the scale."""
    low, high = scale
    if not low <= value <= high:
        raise Unreadable(f"{value:g} is not between {low:g} and {high:g}")
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
        found = re.findall(self.pattern, text := _text(choice))
        if not found:
            raise Unreadable(f"there is no score in '{text[-200:]}'")
        try:
            return _scaled(float(found[-1] if isinstance(found[-1], str) else found[-1][0]), self.scale)
        except ValueError as error:
            raise Unreadable(f"'{found[-1]}' is not a number") from error


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
        text, found = _text(choice), []
        for pattern, score in ((self.first, 1.0), (self.second, 0.0), (self.tie, 0.5)):
            found += [(match.end(), score) for match in re.finditer(pattern, text)]
        if not found:
            raise Unreadable(f"there is no verdict in '{text[-200:]}'")
        return max(found)[1]


@with_config(STRICT)
@dataclass(frozen=True)
class YesNo:
    """P(yes) / (P(yes) + P(no)) at the first token, each summed over its spellings (case, spaces and quotes)."""

    kind: Literal["yes-no"]
    positive: tuple[str, ...] = ("yes",)
    negative: tuple[str, ...] = ("no",)
    top: int = 20
    """use this many alternatives of the first token; others count as probability 0"""

    def request(self) -> dict[str, Any]:
        return {"max_tokens": 1, "logprobs": True, "top_logprobs": self.top}

    def read(self, choice: Mapping[str, Any]) -> float:
        try:
            first = choice["logprobs"]["content"][0]
            tokens = {each["token"]: float(each["logprob"]) for each in [first, *first["top_logprobs"]]}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unreadable("it has no log-probabilities for its first token") from error
        logs = {
            word: [log for token, log in tokens.items() if _bare(token) in set(map(_bare, spellings))]
            for word, spellings in (("yes", self.positive), ("no", self.negative))
        }
        largest = max([*logs["yes"], *logs["no"]], default=-math.inf)
        if not math.isfinite(largest):
            raise Unreadable(
                f"neither {self.positive[0]} nor {self.negative[0]} is among its {len(tokens)} most likely first tokens"
            )
        yes, no = (sum(math.exp(log - largest) for log in logs[word]) for word in ("yes", "no"))
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
        text = _text(choice)
        try:  # some servers put it between backticks
            value = json.loads(text[text.index("{") : text.rindex("}") + 1])[self.field]
        except (ValueError, KeyError, RecursionError) as error:
            raise Unreadable(f"there is no JSON with `{self.field}` in '{text[-200:]}'") from error
        if type(value) not in (int, float):
            raise Unreadable(f"`{self.field}` is {value!r}")
        return _scaled(value, self.scale)


def _bare(token: str) -> str:
    """A token in lower case, without surrounding spaces, quotes, punctuation and tokenizer marks."""
    return token.strip(" \n\t\"'`*.,:;!?▁Ġ").lower()


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
