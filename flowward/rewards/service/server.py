"""A reward as an HTTP service: POST /score runs the reward in a worker thread, one call at a time.

The event loop never waits for the reward, so /health and /metrics always answer. See wire.py for the format of calls
and answers.
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
    """One reward with its limits and counters."""

    name: str
    reward: Reward
    max_batch: int = 256
    max_bytes: float = 1e9
    counts: Counter[str] = field(default_factory=Counter)  # requests, images, errors
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for limit in ("max_batch", "max_bytes"):
            if getattr(self, limit) <= 0:
                raise ValueError(f"{limit} must be a positive number, not {getattr(self, limit)}")

    def about(self) -> dict[str, Any]:
        """Description for clients: the reward's name, attributes and limits."""
        return {
            "reward": self.name,
            "takes_videos": bool(getattr(self.reward, "takes_videos", False)),
            "compares": bool(getattr(self.reward, "compares", False)),
            "verdicts": gives_verdicts(self.reward),
            "max_batch": self.max_batch,
            "max_bytes": self.max_bytes,
        }

    def score(self, body: bytes, content_type: str) -> list[float]:
        """Score one call. Raise Refused if the call is invalid, RewardError if the reward fails."""
        call = decode(body, content_type, self.max_bytes)
        if len(call.images) > self.max_batch:
            raise Refused(413, f"a call may contain at most {self.max_batch} images, not {len(call.images)}")
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
            ("images", self.counts["images"], "Images scored by the reward."),
            ("seconds", self.seconds, "Seconds of computation in the reward."),
            ("errors", self.counts["errors"], "Calls that were refused or failed."),
        ):
            full = f"flowward_reward_{name}_total"
            lines += [f"# HELP {full} {what}", f"# TYPE {full} counter", f"{full} {value}"]
        return "\n".join(lines) + "\n"


def application(service: Service, token: str | None = None) -> FastAPI:
    """The FastAPI application that serves a reward.

    If there is a token, every path needs it, except /health and the pages that describe the interface.

    Raises:
        ValueError: the token is empty, or has characters that a header cannot contain.
    """
    check_token(token)
    guard = [] if token is None else [Depends(_guard(token))]
    app = FastAPI(title=f"flowward reward: {service.name}", version=__version__)
    turn = asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server is up, without waiting for the reward."""
        return {"status": "ok"}

    @app.get("/reward", dependencies=guard)
    async def about() -> dict[str, Any]:
        """Report the reward's name, attributes and limits."""
        return service.about()

    @app.get("/metrics", dependencies=guard, response_class=PlainTextResponse)
    async def metrics() -> str:
        """Report counters for Prometheus."""
        return service.metrics()

    # Both read the body themselves: FastAPI would read all of it before checking the token.

    @app.post("/refuse", dependencies=guard, openapi_extra=_described(JSON))
    async def refused(request: Request) -> dict[str, str | None]:
        """Check the `prompts`: `refused` is the reason for the first bad one, or null."""
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
        """Score images: one number per image."""
        service.counts["requests"] += 1
        try:
            body = await _body(request, service.max_bytes)
            async with turn:
                if await request.is_disconnected():  # it will ask again, so do not compute twice
                    return {"scores": []}
                return {"scores": await run_in_threadpool(service.score, body, request.headers.get("content-type", ""))}
        except (Refused, RewardError) as error:
            service.counts["errors"] += 1
            raise HTTPException(error.status if isinstance(error, Refused) else 500, str(error)) from error

    return app


def _described(*kinds: str) -> dict[str, Any]:
    """Request body for the page that describes the interface."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {"requestBody": {"content": content, "required": True}}


def _guard(token: str) -> Any:
    """A check that refuses (401) calls without the token, before reading their body."""
    bearer = HTTPBearer(auto_error=False)

    async def check(given: HTTPAuthorizationCredentials | None = Depends(bearer)) -> None:  # noqa: B008
        if given is None:
            raise HTTPException(
                401, "the token is missing; send it as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        if not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "wrong token for this server", {"WWW-Authenticate": "Bearer"})

    return check


async def _body(request: Request, max_bytes: float) -> bytes:
    """Read the body in pieces. Raise Refused (413) as soon as it is too large."""
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
        raise Refused(400, "the client closed the connection during the call") from error
    return b"".join(parts)
