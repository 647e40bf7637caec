"""Real servers on this machine, to ask over HTTP: a reward's, and one that answers as a test says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from fastapi import FastAPI

from flowward.rewards.service.server import Service, application
from flowward.system.serving import configured

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


@contextmanager
def served(service: Service, token: str | None = None, port: int = 0) -> Iterator[str]:
    """The address of a reward that is served until the block ends."""
    with running(application(service, token), port) as at:
        yield at


@contextmanager
def running(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of an application that is served until the block ends."""
    listener = socket.create_server(("127.0.0.1", port))
    config = configured(app, log_level="critical")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def scripted(respond: Callable[[str, dict[str, str], bytes], Answer | None], port: int = 0) -> Iterator[str]:
    """The address of a server that gives (path, headers, body) to `respond`; None drops the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = respond(self.path, dict(self.headers.items()), body)
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, headers, content = answer
            (self.send_response_only if "Date" in headers else self.send_response)(status)  # one Date, not two
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def reply(content: Any, status: int = 200, **headers: str) -> Answer:
    """JSON, or bytes as they are."""
    return status, headers, content if isinstance(content, bytes) else json.dumps(content).encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
