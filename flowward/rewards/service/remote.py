"""A reward on another machine: the client for `flowward serve-reward` and other servers with this wire format."""

from __future__ import annotations

import os
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
from ...system.terminal import tell
from ..reward import Metadata, RewardError, served
from .wire import ENCODINGS, encode

TOKEN = "FLOWWARD_TOKEN"  # environment variable
UNKNOWN = (404, 405, NEVER)  # answers for a path that does not exist
LIMITS = ("max_batch", "max_bytes")  # per call, set by the server


@dataclass
class Remote:
    """Get scores from a reward server, or from several that serve the same reward.

    A call is split into chunks, and each goes to a free server. If a server does not answer, the others take over its
    chunk, and it is tried again. Safe to call from several threads.

    Raises:
        ValueError: no server answers, one refuses the token, they serve different rewards, or an option is invalid.
    """

    in_background: ClassVar[bool] = True

    address: str
    """use the reward server at http://host:port (several: joined by commas)"""
    timeout: float = 300.0
    """wait this many seconds for one chunk"""
    patience: float = 600.0
    """fail after this many seconds without any answer"""
    batch: int = 64
    """send at most this many images per chunk; the server's limits also apply"""
    encoding: Literal["float32", "float16", "uint8", "png"] = "float32"
    """send images as this: float32 is exact; uint8 and png are smaller, rounded to 1/255 (png sends sounds as WAV)"""
    token: str | None = field(default=None, repr=False)
    """send this token (default: environment variable FLOWWARD_TOKEN, not saved in config.yaml)"""

    def __post_init__(self) -> None:
        positive(self, "timeout", "patience", "batch")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, not '{self.encoding}'")
        token = self.token if self.token is not None else os.environ.get(TOKEN)
        addresses = [part.strip() for part in self.address.split(",") if part.strip()]
        self._servers = [Server(address, self.timeout, token) for address in dict.fromkeys(addresses)]
        if not self._servers:
            raise ValueError("the address of the reward server is missing; write it as http://host:port")
        self._about = self._meet()

    def _meet(self) -> dict[str, Any]:
        """Description of the reward. Servers that do not answer may join later, but at least one must answer."""
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
            tell(f"{each}; continuing with the other servers")
        names = {about["reward"]: address for address, about in found.items()}
        if len(names) > 1:
            raise ValueError(
                "the servers must serve the same reward, but "
                + ", ".join(f"{at} serves '{name}'" for name, at in names.items())
            )
        limits = {key: min(about.get(key, float("inf")) for about in found.values()) for key in LIMITS}
        return {**next(iter(found.values())), **limits}

    @property
    def takes_videos(self) -> bool:
        """Whether the served reward takes videos."""
        return bool(self._about.get("takes_videos"))

    @property
    def compares(self) -> bool:
        """Whether a score depends on the other images in the call; such a call is not split."""
        return bool(self._about.get("compares"))

    @property
    def verdicts(self) -> bool:
        """Whether scores of 0 and 1 mean fail and pass."""
        return bool(self._about.get("verdicts"))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest score that there can be, if the served reward declares them."""
        found = self._about.get("bounds")
        return (found[0], found[1]) if found else None

    @property
    def identity(self) -> dict[str, str]:
        """The name of the served reward."""
        return {"serves": self._about["reward"]}

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if the served reward does not understand a prompt."""
        asked = {"prompts": list(prompts), "metadata": [dict(about) for about in metadata] if metadata else None}
        ask = [partial(_refusal, server) for server in self._servers]
        try:
            (sentence,) = work(ask, [asked], self.patience, lambda _: "checking the prompts")
        except ServiceError as error:
            raise ValueError(str(error)) from error
        if sentence:
            raise ValueError(sentence)

    @served()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        """Scores [B] of images [B, 3, H, W], or [B, F, 3, H, W] if the reward takes videos, or of waveforms [B, C, T].

        Raises:
            RewardError: the reward failed on the server, or no server answered for `patience` seconds.
        """
        if images.ndim == 3 and self.encoding == "uint8":
            raise RewardError("sounds cannot be sent in 8 bits: set encoding to float32, float16, or png for WAV files")
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
        """Number of images per call."""
        fit = self._about["max_bytes"] // (4 * images[0].numel()) if len(images) else 1
        return max(1, int(min(self.batch, self._about["max_batch"], fit)))


def _about(server: Server, timeout: float) -> dict[str, Any]:
    """Raise Unavailable if there is no answer, ValueError if this is not a reward server."""
    try:
        about = server.call("GET", "/reward", timeout=timeout)
    except Declined as error:
        hint = f"the token comes from {TOKEN}" if error.status == 401 else "is this a reward server?"
        raise ValueError(f"{error} ({hint})") from error
    limits = [about.get(key, 1) for key in LIMITS] if isinstance(about, dict) else [0]
    if not all(type(limit) in (int, float) and limit > 0 for limit in limits) or not isinstance(
        about.get("reward"), str
    ):
        raise ValueError(f"{server.address} answers, but is not a reward server; check the address")
    return about


def _refusal(server: Server, asked: dict[str, Any]) -> str | None:
    try:
        answer = server.ask("POST", "/refuse", own_failures=True, json=asked)
    except Declined as error:
        if error.status in UNKNOWN:  # a server of your own may lack this path
            return None
        raise
    sentence = answer.get("refused") if isinstance(answer, dict) else None
    return sentence if isinstance(sentence, str) else None


def _scores(answer: Any, count: int, address: str) -> list[float]:
    """Raise RewardError unless the answer has one number per image."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
        raise RewardError(f"the answer of {address} is not a list of scores")
    if len(scores) != count:
        raise RewardError(f"{address} returned {len(scores)} scores for {count} images")
    return [float(score) for score in scores]
