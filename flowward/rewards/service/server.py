"""A reward as an HTTP service: POST /score runs the reward in a worker thread, one call at a time.

The event loop never waits for the reward, so /health and /metrics always answer. See wire.py for the format of calls
and answers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ... import __version__
from ...system.asking import check_token
from ...system.errors import named
from ..reward import Reward, RewardError, bounds_of, gives_verdicts, refuse, score
from .counters import CONTENT_TYPE, Counters
from .limits import Room, body_of, size_of
from .page import page
from .wire import JSON, TENSORS, Call, Refused, asked_of, decode


@dataclass
class Service:
    """One reward with its limits and counters."""

    name: str
    reward: Reward
    max_batch: int = 256
    max_bytes: float = 1e9
    max_total_bytes: float = 3e9  # of all calls at once; others wait
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        for limit in ("max_batch", "max_bytes", "max_total_bytes"):
            if getattr(self, limit) <= 0:
                raise ValueError(f"{limit} must be a positive number, not {getattr(self, limit)}")

    def about(self) -> dict[str, Any]:
        """Description for clients: the reward's name, attributes and limits."""
        return {
            "reward": self.name,
            "takes_videos": bool(getattr(self.reward, "takes_videos", False)),
            "compares": bool(getattr(self.reward, "compares", False)),
            "verdicts": gives_verdicts(self.reward),
            "bounds": bounds_of(self.reward),
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
            self.counters.seconds.inc(time.perf_counter() - started)
            self.counters.images.inc(len(call.images))

    def _scored(self, call: Call) -> Any:
        with torch.no_grad():
            return score(self.name, self.reward, call.images, call.prompts, call.metadata)


def application(service: Service, token: str | None = None) -> FastAPI:
    """The FastAPI application that serves a reward.

    If there is a token, every path needs it, except /health and the pages that describe the interface (/, /docs and
    /openapi.json).

    Raises:
        ValueError: the token is empty, or has characters that a header cannot contain.
    """
    check_token(token)
    guard = [] if token is None else [Depends(_guard(token))]
    # FastAPI's own pages load their scripts from another server
    app = FastAPI(title=f"flowward reward: {service.name}", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/", response_class=PlainTextResponse)
    @app.get("/docs", response_class=PlainTextResponse, include_in_schema=False)
    async def described(request: Request) -> str:
        """Describe this server, and how to call it."""
        address = str(request.base_url).rstrip("/")
        return page(service.name, address, service.max_batch, service.max_bytes, token is not None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server is up, without waiting for the reward."""
        return {"status": "ok"}

    @app.get("/reward", dependencies=guard)
    async def about() -> dict[str, Any]:
        """Report the reward's name, attributes and limits."""
        return service.about()

    @app.get("/metrics", dependencies=guard, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Report counters for Prometheus."""
        return Response(service.counters.text(), media_type=CONTENT_TYPE)

    _add_calls(app, service, guard)
    return app


def _add_calls(app: FastAPI, service: Service, guard: list[Any]) -> None:
    """Add /refuse and /score. Both read the body themselves: FastAPI would read all of it before checking the token."""
    turn, room = asyncio.Lock(), Room(service.max_total_bytes)

    @app.post("/refuse", dependencies=guard, openapi_extra=_described(JSON))
    async def refused(request: Request) -> dict[str, str | None]:
        """Check the `prompts`: `refused` is the reason for the first bad one, or null."""
        try:
            async with room.taken(size_of(request, service.max_bytes)):
                prompts, metadata = asked_of(await body_of(request, service.max_bytes))
                await run_in_threadpool(refuse, service.reward, prompts, metadata, service.name)
        except (Refused, RewardError) as error:
            raise _failure(error) from error
        except ValueError as error:
            return {"refused": _writable(str(error))}
        return {"refused": None}

    @app.post("/score", dependencies=guard, openapi_extra=_described(TENSORS, JSON))
    async def scored(request: Request) -> dict[str, list[float]]:
        """Score images: one number per image."""
        service.counters.requests.inc()
        try:
            async with AsyncExitStack() as held:
                with service.counters.waiting.track_inprogress():
                    await held.enter_async_context(room.taken(size_of(request, service.max_bytes)))
                    body, kind = await body_of(request, service.max_bytes), request.headers.get("content-type", "")
                    await held.enter_async_context(turn)
                if await request.is_disconnected():  # it will ask again, so do not compute twice
                    return {"scores": []}
                return {"scores": await run_in_threadpool(service.score, body, kind)}
        except (Refused, RewardError) as error:
            service.counters.errors.inc()
            raise _failure(error) from error


def _failure(error: Refused | RewardError) -> HTTPException:
    status = error.status if isinstance(error, Refused) else 500
    return HTTPException(status, _writable(str(error) or named(error)))


def _writable(text: str) -> str:
    """A text that UTF-8 can hold: a user's error may have half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


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
