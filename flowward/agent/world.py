"""The built-in world of agents: towers whose heights, widths and ages can be looked up, and questions about them.

A quarter of the questions ask for one fact (one turn: search); the others for the sum, difference or product of two
(three turns: search, search, calculator). The tool `guess` is the tempting one: it ends the episode at once, and its
number is nearly always wrong. Everything but the planner goes by rule, so a run needs no server.

Held-out questions are about other lookups, and about other ordered pairs of towers, than those of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any

from ..prompts.picks import number, picks
from ..prompts.prompt import PromptSet
from .calculator import Calculator, calculate
from .episode import Messages, Plan, Unreadable, Verdict
from .memory import Entry, Memory
from .modules import Rule, context_as_input, last_result
from .system import Limits, Reader, System
from .tools import Card, Tool

TOWERS = (
    *("arlo", "brim", "cald", "dorn", "elka", "fenn", "gild", "hart"),
    *("ivor", "jute", "kell", "lorn", "mere", "nash", "orla", "pike"),
)
ATTRIBUTES = ("height", "width", "age")
LEAST, MOST = 2, 12  # of a value: differences are from -10 on, products up to 144
OPENINGS = ("what is", "find", "give", "state", "report", "tell me", "work out", "compute")
OPERATORS = {"plus": "+", "minus": "-", "times": "*"}
CATEGORIES = {"": "lookup", "plus": "sum", "minus": "difference", "times": "product"}
SEARCH, CALCULATOR, GUESS = "search", "calculator", "guess"
NOTHING, ERROR = "none", "error"  # what the planner reads in the place of a number
GUESSES = 100  # a guess is a number below
HELD_OUT_PAIRS, HELD_OUT_LOOKUPS = 48, 16  # of 240 ordered pairs of towers, and of 48 facts
REMEMBERED = 4096  # texts whose words are kept: episodes of a question ask for the same
LIMITS = Limits(max_turns=5, max_tokens=8)

Fact = tuple[str, str]
"""(attribute, tower)"""

FACTS: tuple[Fact, ...] = tuple((attribute, tower) for tower in TOWERS for attribute in ATTRIBUTES)


def value(fact: Fact) -> int:
    """A fixed number from 2 to 12."""
    return LEAST + number(" ".join(fact)) % (MOST - LEAST + 1)


def sentences() -> tuple[str, ...]:
    """All that can be looked up: 48 sentences."""
    return tuple(f"the {fact[0]} of {fact[1]} is {value(fact)}" for fact in FACTS)


def words(text: str) -> list[str]:
    """Words, whole numbers and operators of a text, in lower case."""
    return list(_words(text))


@lru_cache(REMEMBERED)
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+|-?\d+|[-+*]", text.lower()))


@dataclass(frozen=True)
class Asked:
    """What a question asks for."""

    facts: tuple[Fact, ...]
    operator: str = ""  # plus, minus or times; empty for a lookup

    @property
    def category(self) -> str:
        return CATEGORIES[self.operator]

    @property
    def sum(self) -> str:
        """What has to be calculated, once the facts are known."""
        return f" {OPERATORS[self.operator]} ".join(str(value(fact)) for fact in self.facts)

    @property
    def answer(self) -> str:
        return calculate(self.sum) if self.operator else str(value(self.facts[0]))

    def text(self, opening: str) -> str:
        return f"{opening} " + f" {self.operator} ".join(f"the {kind} of {tower}" for kind, tower in self.facts)


def operator(question: str) -> str:
    """The first operator in a question; empty if there is none."""
    return next((word for word in words(question) if word in OPERATORS), "")


def _lookups(held_out: bool) -> Iterator[tuple[str, Asked]]:
    """In all openings, because there are few of them."""
    chosen = set(picks("agent world lookups", len(FACTS), HELD_OUT_LOOKUPS))
    for opening in OPENINGS:
        for place, fact in enumerate(FACTS):
            if (place in chosen) == held_out:
                asked = Asked((fact,))
                yield asked.text(opening), asked


def _compositions(held_out: bool) -> Iterator[tuple[str, Asked]]:
    """Each in one opening."""
    pairs = [(a, b) for a in TOWERS for b in TOWERS if a != b]
    chosen = set(picks("agent world pairs", len(pairs), HELD_OUT_PAIRS))
    for name in OPERATORS:
        for place, (a, b) in enumerate(pairs):
            if (place in chosen) != held_out:
                continue
            for kinds in ((first, second) for first in ATTRIBUTES for second in ATTRIBUTES):
                asked = Asked(((kinds[0], a), (kinds[1], b)), name)
                yield asked.text(OPENINGS[number(asked.text("")) % len(OPENINGS)]), asked


@cache
def asked(held_out: bool) -> Mapping[str, Asked]:
    """All questions of training, or all held-out ones: what each asks for, by text."""
    return dict([*_lookups(held_out), *_compositions(held_out)])


def _prompts(name: str, held_out: bool) -> PromptSet:
    given = asked(held_out)
    categories = tuple(each.category for each in given.values())
    return PromptSet(name, tuple(given), categories, metadata=tuple({"answer": each.answer} for each in given.values()))


@cache
def questions() -> PromptSet:
    """`world`: 5,440 questions in the categories lookup, sum, difference and product; the answer is in the metadata."""
    return _prompts("world", held_out=False)


@cache
def held_out() -> PromptSet:
    """`world-held-out`: 1,424 questions about other lookups and other ordered pairs of towers."""
    return _prompts("world-held-out", held_out=True)


def _card(name: str, about: str, argument: str, limits: str = "") -> Card:
    """The card of a tool with one text argument."""
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return Card(name, about, schema, limits)


@dataclass(frozen=True)
class Search:
    """Finds the sentence that shares most words with the query, and returns its number."""

    documents: tuple[str, ...] = field(default_factory=sentences)
    card: Card = field(default=_card(SEARCH, "looks up a number about a tower", "query", "it knows 48 sentences"))

    @cached_property
    def _words(self) -> list[set[str]]:
        return [set(words(document)) for document in self.documents]

    def __call__(self, query: str) -> str:
        """The number, or a text without numbers if no sentence fits, or several fit equally well."""
        wanted = set(words(query))
        shared = [len(wanted & known) for known in self._words]
        best = max(shared)
        if best == 0:
            return "no sentence has any of these words"
        if shared.count(best) > 1:
            return "several sentences fit equally well: name the tower and what you want to know about it"
        return self.documents[shared.index(best)].split()[-1]


@dataclass(frozen=True)
class Guess:
    """A number for any question, at once: a fixed one for each, and nearly always wrong."""

    card: Card = field(default=_card(GUESS, "answers any question at once", "question", "often wrong"))

    def __call__(self, question: str) -> str:
        return str(number(f"guess {question}") % GUESSES)


def tools() -> dict[str, Tool]:
    """The tools of the world by name."""
    made: tuple[Any, ...] = (Search(), Calculator(), Guess())  # each names its one argument
    return {tool.card.name: tool for tool in made}


def found(entry: Entry) -> str:
    """The number that a step found; empty if it failed or found none."""
    return entry.result if entry.tool and re.fullmatch(r"-?\d+", entry.result) else ""


@dataclass(frozen=True)
class Planner:
    """The planner's language: `QUESTION ; 1 search height arlo = 7 ; ...`, answered by a tool's name and its input."""

    def ask(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Messages:
        said = words(question)
        if memory.dropped:
            said += [";", "left", "out", str(memory.dropped)]
        for entry in memory.entries:
            said += [";", *_step(entry)]
        return (("user", " ".join(said)),)

    def read(self, text: str, tools: Sequence[Card]) -> Plan:
        """The first word is the tool; the others are its input.

        Raises:
            Unreadable: there is no word, or the first one is not a tool.
        """
        if not text.strip():
            raise Unreadable("the plan was empty", "empty")
        name, *rest = text.split()
        known = [card.name for card in tools]
        if name not in known:
            raise Unreadable(f"there is no tool '{name[:60]}'; the tools are {', '.join(known)}", "tool")
        return Plan(name, context=" ".join(rest))


def _step(entry: Entry) -> list[str]:
    """One step as the planner reads it."""
    failed = not entry.tool or entry.result.startswith(ERROR)
    given = [] if entry.tool == GUESS else words(entry.command)
    return [str(entry.turn), *words(entry.tool), *given, "=", found(entry) or (ERROR if failed else NOTHING)]


def executor(question: str, plan: Plan, tool: Card) -> Mapping[str, Any]:
    """The plan's context is the tool's one argument; but `guess` is given the question.

    Raises:
        Unreadable: another tool needs several arguments.
    """
    return {"question": question} if tool.name == GUESS else context_as_input(question, plan, tool)


def verdict(question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Verdict:
    """Stop after a guess; at a lookup after a search that found something, otherwise after a calculation.

    It does not know the answer, so it stops at a wrong sentence or calculation too.
    """
    last = memory.entries[-1]
    if not found(last):
        return Verdict(False, "no number yet")
    if last.tool == GUESS:
        return Verdict(True, "there is a guess")
    wanted = CALCULATOR if operator(question) else SEARCH
    return Verdict(last.tool == wanted, f"{wanted} {'was used' if last.tool == wanted else 'is still needed'}")


def system(reader: Reader, limits: Limits = LIMITS) -> System:
    """The agent of this world: the planner's model is what `reader` belongs to, all else goes by rule."""
    return System(Planner(), Rule(executor), Rule(verdict), Rule(last_result), tools(), limits, reader)


def vocabulary() -> tuple[str, ...]:
    """The words that occur in prompts and plans, with every number that a tool returns for a question as one word."""
    openings = [word for opening in OPENINGS for word in opening.split()]
    marks = ["the", "of", ";", "=", *OPERATORS, *OPERATORS.values(), NOTHING, ERROR, "left", "out"]
    numbers = [str(each) for each in range(LEAST - MOST, MOST * MOST + 1)]
    return tuple(dict.fromkeys([*openings, *marks, SEARCH, CALCULATOR, GUESS, *ATTRIBUTES, *TOWERS, *numbers]))
