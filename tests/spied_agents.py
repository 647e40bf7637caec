"""Agents that tell what each module reads, tools that fail, clocks that are set by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowward.agent.episode import (
    Ask,
    Episode,
    Observation,
    Request,
    Said,
    Use,
)
from flowward.agent.modules import (
    PlannerByTemplate,
    Rule,
    context_as_input,
    last_result,
    stop_after_a_final_tool,
)
from flowward.agent.system import Driver, Limits, System
from flowward.agent.templates import Templates
from flowward.agent.tools import Card

SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TWO = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
CARDS = (
    Card("web_search", "searches", SCHEMA),
    Card("weather", "a forecast", TWO, limits="no past"),
    Card("answer", "answers", SCHEMA),
)


@dataclass(frozen=True)
class Tool:
    card: Card

    def __call__(self, **arguments: Any) -> str:
        return ""


TOOLS = {card.name: Tool(card) for card in CARDS}


@dataclass
class Spied:
    """A module by rule that keeps what it was called with."""

    rule: Callable[..., Any]
    read: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, *read: Any) -> Generator[Request, Any, Any]:
        self.read.append(read)
        yield from ()
        return self.rule(*read)


class Clock:
    """Moves on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def agent(**modules: Any) -> System:
    given: dict[str, Any] = {
        "planner": PlannerByTemplate(Templates()), "executor": Rule(context_as_input),
        "verifier": Rule(stop_after_a_final_tool), "generator": Rule(last_result), "tools": TOOLS,
        "limits": Limits(max_turns=4),
    }  # fmt: skip
    return System(**(given | modules))


def plan(tool: str, context: str = "x") -> str:
    return f"Goal: g\nInput: {context}\nTool: {tool}"


def driven(
    episodes: Sequence[Generator[Request, Any, Episode]],
    said: Callable[[int, Ask], Any],
    results: Callable[[Use], Observation] = lambda use: Observation(f"result of {use.tool}"),
    models: Mapping[str, Any] | None = None,
) -> tuple[list[Episode], list[list[int]]]:
    """The episodes, and which of them the planner was asked for in each round. `said(episode, ask)` is its answer."""
    rounds: list[list[int]] = []

    def planner(numbers: Sequence[int], asks: Sequence[Ask]) -> list[Any]:
        rounds.append(list(numbers))
        found = [said(number, ask) for number, ask in zip(numbers, asks, strict=True)]
        return [Said(each) if isinstance(each, str) else each for each in found]

    driver = Driver(planner, lambda uses: [results(use) for use in uses], models or {})
    return driver.run(episodes), rounds


def one(system: System, *said: str, **more: Any) -> Episode:
    """One episode in which the planner says these things in turn."""
    (found,), _ = driven([system.episode("question?")], lambda _, ask: said[min(ask.turn, len(said) - 1)], **more)
    return found
