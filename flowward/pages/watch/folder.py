"""The runs of a folder, as they change. Nothing outside the folder is read: links that lead there are left out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ...training.record import Record
from .. import kinds
from . import overlay, state
from .overlay import Values
from .tail import Tail

DEEP = 4  # folders between the watched one and a run
PAUSE = 1.0  # seconds between two looks at the files
SETTLED = 1.0  # seconds after which a change of a folder has a time of its own
Event = tuple[str, str]  # its name, and its data as JSON


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file really lies in the folder `root` (which has no links in its own path)."""
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False


@dataclass
class Watched:
    """One run as it was read last."""

    path: Path
    root: Path
    name: str
    lines: list[Values] = field(default_factory=list)
    version: int = 0  # of what came before the newest lines: settings, and a file that was written anew
    facts: Values = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    spent: list[float] = field(default_factory=lambda: [0.0])  # seconds up to each number of lines
    _tail: Tail | None = None
    _config: tuple[float, dict[str, Any]] = (0.0, {})
    _kind: kinds.Kind = kinds.KINDS[kinds.DEFAULT]
    _figures: overlay.Figures = field(default_factory=overlay.Figures)
    _pictured: tuple[tuple[int, int], list[int]] = ((0, 0), [])  # inode and time of samples/, and what is in it
    _seen_held: bool = False
    _whole: tuple[tuple[int, int], overlay.Curves] | None = None

    def refresh(self, held: set[tuple[int, int, int]], now: float) -> None:
        """Read what is new.

        Raises:
            OSError: the run was deleted.
        """
        record = Record(self.path)
        changed = self._read_settings(record)
        self._tail = self._tail or Tail(record.metrics)
        anew, added = self._tail.read() if is_inside(record.metrics, self.root) else (bool(self.lines), [])
        if anew:
            self.version, self.lines, self.spent, self._figures = self.version + 1, [], [0.0], overlay.Figures()
        for line in added:
            self.lines.append(line)
            self.spent.append(self.spent[-1] + float((line.get("seconds") or {}).get("total") or 0.0))
        self._figures.add(added)
        fresh = self._figures.values(self._config[1]) if added or anew or changed else {}
        self.facts = {**self.facts, **fresh, **self._state(record, held, now), "samples": self._samples(record, now)}

    def _read_settings(self, record: Record) -> bool:
        """Whether they have changed."""
        path = record.path / "config.yaml"
        changed = path.stat().st_mtime
        if changed == self._config[0] or not is_inside(path, self.root):
            return False
        try:
            config, wrong = record.config(), ""
            self._kind = kinds.of(config)
        except ValueError as error:
            config, wrong = {}, str(error)
            self._kind = kinds.KINDS[kinds.DEFAULT]
        self._config, self.version = (changed, config), self.version + 1
        self.settings, self.facts = overlay.settings(config), {"wrong": wrong, **overlay.words(self._kind)}
        return True

    def _state(self, record: Record, held: set[tuple[int, int, int]], now: float) -> Values:
        own = state.is_held(self.path, held)
        self._seen_held = self._seen_held or own
        path = record.path / "summary.json"
        try:
            summary = record.summary() if is_inside(path, self.root) else {}
        except ValueError:
            summary = {}
        last = (self._tail.modified if self._tail else 0.0) or self._config[0]
        planned = (self._config[1].get("run") or {}).get("iterations")
        found = state.of(self.lines, summary, planned, now - last, own or (None if self._seen_held else False))
        return {"state": found.kind, "said": found.said, "last": round(last, 1)}

    def _samples(self, record: Record, now: float) -> list[int]:
        """Evaluations with pictures. The folder is read again after a change: to look at each file takes long."""
        try:
            state = os.stat(record.path / "samples")
        except OSError:
            return []
        version = state.st_ino, state.st_mtime_ns
        if self._pictured[0] != version:
            found = [int(path.stem) for path in record.records() if is_inside(path, self.root)]
            settled = now - state.st_mtime > SETTLED  # another file may come within the same tick of the clock
            self._pictured = version if settled else (0, 0), found
        return self._pictured[1]

    def curves(self, since: int = 0) -> overlay.Curves:
        """Of all lines, or of those after the first `since`."""
        samples = self._kind.nouns.samples
        if since:
            return overlay.drawn(self.lines[since:], self.name, self.spent[since], samples=samples)
        key = self.version, len(self.lines)
        if self._whole is None or self._whole[0] != key:
            self._whole = key, overlay.drawn(self.lines, self.name, samples=samples)
        return self._whole[1]

    def values(self, known: set[str]) -> Values:
        """Everything but pictures."""
        return {"id": self.name, "facts": self.facts, "settings": self.settings, **self.curves().values(known)}


@dataclass
class Seen:
    """What one page has been sent so far."""

    runs: dict[str, tuple[int, int, Values]] = field(default_factory=dict)  # version, lines, facts
    charts: set[str] = field(default_factory=set)
    head: Values | None = None


class Folder:
    """All runs of a folder. Safe to call from several threads."""

    def __init__(self, path: Path):
        """Raises ValueError if there is no such folder."""
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
        self.path, self.root = path, path.resolve()
        self.runs: dict[str, Watched] = {}
        self._outside = 0  # links that were left out
        self._looked, self._lock = float("-inf"), Lock()

    def news(self, seen: Seen) -> list[Event]:
        """What a page does not know yet; `seen` is brought up to date."""
        with self._lock:
            if time.monotonic() - self._looked >= PAUSE:
                self._look()
            return list(self._news(seen))

    def _look(self) -> None:
        held, now = state.locks(), time.time()
        found = self._find()
        self.runs = {name: self.runs.get(name) or Watched(path, self.root, name) for name, path in found.items()}
        for name, run in list(self.runs.items()):
            try:
                run.refresh(held, now)
            except OSError:  # deleted at this moment
                del self.runs[name]
        self._looked = time.monotonic()

    def _find(self) -> dict[str, Path]:
        """Run folders by their path inside the folder."""
        self._outside = 0
        if (self.root / "config.yaml").is_file():
            return {self.root.name: self.root} if is_inside(self.root / "config.yaml", self.root) else {}
        return {path.relative_to(self.root).as_posix(): path for path in sorted(self._walk(self.root, DEEP))}

    def _walk(self, folder: Path, deep: int) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                self._outside += not is_inside(path, self.root)  # one that leads inside is found there
            elif (path / "config.yaml").is_file():
                if is_inside(path / "config.yaml", self.root):
                    yield path
                else:
                    self._outside += 1
            elif deep > 1:
                yield from self._walk(path, deep - 1)

    def _news(self, seen: Seen) -> Iterator[Event]:
        head = {"folder": str(self.root), "outside": self._outside, "there": self.root.is_dir()}
        if seen.head is None:
            runs = [run.values(seen.charts) for run in self.runs.values()]
            yield "runs", _json({**head, "now": time.time(), "runs": runs})
        else:
            if head != seen.head:
                yield "folder", _json(head)
            for name in seen.runs.keys() - self.runs.keys():
                yield "gone", _json({"id": name})
            for run in self.runs.values():
                yield from self._news_of(run, seen)
        seen.head = head
        seen.runs = {name: (run.version, len(run.lines), run.facts) for name, run in self.runs.items()}

    def _news_of(self, run: Watched, seen: Seen) -> Iterator[Event]:
        version, lines, facts = seen.runs.get(run.name, (-1, 0, {}))
        if version != run.version or (not lines and run.lines):
            yield "run", _json(run.values(seen.charts))
        elif lines < len(run.lines):
            yield "lines", _json({"id": run.name, "facts": run.facts, **run.curves(lines).values(seen.charts)})
        elif facts != run.facts:
            yield "facts", _json({"id": run.name, "facts": run.facts})

    def picture_file(self, name: str, iteration: int) -> Path | None:
        """The pictures of an evaluation of a known run; None if there are none inside the folder."""
        with self._lock:
            run = self.runs.get(name)
        path = None if run is None else run.path / "samples" / f"{iteration:06d}.json"
        return path if path is not None and is_inside(path, self.root) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
