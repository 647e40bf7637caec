"""The law of samples that earlier weights drew: their old velocity is that of the version which drew them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..algorithms.algorithm import Algorithm, stale_of
from ..models.weights import Full
from ..process.policy import Condition, Models, Velocity, Weights
from ..training.rollouts.remote import kept_for, refuse_stale
from ..training.rollouts.versions import Versions
from ..training.run import Run
from .check import Check, compared, guarded, number
from .generic import SOURCE, WORLD, Subject

STALE = 1  # iterations between the weights that draw and those that are trained


class Scaled(nn.Module):
    """A network of one weight, which multiplies the velocity of the world."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))


def laws(algorithm: Algorithm) -> Iterator[Check]:
    """Check it for samples of one iteration before."""
    law = "samples of earlier weights are trained on as theirs"
    yield from guarded(_laws(algorithm), law, SOURCE)


def _laws(algorithm: Algorithm) -> Iterator[Check]:
    kind = stale_of(algorithm)
    if kind == "none":
        law = "samples of earlier weights are refused (1: yes)"
        yield number(law, SOURCE, float(_refused(algorithm)), 1, 0, "accepted, though the loss takes them for its own")
        return
    if kind == "free" and "old" not in algorithm.copies:
        law = "samples of earlier weights are accepted: the loss asks for no velocity of theirs (1: yes)"
        yield number(law, SOURCE, float(not _refused(algorithm)), 1, 0, "refused, though the loss does not ask")
        return
    versions, now = _history(algorithm)
    drew = versions.at(versions.of(now), algorithm.behaviour)["scale"]
    points = Subject.first(algorithm, _scaled(lambda: drew)).points
    live = versions.weights
    with versions.anchored(now):
        models = Models(*(_scaled(_weight(live, name)) for name in _answering(algorithm)))
        found = models.at("old", points)
    anchor = versions.at(versions.of(now), "old")["scale"] if kind == "anchored" else drew
    whose = "of the version that drew them"
    if kind == "free":
        anchor, whose = live.tensors(_answering(algorithm)[1])["scale"], "of now, whatever drew them"
    expected = _scaled(lambda: anchor)(points.x_t, points.t, points.condition)
    yield compared(f"samples of earlier weights: the old velocity is that {whose}", SOURCE, found, expected)


def _answering(algorithm: Algorithm) -> tuple[str, str, str]:
    """The weights that stand for `policy`, `old` and `reference`: without a copy, whatever is asked is the policy."""
    return "policy", "old" if "old" in algorithm.copies else "policy", "policy"


def _refused(algorithm: Algorithm) -> bool:
    try:
        refuse_stale(algorithm, Run(), STALE)
    except ValueError:
        return True
    return False


def _history(algorithm: Algorithm) -> tuple[Versions, int]:
    """The versions at the start of iteration 3, each of other weights: the network changes, and its copies follow."""
    weights = Full(Scaled())
    for name in algorithm.copies:
        weights.add(name)
    versions = Versions(weights, kept_for(algorithm, STALE), STALE)
    for iteration in range(3):
        versions.keep(iteration)
        with torch.no_grad():
            weights.tensors("policy")["scale"].add_(0.1)
        for name, decay in algorithm.copies.items():
            weights.follow(name, decay(iteration + 1))
    versions.keep(3)
    return versions, 3


def _scaled(scale: Callable[[], Tensor]) -> Velocity:
    """Of the network with this weight, in float64."""

    def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return scale().detach() * WORLD(x.double(), t.double(), condition)

    return velocity


def _weight(weights: Weights, name: str) -> Callable[[], Tensor]:
    """What it is when it is asked for."""
    return lambda: weights.tensors(name)["scale"]
