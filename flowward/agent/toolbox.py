"""The tools of an agent by name, and what calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import world
from .calculator import Calculator
from .episode import Observation, Use
from .tools import Tool


@dataclass(frozen=True)
class Toolbox:
    tools: Mapping[str, Tool]

    @classmethod
    def load(cls, names: Sequence[str], unconfined: bool = False, ask: Callable[[str], Any] | None = None) -> Toolbox:
        found: dict[str, Tool] = {}
        for name in names:
            if name == "world":
                found |= world.tools()
            elif name == "calculator":
                found[name] = Calculator()
        return cls(found)

    def __call__(self, uses: Sequence[Use]) -> list[Observation]:
        found = []
        for use in uses:
            try:
                found.append(Observation(self.tools[use.tool](**use.arguments)))
            except Exception as error:
                found.append(Observation(str(error), True))
        return found


def located(name: str) -> str:
    return name
