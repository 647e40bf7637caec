"""A reward that is computed elsewhere: the client of `flowward serve-reward`, or of anything that speaks wire.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ...system.asking import NEVER, Declined, Server, ServiceError, Unavailable
from ...system.errors import positive
from ...system.jobs import work
from ..reward import Metadata, RewardError, served
from .wire import ENCODINGS, encode

TOKEN = "FLOWWARD_TOKEN"  # environment variable
UNKNOWN = (404, 405, NEVER)  # what servers answer where there is nothing
LIMITS = ("max_batch", "max_bytes")  # of a server


@dataclass
class Remote:
    """The scores of a reward server, or of several that serve the same reward.

    A call is cut into chunks, which go to whichever server is free. One that does not answer is waited for, its chunk
    done by the others meanwhile. Safe to call from several threads.

    Raises:
        ValueError: no server answers, one refuses the token, they serve different rewards, or an option cannot be.
    """

    in_background: ClassVar[bool] = True

    address: str
    """http://host:port, several joined by commas"""
    timeout: float = 300.0
    """seconds for one chunk"""
    patience: float = 600.0
    """seconds without any answer after which a call fails"""
    batch: int = 64
    """images in one chunk, at most; the server's own limits hold, too"""
    encoding: Literal["float32", "float16", "uint8", "png"] = "float32"
    """of images on the way: float32 is exact; uint8 and png round to 1/255, and are a quarter and less of the size"""
    token: str | None = field(default=None, repr=False)
    """default: environment variable FLOWWARD_TOKEN, which keeps it out of a run's config.yaml"""

    def __post_init__(self) -> None:
        positive(self, "timeout", "patience", "batch")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, not '{self.encoding}'")
        token = self.token if self.token is not None else os.environ.get(TOKEN)
        addresses = [part.strip() for part in self.address.split(",") if part.strip()]
        self._servers = [Server(address, self.timeout, token) for address in dict.fromkeys(addresses)]
        if not self._servers:
            raise ValueError("name the address of a reward server: http://host:port")
        self._about = self._meet()

    def _meet(self) -> dict[str, Any]:
        """What the servers say of themselves; one that is silent may come later, but not all."""
        found: dict[str, dict[str, Any]] = {}
        silent = []
        for server in self._servers:
            try:
                found[server.address] = _about(server, min(self.timeout, 10.0))
            except Unavailable as error:
                silent.append(str(error))
        if not found:
            port = urlsplit(self._servers[0].address).port or 8000
            raise ValueError(
                f"no reward server answers ({'; '.join(silent)}); start one with: "
                f"flowward serve-reward NAME --port {port}"
            )
        for each in silent:
            print(f"flowward: {each}; going on with the others", file=sys.stderr)
        names = {about["reward"]: address for address, about in found.items()}
        if len(names) > 1:
            raise ValueError("different rewards: " + ", ".join(f"{at} serves '{name}'" for name, at in names.items()))
        limits = {key: min(about.get(key, float("inf")) for about in found.values()) for key in LIMITS}
        return {**next(iter(found.values())), **limits}

    @property
    def takes_videos(self) -> bool:
        """Whether the reward that is served does."""
        return bool(self._about.get("takes_videos"))

    @property
    def compares(self) -> bool:
        """Whether a score depends on the other images of a call, which then is not cut."""
        return bool(self._about.get("compares"))

    @property
    def verdicts(self) -> bool:
        """Whether scores of 0 and 1 are right and wrong."""
        return bool(self._about.get("verdicts"))

    @property
    def identity(self) -> dict[str, str]:
        """The reward that is served."""
        return {"serves": self._about["reward"]}

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raises ValueError where the reward that is served does not understand a prompt."""
        asked = {"prompts": list(prompts), "metadata": [dict(about) for about in metadata] if metadata else None}
        ask = [partial(_refusal, server) for server in self._servers]
        try:
            (sentence,) = work(ask, [asked], self.patience, lambda _: "asking whether prompts are understood")
        except ServiceError as error:
            raise ValueError(str(error)) from error
        if sentence:
            raise ValueError(sentence)

    @served()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        """Scores [B] of images [B, 3, H, W], or [B, F, 3, H, W] where the reward takes videos.

        Raises:
            RewardError: the reward failed where it is served, or no server answered for `patience` seconds.
        """
        size = max(1, len(images)) if self.compares else self._chunk(images)
        spans = [slice(start, start + size) for start in range(0, len(images), size)]

        def scored(server: Server, span: slice) -> list[float]:
            about = None if metadata is None else metadata[span]
            body = encode(images[span], prompts[span], about, self.encoding)
            kind = {"Content-Type": ENCODINGS[self.encoding]}
            answer = server.ask("POST", "/score", own_failures=True, content=body, headers=kind)
            return _scores(answer, len(prompts[span]), server.address)

        doers = [partial(scored, server) for server in self._servers]
        parts = work(doers, spans, self.patience, lambda span: f"scoring '{prompts[span.start]}'")
        return torch.tensor([score for part in parts for score in part], dtype=torch.float32)

    def _chunk(self, images: Tensor) -> int:
        """Images that one call may hold."""
        fit = self._about["max_bytes"] // (4 * images[0].numel()) if len(images) else 1
        return max(1, int(min(self.batch, self._about["max_batch"], fit)))


def _about(server: Server, timeout: float) -> dict[str, Any]:
    """Raises Unavailable, or ValueError where something else than a reward server answers."""
    try:
        about = server.call("GET", "/reward", timeout=timeout)
    except Declined as error:
        hint = f"the token comes from {TOKEN}" if error.status == 401 else "is this a reward server?"
        raise ValueError(f"{error} ({hint})") from error
    limits = [about.get(key, 1) for key in LIMITS] if isinstance(about, dict) else [0]
    if not all(type(limit) in (int, float) and limit > 0 for limit in limits) or not isinstance(
        about.get("reward"), str
    ):
        raise ValueError(f"{server.address} answers, but is no reward server")
    return about


def _refusal(server: Server, asked: dict[str, Any]) -> str | None:
    try:
        answer = server.ask("POST", "/refuse", own_failures=True, json=asked)
    except Declined as error:
        if error.status in UNKNOWN:  # a server that somebody wrote by hand need not know of it
            return None
        raise
    sentence = answer.get("refused") if isinstance(answer, dict) else None
    return sentence if isinstance(sentence, str) else None


def _scores(answer: Any, count: int, address: str) -> list[float]:
    """Raises RewardError where an answer does not hold one number per image."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
        raise RewardError(f"{address} answered something else than a list of scores")
    if len(scores) != count:
        raise RewardError(f"{address} answered {len(scores)} scores for {count} images")
    return [float(score) for score in scores]
