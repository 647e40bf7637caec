"""Episodes of an agent: what ends them, what goes wrong in them, and many in step."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pytest
from spied_agents import TWO, Clock, Spied, agent, driven, one, plan

from flowward.agent.episode import (
    PLANNER,
    Ask,
    Observation,
    Plan,
    Request,
    Said,
    Unreadable,
    Use,
    Verdict,
)
from flowward.agent.modules import (
    AnalystByModel,
    ExecutorByModel,
    GeneratorByModel,
    Rule,
    VerifierByModel,
    context_as_input,
    read_arguments,
    stop_after_a_final_tool,
)
from flowward.agent.system import Driver, Limits, refuse_arguments, shortened
from flowward.agent.templates import Templates
from flowward.agent.tools import Card
from flowward.system.asking import ServiceError

# What goes wrong costs a turn, and is told


def by_json(question: str, plan: Plan, tool: Card) -> Mapping[str, Any]:
    return read_arguments(plan.context) if tool.name == "weather" else context_as_input(question, plan, tool)


@pytest.mark.parametrize(
    ("said", "trouble", "told"),
    [
        ("", "empty", "the plan was empty"),
        (" \n\t", "empty", "the plan was empty"),
        ("I would search the web.", "unreadable", "the plan names no tool"),
        ("Tool:\nGoal: x", "unreadable", "the plan names no tool"),
        (plan("telescope"), "tool", "there is no tool 'telescope'; the tools are web_search, weather, answer"),
        (plan("weather", "Rome"), "arguments", "the tool's arguments were not a JSON object"),
        (plan("weather", '{"days": 2}'), "arguments", "the argument 'city' is missing"),
        (plan("weather", '{"city": "Rome", "at": 2}'), "arguments", "there is no argument 'at'; there are city, days"),
        (plan("weather", '{"city": 5}'), "arguments", "the argument 'city' must be of type string"),
        (plan("weather", '{"city": "Rome", "days": true}'), "arguments", "the argument 'days' must be of type integer"),
        (plan("weather", '{"city": "Rome", "days": 1.5}'), "arguments", "the argument 'days' must be of type integer"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_used_costs_a_turn_and_is_told(said: str, trouble: str, told: str) -> None:
    seen = Spied(stop_after_a_final_tool)
    used: list[Use] = []

    def result(use: Use) -> Observation:
        used.append(use)
        return Observation("42")

    found = one(agent(verifier=seen, executor=Rule(by_json)), said, plan("answer"), results=result)
    first, second = found.turns
    assert (first.trouble, first.result, first.plan is None) == (trouble, told, trouble not in ("arguments",))
    assert (second.trouble, second.result) == ("", "42")
    assert [use.tool for use in used] == ["answer"]
    memory = seen.read[0][3]
    assert memory.entries[0].result == f"error: {told}"
    assert memory.entries[0].tool == ("weather" if trouble == "arguments" else "")
    assert (found.end, found.answer) == ("stopped", "42")


def test_an_error_of_a_tool_is_an_observation_and_long_results_are_cut_with_a_note() -> None:
    system = agent(limits=Limits(max_turns=2, max_result=5))

    def result(use: Use) -> Observation:
        return Observation("it broke", failed=True) if use.arguments["query"] == "x" else Observation("12345")

    found = one(system, plan("web_search"), plan("web_search", "y"), results=result)
    assert [turn.trouble for turn in found.turns] == ["error", ""]
    assert found.turns[0].result == "it br ... (cut after 5 of 8 characters)"
    assert found.answer == "12345"
    assert shortened("12345", 5) == "12345"


def test_arguments_are_checked_by_name_and_type() -> None:
    refuse_arguments({}, {"anything": 1})
    refuse_arguments({**TWO, "additionalProperties": True}, {"city": "a", "more": 1})
    refuse_arguments(TWO, {"city": "a", "days": 3})
    every = {"a": "array", "b": "object", "c": "boolean", "d": "number"}
    schema = {"properties": {name: {"type": kind} for name, kind in every.items()}}
    refuse_arguments(schema, {"a": [1], "b": {}, "c": False, "d": 1})
    for name, wrong in (("a", "text"), ("b", []), ("c", 1), ("d", True), ("d", "1"), ("d", None)):
        with pytest.raises(Unreadable, match=f"'{name}' must be of type {every[name]}"):
            refuse_arguments(schema, {name: wrong})


# Limits and ends


def test_an_episode_ends_by_the_verifier_or_at_its_most_turns() -> None:
    assert one(agent(), plan("web_search"), plan("answer")).end == "stopped"
    never = agent(verifier=Rule(lambda *_: Verdict(False)))
    found = one(never, plan("web_search"))
    assert (found.end, len(found.turns), found.answer) == ("turns", 4, "result of web_search")
    at_the_limit = agent(limits=Limits(max_turns=1))
    assert one(at_the_limit, plan("answer")).end == "stopped"


def test_time_is_looked_at_after_each_turn() -> None:
    """The clock is at 0 at the start, then moves on by one second after each turn."""
    limited = agent(verifier=Rule(lambda *_: Verdict(False)), limits=Limits(max_turns=9, max_time=2.5))
    (found,), _ = driven([limited.episode("q", clock=Clock())], lambda *_: plan("web_search"))
    assert (found.end, len(found.turns), found.seconds) == ("time", 3, 4)
    assert found.answer == "result of web_search"


def test_a_server_that_fails_ends_the_episode_wherever_it_is_asked() -> None:
    gone = ServiceError("http://a did not answer for 60 s")
    ok = [Said("Decision: CONTINUE")]
    system = agent(
        executor=ExecutorByModel("E", Templates()), verifier=VerifierByModel("V", Templates()),
        generator=GeneratorByModel("G", Templates()), analyst=AnalystByModel("A", Templates()),
        limits=Limits(max_turns=2),
    )  # fmt: skip
    models = {"E": [Said('{"query": "x"}')], "V": ok, "G": [Said("done")], "A": [Said("skills")]}
    for name, turns in (("A", 0), (PLANNER, 0), ("E", 0), ("V", 1), ("G", 2)):
        answers = {
            key: (lambda asks, v=[gone] if key == name else value: v * len(asks)) for key, value in models.items()
        }  # type: ignore[misc]
        said = gone if name == PLANNER else plan("web_search")
        (found,), _ = driven([system.episode("q")], lambda *_, said=said: said, models=answers)  # type: ignore[misc]
        assert (found.end, found.failed, found.answer, found.why) == ("failed", True, "", str(gone))
        assert len(found.turns) == turns
    answers = {key: (lambda asks, v=value: v * len(asks)) for key, value in models.items()}  # type: ignore[misc]
    (found,), _ = driven([system.episode("q")], lambda *_: plan("web_search"), models=answers)
    assert (found.end, found.answer) == ("turns", "done")


def test_a_failure_ends_one_episode_alone() -> None:
    def said(number: int, ask: Ask) -> Any:
        return ServiceError("gone") if number == 1 else plan("answer", str(number))

    found, _ = driven([agent().episode(f"q{k}") for k in range(3)], said)
    assert [each.end for each in found] == ["stopped", "failed", "stopped"]
    assert [each.question for each in found] == ["q0", "q1", "q2"]


@pytest.mark.parametrize("wrong", [{"max_turns": 0}, {"max_tokens": 0}, {"max_result": 0}, {"max_time": 0.0}])
def test_limits_that_leave_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# Many episodes in step


def test_the_planner_is_asked_once_a_round_for_all_that_go_on() -> None:
    """In round one episode 1 names no tool and episode 2 needs no model; in round two episode 0 has ended."""
    by_model = ExecutorByModel("E", Templates())

    def executor(question: str, plan: Plan, tool: Card) -> Generator[Request, Any, Mapping[str, Any]]:
        if plan.context == "by model":
            return (yield from by_model(question, plan, tool))
        return {"query": plan.context}

    script = {
        0: [plan("answer", "by model")],
        1: ["nothing", plan("web_search", "by model"), plan("answer")],
        2: [plan("web_search"), plan("answer", "by model")],
    }
    asked: list[int] = []

    def model(asks: Sequence[Ask]) -> list[Said]:
        asked.append(len(asks))
        return [Said('{"query": "m"}')] * len(asks)

    episodes = [agent(executor=executor).episode(f"q{k}") for k in range(3)]
    found, rounds = driven(episodes, lambda number, ask: script[number][ask.turn], models={"E": model})
    assert rounds == [[0, 1, 2], [1, 2], [1]]
    assert asked == [1, 2]
    assert [len(each.turns) for each in found] == [1, 3, 2]
    assert [turn.trouble for turn in found[1].turns] == ["unreadable", "", ""]


def test_two_episodes_share_no_memory() -> None:
    """One system plays both in step, then a third; each prompt shows its own results alone."""
    prompts: dict[str, list[str]] = {}

    def said(number: int, ask: Ask) -> str:
        question = ask.messages[1][1].split("\n")[0]
        prompts.setdefault(question, []).append(ask.messages[1][1])
        return plan("web_search" if ask.turn == 0 else "answer", question[-1])

    def result(use: Use) -> Observation:
        return Observation(f"found-{use.arguments['query']}")

    system = agent()
    driven([system.episode("is it a"), system.episode("is it b")], said, result)
    driven([system.episode("is it c")], said, result)
    assert len(prompts) == 3
    for question, own in prompts.items():
        assert "(empty: this is the first step)" in own[0]
        assert [f"found-{letter}" in own[1] for letter in "abc"] == [question[-1] == letter for letter in "abc"]


def test_seconds_are_counted_by_module() -> None:
    driver = Driver(
        lambda numbers, asks: [Said(plan("answer"))] * len(asks),
        lambda uses: [Observation("1")] * len(uses),
        {"V": lambda asks: [Said("Decision: STOP")] * len(asks)},
    )
    driver.run([agent(verifier=VerifierByModel("V", Templates())).episode("q")])
    assert set(driver.seconds) == {"planner", "tools", "verifier"}
    assert all(spent >= 0 for spent in driver.seconds.values())


def test_a_watcher_is_told_what_happens_in_order() -> None:
    seen: list[str] = []
    system = agent()
    driven(
        [system.episode("q", lambda name, value: seen.append(f"{name} {type(value).__name__}"))],
        lambda _, ask: "" if ask.turn == 0 else plan("answer"),
    )
    turn = ["observed Entry", "judged Verdict"]
    assert seen == ["analysis str", "planned Unreadable", *turn, "planned Plan", *turn, "answered str"]
