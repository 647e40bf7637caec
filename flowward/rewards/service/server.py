"""A reward as an HTTP service: any reward behind POST /score, one call after the other in a worker thread.

The event loop never waits for a reward, so /health and /metrics answer while one computes. What calls and answers
look like is stated in wire.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from ... import __version__
from ...system.asking import check_token
from ..reward import Reward, RewardError, gives_verdicts, refuse, score
from .wire import JSON, TENSORS, Call, Refused, asked_of, decode, too_large


@dataclass
class Service:
    """One reward, its limits, and what it has done so far."""

    name: str
    reward: Reward
    max_batch: int = 256
    max_bytes: float = 1e9
    counts: Counter[str] = field(default_factory=Counter)  # requests, images, errors
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for limit in ("max_batch", "max_bytes"):
            if getattr(self, limit) <= 0:
                raise ValueError(f"{limit} must be positive, not {getattr(self, limit)}")

    def about(self) -> dict[str, Any]:
        """What a client needs to know before its first call."""
        return {
            "reward": self.name,
            "takes_videos": bool(getattr(self.reward, "takes_videos", False)),
            "compares": bool(getattr(self.reward, "compares", False)),
            "verdicts": gives_verdicts(self.reward),
            "max_batch": self.max_batch,
            "max_bytes": self.max_bytes,
        }

    def score(self, body: bytes, content_type: str) -> list[float]:
        """Raises Refused for a call that cannot be scored, RewardError where the reward fails."""
        call = decode(body, content_type, self.max_bytes)
        if len(call.images) > self.max_batch:
            raise Refused(413, f"a call may hold at most {self.max_batch} images, not {len(call.images)}")
        started = time.perf_counter()
        try:
            scores: list[float] = self._scored(call).tolist()
            return scores
        finally:
            self.seconds += time.perf_counter() - started
            self.counts["images"] += len(call.images)

    def _scored(self, call: Call) -> Any:
        with torch.no_grad():
            return score(self.name, self.reward, call.images, call.prompts, call.metadata)

    def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        lines = []
        for name, value, what in (
            ("requests", self.counts["requests"], "Calls to /score."),
            ("images", self.counts["images"], "Images given to the reward."),
            ("seconds", self.seconds, "Seconds in which the reward computed."),
            ("errors", self.counts["errors"], "Calls that were refused, or in which the reward failed."),
        ):
            full = f"flowward_reward_{name}_total"
            lines += [f"# HELP {full} {what}", f"# TYPE {full} counter", f"{full} {value}"]
        return "\n".join(lines) + "\n"


def application(service: Service, token: str | None = None) -> FastAPI:
    """The FastAPI application that serves a reward.

    Everything but /health (and the pages that describe the interface) asks for the token, where there is one.

    Raises:
        ValueError: the token is empty, or has characters that a header cannot carry.
    """
    check_token(token)
    guard = [] if token is None else [Depends(_guard(token))]
    app = FastAPI(title=f"flowward reward: {service.name}", version=__version__)
    turn = asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is up; it does not wait for the reward."""
        return {"status": "ok"}

    @app.get("/reward", dependencies=guard)
    async def about() -> dict[str, Any]:
        """The reward's name and limits."""
        return service.about()

    @app.get("/metrics", dependencies=guard, response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters for Prometheus."""
        return service.metrics()

    # Both read their body by hand: FastAPI would read it whole before it asks for the token.

    @app.post("/refuse", dependencies=guard, openapi_extra=_described(JSON))
    async def refused(request: Request) -> dict[str, str | None]:
        """The sentence with which the reward refuses one of the `prompts`; null where it understands all."""
        try:
            prompts, metadata = asked_of(await _body(request, service.max_bytes))
            await run_in_threadpool(refuse, service.reward, prompts, metadata)
        except Refused as error:
            raise HTTPException(error.status, str(error)) from error
        except ValueError as error:
            return {"refused": str(error)}
        except Exception as error:  # a user's reward may fail in any way
            raise HTTPException(500, f"reward '{service.name}' raised {type(error).__name__}: {error}") from error
        return {"refused": None}

    @app.post("/score", dependencies=guard, openapi_extra=_described(TENSORS, JSON))
    async def scored(request: Request) -> dict[str, list[float]]:
        """One score per image."""
        service.counts["requests"] += 1
        try:
            body = await _body(request, service.max_bytes)
            async with turn:
                if await request.is_disconnected():  # a client that gave up waiting asks again: do not compute twice
                    return {"scores": []}
                return {"scores": await run_in_threadpool(service.score, body, request.headers.get("content-type", ""))}
        except (Refused, RewardError) as error:
            service.counts["errors"] += 1
            raise HTTPException(error.status if isinstance(error, Refused) else 500, str(error)) from error

    return app


def _described(*kinds: str) -> dict[str, Any]:
    """A body for the page that describes the interface."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {"requestBody": {"content": content, "required": True}}


def _guard(token: str) -> Any:
    """What refuses (401) whoever does not bring the token; it runs before a body is read."""
    bearer = HTTPBearer(auto_error=False)

    async def check(given: HTTPAuthorizationCredentials | None = Depends(bearer)) -> None:  # noqa: B008
        if given is None:
            raise HTTPException(401, "this server asks for its token", {"WWW-Authenticate": "Bearer"})
        if not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "this is not the token of this server", {"WWW-Authenticate": "Bearer"})

    return check


async def _body(request: Request, max_bytes: float) -> bytes:
    """The body, read piece by piece. Raises Refused (413) once it is larger than a call can be."""
    limit = 1.4 * max_bytes + 1e6  # base64 adds a third, prompts and metadata some more
    if float(request.headers.get("content-length", 0)) > limit:
        raise too_large(max_bytes)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect as error:
        raise Refused(400, "the client left in the middle of a call") from error
    return b"".join(parts)
