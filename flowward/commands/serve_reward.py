"""flowward serve-reward"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..system.asking import check_token
from ..system.errors import between
from ..system.terminal import tell
from .help import Page
from .options import parse

TOKEN = "FLOWWARD_TOKEN"
MOST_BATCH = 1_000_000
MOST_MEGABYTES = 1_000_000
PAGE = Page(
    about="Serve a reward over HTTP, for `flowward train --reward http://HOST:PORT` on this machine or another one.",
    examples=(
        ("serve-reward pickscore --port 8001", "a built-in reward"),
        ("serve-reward mine.py:red --host 0.0.0.0 --token SECRET", "your own, for other machines"),
    ),
)


@dataclass(frozen=True)
class ServeReward:
    """Serve a reward over HTTP."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REWARD")]
    """built-in reward (`flowward list rewards`), package.module:function or file.py:function"""
    reward_options: tuple[str, ...] = ()
    """options of the reward"""
    host: str = "127.0.0.1"
    """address to listen at; 0.0.0.0 accepts other machines"""
    port: int = 8000
    """port to listen at (0: any free one)"""
    token: str | None = None
    """secret that callers must send (default: the environment variable FLOWWARD_TOKEN)"""
    max_batch: int = 256
    """largest number of images in one call"""
    max_megabytes: float = 1000
    """largest size of one call, images counted as float32"""
    max_total_megabytes: float = 3000
    """largest size of all calls in memory; further calls wait"""

    def check(self) -> None:
        """Raises ValueError if a port, limit, address or token is impossible."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"a port lies between 0 and 65535, not at {self.port}")
        limits = (self.max_batch, self.max_megabytes, self.max_total_megabytes)
        if not all(0 < limit < float("inf") for limit in limits):
            raise ValueError(f"the limits must be positive, not {', '.join(f'{limit:g}' for limit in limits)}")
        if not self.host:
            raise ValueError("--host is empty: name an address of this machine, or leave it out")
        between(self, 1, MOST_BATCH, "max_batch")
        between(self, 0.001, MOST_MEGABYTES, "max_megabytes", "max_total_megabytes")
        check_token(self.token)


def run(words: list[str]) -> int:
    chosen = parse(ServeReward, words, "serve-reward", page=PAGE)
    chosen.check()
    token = chosen.token if chosen.token is not None else os.environ.get(TOKEN)
    try:
        from ..rewards.service import server
        from ..system import serving
    except ImportError as error:
        raise ValueError(
            "serving a reward needs fastapi, uvicorn and prometheus_client: pip install 'flowward[server]'"
        ) from error
    from .. import rewards
    from ..system.addresses import is_loopback

    listener = serving.listen(chosen.host, chosen.port)  # before a model is loaded for minutes
    if token is None and not is_loopback(chosen.host):
        tell(f"whoever reaches {chosen.host} can use this server: give --token or {TOKEN}")
    reward = rewards.load([chosen.name], chosen.reward_options)
    sizes = chosen.max_megabytes * 1e6, chosen.max_total_megabytes * 1e6
    service = server.Service(chosen.name, reward, chosen.max_batch, *sizes)
    line = f"reward '{chosen.name}' at {serving.address(listener)}  (stop with Ctrl-C)"
    serving.Announced(server.application(service, token), line).until_stopped(listener)
    return 0
