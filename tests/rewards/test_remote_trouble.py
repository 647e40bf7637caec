"""Several reward servers, and what happens to them: restarts, failures, waiting, and answers that are none."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from local_servers import Answer, free_port, reply, scripted, served
from remote_rewards import IMAGES, PROMPTS, WEB, Held, Weighted, fails
from torch import Tensor

from flowward.rewards import RewardError, score
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service
from flowward.rewards.service.wire import decode

pytestmark = pytest.mark.usefixtures("hasty")


def test_whoever_is_free_takes_the_next_chunk() -> None:
    slow, quick = Weighted(0.2), Weighted(0.01)
    with served(Service("same", slow)) as one, served(Service("same", quick)) as two:
        found = Remote(f"{one},{two}", batch=1)(IMAGES, PROMPTS)
    assert torch.equal(found, Weighted()(IMAGES, PROMPTS).float())
    assert 1 <= len(slow.calls) < len(quick.calls) and len(slow.calls) + len(quick.calls) == 7


def test_the_chunks_of_a_dead_server_go_to_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with served(Service("same", Weighted(0.01))) as alive:
        with served(Service("same", Weighted())) as dying:
            remote = Remote(f"{dying},{alive}", batch=1)
        for _ in range(3):
            assert torch.equal(remote(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())
        silent = Remote(f"{dying},{alive}", batch=1)
    err = capsys.readouterr().err
    assert err.count(f"waiting for {dying}") == 1  # once in an outage
    assert f"{dying}: [Errno 111] Connection refused; continuing with the other servers" in err
    assert len(silent._servers) == 2


def test_a_restart_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    port, found = free_port(), list[Tensor]()
    with served(Service("weighted", Weighted()), port=port) as at:
        remote = Remote(at, batch=1, patience=20)
        first = remote(IMAGES, PROMPTS)
    thread = threading.Thread(target=lambda: found.append(remote(IMAGES, PROMPTS)))
    thread.start()
    time.sleep(0.3)
    with served(Service("weighted", Weighted()), port=port):
        thread.join()
    assert torch.equal(found[0], first)
    err = capsys.readouterr().err
    assert err.count(f"waiting for {at}") == 1 and err.count(f"{at} answers again after") == 1


def test_what_passes_is_waited_for_and_every_chunk_arrives() -> None:
    injected: list[Any] = [
        reply({"detail": "later"}, 503), reply(b"{broken"), None, reply(b"oops", 500), reply(b"[", 502),
        reply({"detail": "too many"}, 429, **{"Retry-After": "0"}), "slow",
    ]  # fmt: skip
    tries = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/reward":
            return reply({"reward": "flaky"})
        tries.append(time.monotonic())
        trouble = injected.pop(0) if injected else "fine"
        if trouble == "slow":
            time.sleep(2)
        elif trouble != "fine":
            return trouble  # type: ignore[no-any-return]
        call = decode(body, headers["Content-Type"])
        return reply({"scores": Weighted()(call.images, call.prompts).tolist()})

    with scripted(respond) as at:
        found = Remote(at, batch=3, timeout=1.5, patience=20)(IMAGES, PROMPTS)
    assert torch.equal(found, Weighted()(IMAGES, PROMPTS).float())
    assert len(tries) == 3 + 7 and not injected


def test_retry_after_is_honoured_and_pauses_grow() -> None:
    tries = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/reward":
            return reply({"reward": "busy"})
        tries.append(time.monotonic())
        return reply({"scores": [1]}) if len(tries) == 2 else reply({}, 429, **{"Retry-After": "0.4"})

    with scripted(respond) as at:
        assert Remote(at)(IMAGES[:1], PROMPTS[:1]).tolist() == [1]
        assert tries[1] - tries[0] >= 0.4
        with pytest.raises(
            RewardError, match=r"scoring 'prompt 0': gave up .* 0.2 s .*; .* answered 429: \{\}.* pause"
        ):
            Remote(at, patience=0.2)(IMAGES[:1], PROMPTS[:1])


def test_patience_ends_in_a_sentence() -> None:
    with served(Service("weighted", Weighted())) as at:
        remote = Remote(at, patience=0.3)
    started = time.monotonic()
    with pytest.raises(RewardError, match=rf"scoring 'prompt 0': gave up after 0.3 s .*; {at}: .*refused"):
        remote(IMAGES, PROMPTS)
    assert 0.25 < time.monotonic() - started < 30  # and not after the minutes that it has by itself


def test_ctrl_c_does_not_wait_for_an_answer(interruptible: None) -> None:
    reward = Held()
    with served(Service("held", reward)) as at:
        remote = Remote(at)
        threading.Thread(
            target=lambda: (reward.begun.wait(60), os.kill(os.getpid(), signal.SIGINT)), daemon=True
        ).start()
        with pytest.raises(KeyboardInterrupt):
            remote(IMAGES, PROMPTS)
        assert not reward.go.is_set() and reward.busy == 1
        reward.go.set()


def test_patience_counts_from_the_last_success() -> None:
    tries = []

    def every_other(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/reward":
            return reply({"reward": "flaky"})
        tries.append(time.monotonic())
        if len(tries) % 2:
            return reply({}, 503)
        time.sleep(0.4)
        return reply({"scores": [len(tries)]})

    with scripted(every_other) as at:
        found = Remote(at, batch=1, patience=2)(IMAGES, PROMPTS)
    assert sorted(found.tolist()) == [2, 4, 6, 8, 10, 12, 14] and tries[-1] - tries[0] > 2.2


def test_patience_does_not_end_while_another_server_computes() -> None:
    with served(Service("same", Weighted(0.6))) as alive:
        with served(Service("same", Weighted())) as dying:
            remote = Remote(f"{dying},{alive}", batch=4, patience=0.1)
        assert torch.equal(remote(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())


def test_a_failure_of_the_reward_is_told_at_once() -> None:
    with served(Service("mine", fails)) as at:
        with pytest.raises(RewardError, match=f"{at} answered 500: reward 'mine' raised KeyError: 'weights'"):
            Remote(at)(IMAGES, PROMPTS)
        assert "errors_total 1" in WEB.get(f"{at}/metrics").text  # asked once


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"scores": [1.0]}, "1 scores for 7 images"),
        ({"scores": ["1"] * 7}, "is not a list of scores"),
        ([1.0] * 7, "not a list of scores"),
    ],
)
def test_an_answer_that_is_none(answer: Any, sentence: str) -> None:
    with (
        scripted(lambda path, *_: reply({"reward": "x"} if path == "/reward" else answer)) as at,
        pytest.raises(RewardError, match=sentence),
    ):
        Remote(at)(IMAGES, PROMPTS)


def test_what_a_server_does_not_know_is_not_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A server by hand answers 404, 405 or 501 where it has no /refuse, as its framework does."""
    for status in (404, 405, 501):
        answers = {"/reward": reply({"reward": "x"}), "/score": reply({"scores": [0.0] * 7})}
        with scripted(lambda path, *_, a=answers, s=status: a.get(path) or reply({"detail": "no"}, s)) as at:
            Remote(at).refuse(PROMPTS)
            assert Remote(at)(IMAGES, PROMPTS).tolist() == [0] * 7
    with (
        scripted(
            lambda path, *_: reply({"reward": "x"}) if path == "/reward" else reply(b"<p>not\nhere</p>", 501)
        ) as at,
        pytest.raises(RewardError, match="answered 501: <p>not here</p>"),
    ):
        Remote(at)(IMAGES, PROMPTS)
    assert "waiting" not in capsys.readouterr().err


def test_scores_that_are_not_finite_are_refused() -> None:
    answers = {"/reward": {"reward": "x"}, "/score": {"scores": [float("nan")]}}
    with scripted(lambda path, *_: reply(answers[path])) as at, pytest.raises(RewardError, match="nan"):
        score("there", Remote(at), IMAGES[:1], PROMPTS[:1])
