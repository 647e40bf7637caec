"""Judges: every image gets the number that the model meant, whatever happens on the way, or none gets any."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from local_servers import Answer, free_port, reply, scripted
from PIL import Image
from torch import Tensor

from flowward import rewards
from flowward.provenance import described, differing
from flowward.rewards import RewardError, jobs, score, template
from flowward.rewards.answers import Answers
from flowward.rewards.judge import Judge
from flowward.rewards.reading import Json, Number, Unreadable, Winner, YesNo
from flowward.rewards.remote import Remote

Respond = Callable[[dict[str, Any]], Answer | None]
PROMPTS = [f"a {colour} cube" for colour in ("red", "green", "blue", "red", "green", "red")]
LEVELS = torch.tensor([10, 200, 90, 250, 60, 130], dtype=torch.float32) / 255
IMAGES = LEVELS.view(-1, 1, 1, 1).expand(-1, 3, 6, 4).contiguous()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, and no key from outside."""
    monkeypatch.setattr(jobs, "FIRST", 0.01)
    monkeypatch.setattr(jobs, "LONGEST", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def seen(request: dict[str, Any]) -> tuple[list[float], str]:
    """(mean of each image in [0, 1], all texts) of a request."""
    means, texts = [], []
    for message in request["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
                continue
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            means.append(float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean() / 255))
    return means, "\n".join(texts)


def says(text: str | None, **more: Any) -> Answer:
    return reply({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]})


def first_token(*likely: tuple[str, float]) -> Answer:
    top = [{"token": token, "logprob": log} for token, log in likely]
    return says(likely[0][0], logprobs={"content": [{**top[0], "top_logprobs": top}]})


def honest(request: dict[str, Any]) -> Answer:
    """A model that likes bright images, and answers as it is asked to."""
    means, _ = seen(request)
    if request.get("logprobs"):
        p = min(max(means[0], 1e-6), 1 - 1e-6)
        return first_token(("Yes", math.log(p) - 0.1), ("No", math.log(1 - p) - 0.1))
    if "response_format" in request:
        return says(json.dumps({"reason": "bright", "score": 10 * means[0]}))
    if len(means) == 2:
        return says(f"Image {1 if means[0] > means[1] else 2} is better.")
    return says(f"It is fine. Final Score: {1 + 4 * means[0]:.6f}")


@contextmanager
def judged(
    answer: Callable[[dict[str, Any]], Answer | None] = honest, port: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """A server with one model, `vlm`, and the requests that it got."""
    requests: list[Any] = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/v1/models":
            return reply({"data": [{"id": "vlm"}]})
        assert path == "/v1/chat/completions"
        requests.append(json.loads(body) | {"key": headers.get("Authorization")})
        return answer(requests[-1])

    with scripted(respond, port) as at:
        yield f"{at}/v1", requests


# The shipped templates


@pytest.mark.parametrize("name", ["unified-reward", "yes-no", "json-score"])
def test_pointwise_templates_score_the_image_with_its_prompt(name: str) -> None:
    with judged() as (at, requests):
        found = score("judge", Judge(server=at, template=name), IMAGES, PROMPTS)
    assert torch.allclose(found, LEVELS, atol=1e-5)
    shown = {(round(seen(request)[0][0] * 255), seen(request)[1]) for request in requests}
    assert len(shown) == 6
    for level, text in shown:
        index = [round(each * 255) for each in LEVELS.tolist()].index(level)
        assert PROMPTS[index] in text and "{" not in text
    assert all(request["model"] == "vlm" and request["temperature"] == 0 for request in requests)


def test_pairwise_is_the_win_rate_among_the_images_of_a_prompt() -> None:
    with judged() as (at, requests):
        judge = Judge(server=at, template="unified-reward-pairwise")
        found = judge(IMAGES[[0, 3, 5, 1, 4]], [PROMPTS[i] for i in (0, 3, 5, 1, 4)])
        assert found.tolist() == [0, 1, 0.5, 1, 0]  # red: 10 < 130 < 250; green: 60 < 200
        assert len(requests) == 3 + 1 and all(len(seen(request)[0]) == 2 for request in requests)
        assert judge.compares and not Judge(server=at, template="yes-no").compares
        with pytest.raises(RewardError, match="'a blue cube' has one image"):
            judge(IMAGES, PROMPTS)


def test_win_rates_know_no_order_and_sum_to_half_a_win_per_pair() -> None:
    images, prompts = torch.rand(6, 3, 5, 5), ["a"] * 4 + ["b"] * 2
    images[3] = images[1]  # equal images tie without being shown
    biased = lambda request: says("Image 1 is better.")  # noqa: E731
    with judged(biased) as (at, requests):
        judge = Judge(server=at, template="unified-reward-pairwise")
        found = judge(images, prompts)
        asked = len(requests)
        order = torch.tensor([4, 2, 0, 5, 3, 1])
        assert torch.equal(judge(images[order], [prompts[i] for i in order]), found[order])
    assert asked == 5 + 1
    assert found[:4].sum() == pytest.approx(4 / 2) and found[4:].sum() == pytest.approx(1)
    assert found[1] == found[3]


def test_templates_are_found_by_name_and_path(tmp_path: Path) -> None:
    assert set(template.SHIPPED) == {"edit", "json-score", "unified-reward", "unified-reward-pairwise", "yes-no"}
    assert all(template.load(name).source for name in template.SHIPPED)
    assert len({template.load(name).identity for name in template.SHIPPED}) == 5
    own = {
        "messages": [
            {"role": "system", "text": "Answer."},
            {"role": "user", "text": "Look: {image}\n{question} about {prompt}? {not this}"},
        ],
        "read": {"kind": "number", "pattern": r"(\d+)", "scale": [0, 100]},
        "request": {"temperature": 0.2, "chat_template_kwargs": {"enable_thinking": False}},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    about = [{"question": f"Is {{prompt}} {n}"} for n in range(6)]
    with judged(lambda request: says("100 of 100, or rather 50")) as (at, requests):
        judge = Judge(server=at, template=str(path), concurrency=1)
        assert judge(IMAGES, PROMPTS, about).tolist() == [0.5] * 6
        assert requests[0]["messages"][0] == {"role": "system", "content": "Answer."}
        texts = [part.get("text") for part in requests[0]["messages"][1]["content"]]
        assert texts == ["Look:", None, "Is {prompt} 0 about a red cube? {not this}"]
        assert requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        with pytest.raises(RewardError, match=r"asks for \{question\}, which the metadata of 'a red cube' lacks"):
            judge(IMAGES, PROMPTS)
        asked = len(requests)
        judge.refuse(PROMPTS, about)
        with pytest.raises(ValueError, match=r"asks for \{question\}, which the metadata of 'a red cube' lacks"):
            judge.refuse(PROMPTS)  # before a run, not after its first images
        assert len(requests) == asked


def test_an_edit_needs_its_source_where_the_judge_runs(tmp_path: Path) -> None:
    with judged(lambda request: says("yes")) as (at, _):
        judge = Judge(server=at, template="edit")
        (tmp_path / "there.png").write_bytes(b"")
        judge.refuse(["make it snowy"], [{"source": str(tmp_path / "there.png")}])
        with pytest.raises(ValueError, match=r"source at .*gone\.png, where the judge finds none"):
            judge.refuse(["make it snowy"], [{"source": str(tmp_path / "gone.png")}])


def test_who_judged_by_which_words_is_beside_a_number(tmp_path: Path) -> None:
    """Also where the model was not named, and where a template of one's own was changed."""
    path = tmp_path / "own.yaml"
    found = []
    with judged(lambda request: says("yes")) as (at, _):
        for words in ("Good? {image}", "Bad? {image}"):
            path.write_text(yaml.safe_dump({"messages": [{"role": "user", "text": words}], "read": {"kind": "yes-no"}}))
            found.append(described(Judge(server=at, template=str(path))))
    one, other = ({"rewards": {"judge": each}} for each in found)
    assert found[0]["model"] and [each.split(" (")[0] for each in differing(one, other)] == [
        "template_sha256 of reward judge"
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"read": {"kind": "vote"}}, "kind|vote"),
        ({"read": {"kind": "number", "pattern": "(", "scale": [0, 1]}}, "no regular expression"),
        ({"read": {"kind": "number", "pattern": "1", "scale": [0, 1]}}, "no group"),
        ({"read": {"kind": "number", "pattern": "(1)", "scale": [1, 1]}}, "to a larger one"),
        ({"read": {"kind": "winner", "first": "1", "second": "2", "tie": "3"}}, "asks for 2 x"),
        ({"messages": [{"role": "user", "text": "{prompt}"}]}, "asks for 1 x"),
        ({"messages": [{"role": "robot", "text": "{image}"}]}, "role"),
        ({"tempreature": 1}, "tempreature"),
        ({"read": {"kind": "yes-no", "yes": ["yes"]}}, "yes"),
    ],
)
def test_bad_templates_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    good = {"messages": [{"role": "user", "text": "{image}"}], "read": {"kind": "yes-no"}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(good | change))
    with pytest.raises(ValueError, match=sentence):
        template.load(str(path))


def test_templates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'yes-no'"):
        template.load("yes-non")
    with pytest.raises(ValueError, match="no template at"):
        template.load(str(tmp_path / "none.yaml"))
    (tmp_path / "own.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="no YAML"):
        template.load(str(tmp_path / "own.yaml"))


# Reading


def choice(content: str | None, **more: Any) -> dict[str, Any]:
    return {"message": {"content": content}, **more}


def test_a_number_is_the_last_match_within_its_scale() -> None:
    number = template.load("unified-reward").read
    assert isinstance(number, Number)
    for text, value in (("Final Score: 3", 0.5), ("**Final Score:** 4.6", 0.9), ("Final Score: 1\nFinal Score: 5", 1)):
        assert number.read(choice(text)) == pytest.approx(value)
    for bad in ("3", "Final Score: good", "Final Score: 0", "Final Score: 55", "", None):
        with pytest.raises(Unreadable):
            number.read(choice(bad))


def test_a_verdict_is_the_last_one() -> None:
    winner = template.load("unified-reward-pairwise").read
    assert isinstance(winner, Winner)
    said = {"Image 1 is better.": 1, "so IMAGE 2 IS BETTER than Image 1": 0, "Both images are equally good.": 0.5,
            "Image 1 is better in colour. All in all, Image 2 is better.": 0}  # fmt: skip
    assert [winner.read(choice(text)) for text in said] == list(said.values())
    with pytest.raises(Unreadable):
        winner.read(choice("Neither."))


def test_yes_and_no_are_summed_over_their_spellings() -> None:
    def read(*likely: tuple[str, float]) -> float:
        top = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in likely]
        return YesNo("yes-no").read(choice("", logprobs={"content": [{**top[0], "top_logprobs": top}]}))

    spelled = (("Yes", 0.3), (" yes", 0.1), ("NO", 0.15), ("ĠNo", 0.05), ("Yesterday", 0.2), ("▁'no'", 0.2))
    assert read(*spelled) == pytest.approx(0.4 / (0.4 + 0.4))
    assert read(*spelled) == pytest.approx(
        read(*spelled[::-1])
    )  # the first is among the likeliest, too, and counts once
    assert read(("yes", 0.5)) == 1 and read(("no", 1e-300), ("maybe", 1)) == 0
    assert read(("yes", 3e-300), ("no", 1e-300)) == pytest.approx(0.75)
    capital = YesNo("yes-no", positive=("Yes.",), negative=("No",))
    top = [{"token": "Yes", "logprob": math.log(0.3)}, {"token": "no", "logprob": math.log(0.1)}]
    assert capital.read(choice("", logprobs={"content": [{**top[0], "top_logprobs": top}]})) == pytest.approx(0.75)
    with pytest.raises(Unreadable, match="neither yes nor no"):
        read(("maybe", 1))
    for bad in (None, {}, {"content": []}, {"content": [{"token": "yes"}]}, {"content": None}):
        with pytest.raises(Unreadable, match="log-probabilities"):
            YesNo("yes-no").read(choice("yes", logprobs=bad))


def test_json_is_held_to_its_schema() -> None:
    reader = template.load("json-score").read
    assert isinstance(reader, Json)
    held = reader.request()["response_format"]["json_schema"]
    assert held["strict"] and held["schema"]["required"] == ["reason", "score"]
    for text in ('{"reason": "{}", "score": 7.5}', '```json\n{"score": 7.5, "reason": ""}\n```'):
        assert reader.read(choice(text)) == 0.75
    for bad in (
        '{"score": "7"}',
        '{"score": true}',
        '{"score": 11}',
        '{"score": NaN}',
        '{"reason": ""}',
        "7",
        '{"score',
    ):
        with pytest.raises(Unreadable):
            reader.read(choice(bad))


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
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))
    for header, least in (("0.5", 0.5), (soon, 1.0)):
        tries = []

        def busy(request: dict[str, Any], header: str = header, tries: list[float] = tries) -> Answer:
            tries.append(time.monotonic())
            return honest(request) if len(tries) > 1 else reply({}, 429, **{"Retry-After": header})

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
        with pytest.raises(RewardError, match=r"judging 'a \w+ cube': gave up after .* 0.3 s; .* 500: out of memory"):
            judge(IMAGES, PROMPTS)


def test_one_question_that_is_never_answered_ends_the_call() -> None:
    def poisoned(request: dict[str, Any]) -> Answer:
        return reply({}, 500) if "blue" in seen(request)[1] else honest(request)

    with judged(poisoned) as (at, _), pytest.raises(RewardError, match=r"judging 'a blue cube': gave up"):
        Judge(server=at, patience=0.3)(IMAGES, PROMPTS)


def test_what_cannot_be_read_ends_in_a_sentence_after_some_tries() -> None:
    with judged(lambda request: says("I would rather not.")) as (at, requests):
        judge = Judge(server=at, template="json-score", max_retries=2)
        with pytest.raises(RewardError, match=r"judging 'a red cube': no answer of vlm .* in 3 tries; .*rather not"):
            judge(IMAGES[:1], PROMPTS[:1])
        assert [request.get("seed") for request in requests] == [None, 1, 2]


def test_a_refusal_is_told_at_once() -> None:
    with judged(lambda request: reply({"error": {"message": "image too small"}}, 400)) as (at, requests):
        with pytest.raises(RewardError, match=r"judging 'a red cube': .*/v1 answered 400: image too small"):
            Judge(server=at)(IMAGES[:1], PROMPTS[:1])
        assert len(requests) == 1
        with pytest.raises(RewardError, match="'a green cube' holds NaN"):
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
        assert isinstance(judge, Judge) and judge.in_background and judge.cache == tmp_path
        assert judge(IMAGES, PROMPTS) == pytest.approx(LEVELS, abs=1e-6)
        assert {request["key"] for request in requests} == {"Bearer sesame"} and "sesame" not in repr(judge)
        for wrong, sentence in (
            ("model=vml", "did you mean 'vlm'"), ("template=yes", "did you mean 'yes-no'"), ("timeout=0", "timeout"),
            ("max_retries=-1", "max_retries"), ("colour=red", "colour"), (f"cache={__file__}", "cannot be kept"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=sentence):
                rewards.load(["judge"], [options[0], f"judge.{wrong}"])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (reply({"error": {"message": "no key"}}, 401), "401: no key .*comes from OPENAI_API_KEY"),
        (reply({}, 404), "404.*ends in /v1"),
        (reply({"models": []}), "not as an OpenAI-compatible server"),
        (reply({"data": [{"id": "a"}, {"id": "b"}]}), "name the model of the judge; .* has a, b"),
        (reply(b"<html>"), "no judge answers .*no JSON"),
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
        for path, content in zip(files, ["", '{"score": 0.', "[]", '{"score": "1"}', '{"score": NaN}'], strict=False):
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


# A server that somebody wrote without flowward


def test_the_example_speaks_the_same_language(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    path = Path(__file__).parent.parent / "examples" / "reward_server.py"
    spec = importlib.util.spec_from_file_location("reward_server", path)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    source = path.read_text()
    assert not re.search(r"^\s*(from|import) (flowward|torch)", source, re.MULTILINE)

    def brightness(images: np.ndarray, prompts: list[str], metadata: Any) -> list[float]:
        if prompts[0] == "bad":
            raise KeyError("weights")
        return [float(image.mean()) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]

    server = example.serve(brightness, "brightness", port=0, token="secret")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        at = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ValueError, match="401"):
            Remote(at, token="wrong")
        for encoding in ("float32", "float16", "uint8"):
            remote = Remote(at, token="secret", batch=4, encoding=encoding)
            found = remote(IMAGES, PROMPTS)
            assert found.tolist() == pytest.approx(
                (LEVELS + torch.tensor([len(p) for p in PROMPTS])).tolist(), abs=1e-3
            )
        rewards.refuse(remote, PROMPTS)
        with pytest.raises(RewardError, match="500: KeyError"):
            remote(IMAGES[:1], ["bad"])
    finally:
        server.shutdown()
        server.server_close()
