"""The runs of a study as arrays: the scores of every image at every evaluation, after so many training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation import measurement
from ..evaluation.measurement import Measurement
from ..evaluation.seeds import between
from ..evaluation.statistics import Floats
from ..training.folder import RunFolder
from .pool import Place
from .schedule import Planned


@dataclass(frozen=True)
class Curve:
    """One run: E evaluations of N images, the base model's first."""

    planned: Planned
    images: tuple[int, ...]  # [E] training images before each evaluation
    scores: Mapping[str, Floats]  # each [E, N]
    failure: str | None = None  # why the run ended before its time
    metrics: tuple[Mapping[str, Any], ...] = ()  # lines of metrics.jsonl

    def at(self, name: str, images: float) -> Floats:
        """The scores [N] after so many training images, between two evaluations on a straight line.

        A run that failed before has the scores of the base model: what it had learned is lost.
        """
        own = self.scores[name]
        if self.failure is not None and images > self.images[-1]:
            return np.asarray(own[0])
        before, after, share = between(self.images, images)
        return np.asarray((1 - share) * own[before] + share * own[after])

    def means(self, name: str) -> list[float]:
        return [float(own.mean()) for own in self.scores[name]]


def read(planned: Planned, place: Place) -> tuple[Curve, Measurement]:
    """A run that has ended, and its first measurement, which knows the prompts.

    Raises:
        ValueError: its files are missing or damaged, or it was not even measured before it failed.
    """
    folder = RunFolder.open(place.run)
    lines, files = folder.lines(), folder.scores()
    done = [line for line in lines if line.get("evaluation") and line["iteration"] in files]
    if not done or done[0]["iteration"] != 0:
        raise ValueError(f"{place.run} has no evaluation of the base model")
    found = [measurement.read(files[line["iteration"]])[0] for line in done]
    first = found[0]
    if any(each.texts != first.texts or each.scores.keys() != first.scores.keys() for each in found):
        raise ValueError(f"the evaluations of {place.run} are of different prompts or scores: they cannot be compared")
    scores = {name: np.stack([each.scores[name].double().numpy() for each in found]) for name in first.scores}
    noun = next((key for key in ("images", "samples", "sounds") if key in done[0]), "images")
    images = tuple(int(line[noun]) for line in done)
    return Curve(planned, images, scores, place.failure(), tuple(lines)), first


def refuse_unlike(curves: Sequence[Curve], measured: Sequence[Measurement]) -> None:
    """Raises ValueError if runs were measured on different images: other prompts, seed, solver or precision."""
    first = measured[0]

    def about(one: Measurement) -> dict[str, Any]:
        return {key: value for key, value in one.settings.items() if key not in ("model", "rewards", "versions")}

    for curve, each in zip(curves, measured, strict=True):
        if each.texts != first.texts or about(each) != about(first):
            other = [key for key in about(first) if about(each).get(key) != about(first)[key]] or ["prompts"]
            raise ValueError(
                f"{curve.planned.name} and {curves[0].planned.name} were measured with different {', '.join(other)}: "
                "results of other settings cannot be merged"
            )
