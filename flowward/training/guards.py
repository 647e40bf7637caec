"""Rewards that a run is not trained on, watched: one that falls while the headline rises says that it is gamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..evaluation import measurement
from ..evaluation.comparison import differences, hacking
from ..evaluation.measurement import Measurement

FIRST = "evaluation.json"  # in a run folder: the first evaluation, with the score of every image


class Watch:
    """What a run's first evaluation measured, image by image, and what has changed since.

    With a folder it is kept there, so that a run that goes on still compares with its beginning.
    """

    def __init__(self, folder: Path | None = None):
        self._file = folder / FIRST if folder else None
        self._first: Measurement | None = None

    def look(self, iteration: int, now: Measurement) -> list[str]:
        """A sentence for each guard that fell significantly while the headline rose; usually none."""
        if not now.guards:
            return []
        now = replace(now, name="before training" if iteration == 0 else f"iteration {iteration}")
        first = self._first or self._kept()
        if first:
            try:
                changes = differences([first, now])
            except ValueError:  # the run goes on with other settings of its evaluations: begin anew
                first = None
        if not first:
            self._first = now
            if self._file:  # whole or not at all: a run that goes on reads it
                partial = self._file.with_suffix(".partial")
                partial.write_text(measurement.to_json([now]), "utf-8")
                partial.replace(self._file)
            return []
        self._first = first
        return hacking([first, now], changes)

    def _kept(self) -> Measurement | None:
        return measurement.read(self._file)[0] if self._file and self._file.is_file() else None
