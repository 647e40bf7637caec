"""Judges: every image gets the number that the model meant, whatever happens on the way, or none gets any."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from judges import IMAGES, LEVELS, PROMPTS, first_token, honest, judged, says, seen
from local_servers import Answer, free_port, reply, scripted
from torch import Tensor

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.judges.answers import Answers
from flowward.rewards.judges.judge import Judge

pytestmark = pytest.mark.usefixtures("hasty")

# What happens on the way


def test_every_score_arrives_through_what_passes(capsys: pytest.CaptureFixture[str]) -> None:
    injected: list[Any] = [
        reply({"error": {"message": "rate limit"}}, 429, **{"Retry-After": "0.01"}), reply({}, 500), None,
        reply(b"{broken"), reply({"detail": "overloaded"}, 503), "slow", reply({"choices": []}), says("what?"),
        says(None), reply({"error": "x"}, 500), None, says('{"score": 12, "reason": "too good"}'),
    ]  # fmt: skip
    lock = threading.Lock()

    def flaky(request: dict[str, Any]) -> Answer | None:
        with lock:
            trouble = injected.pop(0) if injected else "fine"
        if trouble == "slow":
            time.sleep(0.8)
        return honest(request) if trouble in ("fine", "slow") else trouble

    with judged(flaky) as (at, requests):
        judge = Judge(server=at, template="json-score", timeout=0.4, patience=30, concurrency=3, max_retries=5)
        assert torch.allclose(judge(IMAGES, PROMPTS), LEVELS, atol=1e-6)
    assert len(requests) >= 6 + 12 - 1 and not injected
    hot = [request for request in requests if "seed" in request]
    assert len(hot) >= 4 and all(request["temperature"] == 0.7 for request in hot)
    assert capsys.readouterr().err.count("waiting for") == 1  # one sentence a minute


def test_retry_after_is_honoured_as_seconds_and_as_a_date() -> None:
    def soon() -> str:
        return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))

    for header, least in ((lambda: "0.5", 0.5), (soon, 1.0)):
        tries = []

        def busy(request: dict[str, Any], header: Any = header, tries: list[float] = tries) -> Answer:
            tries.append(time.monotonic())
            return honest(request) if len(tries) > 1 else reply({}, 429, **{"Retry-After": header()})

        with judged(busy) as (at, _):
            Judge(server=at)(IMAGES[:1], PROMPTS[:1])
        assert least <= tries[1] - tries[0] < 8


def test_a_server_that_is_restarted_in_the_middle() -> None:
    port, found = free_port(), list[Tensor]()
    stop = threading.Event()

    def until(request: dict[str, Any]) -> Answer | None:
        if len(requests) > 2:
            stop.set()
            return None
        return honest(request)

    with judged(until, port) as (at, requests):
        judge = Judge(server=at, concurrency=2, patience=30)
        thread = threading.Thread(target=lambda: found.append(judge(IMAGES, PROMPTS)))
        thread.start()
        assert stop.wait(30)
    time.sleep(0.2)
    with judged(port=port):
        thread.join()
    assert torch.allclose(found[0], LEVELS, atol=1e-5)


def test_patience_ends_with_the_prompt_and_the_last_failure() -> None:
    with judged(lambda request: reply({"error": {"message": "out of memory"}}, 500)) as (at, _):
        judge = Judge(server=at, patience=0.3)
        with pytest.raises(RewardError, match=r"judging 'a \w+ cube': gave up after 0.3 s .*; .* 500: out of memory"):
            judge(IMAGES, PROMPTS)


def test_one_question_that_is_never_answered_ends_the_call() -> None:
    def poisoned(request: dict[str, Any]) -> Answer:
        return reply({}, 500) if "blue" in seen(request)[1] else honest(request)

    with judged(poisoned) as (at, _), pytest.raises(RewardError, match=r"judging 'a blue cube': gave up"):
        Judge(server=at, patience=0.3)(IMAGES, PROMPTS)


def test_what_cannot_be_read_ends_in_a_sentence_after_some_tries() -> None:
    with judged(lambda request: says("I would rather not.")) as (at, requests):
        judge = Judge(server=at, template="json-score", max_retries=2)
        with pytest.raises(RewardError, match=r"'a red cube': cannot parse the answer of vlm in 3 tries; .*rather not"):
            judge(IMAGES[:1], PROMPTS[:1])
        assert [request.get("seed") for request in requests] == [None, 1, 2]


class Bad:
    """Answers as `honest` does, but not about images of this brightness (0 to 255)."""

    def __init__(self, *levels: int, answer: Answer | None = None):
        self.levels, self.answer = levels, answer or says("Hm.")

    def __call__(self, request: dict[str, Any]) -> Answer:
        bad = any(round(255 * mean) in self.levels for mean in seen(request)[0])
        return self.answer if bad else honest(request)


def test_an_answer_that_is_missing_does_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image gets the mean of the other images of its prompt, and this is told, counted and not kept."""
    with judged(Bad(250)) as (at, requests):
        judge = Judge(server=at, template="json-score", cache=tmp_path, max_retries=1)
        found = judge(IMAGES, PROMPTS)
    wanted = LEVELS.clone()
    wanted[3] = (LEVELS[0] + LEVELS[5]) / 2
    assert torch.allclose(found, wanted, atol=1e-6) and judge.missing == 1
    assert len(requests) == 6 + 1 and len(list(tmp_path.rglob("*.json"))) == 5
    said = capsys.readouterr().err
    assert said.startswith("flowward: judging 'a red cube': cannot parse the answer of vlm in 2 tries; the last: ")
    assert "the mean score of the other images of its prompt (1 of the last " in said and said.count("\n") == 1


def test_the_only_image_of_a_prompt_gets_the_mean_of_the_call() -> None:
    with judged(Bad(90)) as (at, _):
        found = Judge(server=at, template="json-score", max_retries=0)(IMAGES, PROMPTS)
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(found[others], LEVELS[others], atol=1e-6)
    assert found[2].item() == pytest.approx(LEVELS[others].mean().item(), abs=1e-6)


def test_an_answer_that_is_cut_off_is_asked_for_again() -> None:
    cut = [says('{"reason": "none", "score": 1}', finish_reason="length")]
    with judged(lambda request: cut.pop() if cut else honest(request)) as (at, requests):
        found = Judge(server=at, template="json-score", concurrency=1)(IMAGES, PROMPTS)
    assert torch.allclose(found, LEVELS, atol=1e-6) and len(requests) == 7


def test_comparisons_that_are_missing_do_not_count() -> None:
    class Unsure(Bad):
        def __call__(self, request: dict[str, Any]) -> Answer:
            shown = {round(255 * mean) for mean in seen(request)[0]}
            return self.answer if shown == set(self.levels) else honest(request)

    rows = [0, 3, 5]  # 10 < 130 < 250
    with judged(Unsure(10, 130)) as (at, _):
        judge = Judge(server=at, template="unified-reward-pairwise", max_retries=0)
        assert judge(IMAGES[rows], [PROMPTS[i] for i in rows]).tolist() == [0, 1, 0]
        assert judge.missing == 1
    with judged(lambda request: says("Hm.")) as (at, _), pytest.raises(RewardError, match="vlm in 1 tries"):
        Judge(server=at, template="unified-reward-pairwise", max_retries=0)(IMAGES[:2], ["a", "a"])


@pytest.mark.parametrize(("share", "missing"), [(0.0, (250,)), (0.02, (250, 10)), (0.3, (250, 10, 60))])
def test_many_missing_answers_end_the_run(share: float, missing: tuple[int, ...]) -> None:
    with judged(Bad(*missing)) as (at, _):
        judge = Judge(server=at, template="json-score", max_retries=0, max_missing=share, concurrency=1)
        with pytest.raises(RewardError, match=r"^judging 'a \w+ cube': cannot parse the answer of vlm in 1 tries"):
            judge(IMAGES, PROMPTS)
    with judged(Bad(250)) as (at, _):
        assert Judge(server=at, template="json-score", max_retries=0, max_missing=0.3)(IMAGES, PROMPTS).isfinite().all()


def test_a_thinking_judge_is_told_at_the_first_call() -> None:
    thinks = first_token(("<think>", -1e-4), ("Yes", -9.0), ("No", -10.0))
    with (
        judged(lambda request: thinks) as (at, _),
        pytest.raises(RewardError, match="this model thinks before it answers: close its thought, or raise max_tokens"),
    ):
        Judge(server=at, max_retries=0)(IMAGES, PROMPTS)


def test_a_template_may_give_more_tokens_to_a_verdict(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "messages: [{role: user, text: '{image}'}]\nread: {kind: yes-no}\nrequest: {max_tokens: 500}\n"
    )
    with judged() as (at, requests):
        Judge(server=at)(IMAGES[:1], PROMPTS[:1])
        Judge(server=at, template=str(tmp_path / "own.yaml"))(IMAGES[:1], PROMPTS[:1])
    assert [request["max_tokens"] for request in requests] == [1, 500]


def test_a_refusal_is_told_at_once() -> None:
    with judged(lambda request: reply({"error": {"message": "image too small"}}, 400)) as (at, requests):
        with pytest.raises(RewardError, match=r"judging 'a red cube': .*/v1 answered 400: image too small"):
            Judge(server=at)(IMAGES[:1], PROMPTS[:1])
        assert len(requests) == 1
        with pytest.raises(RewardError, match="'a green cube' has NaN"):
            Judge(server=at)(IMAGES.where(LEVELS.view(-1, 1, 1, 1) != LEVELS[1], torch.nan), PROMPTS)


def test_questions_run_at_once_and_no_more_than_allowed() -> None:
    busy, most, lock = [0], [0], threading.Lock()

    def slow(request: dict[str, Any]) -> Answer:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.1)
        with lock:
            busy[0] -= 1
        return honest(request)

    with judged(slow) as (at, _):
        Judge(server=at, concurrency=3)(IMAGES, PROMPTS)
    assert most == [3]


# Meeting a judge


def test_a_judge_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    with judged() as (at, requests):
        options = [f"judge.server={at}", "judge.model=vlm", "judge.template=json-score", "judge.key_variable=MY_KEY"]
        judge = rewards.load(["judge"], [*options, f"judge.cache={tmp_path}", "judge.concurrency=2"])
        assert isinstance(judge, Judge) and judge.in_background and Path(judge.cache or "") == tmp_path
        assert judge(IMAGES, PROMPTS) == pytest.approx(LEVELS, abs=1e-6)
        assert {request["key"] for request in requests} == {"Bearer sesame"} and "sesame" not in repr(judge)
        for wrong, sentence in (
            ("model=vml", "did you mean 'vlm'"), ("template=yes", "did you mean 'yes-no'"), ("timeout=0", "timeout"),
            ("max_retries=-1", "max_retries"), ("colour=red", "colour"), (f"cache={__file__}", "cannot store answers"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=sentence):
                rewards.load(["judge"], [options[0], f"judge.{wrong}"])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (reply({"error": {"message": "no key"}}, 401), "401: no key .*comes from OPENAI_API_KEY"),
        (reply({}, 404), "404.*ends in /v1"),
        (reply({"data": [{"id": None}]}), "choose a model for the judge; .* has none"),
        (reply({"data": [None]}), "is not an OpenAI-compatible server"),
        (reply({"models": []}), "is not an OpenAI-compatible server"),
        (reply({"data": [{"id": "a"}, {"id": "b"}]}), "choose a model for the judge; .* has a, b"),
        (reply(b"<html>"), "no judge answers .*not JSON"),
    ],
)
def test_who_answers_is_no_judge(answer: Answer, sentence: str) -> None:
    with scripted(lambda *_: answer) as at, pytest.raises(ValueError, match=sentence):
        Judge(server=at)


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"no judge answers .*refused.*vllm serve"):
        Judge(server=f"http://127.0.0.1:{free_port()}/v1")
    assert not capsys.readouterr().err


# Answers that are kept


def test_no_question_is_paid_for_twice(tmp_path: Path) -> None:
    with judged() as (at, requests):
        judge = Judge(server=at, template="json-score", cache=tmp_path)
        first = judge(IMAGES, PROMPTS)
        assert len(requests) == 6
        again = Judge(server=at, template="json-score", cache=tmp_path)
        order = [3, 1, 4, 0]
        assert torch.equal(again(IMAGES[order], [PROMPTS[i] for i in order]), first[order])
        assert len(requests) == 6
        again(IMAGES[:1] + 0.4 / 255, PROMPTS[:1])  # the same 8 bits
        assert len(requests) == 6
        changed = (IMAGES[:1] + 1 / 255, PROMPTS[:1]), (IMAGES[:1], ["a red cone"]), (IMAGES[:1, :, :4], PROMPTS[:1])
        for count, (image, prompt) in enumerate(changed, 7):
            again(image, prompt)
            assert len(requests) == count
        Judge(server=at, template="yes-no", cache=tmp_path)(IMAGES[:1], PROMPTS[:1])
        assert len(requests) == 10


def test_damaged_answers_are_asked_for_again(tmp_path: Path) -> None:
    with judged() as (at, requests):
        judge = Judge(server=at, template="json-score", cache=tmp_path)
        first = judge(IMAGES, PROMPTS)
        files = sorted(tmp_path.rglob("*.json"))
        assert len(files) == 6 and not list(tmp_path.rglob("*.part"))
        for path, content in zip(
            files,
            ["", '{"score": 0.', '{"score": 1' + "0" * 400 + "}", '{"score": "1"}', '{"score": NaN}'],
            strict=False,
        ):
            path.write_text(content)
        assert torch.equal(judge(IMAGES, PROMPTS), first) and len(requests) == 6 + 5
        assert torch.equal(judge(IMAGES, PROMPTS), first) and len(requests) == 6 + 5


def test_an_interrupted_write_leaves_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answers.put("abcd", 0.5, None)
    assert answers.get("abcd") is None
    answers.put("abcd", 0.5, None)
    assert answers.get("abcd") == 0.5


def test_a_full_disk_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answers = Answers(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for _ in range(3):
        answers.put("abcd", 0.5, None)
    assert capsys.readouterr().err.count("No space left") == 1
