"""The connection to Ray: the cluster of RAY_ADDRESS, or processes on this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch

ADDRESS = "RAY_ADDRESS"  # of a cluster
AGAIN = 1  # times that an actor which has died is started again
CUDA = "CUDA_VISIBLE_DEVICES"


def refuse_missing() -> None:
    """Raises ValueError if Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError("--rollouts ray needs Ray: pip install flowward[ray]")


class Cluster:
    """This process's connection to Ray, and its actors."""

    def __init__(self, device: torch.device, actors: int):
        """Connect.

        Args:
            device: of the trainer. If it is a CUDA device, actors get GPUs too.
            actors: how many there will be.

        Raises:
            ValueError: the cluster has too few GPUs, or does not answer.
        """
        import ray

        self._ray, self._actors = ray, list[Any]()
        self._connects = not ray.is_initialized()  # else the program that this is a part of has, and goes on with it
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray tells that this will be so
        if os.environ.get(ADDRESS) or not self._connects:
            self.gpus = float(device.type == "cuda")
            self._connect({})
            self._refuse_few(actors)
            return
        visible, others = _gpus(device)  # actors get GPUs beside the trainer's, or this one, if there is no other
        self.gpus = 1 / ceil(actors / max(1, len(others))) if visible else 0.0
        with _visible(others or visible):
            self._connect({"address": "local", "include_dashboard": False})

    def _connect(self, how: Mapping[str, Any]) -> None:
        if not self._connects:
            return
        try:
            with _own_signals():
                self._ray.init(log_to_driver=False, logging_level="error", **how)
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster answers at {os.environ.get(ADDRESS)} ({ADDRESS}); if it asks for a token, set "
                f"RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its first machine ({error})"
            ) from error

    def _refuse_few(self, actors: int) -> None:
        there = self._ray.cluster_resources().get("GPU", 0)
        if self.gpus * actors > there:
            self.close()
            raise ValueError(
                f"{actors} actors need a GPU each, but the Ray cluster has {there:g}: add machines with `ray start`, "
                "or lower --drawers and --reward-actors"
            )

    def actor(self, kind: type, *given: Any) -> Any:
        """A new actor of this kind."""
        how = {"num_cpus": 0, "num_gpus": self.gpus, "max_restarts": AGAIN, "max_task_retries": AGAIN}
        made = self._ray.remote(kind).options(scheduling_strategy="SPREAD", **how).remote(*given)
        self._actors.append(made)
        return made

    def put(self, value: Any) -> Any:
        """Leave a value with Ray, once for all actors. Returns its reference."""
        return self._ray.put(value)

    def close(self) -> None:
        """End all actors, and Ray if it was started here."""
        for each in self._actors:
            with suppress(Exception):
                self._ray.kill(each)
        self._actors = []
        if self._connects and self._ray.is_initialized():
            self._ray.shutdown()


def _gpus(device: torch.device) -> tuple[list[str], list[str]]:
    """The names of all visible GPUs, and of those that the trainer does not use; none if it uses no GPU."""
    if device.type != "cuda":
        return [], []
    given = os.environ.get(CUDA)
    visible = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    own = torch.cuda.current_device() if device.index is None else device.index  # type: ignore[redundant-expr]
    return visible, [name for number, name in enumerate(visible) if number != own]


@contextmanager
def _visible(gpus: Sequence[str]) -> Iterator[None]:
    """Inside, programs that are started see these GPUs alone (none: whatever they saw before)."""
    before = os.environ.get(CUDA)
    if gpus:
        os.environ[CUDA] = ",".join(gpus)
    try:
        yield
    finally:
        if gpus:
            os.environ.pop(CUDA)
        if before is not None:
            os.environ[CUDA] = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, Ray may set handlers of signals; afterwards they are as before."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
