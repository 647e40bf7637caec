"""Runs in processes of one thread each, as many at a time as there are workers.

A run is a command of its own, `flowward train`, in a folder of its own. What is finished is kept, what was begun is
continued, and what failed is left as it is, with its last words in failed.json. So a study can be stopped at any
moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..system import locks, strict_json, whole_files
from .schedule import Planned

State = Literal["new", "begun", "finished", "failed"]
FAILED, LOG, CONFIG = "failed.json", "log.txt", "asked.yaml"
LONGEST = 500  # characters of a run's last words
POLL = 0.2
PROGRAM = (sys.executable, "-m", "flowward")


@dataclass(frozen=True)
class Place:
    """Where a run of a study lies: its run folder, its settings, and what it printed."""

    folder: Path

    @classmethod
    def of(cls, study: Path, planned: Planned) -> Place:
        return cls(study / "runs" / planned.name)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def state(self) -> State:
        if (self.folder / FAILED).is_file():
            return "failed"
        summary = self.run / "summary.json"
        if summary.is_file() and json.loads(summary.read_text("utf-8"))["finished"]:
            return "finished"
        return "begun" if (self.run / "config.yaml").is_file() else "new"

    def asked(self, planned: Planned) -> str:
        """The config file of the run as text.

        Raises:
            ValueError: the folder has a run of other settings.
        """
        text, file = yaml.safe_dump(dict(planned.settings), sort_keys=False), self.folder / CONFIG
        if file.is_file() and yaml.safe_load(file.read_text("utf-8")) != yaml.safe_load(text):
            raise ValueError(
                f"{self.folder} has a run of other settings than {planned.name} of this study: use another folder, or "
                "the study file that it was made with"
            )
        return text

    def failure(self) -> str | None:
        file = self.folder / FAILED
        return str(json.loads(file.read_text("utf-8"))["said"]) if file.is_file() else None


@dataclass
class _Worker:
    planned: Planned
    place: Place
    process: subprocess.Popen[bytes]


def carry_out(study: Path, planned: Iterable[Planned], workers: int, say: Callable[[Planned, State], object]) -> None:
    """Every run to its end or its failure. `say` is called with each that ends here.

    Raises:
        ValueError: a folder has a run of other settings.
        KeyboardInterrupt: a signal asked to stop; the runs were asked to save, and have ended.
    """
    places = [(each, Place.of(study, each)) for each in planned]
    texts = {each.name: place.asked(each) for each, place in places}  # all are looked at before any begins
    waiting = [(each, place) for each, place in places if place.state in ("new", "begun")]
    running: list[_Worker] = []
    with _stopping(running):
        while waiting or running:
            while waiting and len(running) < workers:
                each, place = waiting.pop(0)
                running.append(_Worker(each, place, _begun(each, place, texts[each.name])))
            time.sleep(POLL)
            for worker in [each for each in running if each.process.poll() is not None]:
                running.remove(worker)
                say(worker.planned, _ended(worker))


def _begun(planned: Planned, place: Place, text: str) -> subprocess.Popen[bytes]:
    place.folder.mkdir(parents=True, exist_ok=True)
    whole_files.write(place.folder / CONFIG, text)
    _wait(place)
    words = ["--resume"] if place.state == "begun" else ["--config", str(place.folder / CONFIG), "--output"]
    command = [*PROGRAM, "train", *words, str(place.run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(place.folder / LOG, "ab") as log:
        return subprocess.Popen(  # in a session of its own: Ctrl-C reaches the study, which asks its runs to save
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _wait(place: Place) -> None:
    """For a run that a killed study has left behind, and that still writes to its folder."""
    while place.run.is_dir():
        try:
            with locks.held(place.run):
                return
        except BlockingIOError:
            time.sleep(POLL)


def _ended(worker: _Worker) -> State:
    """What became of a run. One that was killed, not by itself, is neither finished nor failed."""
    code, state = worker.process.returncode, worker.place.state
    if state == "finished" or code < 0 or code == 130:
        return state
    words = (worker.place.folder / LOG).read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    said = {"code": code, "said": words[-1].removeprefix("flowward: ")[:LONGEST]}
    whole_files.write(worker.place.folder / FAILED, strict_json.dumps(said) + "\n")
    return "failed"


@contextmanager
def _stopping(running: list[Any]) -> Iterator[None]:
    """However this ends, no run goes on alone: each is asked to save, and waited for. SIGTERM ends it like Ctrl-C."""

    def asked(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for worker in running:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in running:
            worker.process.wait()
