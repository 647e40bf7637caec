"""Guards during training: a warning if a reward that is not optimised falls while the headline score rises."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..evaluation import measurement
from ..evaluation.comparison import differences, hacking
from ..evaluation.measurement import Measurement
from .record import Record

FIRST = "evaluation.json"  # in a run folder: the first evaluation, with the score of every image


class Watch:
    """Compares each evaluation of a run with the first one, image by image.

    With a folder, the first evaluation is stored there, so that a resumed run still compares with it.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = Record(folder) if folder else None
        self._first: Measurement | None = None

    def look(self, iteration: int, now: Measurement) -> list[str]:
        """A warning for each guard that fell significantly while the headline rose; usually none."""
        if not now.guards:
            return []
        now = replace(now, name="before training" if iteration == 0 else f"iteration {iteration}")
        first = self._first or self._kept()
        if first:
            try:
                changes = differences([first, now])
            except ValueError:  # the run was resumed with other evaluation settings: this one is the new first
                first = None
        if not first:
            self._first = now
            if self._folder:
                self._folder.write_text(FIRST, measurement.to_json([now]))
            return []
        self._first = first
        return hacking([first, now], changes)

    def _kept(self) -> Measurement | None:
        file = self._folder.path / FIRST if self._folder else None
        if not file or not file.is_file():
            return None
        with suppress(ValueError):  # a damaged file: the next evaluation is the new first
            return measurement.read(file)[0]
        return None
