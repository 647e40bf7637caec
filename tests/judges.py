"""Servers that judge images, and six images whose brightness is what a judge should say."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from local_servers import Answer, reply, scripted
from PIL import Image

Respond = Callable[[dict[str, Any]], Answer | None]
PROMPTS = [f"a {colour} cube" for colour in ("red", "green", "blue", "red", "green", "red")]
LEVELS = torch.tensor([10, 200, 90, 250, 60, 130], dtype=torch.float32) / 255
IMAGES = LEVELS.view(-1, 1, 1, 1).expand(-1, 3, 6, 4).contiguous()


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
