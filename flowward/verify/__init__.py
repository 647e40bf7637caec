"""Algorithms held to what is known about them: gradients, equivalences, minimisers, exact optima of closed worlds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import Algorithm
from ..process.policy import Policy
from ..system.errors import unknown
from . import generic, laws, population
from .check import Check, guarded
from .population import Distance

PARTS = ("behaviour", "rollout", "credit", "points", "copies", "guidance", "anchors", "loss")  # of trainer.Algorithm


@dataclass(frozen=True)
class Report:
    """Everything that was checked."""

    checks: list[Check]
    distances: list[Distance]
    seconds: float

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.holds]

    @property
    def sentence(self) -> str:
        """'212 laws, all hold.'"""
        many = f"{len(self.checks)} law{'s' * (len(self.checks) > 1)}"
        return f"{many}, {f'{len(self.failures)} of them broken' if self.failures else 'all hold'}."


def verify(names: Sequence[str] = tuple(ALGORITHMS), others: Mapping[str, Algorithm] | None = None) -> Report:
    """All laws of the algorithms with these names; of `others`, those of the protocol and the distance from the optima.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(unknown("algorithm", name, ALGORITHMS))
    started = time.perf_counter()
    checks: list[Check] = []
    distances: list[Distance] = []
    for name in names:
        checks += _generic(name, ALGORITHMS[name]())
        for found in _own(name):
            if isinstance(found, Distance):
                distances.append(found)
            else:
                checks.append(replace(found, algorithm=name))
    for name, algorithm in (others or {}).items():
        checks += _generic(name, algorithm)
        for found in guarded(population.own(name, algorithm), "its minimiser over all samples can be found", ""):
            if isinstance(found, Distance):
                distances.append(found)
            else:
                checks.append(replace(found, algorithm=name))
    return Report(checks, distances, time.perf_counter() - started)


def verify_model(policy: Policy) -> Report:
    """All that flowward assumes of a model (see model.py). Its adapters are taken off.

    Raises:
        ValueError: it is not one of diffusers' with adapters.
    """
    from ..models.diffusers import DiffusersPolicy
    from . import model  # here, because it imports diffusers

    if not isinstance(policy, DiffusersPolicy):
        raise ValueError(f"{policy.name} is no pipeline of diffusers, which it could be held to")
    started = time.perf_counter()
    checks = list(model.laws(policy))
    return Report(checks, [], time.perf_counter() - started)


def _generic(name: str, algorithm: Algorithm) -> list[Check]:
    return [replace(check, algorithm=name, part="protocol") for check in generic.laws(algorithm)]


def _own(name: str) -> Iterator[Check | Distance]:
    """What follows from an algorithm's equation."""
    kind = ALGORITHMS[name]
    yield from guarded(laws.LAWS[name](kind), "the laws of its equation can be tried", "")
    yield from guarded(population.laws(name, kind), "its minimiser over all samples can be found", "")
    yield from guarded(population.gains(name, kind), "its gain after one exact fit can be found", "")


def load(path: str) -> Algorithm:
    """A user's algorithm from `package.module:Class` or `package.module:object`; the current folder is searched, too.

    Raises:
        ValueError: it cannot be imported or made, or it is no algorithm.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"an algorithm of your own is named package.module:Class, not '{path}'")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever the module does
        raise ValueError(f"'{module}' cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, name):
        known = [key for key, value in vars(found).items() if isinstance(value, type)]
        raise ValueError(f"in {module}: " + unknown("class", name, known))
    found = getattr(found, name)
    try:
        algorithm = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the class does
        raise ValueError(f"{path} cannot be made without arguments: {type(error).__name__}: {error}") from error
    if missing := [part for part in PARTS if not hasattr(algorithm, part)]:
        raise ValueError(f"{path} is no algorithm: it has no {', '.join(missing)} (see flowward/trainer.py, Algorithm)")
    checked: Algorithm = algorithm
    return checked


__all__ = ["Check", "Distance", "Report", "load", "verify"]
