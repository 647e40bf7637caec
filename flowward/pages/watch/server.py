"""The local server of `flowward watch`: the page, its news as server-sent events, and pictures. It writes nothing.

Only names that the folder's own list of runs contains lead to files, so that no path of a caller is ever opened.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, StreamingResponse

from ...system.addresses import is_loopback
from ...system.asking import check_token
from ..page import render
from . import pictures
from .folder import PAUSE, Folder, Seen

BEAT = 15.0  # seconds after which a silent stream sends a comment, so that a page that is gone is noticed
STEP = 0.25  # seconds between two looks at whether the server ends


def application(folder: Folder, token: str | None, ended: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application; with a token, every address needs it, as `?token=` or as a bearer token.

    Args:
        ended: whether the server has been told to stop, so that streams end.

    Raises:
        ValueError: the token is empty, or has characters that a header cannot contain.
    """
    check_token(token)
    shell = page(folder)
    headers = _headers(shell)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(_guard(token))])

    @app.get("/", response_class=HTMLResponse)
    async def shown() -> HTMLResponse:
        return HTMLResponse(shell, headers=headers)

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(_stream(folder, ended), media_type="text/event-stream", headers=headers)

    @app.get("/pictures")
    async def samples(run: str, iteration: int) -> list[dict[str, Any]]:
        path = folder.picture_file(run, iteration)
        if path is None:
            raise HTTPException(404, "there are no pictures of this run and iteration")
        return await run_in_threadpool(pictures.of, path)

    return app


def page(folder: Folder) -> str:
    """The page without any run, which it gets from the stream."""
    return render("runs.html.j2", charts=True, title=f"Runs in {folder.path.name or folder.root}", runs=None)


async def _stream(folder: Folder, ended: Callable[[], bool]) -> AsyncIterator[str]:
    seen, quiet = Seen(), 0.0
    while not ended():
        news = await run_in_threadpool(folder.news, seen)
        for name, data in news:
            yield f"event: {name}\ndata: {data}\n\n"
        quiet = 0.0 if news else quiet + PAUSE
        if quiet >= BEAT:
            yield ":\n\n"
            quiet = 0.0
        for _ in range(round(PAUSE / STEP)):
            if not ended():
                await asyncio.sleep(STEP)


def _guard(token: str | None) -> Any:
    """A check that refuses calls without the token. Without a token, only addresses of this machine are answered.

    Otherwise a page of another site could read the runs by giving its own name this machine's address.
    """

    async def check(request: Request) -> None:
        if token is None:
            if not is_loopback(request.url.hostname or ""):
                raise HTTPException(403, "call this server as 127.0.0.1 or localhost, or start it with --token")
            return
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else request.query_params.get("token", "")
        if not secrets.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            raise HTTPException(401, "the token is missing or wrong; open the address that flowward watch has printed")

    return check


def _headers(html: str) -> dict[str, str]:
    """Only the page's own scripts run, nothing is loaded from elsewhere, and the token goes to no other site."""
    scripts = [each.encode() for each in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
