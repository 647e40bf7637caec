"""Chat models: each request gets its own answer through what passes, and what fails fails alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from chat_servers import chat, chatting, echo, troubled
from local_servers import Answer, free_port, reply, scripted

from flowward.agent.chat import ChatModel
from flowward.agent.episode import Ask, Said
from flowward.system.asking import Declined, ServiceError

pytestmark = pytest.mark.usefixtures("hasty")


def asks(*texts: str) -> list[Ask]:
    return [Ask("executor", "m", (("system", "Be brief."), ("user", text))) for text in texts]


def texts(answers: list[Said | ServiceError]) -> list[str]:
    return [answer.text if isinstance(answer, Said) else type(answer).__name__ for answer in answers]


TEXTS = [f"q{number}" for number in range(8)]
ECHOED = [f"re: {text}" for text in TEXTS]


def test_a_request_is_sent_as_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with chatting() as (at, requests):
        model = ChatModel(at, max_tokens=7, request={"top_k": 3, "temperature": None, "seed": 1}, key_variable="MY_KEY")
        assert texts(model(asks("hello"))) == ["re: hello"]
    assert requests == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            "max_tokens": 7,
            "top_k": 3,
            "seed": 1,
            "key": "Bearer secret",
        }
    ]


def test_answers_keep_the_order_of_requests() -> None:
    def slow_first(request: dict[str, Any]) -> Answer:
        time.sleep(0.1 if request["messages"][-1]["content"] == "q0" else 0)
        return echo(request)

    with chatting(slow_first) as (at, _):
        model = ChatModel(at, concurrency=4)
        assert texts(model(asks(*TEXTS))) == ECHOED
        assert model([]) == [] and model.ask((("user", "x"),)) == "re: x"


@pytest.mark.parametrize(
    "trouble",
    [
        None,
        reply({"error": {"message": "rate limit"}}, 429, **{"Retry-After": "0.01"}),
        reply({}, 500),
        reply(b"{broken"),
        reply({"choices": []}),
        reply({"choices": None}),
        reply({"choices": [{"message": "text"}]}),
        reply([1, 2]),
        reply({"detail": "overloaded"}, 503),
    ],
    ids=["no answer", "429", "500", "broken JSON", "empty choices", "no choices", "odd choice", "a list", "503"],
)
def test_what_passes_is_waited_for_and_named(trouble: Answer | None, capsys: pytest.CaptureFixture[str]) -> None:
    with chatting(troubled(trouble, trouble, trouble)) as (at, requests):
        assert texts(ChatModel(at, concurrency=3, patience=30)(asks(*TEXTS))) == ECHOED
    assert len(requests) == len(TEXTS) + 3
    said = capsys.readouterr().err
    assert said.count("waiting for") == 1 and at.removesuffix("/v1") in said


def test_retry_after_is_honoured() -> None:
    times = []

    def busy(request: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return echo(request) if len(times) > 1 else reply({}, 429, **{"Retry-After": "0.4"})

    with chatting(busy) as (at, _):
        assert ChatModel(at).ask((("user", "x"),)) == "re: x"
    assert times[1] - times[0] >= 0.4


def test_a_server_that_is_gone_for_a_while() -> None:
    port, found, stop = free_port(), list[list[str]](), threading.Event()

    def until(request: dict[str, Any]) -> Answer | None:
        if len(requests) > 3:
            stop.set()
            return None
        return echo(request)

    with chatting(until, port=port) as (at, requests):
        model = ChatModel(at, concurrency=2, patience=30)
        thread = threading.Thread(target=lambda: found.append(texts(model(asks(*TEXTS)))))
        thread.start()
        assert stop.wait(30)
    time.sleep(0.2)
    with chatting(port=port):
        thread.join()
    assert found == [ECHOED]


def test_a_request_that_is_refused_fails_alone() -> None:
    def picky(request: dict[str, Any]) -> Answer:
        if request["messages"][-1]["content"] == "q3":
            return reply({"error": {"message": "the prompt has 9,000 tokens, the model has room for 4,096"}}, 400)
        return echo(request)

    with chatting(picky) as (at, requests):
        answers = ChatModel(at, concurrency=2)(asks(*TEXTS))
    assert texts(answers) == [*ECHOED[:3], "Declined", *ECHOED[4:]]
    assert isinstance(answers[3], Declined) and answers[3].status == 400
    assert "answered 400: the prompt has 9,000 tokens" in str(answers[3])
    assert len(requests) == len(TEXTS)  # it is not tried again


def test_when_patience_ends_what_was_answered_stays() -> None:
    def dies(request: dict[str, Any]) -> Answer:
        return reply({"detail": "out of memory"}, 500) if len(requests) > 3 else echo(request)

    with chatting(dies) as (at, requests):
        answers = ChatModel(at, concurrency=1, patience=0.2)(asks(*TEXTS))
    assert texts(answers) == [*ECHOED[:3], *["ServiceError"] * 5]
    assert "asking the executor: gave up after 0.2 s" in str(answers[-1]) and "out of memory" in str(answers[-1])


def test_one_request_that_never_succeeds_costs_the_others_nothing() -> None:
    def poisoned(request: dict[str, Any]) -> Answer:
        return reply({}, 500) if request["messages"][-1]["content"] == "q2" else echo(request)

    with chatting(poisoned) as (at, _):
        model = ChatModel(at, concurrency=2, patience=0.2)
        assert texts(model(asks(*TEXTS))) == [*ECHOED[:2], "ServiceError", *ECHOED[3:]]
        with pytest.raises(ServiceError, match=r"gave up after 0.2 s"):
            model.ask((("user", "q2"),))


def test_what_an_answer_says() -> None:
    tokens = {"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1}]}}
    answers = iter([chat(None), chat("cut", "length"), chat("t", **tokens), chat("t", token_ids=[5])])
    with chatting(lambda _: next(answers)) as (at, _):
        model = ChatModel(at)
        empty, cut, told, uneven = (model(asks("x"))[0] for _ in range(4))
    assert empty == Said("", about={"finish_reason": "stop"})
    assert isinstance(cut, Said) and (cut.text, cut.complete) == ("cut", False)
    assert isinstance(told, Said) and (told.ids, told.log_probs) == ((5, 6), (-0.5, -1.0))
    assert isinstance(uneven, Said) and (uneven.ids, uneven.log_probs) == ((), ())


def test_half_characters_neither_break_a_request_nor_come_back() -> None:
    """A tool's output may be cut within an emoji; such text cannot be sent, and tokenisers refuse it."""
    with chatting(lambda request: chat("got \ud83d")) as (at, requests):
        assert texts(ChatModel(at)(asks("cut \ud83d!", "whole \U0001f600"))) == ["got \ufffd"] * 2
    sent = sorted(request["messages"][-1]["content"] for request in requests)
    assert sent == ["cut \ufffd!", "whole \U0001f600"]


def test_answers_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}, 3]
    answer = reply({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    with chatting(lambda _: answer) as (at, _):
        assert ChatModel(at).ask((("user", "x"),)) == "ab"


def test_a_model_is_found_or_refused_before_the_run() -> None:
    with chatting(models=("a", "org/b")) as (at, requests):
        assert ChatModel(f"{at}#org/b").model == "org/b"
        with pytest.raises(ValueError, match=r"choose a model for the chat server; .* has a, org/b"):
            ChatModel(at)
        with pytest.raises(ValueError, match="unknown chat server model 'org/c'; did you mean 'org/b'"):
            ChatModel(f"{at}#org/c")
        assert requests == []
    with pytest.raises(ValueError, match="no chat server answers"):
        ChatModel(at)
    with pytest.raises(ValueError, match="is not a server address"):
        ChatModel("localhost")
    with (
        scripted(lambda *_: reply({"detail": "bad key"}, 401)) as at,
        pytest.raises(ValueError, match="OPENAI_API_KEY"),
    ):
        ChatModel(at)
    with scripted(lambda *_: reply({"x": 1})) as at, pytest.raises(ValueError, match="not an OpenAI-compatible server"):
        ChatModel(at)


def test_a_gateway_without_a_list_of_models_is_asked_by_name() -> None:
    def gateway(path: str, headers: dict[str, str], body: bytes) -> Answer:
        return chat("hi") if path == "/v1/chat/completions" else reply({}, 404)

    with scripted(gateway) as at:
        assert ChatModel(f"{at}/v1#auto", meet=False).ask((("user", "x"),)) == "hi"
        with pytest.raises(ValueError, match="name the model"):
            ChatModel(f"{at}/v1", meet=False)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"request": {"stream": True}}, "'stream' of a request is not for settings"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"patience": 0.0}, "patience must be a positive number"),
        ({"temperature": -1.0}, "temperature must not be negative"),
    ],
)
def test_options_that_cannot_be(option: dict[str, Any], sentence: str) -> None:
    with chatting() as (at, _), pytest.raises(ValueError, match=sentence):
        ChatModel(at, **option)
