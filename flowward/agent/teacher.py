"""The teacher that the start of the built-in world's planner imitates: it writes every plan well, but plays badly.

It guesses, or searches and calculates the wrong things. So the start knows the language, and has the right strategy to
learn. Turns are labelled by the teacher, but an episode goes on with the right plan most of the time: so late states
are well known too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import world
from .episode import Messages
from .memory import Entry, Memory
from .system import System

FIRST = 0.35  # share of first turns that are kept: they teach least
RIGHT = 0.6  # how often an episode goes on with the right action, whatever the label is
EARLY = {"guess": 0.45, "wrong": 0.20}  # how often the teacher does so in the first turn
CALCULATED = 0.9  # share of calculations among the wrong plans of the first turn: so the likeliest tool is `guess`
LATE = {"guess": 0.25, "wrong": 0.10}  # and in later ones


def right(asked: world.Asked, memory: Memory) -> str:
    """The plan that leads to the answer: search what is not known yet, then calculate."""
    found = {entry.command: world.found(entry) for entry in memory.entries}
    for fact in asked.facts:
        if not found.get(" ".join(fact)):
            return f"{world.SEARCH} {' '.join(fact)}"
    return f"{world.CALCULATOR} {asked.sum}"


def wrong(rng: np.random.Generator, first: bool) -> str:
    """A search for any fact, or in the first turn more often any calculation."""
    if first and rng.random() < CALCULATED:
        a, b = rng.integers(world.LEAST, world.MOST + 1, 2)
        return f"{world.CALCULATOR} {a} {rng.choice(list(world.OPERATORS.values()))} {b}"
    return f"{world.SEARCH} {' '.join(world.FACTS[rng.integers(len(world.FACTS))])}"


def teacher(rng: np.random.Generator, good: str, first: bool) -> str:
    """What the teacher does in the place of the right plan."""
    chances, chance = EARLY if first else LATE, rng.random()
    if chance < chances["guess"]:
        return world.GUESS
    return wrong(rng, first) if chance < chances["guess"] + chances["wrong"] else good


def after(memory: Memory, plan: str, question: str, agent: System) -> Memory:
    """The memory once a plan has been carried out."""
    name, _, context = plan.partition(" ")
    tool = agent.tools[name]
    result = tool(**{tool.card.required[0]: context or question})
    return memory.with_entry(Entry(len(memory) + 1, name, "", context, result))


@dataclass(frozen=True)
class Labelled:
    """A turn to imitate."""

    messages: Messages
    plan: str


def walk(rng: np.random.Generator, question: str, asked: world.Asked, agent: System) -> Iterator[Labelled]:
    """The turns of one episode with the teacher's labels."""
    memory, cards = Memory(), [tool.card for tool in agent.tools.values()]
    for turn in range(agent.limits.max_turns):
        good = right(asked, memory)
        plan = teacher(rng, good, first=turn == 0)
        yield Labelled(agent.planner.ask(question, "", cards, memory), plan)
        memory = after(memory, good if rng.random() < RIGHT else plan, question, agent)
        if world.verdict(question, "", cards, memory).stop:
            return


def turns(rng: np.random.Generator, count: int, agent: System) -> list[Labelled]:
    """`count` turns of random questions of training, equally many questions per stratum."""
    given, known = world.questions(), world.asked(held_out=False)
    found: list[Labelled] = []
    for place in given.walk(int(rng.integers(2**31)), int(rng.integers(len(given)))):
        text = given.texts[place]
        for number, turn in enumerate(walk(rng, text, known[text], agent)):
            if number or rng.random() < FIRST:
                found.append(turn)
        if len(found) >= count:
            break
    return found[:count]


def flawless(question: str, asked: world.Asked, agent: System) -> Iterator[tuple[Messages, str]]:
    """The turns of an episode in which every plan is right: prompts, and plans."""
    memory, cards = Memory(), [tool.card for tool in agent.tools.values()]
    for _ in range(len(asked.facts) + bool(asked.operator)):
        plan = right(asked, memory)
        yield agent.planner.ask(question, "", cards, memory), plan
        memory = after(memory, plan, question, agent)
