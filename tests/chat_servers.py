"""Scripted servers of language models: chat completions, and what requests looked like."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from local_servers import Answer, reply, scripted

Respond = Callable[[dict[str, Any]], Answer | None]


def chat(text: str | None, reason: str = "stop", **more: Any) -> Answer:
    """A chat completion."""
    return reply({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason, **more}]})


def echo(request: dict[str, Any]) -> Answer:
    """A model that repeats the last message."""
    return chat(f"re: {request['messages'][-1]['content']}")


@contextmanager
def chatting(
    answer: Respond = echo, models: tuple[str, ...] = ("m",), port: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """The address (.../v1) of a chat server, and the requests that it got."""
    requests: list[Any] = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/v1/models":
            return reply({"data": [{"id": name} for name in models]})
        assert path == "/v1/chat/completions", path
        requests.append(json.loads(body) | {"key": headers.get("Authorization")})
        return answer(requests[-1])

    with scripted(respond, port) as at:
        yield f"{at}/v1", requests


def troubled(*troubles: Answer | None, then: Respond = echo) -> Respond:
    """Answers the first requests with trouble, and the others as `then`."""
    left, lock = list(troubles), threading.Lock()

    def respond(request: dict[str, Any]) -> Answer | None:
        with lock:
            if left:
                return left.pop(0)
        return then(request)

    return respond
