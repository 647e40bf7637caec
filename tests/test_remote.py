"""Rewards over HTTP: the same scores as in process, through whatever happens on the way."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from local_servers import Answer, free_port, reply, scripted, served
from safetensors.torch import save
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.rewards import RewardError, jobs, score
from flowward.rewards.remote import Remote
from flowward.rewards.server import Service
from flowward.rewards.wire import JSON, TENSORS, decode, encode, png, to_uint8

PROMPTS = [f"prompt {n}" for n in range(7)]
WEB = httpx2.Client(verify=False, timeout=60)
IMAGES = torch.rand(7, 3, 8, 10, generator=torch.Generator().manual_seed(0))


class Weighted:
    """Depends on every pixel, on the prompt and on the metadata, so that a mix-up shows."""

    takes_videos = True

    def __init__(self, seconds: float = 0):
        self.seconds, self.calls = seconds, list[int]()

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        if "nonsense" in prompts:
            raise ValueError("cannot read 'nonsense'")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.calls.append(len(images))
        time.sleep(self.seconds)
        weights = torch.linspace(-1, 2, images[0].numel(), dtype=torch.float64)
        about = [each["add"] for each in metadata] if metadata else [0.0] * len(images)
        said = torch.tensor([float(prompt.split()[-1]) + add for prompt, add in zip(prompts, about, strict=True)])
        return images.double().flatten(1) @ weights + said


def fails(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    raise KeyError("weights")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, and no token from outside."""
    monkeypatch.setattr(jobs, "FIRST", 0.01)
    monkeypatch.setattr(jobs, "LONGEST", 0.05)
    monkeypatch.delenv("FLOWWARD_TOKEN", raising=False)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Service("weighted", Weighted(), max_batch=4, max_bytes=1e6)) as at:
        yield at


# The same scores


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("about", [None, [{"add": 0.5 * n, "text": "é"} for n in range(7)]])
def test_scores_are_those_of_the_process(address: str, batch: int, about: Any) -> None:
    here = score("here", Weighted(), IMAGES, PROMPTS, about)
    there = score("there", Remote(address, batch=batch), IMAGES, PROMPTS, about)
    assert there.dtype == torch.float32 and torch.equal(here, there)


def test_what_is_lossy_is_what_rounding_loses(address: str) -> None:
    eight = (IMAGES * 255).round() / 255
    for encoding, images in (("float16", IMAGES.half().float()), ("uint8", eight), ("png", eight)):
        assert torch.allclose(
            Remote(address, encoding=encoding)(IMAGES, PROMPTS), Weighted()(images, PROMPTS).float(), atol=1e-4
        )
    noisy = IMAGES * 3 - 1  # outside of [0, 1]
    assert torch.equal(Remote(address)(noisy, PROMPTS), Weighted()(noisy, PROMPTS).float())
    for encoding in ("uint8", "png"):
        clamped = (noisy.clamp(0, 1) * 255).round() / 255
        assert torch.allclose(Remote(address, encoding=encoding)(noisy, PROMPTS), Weighted()(clamped, PROMPTS).float())


@pytest.mark.parametrize("encoding", ["float32", "png"])
def test_videos_go_as_they_are_or_frame_by_frame(address: str, encoding: Any) -> None:
    videos = torch.randint(0, 256, (7, 2, 3, 4, 6)) / 255
    remote = Remote(address, encoding=encoding)
    assert remote.takes_videos
    assert torch.equal(score("there", remote, videos, PROMPTS), score("here", Weighted(), videos, PROMPTS))
    with served(Service("frames", rewards.load(["jpeg-compressibility"]))) as at:
        there = Remote(at, encoding=encoding)
        assert not there.takes_videos
        local = score("here", rewards.load(["jpeg-compressibility"]), videos, PROMPTS)
        assert torch.equal(score("there", there, videos, PROMPTS), local)


def test_no_images_have_no_scores(address: str) -> None:
    assert Remote(address)(IMAGES[:0], []).shape == (0,)


def test_chunks_keep_to_the_limits_of_client_and_server() -> None:
    for limits, batch, sizes in (
        ({"max_batch": 4}, 64, [4, 3]),
        ({"max_batch": 4}, 3, [3, 3, 1]),
        ({"max_bytes": 2.5 * 4 * IMAGES[0].numel()}, 64, [2, 2, 2, 1]),
    ):
        reward = Weighted()
        with served(Service("weighted", reward, **limits)) as at:
            Remote(at, batch=batch)(IMAGES, PROMPTS)
        assert reward.calls == sizes


def test_a_reward_that_compares_gets_its_call_in_one_piece() -> None:
    def rank(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.flatten(1).mean(1).argsort().argsort().float()

    rank.compares = True  # type: ignore[attr-defined]
    with served(Service("rank", rank)) as at, served(Service("rank", rank)) as other:
        remote = Remote(f"{at},{other}", batch=1)
        assert remote.compares and sorted(remote(IMAGES, PROMPTS).tolist()) == list(range(7))


def test_an_address_is_a_reward_with_weight_and_options(address: str) -> None:
    both = rewards.load([f"{address}=0.5", "jpeg-compressibility"], [f"{address}.batch=2", f"{address}.timeout=9"])
    (_, weight, remote), _ = rewards.terms(both)
    assert isinstance(remote, Remote) and (weight, remote.batch, remote.timeout) == (0.5, 2, 9)
    named = rewards.load(["remote"], [f"remote.address={address}", "remote.encoding=uint8"])
    assert isinstance(named, Remote) and named.encoding == "uint8" and named.in_background
    for option in ("batch=0", "patience=-1", "encoding=jpeg", "tokens=x", "timeout=soon"):
        with pytest.raises(ValueError, match=option.partition("=")[0]):
            rewards.load([address], [f"{address}.{option}"])


def test_prompts_are_refused_before_a_run(address: str) -> None:
    rewards.refuse(Remote(address), PROMPTS)
    with pytest.raises(ValueError, match="cannot read 'nonsense'"):
        rewards.refuse(Remote(address), [*PROMPTS, "nonsense"])
    broken = Weighted()
    broken.refuse = lambda prompts, metadata: {}["weights"]  # type: ignore[method-assign]
    with (
        served(Service("broken", broken)) as at,
        pytest.raises(ValueError, match="500: reward 'broken' raised KeyError"),
    ):
        rewards.refuse(Remote(at), PROMPTS)


def test_threads_may_share_a_client(address: str) -> None:
    remote, found = Remote(address, batch=1), dict[int, Tensor]()
    threads = [threading.Thread(target=lambda n=n: found.update({n: remote(IMAGES + n, PROMPTS)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[n], Weighted()(IMAGES + n, PROMPTS).float()) for n in range(4))


# Several servers, and what happens to them


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
    assert f"{dying}: [Errno 111] Connection refused; going on with the others" in err
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
    assert err.count(f"waiting for {at}") == 1 and err.count(f"{at} answers after") == 1


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
            time.sleep(0.5)
        elif trouble != "fine":
            return trouble  # type: ignore[no-any-return]
        call = decode(body, headers["Content-Type"])
        return reply({"scores": Weighted()(call.images, call.prompts).tolist()})

    with scripted(respond) as at:
        found = Remote(at, batch=3, timeout=0.25, patience=20)(IMAGES, PROMPTS)
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
        with pytest.raises(RewardError, match=r"scoring 'prompt 0': gave up .* 0.2 s; .* answered 429: \{\}.* pause"):
            Remote(at, patience=0.2)(IMAGES[:1], PROMPTS[:1])


def test_patience_ends_in_a_sentence() -> None:
    with served(Service("weighted", Weighted())) as at:
        remote = Remote(at, patience=0.3)
    started = time.monotonic()
    with pytest.raises(RewardError, match=rf"scoring 'prompt 0': gave up after a patience of 0.3 s; {at}: .*refused"):
        remote(IMAGES, PROMPTS)
    assert 0.25 < time.monotonic() - started < 3


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
        time.sleep(0.25)
        return reply({"scores": [len(tries)]})

    with scripted(every_other) as at:
        found = Remote(at, batch=1, patience=1)(IMAGES, PROMPTS)
    assert sorted(found.tolist()) == [2, 4, 6, 8, 10, 12, 14] and tries[-1] - tries[0] > 1.2


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
        ({"scores": ["1"] * 7}, "something else than a list of scores"),
        ([1.0] * 7, "something else"),
    ],
)
def test_an_answer_that_is_none(answer: Any, sentence: str) -> None:
    with (
        scripted(lambda path, *_: reply({"reward": "x"} if path == "/reward" else answer)) as at,
        pytest.raises(RewardError, match=sentence),
    ):
        Remote(at)(IMAGES, PROMPTS)


def test_scores_that_are_not_finite_are_refused() -> None:
    answers = {"/reward": {"reward": "x"}, "/score": {"scores": [float("nan")]}}
    with scripted(lambda path, *_: reply(answers[path])) as at, pytest.raises(RewardError, match="nan"):
        score("there", Remote(at), IMAGES[:1], PROMPTS[:1])


# Meeting a server


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    at = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=rf"no reward server answers \({at}: .*start one with: flowward serve-reward"):
        rewards.load([at])
    assert not capsys.readouterr().err
    for wrong in ("http://", "http://host:port", "ftp://host"):
        with pytest.raises(ValueError, match="no address of a server"):
            Remote(wrong)


def test_somebody_else_answers(address: str) -> None:
    with scripted(lambda *_: reply(b"hello")) as at, pytest.raises(ValueError, match="no reward server answers"):
        Remote(at)
    for about in ({}, [], {"reward": "x", "max_batch": "8"}, {"reward": "x", "max_bytes": 0}, {"reward": 1}):
        with scripted(lambda *_, about=about: reply(about)) as at:  # noqa: SIM117
            with pytest.raises(ValueError, match="is no reward server"):
                Remote(at)
    with scripted(lambda *_: reply({}, 404)) as at, pytest.raises(ValueError, match="is this a reward server"):
        Remote(at)
    with served(Service("other", Weighted())) as at, pytest.raises(ValueError, match=f"{address} serves 'weighted'"):
        Remote(f"{address},{at}")


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Service("weighted", Weighted()), token="right") as at:
        for token, sentence in ((None, "asks for its token"), ("wrong", "401: this is not the token of this server")):
            with pytest.raises(ValueError, match=sentence):
                Remote(at, token=token)
        assert len(Remote(at, token="right")(IMAGES, PROMPTS)) == 7
        monkeypatch.setenv("FLOWWARD_TOKEN", "right")
        remote = Remote(at)
        assert len(remote(IMAGES, PROMPTS)) == 7 and "right" not in repr(remote)
        for path in ("reward", "metrics"):
            assert WEB.get(f"{at}/{path}").status_code == 401
        for path in ("score", "refuse"):
            assert WEB.post(f"{at}/{path}", content=b"x").status_code == 401
        assert WEB.get(f"{at}/health").json() == {"status": "ok"}
        for token in ("schlüssel", "right\n", "two\tparts", ""):
            with pytest.raises(ValueError, match="printable ASCII") as refused:
                Remote(at, token=token)
            assert not token or token.strip() not in str(refused.value)
    with pytest.raises(ValueError, match="not empty"), served(Service("weighted", Weighted()), token=""):
        pass


# What a server refuses


def body(images: Tensor = IMAGES, prompts: Any = PROMPTS, **more: Any) -> bytes:
    request = json.dumps({"prompts": prompts, **more}).encode()
    return save({"images": images.contiguous(), "request": torch.frombuffer(bytearray(request), dtype=torch.uint8)})


PNG = base64.b64encode(png(to_uint8(IMAGES[0]))).decode()
WIDE = base64.b64encode(png(torch.zeros(3, 1000, 1000, dtype=torch.uint8))).decode()  # 3 KB that unpack to 12 MB


def asked(images: Any, prompts: Any = ("a 1",)) -> bytes:
    return json.dumps({"images": images, "prompts": prompts}).encode()


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (pickle.dumps({"images": [1]}), "application/octet-stream", 415, "not 'application/octet-stream'"),
        (pickle.dumps({"images": [1]}), TENSORS, 400, "no safetensors file"),
        (pickle.dumps({"images": [1]}), JSON, 400, "no JSON"),
        (b"", TENSORS, 400, "no safetensors file"),
        (body()[:-1], TENSORS, 400, "no safetensors file"),
        (body(IMAGES.double()), TENSORS, 422, "float32, float16, uint8 and `request` uint8, not float64"),
        (body(IMAGES.bfloat16()), TENSORS, 422, "bfloat16"),
        (save({"images": IMAGES}), TENSORS, 422, "must be `images` and `request`"),
        (body(IMAGES[0]), TENSORS, 422, r"not \[3, 8, 10\]"),
        (body(IMAGES[:, :1]), TENSORS, 422, r"not \[7, 1, 8, 10\]"),
        (body(IMAGES[:0], []), TENSORS, 422, r"not \[0, 3"),
        (body(prompts=PROMPTS[:2]), TENSORS, 422, "7 images came with 2 prompts"),
        (body(prompts="prompt"), TENSORS, 422, "a list of texts"),
        (body(prompts=[1] * 7), TENSORS, 422, "a list of texts"),
        (body(metadata=[{}]), TENSORS, 422, "7 images came with metadata for 1"),
        (body(metadata=["x"] * 7), TENSORS, 422, "list of objects"),
        (body(IMAGES.where(IMAGES < 0.99, torch.nan)), TENSORS, 422, r"\d of 7 images hold NaN .* 'prompt \d'"),
        (body(torch.rand(9, 3, 2, 2), ["a"] * 9), TENSORS, 413, "at most 8 images, not 9"),
        (body(torch.rand(1, 3, 400, 400), ["a"]), TENSORS, 413, "at most 1 MB"),
        (body(torch.zeros(1, 3, 400, 400, dtype=torch.uint8), ["a"]), TENSORS, 413, "at most 1 MB"),
        (bytes(4_000_000), TENSORS, 413, "at most 1 MB"),
        (asked([WIDE]), JSON, 413, "at most 1 MB"),
        (asked([PNG, PNG], ["a 1"]), JSON, 422, "2 images came with 1 prompts"),
        (asked(["AAAA"]), JSON, 400, "no PNG file"),
        (asked([PNG[: len(PNG) // 8 * 4]]), JSON, 400, "no PNG file"),
        (asked(["!"]), JSON, 400, "no PNG file"),
        (asked([7]), JSON, 400, "no PNG file"),
        (asked([[]]), JSON, 422, "frames of a video"),
        (asked([PNG, [PNG]], ["a 1"] * 2), JSON, 422, "one size"),
        (asked(PNG), JSON, 422, "a list of PNG files"),
        (b"[" * 100_000, JSON, 400, "no JSON"),
        (b"[]", JSON, 422, "must be an object"),
    ],
)  # fmt: skip
def test_a_bad_call_gets_a_sentence(small: str, content: bytes, kind: str, status: int, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        answer = WEB.post(f"{small}/score", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status, answer.text
        raise AssertionError(answer.json()["detail"])


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    with served(Service("weighted", Weighted(), max_batch=8, max_bytes=1e6)) as at:
        yield at


@pytest.mark.parametrize("path", ["score", "refuse"])
def test_a_body_of_unknown_length_is_cut_off(small: str, path: str) -> None:
    answer = WEB.post(f"{small}/{path}", content=iter([bytes(100_000)] * 40), headers={"Content-Type": TENSORS})
    assert answer.status_code == 413 and "at most 1 MB" in answer.json()["detail"]


def test_a_token_is_asked_for_before_a_body_is_looked_at() -> None:
    with served(Service("weighted", Weighted(), max_bytes=1e6), token="right") as at:
        for path in ("score", "refuse"):
            for content in (bytes(4_000_000), iter([bytes(100_000)] * 40), b"{"):
                answer = WEB.post(f"{at}/{path}", content=content, headers={"Content-Type": JSON})
                assert answer.status_code == 401


def test_a_client_that_leaves_in_the_middle_is_an_error_and_no_more() -> None:
    service = Service("weighted", Weighted())
    with served(service) as at:
        host, port = at.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + bytes(10))
        deadline = time.monotonic() + 20
        while not service.counts["errors"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert torch.equal(Remote(at)(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())
    assert service.counts["errors"] == 1


def test_a_reward_that_waits_for_another_server_can_be_served(address: str) -> None:
    with served(Service("weighted", Weighted()), token="right") as guarded:
        behind = Remote(guarded, token="right")
    with served(Service("broken", Weighted()), token="new", port=int(guarded.rpartition(":")[2])):  # noqa: SIM117
        with served(Service("front", behind)) as front, pytest.raises(RewardError, match=r"answered 500: .* 401"):
            Remote(front)(IMAGES, PROMPTS)


def test_prompts_that_are_none_are_refused(small: str) -> None:
    for content, status in ((b"{", 400), (b"[]", 422), (b'{"prompts": "x"}', 422), (pickle.dumps(["x"]), 400)):
        assert WEB.post(f"{small}/refuse", content=content).status_code == status


def test_png_from_any_program(small: str) -> None:
    answer = WEB.post(f"{small}/score", json={"images": [PNG], "prompts": ["a 1"], "metadata": [{"add": 2}]})
    rounded = (IMAGES[:1] * 255).round() / 255
    assert answer.json()["scores"] == pytest.approx(Weighted()(rounded, ["a 3"]).tolist())


class Held:
    """Computes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.busy, self.most, self.calls = 0, 0, list[int]()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.calls.append(len(images))
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.begun.set()
        self.go.wait(60)
        time.sleep(0.01)
        self.busy -= 1
        return torch.zeros(len(images))


def test_calls_wait_their_turn_and_health_does_not() -> None:
    reward = Held()
    with served(Service("held", reward)) as at:
        threads = [threading.Thread(target=Remote(at), args=(IMAGES, PROMPTS)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert reward.begun.wait(60)
        assert WEB.get(f"{at}/health").json() == {"status": "ok"} and all(thread.is_alive() for thread in threads)
        reward.go.set()
        for thread in threads:
            thread.join()
        counts = dict(line.split() for line in WEB.get(f"{at}/metrics").text.splitlines() if line[0] != "#")
        assert WEB.get(f"{at}/openapi.json").json()["paths"].keys() >= {"/score", "/health", "/metrics"}
    assert reward.most == 1 and reward.calls == [7, 7, 7]
    assert counts["flowward_reward_requests_total"] == "3" and counts["flowward_reward_images_total"] == "21"
    assert float(counts["flowward_reward_seconds_total"]) >= 0.03 and counts["flowward_reward_errors_total"] == "0"


def test_a_call_whose_client_has_left_is_not_computed() -> None:
    reward = Held()
    with served(Service("held", reward)) as at:
        thread = threading.Thread(target=Remote(at), args=(IMAGES, PROMPTS))
        thread.start()
        assert reward.begun.wait(60)
        for _ in range(2):
            with pytest.raises(httpx2.ReadTimeout):
                content, kind = encode(IMAGES, PROMPTS, None, "float32"), {"Content-Type": TENSORS}
                WEB.post(f"{at}/score", content=content, headers=kind, timeout=0.3)
        reward.go.set()
        thread.join()
        Remote(at)(IMAGES[:2], PROMPTS[:2])
    assert reward.calls == [7, 2]


# The command


def test_serve_reward_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(images, prompts, metadata=None):\n    return images.flatten(1).sum(1)\n")
    words = [sys.executable, "-m", "flowward", "serve-reward", f"{file}:mine", "--port", "0"]
    environment = {**os.environ, "FLOWWARD_TOKEN": "secret"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            at = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
            found = Remote(at, token="secret")(IMAGES, PROMPTS)
            assert torch.allclose(found, IMAGES.flatten(1).sum(1), rtol=1e-6)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n" and process.wait() == 0


def test_a_run_with_a_remote_reward_is_the_run_with_the_reward(tiny: str, tmp_path: Path) -> None:
    budget = shlex.split(
        "--iterations 2 --images-per-update 8 --group-size 4 --microbatch 8 --algorithm.rollout.steps 2 "
        "--evaluation.images 6 --evaluation.sampler.steps 2 --threads 1"
    )
    lines = []
    with served(Service("balance", rewards.load(["balance"])), token="secret") as at:
        for name, more in (("balance", []), (at, [f"{at}.batch=3", f"{at}.token=secret"])):
            words = ["--reward", name, *(["--reward-options", *more] if more else [])]
            folder = tmp_path / str(len(lines))
            assert main(["train", *budget, *words, "--model", tiny, "--output", str(folder)]) == 0
            text = (folder / "metrics.jsonl").read_text()
            lines.append([{**json.loads(line), "seconds": 0} for line in text.splitlines()])
    assert lines[0] == lines[1]


def test_serving_badly(capsys: pytest.CaptureFixture[str], address: str) -> None:
    taken = address.rpartition(":")[2]
    for words, sentence in (
        (["scens"], "did you mean 'scenes'"),
        (["scenes", "--port", taken], "name another --host or --port"),
        (["scenes", "--port", "70000"], "between 0 and 65535"),
        (["scenes", "--max-batch", "0"], "must be positive"),
        (["scenes", "--port", "0", "--token", "ü"], "printable ASCII"),
        (["scenes", "--port", "0", "--reward-options", "scenes.x=1"], "has no options"),
    ):
        assert main(["serve-reward", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["serve-reward", "scens", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "whoever reaches 0.0.0.0" in capsys.readouterr().err
