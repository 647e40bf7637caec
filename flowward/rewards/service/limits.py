"""What a reward server gives to one caller: time and memory for a body (system/serving.py: time for a head).

Without these limits, callers that begin a request and never finish it would keep memory for good.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from .wire import Refused, too_large

LATE = 20.0  # seconds that a body may be late, compared with the slowest connection
SLOWEST = 250e3  # bytes per second of the slowest connection


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
