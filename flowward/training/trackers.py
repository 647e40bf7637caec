"""Send a run to experiment trackers: TensorBoard, Weights & Biases, Trackio, SwanLab, MLflow (docs/tracking.md).

A tracker gets what the run folder gets: settings, the lines of metrics.jsonl and the pictures in samples/. Each has a
thread of its own, so training never waits for it. One that fails is left alone from then on.

accelerate starts the trackers and sends numbers. Its trackers differ in how they get texts and pictures and how they
continue a run, and that is what the classes here are for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from ..system.errors import named
from .record import Record, read_json

PROJECT = "flowward"  # the name under which trackers collect runs
IDS = "trackers.json"  # in the run folder: the name of the run in each tracker, to continue it
PATIENCE = 30.0  # seconds that the end of a run waits for trackers that are still sending
LONGEST = 500  # characters of a setting; MLflow refuses more
ASIDE = ("iteration", "health", "reward_histogram")  # keys of a line that are no numbers to plot


@dataclass(frozen=True)
class Start:
    """Where a tracker starts."""

    folder: Path  # of the run
    id: str  # of the run in the tracker; made up if it is new
    first: int  # the first iteration that is sent

    @property
    def name(self) -> str:
        return self.folder.resolve().name


class Tracker:
    """One tracker, driven through accelerate's class for it. Every method may raise anything."""

    keeps_settings = False  # whether settings that were sent cannot be replaced

    def __init__(self, start: Start, resumed: bool):
        self.begin(start, resumed)

    def begin(self, start: Start, resumed: bool) -> None:
        self.start = start
        self.made = self.make(_accelerate(), start, resumed)
        self.made.main_process_only = False  # otherwise accelerate looks for processes of its own
        self.made.start()

    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        """accelerate's tracker, not started."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """The name of the run in the tracker, which continues it."""
        return self.start.id

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.made.log(values, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self.made.log({name: text}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(path) as opened:
            self.made.log_images({name: [opened.convert("RGB")]}, step=step)

    def go_back(self, iteration: int) -> None:
        """The run went back to this iteration. Most trackers cannot delete what came after it."""


class TensorBoard(Tracker):
    keeps_settings = True  # each time makes another run in its list of hyperparameters

    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        purge = start.first if resumed else None  # hides what an interrupted run had sent from there on
        return tracking.TensorBoardTracker("tensorboard", start.folder, purge_step=purge)

    def picture(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as opened:
            self.made.log_images({name: np.array(opened.convert("RGB"))[None]}, step=step, dataformats="NHWC")

    def go_back(self, iteration: int) -> None:
        self.made.finish()
        self.begin(replace(self.start, first=iteration + 1), True)


class WandB(Tracker):
    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        quiet = {"console": "off"}  # otherwise it replaces the terminal of the progress bar
        return tracking.WandBTracker(
            project, name=start.name, id=start.id, resume="allow", dir=str(start.folder), settings=quiet
        )


class Trackio(Tracker):
    @property
    def _run(self) -> str:
        return f"{self.start.name}-{self.start.id}"

    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        return tracking.TrackioTracker(PROJECT, name=self._run, resume="allow", embed=False)

    def picture(self, name: str, path: Path, step: int) -> None:
        import trackio

        self.made.log({name: trackio.Image(str(path))}, step=step)


class SwanLab(Tracker):
    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        project, logs = os.environ.get("SWANLAB_PROJ_NAME", PROJECT), start.folder / "swanlog"
        logs.mkdir(exist_ok=True)
        import swanlab

        quiet = swanlab.Settings(terminal={"proxy_type": "none"})  # as for W&B
        where = {"log_dir": os.environ.get("SWANLAB_LOGDIR", str(logs)), "settings": quiet}
        return tracking.SwanLabTracker(project, name=start.name, id=start.id, resume="allow", **where)

    def text(self, name: str, text: str, step: int) -> None:
        import swanlab

        self.made.log({name: swanlab.Text(text)}, step=step)


class MLflow(Tracker):
    keeps_settings = True  # it refuses another value for a parameter

    def make(self, tracking: Any, start: Start, resumed: bool) -> Any:
        return tracking.MLflowTracker(PROJECT, run_id=start.id if resumed else None, run_name=start.name)

    @property
    def id(self) -> str:
        found: str = self.made.tracker.info.run_id
        return found

    def text(self, name: str, text: str, step: int) -> None:
        import mlflow

        mlflow.log_text(text, f"{name}/{step:06d}.txt")

    def picture(self, name: str, path: Path, step: int) -> None:
        import mlflow

        mlflow.log_artifact(str(path), "samples")


KINDS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "swanlab": SwanLab,
    "mlflow": MLflow,
}  # the name of a tracker is that of its package, and of the extra of flowward that installs it


def _accelerate() -> Any:
    """accelerate.tracking. Its log messages need accelerate's own state of processes, which a run does not have."""
    from accelerate import tracking

    tracking.logger = logging.getLogger("accelerate.tracking")
    return tracking


def refuse_missing(names: Sequence[str]) -> None:
    """Raise ValueError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f'--track {name} needs a package that is not installed: pip install "flowward[{name}]"')


@contextmanager
def opened(names: Sequence[str], folder: Record | None, done: int) -> Iterator[Trackers]:
    """The trackers of a run, which continues after iteration `done`; none in a process that writes no folder.

    At the end it waits for what is still being sent, but not for long.
    """
    trackers = Trackers(names if folder else (), folder, done)
    try:
        yield trackers
    finally:
        trackers.close()


class Trackers:
    """All trackers of a run. No method raises an error of a tracker, or waits for one (except `close`)."""

    def __init__(self, names: Sequence[str], folder: Record | None, done: int):
        self._folder, self._lock = folder, Lock()
        self._news: SimpleQueue[str] = SimpleQueue()
        self._queues: dict[str, SimpleQueue[Callable[[Tracker], None] | None]] = {}
        self._threads: dict[str, Thread] = {}
        for name in names if folder else ():
            self._queues[name] = SimpleQueue()
            self._threads[name] = Thread(target=self._work, args=(name, done), name=f"tracker {name}", daemon=True)
            self._threads[name].start()

    def send(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, with the pictures in the folder that belong to it."""
        if not self._queues or self._folder is None:
            return
        step, plotted, health = int(line["iteration"]), numbers(line), "\n".join(line.get("health") or ())
        pictures = self._folder.pictures(step) if "evaluation" in line else {}

        def sent(tracker: Tracker) -> None:
            if plotted:
                tracker.numbers(plotted, step)
            if health:
                tracker.text("health", health, step)
            for name, path in pictures.items():
                tracker.picture(name, path, step)

        self._post(sent)

    def go_back(self, iteration: int) -> None:
        """The run went back to the checkpoint of this iteration."""
        self._post(lambda tracker: tracker.go_back(iteration))

    def news(self) -> list[str]:
        """Warnings about trackers that have failed since the last call."""
        found = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    def close(self) -> None:
        """Wait up to PATIENCE seconds for trackers that are still sending. What has failed becomes a Python warning."""
        self._post(None)
        latest = time.monotonic() + PATIENCE
        for name, thread in self._threads.items():
            thread.join(max(0.0, latest - time.monotonic()))
            if thread.is_alive():
                self._news.put(f"tracking with {name} did not finish: its last iterations may be missing")
        for sentence in self.news():
            warnings.warn(sentence, stacklevel=2)

    def _post(self, task: Callable[[Tracker], None] | None) -> None:
        for name, queue in self._queues.items():
            if self._threads[name].is_alive():  # nobody empties the queue of a tracker that has failed
                queue.put(task)

    def _work(self, name: str, done: int) -> None:
        """The thread of a tracker: all its calls, in order, until it fails."""
        try:
            tracker = self._started(name, done)
            while (task := self._queues[name].get()) is not None:
                task(tracker)
            tracker.made.finish()
        except (Exception, SystemExit) as error:
            self._news.put(f"tracking with {name} failed and is off until the run is resumed: {named(error)}")

    def _started(self, name: str, done: int) -> Tracker:
        assert self._folder is not None
        known = self._ids().get(name)
        start = Start(self._folder.path, known or secrets.token_hex(4), done + 1 if done else 0)
        tracker = KINDS[name](start, resumed=known is not None)
        if known is None:
            with self._lock:
                self._folder.write_text(IDS, json.dumps(self._ids() | {name: tracker.id}) + "\n")
        if known is None or not tracker.keeps_settings:
            tracker.made.store_init_configuration(flat(self._folder.config()))
        return tracker

    def _ids(self) -> dict[str, Any]:
        assert self._folder is not None
        path = self._folder.path / IDS
        return read_json(path) if path.is_file() else {}


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, by names with slashes: seconds/train, evaluation/ocr/overall/mean."""
    scores = (line.get("evaluation") or {}).get("scores") or {}
    found = {**{key: value for key, value in line.items() if key not in (*ASIDE, "evaluation")}, **_intervals(scores)}
    return {_safe(key): float(value) for key, value in _leaves(found, "/") if _is_number(value)}


def _intervals(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"evaluation/{name}/{part}/{end}": each.get(end)
        for name, score in scores.items()
        for part, each in {"overall": score["overall"], **(score.get("categories") or {})}.items()
        for end in ("mean", "low", "high")
    }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a tracker takes them: names with dots, and numbers or texts."""
    return {
        _safe(key): value if _is_number(value) or isinstance(value, bool) else str(value)[:LONGEST]
        for key, value in _leaves(config, ".")
    }


def _leaves(tree: Mapping[str, Any], between: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{between}{name}", leaf) for name, leaf in _leaves(value, between))
        else:
            yield str(key), value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _safe(name: str) -> str:
    """With the characters that every tracker takes: pull@3 becomes pull/3."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "/"))
