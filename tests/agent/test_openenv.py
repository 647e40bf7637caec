"""OpenEnv sessions: the tokens that the planner sampled, exactly, and a reward or none."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from agents_by_hand import QUESTION, plans, setup
from chat_servers import Respond, chat
from local_servers import Answer, reply, scripted

from flowward.agent import openenv
from flowward.agent.openenv import Session, SessionFactory

pytestmark = pytest.mark.usefixtures("hasty")
TASKS = {QUESTION: {"answer": "blue"}, "Which colour has grass?": {"answer": "green"}}


def ids_of(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def sampled(request: dict[str, Any], respond: Respond = plans) -> Answer | None:
    """As vLLM answers with `logprobs` and `return_token_ids`: a token is a letter, its log-probability -id / 1000."""
    import json

    answer = respond(request)
    if answer is None or answer[0] != 200:
        return answer
    found = json.loads(answer[2])
    text = found["choices"][0]["message"]["content"]
    scores = [{"logprob": -each / 1000} for each in ids_of(text)]
    found["choices"][0] |= {"token_ids": ids_of(text), "logprobs": {"content": scores}}
    prompt = "|".join(message["content"] for message in request["messages"])
    return reply(found | {"prompt_token_ids": ids_of(prompt)})


@contextmanager
def factory(respond: Respond = sampled, **options: Any) -> Iterator[tuple[SessionFactory, list[dict[str, Any]]]]:
    import json

    requests: list[dict[str, Any]] = []

    def served(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/v1/models":
            return reply({"data": [{"id": "m"}]})
        requests.append(json.loads(body))
        return respond(requests[-1])

    with scripted(served) as at:
        made = SessionFactory(options.pop("build", "agents_by_hand:setup"), TASKS, f"{at}/v1", **options)
        yield made(sampling={"temperature": 0.8, "top_p": 1.0, "top_k": -1}), requests


def prompt(question: str = QUESTION) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_a_session_has_the_tokens_and_the_reward() -> None:
    with factory() as (sessions, requests):
        session = sessions.create(prompt(), seed=3, episode_id="e")
        assert session.initial_messages() == prompt() and session.list_tools() == []
        assert session.call_tool("look", {}).error
        assert session.wait_for_completion() == 0 and session.wait_for_completion() == 0  # once
        trace = session.fetch_training_trace()
        session.close()
    assert len(requests) == len(trace.turns) == 2
    for number, (turn, request) in enumerate(zip(trace.turns, requests, strict=True)):
        text = ["Tool: look\nGoal: find it\nInput: sky", "Tool: answer\nInput: blue"][number]
        shown = "|".join(message["content"] for message in request["messages"])
        assert (turn.node_id, turn.prompt_token_ids) == (str(number), ids_of(shown))
        assert turn.completion_token_ids == ids_of(text)
        assert turn.per_token_logps == [-each / 1000 for each in ids_of(text)]
        assert turn.loss_mask == [0] * len(shown) + [1] * len(text)
        assert turn.metadata["sampling_params"] == {"temperature": 0.8, "top_p": 1.0, "top_k": -1}
    sent = {"temperature": 0.8, "logprobs": True, "return_token_ids": True, "max_tokens": 32, "model": "m"}
    assert (sent | {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}).items() <= requests[0].items()
    assert trace.turns[1].prompt_token_ids[: len(trace.turns[0].prompt_token_ids)] != trace.turns[0].prompt_token_ids
    result = session.verify([])
    assert (result.env_reward, result.done, result.metrics) == (1.0, True, {"turns": 2})
    entry = trace.to_trace_entries()[0]
    assert entry == session.fetch_proxy_trace()[0]
    assert entry["request"]["messages"] == requests[0]["messages"]
    assert entry["response"]["choices"][0]["message"]["content"].startswith("Tool: look")


def test_what_openenv_and_trl_look_for() -> None:
    """The methods of OpenEnv 0.10's ResourceSession, LoopOwningSession and TrainableSession."""
    names = "initial_messages list_tools call_tool verify close wait_for_completion fetch_proxy_trace"
    for name in [*names.split(), "fetch_training_trace"]:
        assert callable(getattr(Session, name))


def test_openenvs_own_class_is_used_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class TrainingTrace:
        def __init__(self, entries: list[dict[str, Any]]):
            self.entries = entries

        @classmethod
        def from_entries(cls, entries: list[dict[str, Any]]) -> TrainingTrace:
            return cls(entries)

    module = ModuleType(openenv.OPENENV)
    module.TrainingTrace = TrainingTrace  # type: ignore[attr-defined]
    with factory() as (sessions, _):
        session = sessions.create(QUESTION)
        session.wait_for_completion()
        monkeypatch.setitem(sys.modules, openenv.OPENENV, module)
        trace = session.fetch_training_trace()
    assert isinstance(trace, TrainingTrace) and len(trace.entries) == 2


def test_questions_by_text_by_messages_and_by_seed() -> None:
    with factory() as (sessions, _):
        assert sessions.create(QUESTION).question == QUESTION
        chatted = [{"role": "system", "content": "s"}, *prompt("Which colour has grass?")]
        assert sessions.create(chatted).metadata == {"answer": "green"}
        assert [sessions.create([], seed=seed).question for seed in range(4)] == [*TASKS, *TASKS]
        assert sessions.create("").question == QUESTION
        with pytest.raises(ValueError, match="the question 'Why' is not among the 2 tasks"):
            sessions.create("Why")
    with pytest.raises(ValueError, match="there are no questions"):
        SessionFactory("agents_by_hand:setup", {}, "http://localhost:1/v1")


def test_a_factory_goes_to_another_process() -> None:
    with factory(build=setup, patience=7.0) as (sessions, _):
        sessions.create(QUESTION)  # with a client and a lock
        copy = pickle.loads(pickle.dumps(sessions))
        assert (copy.tasks, copy.sampling, copy.patience) == (TASKS, sessions.sampling, 7.0)
        session = copy.create(QUESTION)
        assert session.wait_for_completion() == 0 and session.verify([]).env_reward == 1.0


def test_many_sessions_at_once_share_nothing() -> None:
    with factory() as (sessions, _):
        made = [sessions.create(list(TASKS)[number % 2]) for number in range(8)]
        threads = [threading.Thread(target=session.wait_for_completion) for session in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [session.verify([]).env_reward for session in made] == [1.0, 0.0] * 4  # it always looks at the sky
        assert {len(session.fetch_training_trace().turns) for session in made} == {2}


def test_a_servers_failure_leaves_the_episode_out() -> None:
    def dies(request: dict[str, Any]) -> Answer | None:
        return reply({"detail": "gone"}, 500) if "blue" in request["messages"][-1]["content"] else sampled(request)

    with factory(dies, patience=0.2) as (sessions, _):
        session = sessions.create(QUESTION)
        assert session.wait_for_completion() == 1
        result = session.verify([])
        assert result.env_reward is None and "gave up after 0.2 s" in result.artifacts["why"]
        assert len(session.fetch_training_trace().turns) == 1


def test_a_server_without_token_ids_ends_the_run() -> None:
    """TRL stops for a trace that cannot be had, and only leaves out episodes that fail otherwise."""
    with factory(plans) as (sessions, _):
        session = sessions.create(QUESTION)
        assert session.wait_for_completion() == 1 and session.verify([]).env_reward is None
        with pytest.raises(ValueError, match=r"returns no token ids; vLLM 0\.10\.2 or newer does"):
            session.fetch_training_trace()


def test_waiting_has_an_end_and_so_has_a_closed_session() -> None:
    asked, go = threading.Event(), threading.Event()

    def slow(request: dict[str, Any]) -> Answer | None:
        asked.set()
        go.wait(30)
        return sampled(request)

    with factory(slow) as (sessions, requests):
        session = sessions.create(QUESTION)
        with pytest.raises(TimeoutError, match=r"is not over after 0\.05 s"):
            session.wait_for_completion(0.05)
        assert asked.wait(30)  # on a busy machine it may take longer than that
        assert session.verify([]).env_reward is None and session.fetch_training_trace().turns == []
        session.close()
        go.set()
        assert session.wait_for_completion() == 1
        assert len(requests) == 1 and "closed" in session.verify([]).artifacts["why"]


def test_a_question_that_cannot_be_asked_is_an_error() -> None:
    with factory(lambda request: chat("x")) as (sessions, _):
        session = sessions.create(QUESTION)

        def broken(asks: Any) -> list[Any]:
            raise ValueError("too long")

        session._planner = broken
        with pytest.raises(ValueError, match="too long"):
            session.wait_for_completion()
