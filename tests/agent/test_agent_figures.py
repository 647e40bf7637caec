"""Figures of episodes, and the health rules of agents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flowward.agent.episode import (
    Episode,
    Plan,
    Said,
    Turn,
    Verdict,
)
from flowward.agent.figures import behaviour, counts, shares
from flowward.agent.health import AgentHealth
from flowward.evaluation.outcome import NOUNS

# Figures


def turn(tool: str = "", ids: int = 2, **more: Any) -> Turn:
    said = Said("", tuple(range(ids)), (0.0,) * ids, more.pop("complete", True))
    return Turn((1, 2, 3), said, Plan(tool) if tool else None, verdict=Verdict(False), **more)


PLAYED = [
    Episode("", (turn("web_search", ids=4), turn("answer")), "", "stopped"),
    Episode("", (turn("web_search", trouble="error", complete=False),), "", "time"),
    Episode("", (turn(trouble="unreadable"), replace(turn("answer"), verdict=Verdict(False, "?", False))), "", "turns"),
    Episode("", (turn("answer", trouble="error"),), "", "failed"),  # says nothing about the agent
]  # fmt: skip


def test_figures_of_episodes() -> None:
    found = shares(counts(PLAYED))
    assert found["turns"] == pytest.approx(5 / 3)
    assert found["one_turn"] == pytest.approx(1 / 3)
    assert {name: found[f"end/{name}"] for name in ("stopped", "turns", "time", "failed")} == dict.fromkeys(
        ("stopped", "turns", "time", "failed"), 1 / 4
    )
    assert (found["tool/web_search"], found["tool/answer"], found["tool/none"]) == (2 / 5, 2 / 5, 1 / 5)
    assert (found["trouble/error"], found["trouble/unreadable"], found["trouble/empty"]) == (1 / 5, 1 / 5, 0)
    assert (found["cut"], found["undecided"], found["shortened"]) == (1 / 5, 1 / 5, 0)
    assert (found["answer_tokens"], found["prompt_tokens"]) == (12 / 5, 3)


def test_tools_by_turn_and_by_episode() -> None:
    found = behaviour(PLAYED)
    assert found["tools"] == {
        "1": {"web_search": 2 / 3, "none": 1 / 3, "n": 3},
        "2": {"answer": 1, "n": 2},
    }
    assert found["used"] == {"web_search": 2 / 3, "answer": 2 / 3, "none": 1 / 3}
    assert found["ends"]["failed"] == 1 / 4
    assert counts([])["turns"] == 0
    nothing = shares(counts(PLAYED[3:]))
    assert (nothing["end/failed"], nothing["turns"]) == (1, 0)


# Health

GOOD = {
    "reward": 0.5, "reward_std": 0.4, "turns": 2.0, "one_turn": 0.1, "end/stopped": 0.9, "end/turns": 0.1,
    "end/failed": 0.0, "trouble/empty": 0.02, "trouble/unreadable": 0.02, "trouble/tool": 0.02,
    "trouble/arguments": 0.02, "trouble/error": 0.08, "cut": 0.08, "undecided": 0.08, "tool/none": 0.4, "kl": 0.4,
    "answer_tokens": 20.0, "shortened": 0.08, "dropped": 0.08,
    "gradient_norm": 1.0,
}  # fmt: skip

TRIPPED: list[tuple[dict[str, float], str]] = [
    ({"end/failed": 0.01}, "1% of the episodes were lost because a server did not answer"),
    ({"trouble/tool": 0.05}, "11% of the turns had a plan that could not be used"),
    ({"trouble/empty": 0.11}, "had a plan that could not be used"),
    ({"trouble/unreadable": 0.11}, "had a plan that could not be used"),
    ({"trouble/arguments": 0.11}, "had a plan that could not be used"),
    ({"trouble/error": 0.12}, "12% of the turns ended in an error of a tool"),
    ({"cut": 0.2}, "20% of the planner's answers were cut at the limit of tokens: raise --max-tokens"),
    ({"one_turn": 1.0, "end/stopped": 1.0}, "all episodes end after one turn: look at the verifier"),
    ({"undecided": 0.15}, "15% of the verifier's answers said neither stop nor continue"),
    ({"tool/none": 0.6}, "60% of the turns use no tool"),
    ({"answer_tokens": 50.0}, "answers are 2.5 times as long as at the start"),
    ({"shortened": 0.12}, "12% of the prompts show a shortened memory"),
    ({"dropped": 0.13}, "13% of the prompts show a shortened memory"),
    ({"reward_std": 0.0}, "all episodes got the same reward"),
    ({"zero_variance": 0.6}, "60% of the groups have equal rewards and teach nothing"),
    ({"kl": 3.0}, "the planner is running away from its start (KL 3 nats per token"),
    ({"server_gap_mean": 0.2}, "the server's log-probabilities differ from those of training by 0.2 nats"),
]


def healthy() -> AgentHealth:
    health = AgentHealth(NOUNS["episodes"])
    for _ in range(6):
        assert health.check(GOOD) == []
    return health


@pytest.mark.parametrize(("metrics", "sentence"), TRIPPED)
def test_each_rule_of_health_trips_alone(metrics: dict[str, float], sentence: str) -> None:
    (line,) = healthy().check(GOOD | metrics)
    assert sentence in line


def test_one_turn_that_is_cut_off_is_no_fault_of_the_verifier() -> None:
    assert healthy().check(GOOD | {"one_turn": 1.0, "end/stopped": 0.5, "end/turns": 0.5}) == []
    assert AgentHealth(NOUNS["episodes"]).check({"answer_tokens": 3.0, "gradient_norm": 1.0}) == []


def test_health_remembers_the_start_over_a_resumed_run() -> None:
    before, after = healthy(), AgentHealth(NOUNS["episodes"])
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == before.state_dict()
    assert after.check(GOOD | {"answer_tokens": 60.0})
