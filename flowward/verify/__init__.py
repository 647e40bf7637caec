"""Correctness checks with known answers: gradients, equivalences, minimisers and exact optima of small worlds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import Algorithm, differentiates, refuse_incomplete
from ..process.policy import Policy
from ..system.errors import unknown
from . import agents, differentiated, generic, laws, population, same, staleness
from .check import Check, guarded
from .population import Distance

NAMES = (*ALGORITHMS, agents.NAME)
"""what can be verified by name: the algorithms for images, and that for agents"""


@dataclass(frozen=True)
class Report:
    """The results of all checks."""

    checks: list[Check]
    distances: list[Distance]
    seconds: float

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.holds]

    @property
    def sentence(self) -> str:
        """A summary, e.g. '212 laws, all hold.'"""
        many = f"{len(self.checks)} law{'s' * (len(self.checks) > 1)}"
        return f"{many}, {f'{len(self.failures)} of them broken' if self.failures else 'all hold'}."


def verify(names: Sequence[str] = NAMES, others: Mapping[str, Algorithm] | None = None) -> Report:
    """Check all laws of the named algorithms; for `others`, the protocol and the distance from the exact optima.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(unknown("algorithm", name, NAMES))
    started = time.perf_counter()
    checks: list[Check] = []
    distances: list[Distance] = []
    for name in names:
        for found in agents.laws() if name == agents.NAME else _of_images(name):
            if isinstance(found, Distance):
                distances.append(found)
            else:
                checks.append(replace(found, algorithm=name))
    for name, algorithm in (others or {}).items():
        checks += _generic(name, algorithm)
        for found in guarded(population.own(name, algorithm), "its minimiser over all samples can be computed", ""):
            if isinstance(found, Distance):
                distances.append(found)
            else:
                checks.append(replace(found, algorithm=name))
    return Report(checks, distances, time.perf_counter() - started)


def verify_model(policy: Policy) -> Report:
    """Compare a model with its own diffusers pipeline (see model.py), and measure slopes (calibration.py).

    Its adapters are removed.

    Raises:
        ValueError: it is not a diffusers model with adapters.
    """
    from ..models.diffusers import DiffusersPolicy
    from . import calibration, model  # here, because they import diffusers

    if not isinstance(policy, DiffusersPolicy):
        raise ValueError(f"{policy.name} is not a diffusers pipeline, so there is nothing to compare it with")
    started = time.perf_counter()
    slopes = list(calibration.checks(policy))  # first: the laws remove the adapters
    checks = [*model.laws(policy), *slopes]
    return Report(checks, [], time.perf_counter() - started)


def _generic(name: str, algorithm: Algorithm) -> list[Check]:
    of = differentiated.laws if differentiates(algorithm) else generic.laws
    found = [*of(algorithm)]
    if any(each.holds for each in found):  # it can be run at all
        found += staleness.laws(algorithm)
    return [replace(check, algorithm=name, part="protocol") for check in found]


def _of_images(name: str) -> Iterator[Check | Distance]:
    """Laws of the protocol, and those that follow from an algorithm's equation."""
    kind = ALGORITHMS[name]
    yield from _generic(name, kind())
    yield from guarded(laws.LAWS[name](kind), "the laws of its equation can be computed", "")
    yield from guarded(same.laws(name, kind), "its row of docs/same.md can be computed", "")
    yield from guarded(population.laws(name, kind), "its minimiser over all samples can be computed", "")
    yield from guarded(population.gains(name, kind), "its gain after one exact fit can be computed", "")


def load(path: str) -> Algorithm:
    """Import a user's algorithm, `package.module:Class` or `package.module:object`, also from the current folder.

    Raises:
        ValueError: it cannot be imported or created, or it is not an algorithm.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"name your algorithm as package.module:Class, not '{path}'")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:  # the module may raise anything
        raise ValueError(f"'{module}' cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, name):
        known = [key for key, value in vars(found).items() if isinstance(value, type)]
        raise ValueError(f"in {module}: " + unknown("class", name, known))
    found = getattr(found, name)
    try:
        algorithm = found() if isinstance(found, type) else found
    except Exception as error:  # the class may raise anything
        raise ValueError(f"{path} cannot be created without arguments: {type(error).__name__}: {error}") from error
    refuse_incomplete(algorithm, path)
    checked: Algorithm = algorithm
    return checked


__all__ = ["NAMES", "Check", "Distance", "Report", "load", "verify"]
