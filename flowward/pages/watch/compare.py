"""The page of `flowward compare`: curves, pictures and settings of several runs in one file that works offline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ...training.record import Record
from .. import kinds, samples
from ..page import render
from . import overlay, pictures, state
from .overlay import Values

MOST = 2000  # points of a curve
ROOM = 6_000_000  # bytes of pictures in a page
EVALUATIONS = 12  # of each run, evenly spaced


def write(folders: Sequence[Path], output: Path) -> str:
    """Write the page. Returns one sentence if the runs cannot be compared in every respect, otherwise "".

    Raises:
        ValueError: a folder is no run folder, is given twice, is damaged or of an unknown kind, or the page has no
            folder to lie in.
        OSError: the page cannot be written; an existing one is unchanged.
    """
    if output.is_dir() or not output.absolute().parent.is_dir():
        why = "it is a folder" if output.is_dir() else "its folder does not exist"
        raise ValueError(f"cannot write {output}: {why}; name another --output")
    paths = [folder.resolve() for folder in folders]
    twice = next((folder for k, folder in enumerate(folders) if paths[k] in paths[:k]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: name each run once")
    known: set[str] = set()
    named = dict(zip(overlay.short(paths), paths, strict=True))
    runs = [_values(name, path, known) for name, path in named.items()]
    facts = {run["id"]: run["facts"] for run in runs}
    values = {"now": time.time(), "runs": runs, "pictures": _pictures(named)}
    html = render("runs.html.j2", charts=True, title=_title(list(named)), runs=values)
    Record(output.parent).write_text(output.name, html)
    return overlay.unlike(facts)


def _title(names: Sequence[str]) -> str:
    return "Comparison of " + (" and ".join(names) if len(names) == 2 else f"{len(names)} runs")


def _values(name: str, path: Path, known: set[str]) -> Values:
    run = Record.open(path)
    config, lines = run.config(), run.lines()
    kind = kinds.of(config)
    last = (run.metrics if run.metrics.is_file() else path / "config.yaml").stat().st_mtime
    planned = (config.get("run") or {}).get("iterations")
    found = state.of(lines, run.summary(), planned, time.time() - last, state.is_held(path, state.locks()))
    facts = overlay.figures(lines, config, MOST) | {
        "state": found.kind,
        "said": found.said,
        "last": round(last, 1),
        "samples": [int(each.stem) for each in _records(path)],
        "wrong": "",
        **overlay.words(kind),
    }
    drawn = overlay.drawn(lines, name, most=MOST, samples=kind.nouns.samples)
    return {"id": name, "facts": facts, "settings": overlay.settings(config), **drawn.values(known)}


def _records(path: Path) -> list[Path]:
    return samples.spread(Record(path).records(), EVALUATIONS)


def _pictures(named: dict[str, Path]) -> dict[str, dict[int, list[Values]]]:
    """Of each run, the pictures of its evaluations; so many prompts that all fit into a page."""
    files = {name: _records(path) for name, path in named.items()}
    sizes = [file.stat().st_size for own in files.values() for file in own]
    most = pictures.FEW if sum(sizes) <= ROOM else max(4, int(pictures.FEW * ROOM / sum(sizes)))
    return {name: {int(file.stem): pictures.of(file, most) for file in own} for name, own in files.items()}
