"""The memory of an episode: what is shortened first, and what the prompt says of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from spied_agents import CARDS, agent, driven, plan

from flowward.agent.episode import (
    Ask,
    Messages,
    Observation,
    Verdict,
)
from flowward.agent.figures import counts
from flowward.agent.memory import CUT, SHORT, Entry, Memory
from flowward.agent.modules import (
    PlannerByTemplate,
    Rule,
)
from flowward.agent.system import Limits
from flowward.agent.templates import Templates

# The memory


def entry(turn: int, length: int) -> Entry:
    return Entry(turn, "web_search", "g", "c", str(turn) * length)


def test_oldest_results_are_shortened_first_then_dropped() -> None:
    memory = Memory((entry(1, 400), entry(2, 10), entry(3, 300)))
    short = [str(turn) * SHORT + CUT for turn in (1, 3)]
    shown = [[each.result for each in version.entries] for version in memory.versions()]
    assert shown == [
        ["1" * 400, "2" * 10, "3" * 300],
        [short[0], "2" * 10, "3" * 300],
        [short[0], "2" * 10, short[1]],
        ["2" * 10, short[1]],
        [short[1]],
        [],
    ]
    assert [(each.shortened, each.dropped) for each in memory.versions()] == [
        (0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (0, 3),
    ]  # fmt: skip
    assert [each.note for each in memory.versions()] == [
        "",
        "the memory is too long: 1 old result is shortened",
        "the memory is too long: 2 old results are shortened",
        "the memory is too long: step 1 is left out, and long results of later steps are shortened",
        "the memory is too long: steps 1 to 2 are left out, and long results of later steps are shortened",
        "the memory is too long: steps 1 to 3 are left out",
    ]


def test_a_version_is_never_longer_than_the_one_before() -> None:
    for length in range(SHORT - 2, SHORT + len(CUT) + 3):
        sizes = [sum(len(each.result) for each in own.entries) for own in Memory((entry(1, length),)).versions()]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)
    assert [*Memory().versions()] == [Memory()]


@dataclass(frozen=True)
class Letters:
    """A reader whose tokens are letters."""

    room: float

    def encode(self, messages: Messages) -> tuple[int, ...]:
        return tuple(map(ord, "".join(text for _, text in messages)))


def test_a_prompt_that_is_too_long_shows_a_shorter_memory_and_says_so() -> None:
    prompts: list[str] = []
    empty = len(Letters(0).encode(PlannerByTemplate(Templates()).ask("q", "", CARDS, Memory())))
    system = agent(
        verifier=Rule(lambda *_: Verdict(False)),
        reader=Letters(empty + 400),
        limits=Limits(max_turns=4, max_result=300),
    )

    def said(_: int, ask: Ask) -> str:
        prompts.append(ask.messages[1][1])
        return plan("web_search")

    (found,), _ = driven([system.episode("q")], said, lambda use: Observation("r" * 300))
    assert [(turn.shortened, turn.dropped) for turn in found.turns] == [(0, 0), (0, 0), (1, 1), (1, 2)]
    assert all(len(turn.prompt) <= empty + 400 for turn in found.turns)
    assert "(Note: the memory is too long: step 1 is left out" in prompts[2]
    assert "(Note" not in prompts[1]
    assert counts([found])["shortened"] == 2
    assert counts([found])["dropped"] == 2


def test_a_question_that_is_too_long_is_refused_before_the_run() -> None:
    """With room for the note about the memory, so that a question which passes never fails later."""
    planner = PlannerByTemplate(Templates())
    most = len(Letters(0).encode(planner.ask("q" * 9, "", CARDS, Memory(dropped=4))))
    agent(reader=Letters(most)).refuse("q" * 9)
    with pytest.raises(
        ValueError, match=rf"the question 'qqqq.*' makes a prompt of {most + 1} tokens, but .* room for {most}"
    ):
        agent(reader=Letters(most)).refuse("q" * 10)
    tight = agent(reader=Letters(most), verifier=Rule(lambda *_: Verdict(False)), analyst=Rule(lambda *_: "long" * 50))
    (found,), _ = driven([tight.episode("q" * 9)], lambda *_: plan("web_search"))
    assert [turn.dropped for turn in found.turns] == [0, 1, 2, 3]  # and the analysis is left out
    assert "first step" in planner.ask("q", "", CARDS, Memory())[1][1]
    assert "first step" not in planner.ask("q", "", CARDS, Memory(dropped=2))[1][1]
