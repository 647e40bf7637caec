"""Fronts of several scores: which points no other beats, the volume below them, and its interval over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .measurement import Measurement, numbered
from .statistics import Floats, bootstrap, bounds, p_value

RESAMPLES = 4000  # a volume costs more than a mean
MOST_SCORES = 8


def front(points: ArrayLike) -> NDArray[np.bool_]:
    """[G] whether no other of the points [G, R] is at least as good in every score and better in one."""
    values = np.asarray(points, np.float64)
    one, other = values[:, None], values[None]
    beats: NDArray[np.bool_] = np.logical_and(np.all(other >= one, 2), np.any(other > one, 2))
    return np.logical_not(np.any(beats, 1))


def hypervolume(points: ArrayLike, floor: ArrayLike) -> Floats:
    """The volume [...] of what lies above `floor` [R] and below some of the points [..., G, R]; exact for any R.

    It is cut into slices along the last score: between two neighbouring values of it, the section is the hypervolume
    of the points above, in the scores that are left (Zitzler and Thiele, 1999, IEEE Transactions on Evolutionary
    Computation 3:257). Points below the floor in a score add nothing.
    """
    above = np.maximum(np.asarray(points, np.float64) - np.asarray(floor, np.float64), 0)
    return _volume(above)


def _volume(above: Floats) -> Floats:
    """The same over the origin; points are [..., G, R]."""
    if above.shape[-1] == 1:
        return np.asarray(above[..., 0].max(-1))
    order = np.argsort(-above[..., -1], -1)
    ordered = np.take_along_axis(above, order[..., None], -2)
    heights = ordered[..., -1]
    thick = heights - np.concatenate([heights[..., 1:], np.zeros_like(heights[..., :1])], -1)
    if above.shape[-1] == 2:
        return np.asarray((np.maximum.accumulate(ordered[..., 0], -1) * thick).sum(-1))
    sections = [_volume(ordered[..., : k + 1, :-1]) for k in range(above.shape[-2])]
    return np.asarray((np.stack(sections, -1) * thick).sum(-1))


@dataclass(frozen=True)
class Grid:
    """One model at G mixtures of its adapters, measured on the same prompts and noise."""

    name: str
    objectives: tuple[str, ...]  # K, of its adapters
    mixtures: tuple[tuple[float, ...], ...]  # G of K weights
    found: tuple[Measurement, ...]  # G

    def means(self) -> Floats:
        """The mean of each score at each mixture, [G, R]."""
        return np.array([[scores.double().mean().item() for scores in each.scores.values()] for each in self.found])

    def columns(self) -> Floats:
        """The scores of all N images, [N, G * R]."""
        return np.stack([own.double().numpy() for each in self.found for own in each.scores.values()], 1)

    @property
    def scores(self) -> tuple[str, ...]:
        return tuple(self.found[0].scores)


def floor_of(grids: Sequence[Grid]) -> list[float]:
    """A corner to measure volumes from: the lowest value of each score that there can be, if its reward declares one,
    otherwise the lowest mean of these grids.
    """
    lowest = np.concatenate([each.means() for each in grids]).min(0)
    limits = grids[0].found[0].bounds
    return [limits[name][0] if name in limits else float(lowest[k]) for k, name in enumerate(grids[0].scores)]


def compared(grids: Sequence[Grid], floor: Sequence[float], resamples: int = RESAMPLES) -> dict[str, Any]:
    """The hypervolume of each grid and its difference to the last one, with 95 % intervals over prompts, for JSON.

    All grids have the same prompts and noise, and every resample takes the same prompts for all of them. The mean
    scores of a resample give its volume. Its noise lifts the outermost points, so a volume is a little too large;
    in a difference of two grids of equal size most of this cancels.
    """
    first, volumes = grids[0].found[0], [float(hypervolume(each.means(), floor)) for each in grids]
    prompts = len(np.unique(first.prompt))
    drawn = list[Floats]()
    if prompts > 1:
        every = np.concatenate([each.columns() for each in grids], 1)
        means = bootstrap(every, first.prompt, numbered(first.categories), resamples)
        ends = np.cumsum([each.columns().shape[1] for each in grids])[:-1]
        parts = np.split(means, ends, 1)
        drawn = [hypervolume(part.reshape(len(part), -1, len(floor)), floor) for part in parts]
    about = [_grid(each, volume) for each, volume in zip(grids, volumes, strict=True)]
    for said, resampled in zip(about, drawn, strict=False):
        said["hypervolume"]["over_prompts"] = list(bounds(resampled))
    differences = []
    for k, each in enumerate(grids[:-1]):
        apart = drawn[k] - drawn[-1] if drawn else None
        differences.append(
            {
                "models": [each.name, grids[-1].name],
                "hypervolume": volumes[k] - volumes[-1],
                "over_prompts": None if apart is None else list(bounds(apart)),
                "p": None if apart is None else p_value(apart, prompts),
            }
        )
    return {"floor": list(floor), "scores": list(grids[0].scores), "models": about, "differences": differences}


def _grid(grid: Grid, volume: float) -> dict[str, Any]:
    best = front(grid.means())
    points = []
    for number, (mixture, each) in enumerate(zip(grid.mixtures, grid.found, strict=True)):
        summary = each.summary()["scores"]
        scores = {name: summary[name]["overall"] for name in grid.scores}
        weights = dict(zip(grid.objectives, mixture, strict=True))
        points.append({"mixture": weights, "scores": scores, "on_front": bool(best[number])})
    hypervolume = {"value": volume, "over_prompts": None}
    return {"name": grid.name, "points": points, "hypervolume": hypervolume}
