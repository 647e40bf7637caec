"""Callers that begin and never finish keep neither connections nor memory of a reward server."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from local_servers import served
from remote_rewards import IMAGES, PROMPTS, WEB, Held, Weighted

from flowward.rewards.service import limits
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service
from flowward.rewards.service.wire import JSON, TENSORS, encode, png, to_uint8
from flowward.system import serving

pytestmark = pytest.mark.usefixtures("hasty")
PNG = base64.b64encode(png(to_uint8(IMAGES[0]))).decode()
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose patience is a fraction of a second."""
    for name, value in {"HEAD": 0.5, "REST": 0.5, "CONNECTIONS": 8}.items():
        monkeypatch.setattr(serving, name, value)
    monkeypatch.setattr(limits, "LATE", 0.5)
    with served(Service("weighted", Weighted(), max_batch=8, max_bytes=1e6)) as at:
        yield at


def connected(at: str, sent: bytes = b"") -> socket.socket:
    host, port = at.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    with closing(connection):
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


@pytest.mark.parametrize("sent", [b"", b"P", b"GET /health HTTP/1.1\r\nHost: x\r\nA: b"])
def test_a_head_that_does_not_come_ends_the_connection(strict: str, sent: bytes) -> None:
    started = time.monotonic()
    assert received(connected(strict, sent)) == b""
    assert 0.3 < time.monotonic() - started < 10


def test_a_head_in_drops_ends_the_connection(strict: str) -> None:
    connection, sent = connected(strict), 0
    with pytest.raises(OSError), closing(connection):
        for sent in range(200):  # noqa: B007
            connection.sendall(b"X")
            time.sleep(0.05)
    assert sent < 100


def test_the_next_head_of_a_connection_has_a_limit_too(strict: str) -> None:
    said = received(connected(strict, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal"))
    assert said.count(b"HTTP/1.1 200") == 1
    both = received(connected(strict, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2))
    assert both.count(b"HTTP/1.1 200") == 2


def test_a_body_that_does_not_come_is_answered_and_ended(strict: str) -> None:
    started = time.monotonic()
    said = received(connected(strict, HEAD + bytes(10)))
    assert said.startswith(b"HTTP/1.1 408") and b"came too slowly" in said
    assert time.monotonic() - started < 10


def test_a_body_in_drops_is_ended_and_a_slow_one_is_not(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may be late by a fixed time, compared with the slowest connection that is served."""

    def sent(rate: float) -> bytes:
        monkeypatch.setattr(limits, "SLOWEST", rate)
        connection = connected(strict, HEAD)
        try:
            for _ in range(20):
                connection.sendall(bytes(5000))
                time.sleep(0.06)
        except OSError:
            pass
        return received(connection)

    assert sent(1e9).startswith(b"HTTP/1.1 408") or sent(1e9) == b""
    assert sent(1e4).startswith(b"HTTP/1.1 400")  # all of it came, and is no JSON


def test_a_quick_start_earns_no_pause(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOWEST", 1.0)
    started = time.monotonic()
    assert received(connected(strict, HEAD + bytes(90_000))).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 10


def test_the_rest_of_a_refused_body_has_a_limit(strict: str) -> None:
    said = received(connected(strict, HEAD.replace(b"100000", b"99999999") + bytes(10)))
    assert said.startswith(b"HTTP/1.1 413")


def test_more_connections_than_allowed_are_closed_at_once_and_the_others_work(strict: str) -> None:
    open_ones = [connected(strict) for _ in range(8)]
    started = time.monotonic()
    assert received(connected(strict)) == b"" and time.monotonic() - started < 0.4
    for one in open_ones:
        one.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert WEB.get(f"{strict}/health").status_code == 200
            return
        except Exception:
            time.sleep(0.05)
    raise AssertionError


def test_many_that_begin_and_never_finish_keep_no_one_out(strict: str) -> None:
    """As each of them ends within its limit, a client that tries again gets its scores."""
    remote = Remote(strict, patience=30)
    half = [connected(strict, HEAD[:40]) for _ in range(60)]
    assert torch.equal(remote(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())
    assert all(received(one) == b"" for one in half)


def test_a_reward_that_takes_its_time_is_waited_for(strict: str) -> None:
    """The limits are for callers, not for the reward."""
    with served(Service("slow", Weighted(1.5))) as at:
        assert torch.equal(Remote(at)(IMAGES, PROMPTS), Weighted()(IMAGES, PROMPTS).float())


def test_calls_that_do_not_fit_wait_unread() -> None:
    """Two bodies of unknown length may be 2.4 MB each: the second is read when the first has its answer."""
    reward = Held()
    service = Service("held", reward, max_bytes=1e6, max_total_bytes=3e6)
    content, kind = encode(IMAGES, PROMPTS, None, "float32"), {"Content-Type": TENSORS}
    with served(service) as at:
        threads = [
            threading.Thread(
                target=WEB.post, args=(f"{at}/score",), kwargs={"content": iter([content]), "headers": kind}
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert reward.begun.wait(60)
        assert WEB.get(f"{at}/health").status_code == 200
        small = WEB.post(f"{at}/refuse", json={"prompts": ["a"]})
        assert small.json() == {"refused": None}  # what is small still fits
        reward.go.set()
        for thread in threads:
            thread.join()
    assert reward.calls == [7, 7, 7]


def test_room_is_given_back_and_one_call_always_fits() -> None:
    async def use() -> list[str]:
        room, order = limits.Room(10), list[str]()

        async def one(name: str, size: float, seconds: float) -> None:
            async with room.taken(size):
                order.append(f"{name} in")
                await asyncio.sleep(seconds)
                order.append(f"{name} out")

        await asyncio.gather(one("a", 6, 0.1), one("b", 6, 0.1), one("c", 4, 0.01), one("large", 99, 0))
        assert room.held == 0
        return order

    order = asyncio.run(use())
    assert order[:3] == ["a in", "c in", "c out"] and order.index("b in") > order.index("a out")
    assert order.index("large out") == order.index("large in") + 1


# What a call may contain, and the page


def posted(at: str, path: str = "score", **request: Any) -> Any:
    text = json.dumps({"images": [], "prompts": ["a 1"], **request})
    return WEB.post(f"{at}/{path}", content=text.encode(), headers={"Content-Type": JSON})


@pytest.mark.parametrize("path", ["score", "refuse"])
@pytest.mark.parametrize(
    "metadata", [0, "", False, {}, 0.0, [0], [None], [{"a": float("nan")}], [{"a": "\ud800"}], [{"\udc00": 1}]]
)
def test_metadata_that_is_none_is_refused(strict: str, path: str, metadata: Any) -> None:
    answer = posted(strict, path, images=[PNG], metadata=metadata)
    assert answer.status_code == 422 and "metadata" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["score", "refuse"])
def test_half_of_a_surrogate_pair_is_no_prompt(strict: str, path: str) -> None:
    answer = posted(strict, path, images=[PNG], prompts=["a \ud83d"])
    assert answer.status_code == 422 and "half of a surrogate pair" in answer.json()["detail"]
    assert posted(strict, path, images=[PNG], prompts=["a \U0001f600 1"]).status_code == 200


@pytest.mark.parametrize(
    "error", [ValueError("\ud83d"), RuntimeError("\ud83d"), SystemExit("\ud83d"), KeyboardInterrupt()]
)
def test_whatever_a_reward_raises_the_server_answers_and_goes_on(error: BaseException) -> None:
    class Raises:
        def refuse(self, prompts: Any, metadata: Any = None) -> None:
            raise error

        def __call__(self, *_: Any) -> Any:
            raise error

    content, kind = encode(IMAGES, PROMPTS, None, "float32"), {"Content-Type": TENSORS}
    with served(Service("raises", Raises())) as at:
        for answer in (WEB.post(f"{at}/score", content=content, headers=kind), posted(at, "refuse")):
            said = answer.json()
            assert said.get("detail") or said["refused"]
            assert answer.status_code == (200 if "refused" in said else 500)
        assert WEB.get(f"{at}/health").status_code == 200


@pytest.mark.parametrize("path", ["", "docs"])
def test_the_page_says_what_this_is_and_needs_nothing_from_outside(path: str) -> None:
    with served(Service("weighted", Weighted(), max_batch=8), token="right") as at:
        page = WEB.get(f"{at}/{path}")
        listed = WEB.get(f"{at}/openapi.json").json()["paths"]
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/plain")
    assert "flowward reward server: weighted" in page.text and f"--reward {at}" in page.text
    assert "at most" not in page.text and "8 images" in page.text and "Bearer TOKEN" in page.text
    assert all(each in page.text for each in listed if each != "/")
    assert page.text.count("http") == page.text.count(at)
