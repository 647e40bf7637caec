"""What a tool is: a callable with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Card:
    """What planner and executor read about a tool."""

    name: str
    about: str  # what it does, in one or two sentences
    schema: Mapping[str, Any] = field(default_factory=dict)  # JSON schema of its arguments, an object
    limits: str = ""  # what it cannot do

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """The arguments and their schemas."""
        found: Mapping[str, Mapping[str, Any]] = self.schema.get("properties", {})
        return found

    @property
    def required(self) -> list[str]:
        return list(self.schema.get("required", self.properties))


class Tool(Protocol):
    """A tool. It returns text; an exception becomes an observation that says what went wrong."""

    @property
    def card(self) -> Card: ...

    def __call__(self, **arguments: Any) -> str: ...


class ToolError(Exception):
    """A failure that the planner should read, in one sentence."""
