"""What a reward server gives to one caller: time for a request, a connection, and memory for a body.

Without these limits, callers that begin a request and never finish it would keep connections and memory for good.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from .wire import Refused, too_large

HEAD = 10.0  # seconds for the head of a request
REST = 60.0  # seconds for the rest of a body that was refused
LATE = 20.0  # seconds that a body may be late, compared with the slowest connection
SLOWEST = 250e3  # bytes per second of the slowest connection
CONNECTIONS = 512  # at once; more are closed immediately


class Room:
    """Memory for bodies: a call waits unread until it fits, and the largest one fits if no other call is there."""

    def __init__(self, limit: float):
        """`limit`: bytes of all calls together."""
        self.limit, self.held = limit, 0.0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: float) -> AsyncIterator[None]:
        """Inside, `size` bytes are reserved."""
        async with self._freed:
            await self._freed.wait_for(lambda: not self.held or self.held + size <= self.limit)
            self.held += size
        try:
            yield
        finally:
            async with self._freed:
                self.held -= size
                self._freed.notify_all()


def size_of(request: Request, max_bytes: float) -> float:
    """The largest size that the body of a request can have.

    Raises:
        Refused: 413 if its size is declared and too large.
    """
    limit = 1.4 * max_bytes + 1e6  # base64 adds a third, prompts and metadata some more
    declared = request.headers.get("content-length")
    if declared and float(declared) > limit:
        raise too_large(max_bytes)
    return float(declared) if declared else limit


async def body_of(request: Request, max_bytes: float) -> bytes:
    """Read the body of a request in pieces.

    Raises:
        Refused: 413 as soon as it is too large, 408 if it comes too slowly, 400 if the client has left.
    """
    limit, now = size_of(request, max_bytes), asyncio.get_running_loop().time
    whole, stream, deadline = io.BytesIO(), aiter(request.stream()), now() + LATE
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                part = await anext(stream, None)
            if part is None:
                return whole.getvalue()
            whole.write(part)
            deadline = min(deadline + len(part) / SLOWEST, now() + LATE)  # a quick start earns no pause later
            if whole.tell() > limit:
                raise too_large(max_bytes)
    except ClientDisconnect as error:
        raise Refused(400, "the client closed the connection during the call") from error
    except TimeoutError as error:
        raise Refused(408, f"the call came too slowly: {whole.tell()} bytes, and then none in time") from error


class Guarded(H11Protocol):
    """One connection. It is closed if the head of the next request does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect(HEAD)
        if len(self.connections) > CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._stop_if_begun()

    def on_response_complete(self) -> None:
        self._expect(HEAD if self.conn.their_state is h11.DONE else REST)
        super().on_response_complete()
        self._stop_if_begun()  # the next request may have been there already

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _expect(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_if_begun(self) -> None:
        begun: Any = self.cycle  # None before the first request
        if begun and not begun.response_complete:
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def configured(app: FastAPI, log_level: str = "warning") -> Config:
    """uvicorn's settings with these limits. Its other implementation of HTTP has no time limit for a head."""
    return Config(app, http=Guarded, ws="none", log_level=log_level, access_log=False, timeout_graceful_shutdown=5)
