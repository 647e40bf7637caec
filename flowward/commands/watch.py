"""flowward watch"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import tyro

from .help import Page
from .options import parse

TOKEN = "FLOWWARD_TOKEN"
PAGE = Page(
    about="Show all runs of a folder on a local web page: state, curves, pictures, warnings and settings. The page "
    "updates itself while runs train. It only reads files. Stop it with Ctrl-C.",
    examples=(
        ("watch runs", "open the printed address in a browser"),
        ("watch runs --host 0.0.0.0 --token SECRET", "for other machines, with a token of your own"),
    ),
)


@dataclass(frozen=True)
class Watch:
    """Show all runs of a folder on a local web page that updates itself."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """folder of run folders, or one run folder"""
    host: str = "127.0.0.1"
    """address to listen at; 0.0.0.0 accepts other machines, which then need a token"""
    port: int = 8090
    """port to listen at (0: any free one)"""
    token: str | None = None
    """secret in the page's address (default: variable FLOWWARD_TOKEN; a new one if --host is not this machine)"""


def run(words: list[str]) -> int:
    chosen = parse(Watch, words, "watch", page=PAGE)
    from ..pages.watch.folder import Folder, Seen

    folder = Folder(chosen.folder)
    try:
        from ..pages.watch import server
        from ..system import serving
    except ImportError as error:
        raise ValueError("watching runs needs fastapi and uvicorn: pip install 'flowward[server]'") from error
    from ..system.addresses import is_loopback

    token = chosen.token if chosen.token is not None else os.environ.get(TOKEN)
    if token is None and not is_loopback(chosen.host):
        token = secrets.token_urlsafe(24)
    stopping: list[serving.Announced] = []
    app = server.application(folder, token, lambda: stopping[0].should_exit)
    listener = serving.listen(chosen.host, chosen.port)
    folder.news(Seen())  # read everything once, so that the page opens at once
    at = serving.address(listener) + (f"/?token={quote(token, safe='')}" if token else "")
    stopping.append(serving.Announced(app, f"runs in {chosen.folder} at {at}  (stop with Ctrl-C)"))
    stopping[0].until_stopped(listener)
    return 0
