"""An agent as four modules around a memory (AgentFlow, arXiv:2510.05592), and what runs its episodes.

`System.episode` is a generator. It yields requests (to the planner, to other models, to tools) and is sent their
answers, so it does no input or output itself. `run` drives many episodes in step: all planner requests of a round are
one batch, and so are the others. The same generator serves training, `solve` and an external trainer.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from ..system.asking import ServiceError
from ..system.errors import at_least_one, between, positive
from .episode import (
    PLANNER,
    Answer,
    Ask,
    End,
    Episode,
    Messages,
    Observation,
    Plan,
    Request,
    Said,
    Trouble,
    Turn,
    Unreadable,
    Use,
)
from .memory import Entry, Memory
from .modules import Analyst, Executor, Planner, Rule, Verifier, no_analysis
from .modules import Generator as Writer
from .tools import Card, Tool

MOST_TURNS = 1000  # of an episode
LONGEST_RESULT = 4000  # characters of a result in the memory


@dataclass(frozen=True)
class Limits:
    """When an episode ends, if the verifier does not end it."""

    max_turns: int = 5
    """most turns of an episode"""
    max_time: float = 300.0
    """most seconds of an episode; the turn that is running is finished"""
    max_tokens: int = 512
    """most tokens of one answer of the planner"""
    max_result: int = LONGEST_RESULT
    """cut results of tools after so many characters"""

    def __post_init__(self) -> None:
        between(self, 1, MOST_TURNS, "max_turns")
        at_least_one(self, "max_tokens", "max_result")
        positive(self, "max_time")


class Reader(Protocol):
    """Text to token ids, for the planner."""

    @property
    def room(self) -> float: ...  # most token ids of a prompt

    def encode(self, messages: Messages) -> tuple[int, ...]: ...


class Text:
    """A reader for planners that are asked in text: no ids, and no limit."""

    room = float("inf")

    def encode(self, messages: Messages) -> tuple[int, ...]:
        return ()


Watcher = Callable[[str, Any], object]
"""called with the name of what has happened and a value: ("analysis", text), ("planned", Plan or the error),
("observed", Entry), ("judged", Verdict), ("answered", text)"""


def unwatched(name: str, value: Any) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class System:
    """An agent: modules, tools and limits."""

    planner: Planner
    executor: Executor
    verifier: Verifier
    generator: Writer
    tools: Mapping[str, Tool]
    limits: Limits = field(default_factory=Limits)
    reader: Reader = field(default_factory=Text)
    analyst: Analyst = field(default_factory=lambda: Rule(no_analysis))

    @cached_property
    def cards(self) -> list[Card]:
        """What planner and verifier read about the tools."""
        return [tool.card for tool in self.tools.values()]

    def episode(
        self, question: str, seen: Watcher = unwatched, clock: Callable[[], float] = time.monotonic
    ) -> Generator[Request, Any, Episode]:
        """One episode of a question. ServiceError, thrown in by the driver, ends it as `failed`."""
        started, turns = clock(), list[Turn]()

        def finished(answer: str, end: End, why: str = "") -> Episode:
            return Episode(question, tuple(turns), answer, end, why, clock() - started)

        cards, memory = self.cards, Memory()
        end: End | None = None
        try:
            analysis = shortened((yield from self.analyst(question, cards)), self.limits.max_result)
            seen("analysis", analysis)
            while end is None:
                ask, shown = self._ask(question, analysis, memory, len(turns))
                said = yield ask
                turn, entry = yield from self._acted(question, ask, said, shown, seen)
                turns.append(turn)
                memory = memory.with_entry(entry)
                seen("observed", entry)
                verdict = yield from self.verifier(question, analysis, cards, memory)
                turns[-1] = replace(turn, verdict=verdict)
                memory = memory.judged(verdict.why)
                seen("judged", verdict)
                if verdict.stop:
                    end = "stopped"
                elif len(turns) == self.limits.max_turns:
                    end = "turns"
                elif clock() - started > self.limits.max_time:
                    end = "time"
            answer = yield from self.generator(question, analysis, memory)
        except ServiceError as error:
            return finished("", "failed", str(error))
        seen("answered", answer)
        return finished(answer, end)

    def _ask(self, question: str, analysis: str, memory: Memory, turn: int) -> tuple[Ask, Memory]:
        """The planner's prompt, with the longest version of the memory that fits; if none does, without the analysis.

        Raises:
            ValueError: the question alone does not fit.
        """
        for about, shown in product(dict.fromkeys((analysis, "")), memory.versions()):
            messages = self.planner.ask(question, about, self.cards, shown)
            ids = self.reader.encode(messages)
            if len(ids) <= self.reader.room:
                return Ask("planner", PLANNER, messages, ids, turn), shown
        raise ValueError(
            f"the question '{question[:60]}' makes a prompt of {len(ids)} tokens, but the model has room for "
            f"{self.reader.room:.0f}: shorten it, or use fewer tools"
        )

    def refuse(self, question: str) -> None:
        """Raise ValueError if the question alone does not fit into the planner's context."""
        self._ask(question, "", Memory(dropped=self.limits.max_turns), 0)  # the note takes room as well

    def _acted(
        self, question: str, ask: Ask, said: Said, shown: Memory, seen: Watcher
    ) -> Generator[Request, Any, tuple[Turn, Entry]]:
        """Read the plan, call its tool. Whatever goes wrong is told in the memory, and costs the turn."""
        plan: Plan | None = None
        arguments: Mapping[str, Any] | None = None
        trouble: Trouble = ""
        try:
            plan = self.planner.read(said.text, self.cards)
            seen("planned", plan)
            card = self.tools[plan.tool].card
            arguments = yield from self.executor(question, plan, card)
            refuse_arguments(card.schema, arguments)
            observed = yield Use(plan.tool, arguments)
        except Unreadable as error:
            if plan is None:
                seen("planned", error)
            result, trouble = str(error), error.trouble
        else:
            result = shortened(observed.text, self.limits.max_result)
            trouble = "error" if observed.failed else ""
        turn = Turn(ask.ids, said, plan, arguments, result, trouble, None, shown.shortened, shown.dropped)
        command = "" if arguments is None else as_text(arguments)
        plan = plan or Plan("")
        told = f"error: {result}" if trouble else result
        return turn, Entry(ask.turn + 1, plan.tool, plan.goal, command or plan.context, told)


def as_text(arguments: Mapping[str, Any]) -> str:
    """The arguments of a tool, for a reader: a single text as it is, several as JSON."""
    values = list(arguments.values())
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(arguments, ensure_ascii=False, default=str)


def shortened(text: str, most: int) -> str:
    """A text of a tool, cut with a note if it is too long."""
    return text if len(text) <= most else f"{text[:most]} ... (cut after {most} of {len(text)} characters)"


TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


def refuse_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check names and types of a tool's arguments; the tool itself checks the rest.

    Raises:
        Unreadable: one is missing, unknown, or of another type.
    """
    known = schema.get("properties", {})
    if missing := [name for name in schema.get("required", ()) if name not in arguments]:
        raise Unreadable(f"the argument '{missing[0]}' is missing", "arguments")
    closed = known and schema.get("additionalProperties", False) is False
    if strange := [name for name in arguments if closed and name not in known]:
        raise Unreadable(f"there is no argument '{strange[0]}'; there are {', '.join(known)}", "arguments")
    for name, value in arguments.items():
        kind = known.get(name, {}).get("type")
        allowed = TYPES.get(kind) if isinstance(kind, str) else None
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            raise Unreadable(f"the argument '{name}' must be of type {kind}", "arguments")


Answerer = Callable[[Sequence[Ask]], Sequence[Said | ServiceError]]
"""answers requests to one model, in order; a request that a server refused for good gets the error"""

Drawer = Callable[[Sequence[int], Sequence[Ask]], Sequence[Said | ServiceError]]
"""answers the planner's requests of these episodes (their places in the batch), in order"""

Caller = Callable[[Sequence[Use]], Sequence[Observation]]
"""calls tools, and returns their results in order"""


@dataclass
class Driver:
    """What answers the requests of episodes."""

    planner: Drawer
    tools: Caller
    models: Mapping[str, Answerer] = field(default_factory=dict)  # by Ask.model
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # spent for each module, and tools

    def run(self, episodes: Sequence[Generator[Request, Any, Episode]]) -> list[Episode]:
        """Run episodes to their ends, in step: the planner is asked when all that go on wait for it."""
        done: dict[int, Episode] = {}
        waiting: dict[int, Request] = {}
        for number, episode in enumerate(episodes):
            self._advance(number, episode, None, waiting, done)
        while waiting:
            others = [number for number, request in waiting.items() if _kind(request) != PLANNER]
            for numbers, answers in self._answered(others or sorted(waiting), waiting):
                for number, answer in zip(numbers, answers, strict=True):
                    self._advance(number, episodes[number], answer, waiting, done)
        return [done[number] for number in range(len(episodes))]

    def _advance(
        self,
        number: int,
        episode: Generator[Request, Any, Episode],
        answer: Answer | ServiceError | None,
        waiting: dict[int, Request],
        done: dict[int, Episode],
    ) -> None:
        waiting.pop(number, None)
        try:
            waiting[number] = episode.throw(answer) if isinstance(answer, ServiceError) else episode.send(answer)
        except StopIteration as end:
            done[number] = end.value

    def _answered(
        self, numbers: Sequence[int], waiting: Mapping[int, Request]
    ) -> Iterator[tuple[list[int], Sequence[Answer | ServiceError]]]:
        """The answers to these requests, in one batch for each model and one for all tools."""
        kinds: dict[str, list[int]] = defaultdict(list)
        for number in sorted(numbers):
            kinds[_kind(waiting[number])].append(number)
        for kind, mine in kinds.items():
            requests: list[Any] = [waiting[number] for number in mine]
            with self._timed("tools" if isinstance(requests[0], Use) else requests[0].who):
                answers: Sequence[Answer | ServiceError]
                if isinstance(requests[0], Use):
                    answers = self.tools(requests)
                elif kind == PLANNER:
                    answers = self.planner(mine, requests)
                else:
                    answers = self.models[kind](requests)
            yield mine, answers  # not timed: what the episodes make of them

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started


def _kind(request: Request) -> str:
    return "tools" if isinstance(request, Use) else request.model
