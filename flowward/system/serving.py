"""Serving over HTTP: listening at an address, and what one caller may use of the server's connections.

Without these limits, callers that begin a request and never finish it would keep connections for good.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 10.0  # seconds for the head of a request
REST = 60.0  # seconds for the rest of a body that was refused
CONNECTIONS = 512  # at once; more are closed immediately


class Guarded(H11Protocol):
    """One connection. It is closed if the head of the next request does not arrive in time."""

    _timer: Any = None

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


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address (port 0: any free one).

    Raises:
        ValueError: the port cannot be, the address is taken, or it is not this machine's.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"a port lies between 0 and 65535, not at {port}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}:{port} ({error.strerror}); name another --host or --port") from error


def address(listener: socket.socket) -> str:
    """http://host:port"""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Announced(uvicorn.Server):
    """A server that prints a line when it can be called."""

    def __init__(self, app: FastAPI, line: str):
        super().__init__(configured(app))
        self._line = line

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(self._line, flush=True)

    def until_stopped(self, listener: socket.socket) -> None:
        """Serve until Ctrl-C or a signal."""
        with suppress(KeyboardInterrupt):  # which a process that was told to ignore the signal does not get
            self.run([listener])
        print("stopped", flush=True)
