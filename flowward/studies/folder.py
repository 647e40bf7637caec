"""The folder of a study, and the way from its file to its findings.

study.yaml       what was asked for
prompts/         training prompts and validation prompts, if there is a search
costs.json       what an image costs each algorithm
runs/            a folder per run: its settings, what it printed, and its run folder
search.json      the score of each trial, and the chosen one
results.parquet  a row per run, evaluation and score, with the scores of all images
study.json       the findings, and what they depend on
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from .. import prompts
from ..evaluation.measurement import Measurement
from ..evaluation.provenance import versions
from ..prompts.loading import split
from ..system import locks, strict_json, whole_files
from . import costs, curves, drift, findings, schedule
from .costs import Cost
from .curves import Curve
from .knobs import trials
from .plan import Study, of
from .pool import Place, State, carry_out
from .schedule import Planned

ASKED, COSTS, SEARCH, FOUND, TABLE = "study.yaml", "costs.json", "search.json", "study.json", "results.parquet"
Say = Callable[[str], object]


class StudyFolder:
    """A study on disk."""

    def __init__(self, path: Path, study: Study):
        self.path, self.study = path, study

    @classmethod
    def begin(cls, path: Path, study: Study) -> StudyFolder:
        """The folder of a new study, or of the same one that was stopped.

        Raises:
            ValueError: it has another study, or other files.
        """
        file, text = path / ASKED, yaml.safe_dump(TypeAdapter(Study).dump_python(study, mode="json"), sort_keys=False)
        if file.is_file():
            if of(yaml.safe_load(file.read_text("utf-8")), str(file)) != study:
                raise ValueError(
                    f"{path} has a study of other settings, and results of other settings cannot be merged: use "
                    "another --output"
                )
            return cls(path, study)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is not an empty folder: use another --output")
        path.mkdir(parents=True, exist_ok=True)
        whole_files.write(file, text)
        return cls(path, study)

    @staticmethod
    def refuse_missing() -> None:
        """Raises ValueError if what writes results.parquet is not installed."""
        if find_spec("pyarrow") is None:
            raise ValueError("a study writes its results as Parquet: pip install 'flowward[data]'")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises ValueError if another process carries the study out."""
        try:
            with locks.held(self.path):
                yield
        except BlockingIOError:
            raise ValueError(f"another process is carrying out the study in {self.path}: stop it first") from None

    def carry_out(self, workers: int, say: Say = print) -> dict[str, Any]:
        """Everything that is left to do. Returns the findings, which are in study.json then.

        Raises:
            ValueError: a budget is too small, or a folder has a run of other settings.
            KeyboardInterrupt: it was stopped; it can be carried out again.
        """
        with self.held():
            if self.study.search:
                self._split_prompts()
            schedule.refuse_without_gradients(self.study)
            known = self.costs(say)
            schedule.refuse(self.study, known)
            chosen = self.search(known, workers, say)
            planned = list(schedule.compared(self.study, known, chosen, self.path))
            self._run(planned, workers, say)
            return self.conclude(known, planned, chosen)

    def costs(self, say: Say) -> dict[str, Cost]:
        """Measured once: what is known already is read."""
        file = self.path / COSTS
        known = {name: Cost(**own) for name, own in _read(file, {}).items()}
        for algorithm in self.study.entries:
            if algorithm in known:
                continue
            backward = next(iter(known.values())).backward if known else None  # of the model, not of the algorithm
            found = costs.measured(schedule.for_cost(self.study, algorithm), backward)
            known[algorithm] = found
            self._write(COSTS, {name: asdict(own) for name, own in known.items()})
            say(
                f"{algorithm}: {found.evaluations:.1f} evaluations and {1e3 * found.seconds:.1f} ms per image, "
                f"{found.images} images per iteration"
            )
        return known

    def search(self, known: Mapping[str, Cost], workers: int, say: Say) -> dict[str, int]:
        """The best trial of each `reward/algorithm`; trials that failed are the worst."""
        planned = list(schedule.searched(self.study, known, self.path))
        self._run(planned, workers, say)
        scores: dict[str, list[float | None]] = {}
        for each in planned:
            place, name = Place.of(self.path, each), f"{each.reward}/{each.algorithm}"
            mean = None
            if place.state == "finished":
                mean = curves.read(each, place)[0].means(self.study.score)[-1]
            scores.setdefault(name, []).append(mean)
        chosen = {name: max(range(len(own)), key=lambda k: _or_worst(own[k])) for name, own in scores.items()}
        if planned:
            settings = {f"{each.reward}/{each.algorithm}/{each.trial}": _knobs(each) for each in planned}
            self._write(SEARCH, {"scores": scores, "chosen": chosen, "settings": settings})
        return chosen

    def conclude(
        self, known: Mapping[str, Cost], planned: Sequence[Planned], chosen: Mapping[str, int]
    ) -> dict[str, Any]:
        """Read all compared runs, and write the results and the findings.

        Raises:
            ValueError: not all runs have ended, or they were measured with different settings.
        """
        every, one = self._curves(planned)
        away = {each.name: drift.nats(each, Place.of(self.path, each)) for each in planned}
        found = []
        for reward in self.study.rewards:
            runs = {
                name: [run for run in every if (run.planned.reward, run.planned.algorithm) == (reward, name)]
                for name in self.study.entries
            }
            left = {name: [away[run.planned.name] for run in own] for name, own in runs.items()}
            found.append(findings.of(findings.Table.of(self.study, reward, runs, known, one, left)))
        result = {
            "study": TypeAdapter(Study).dump_python(self.study, mode="json"),
            "costs": {name: asdict(own) | {"evaluations": own.evaluations} for name, own in known.items()},
            "search": _read(self.path / SEARCH, None),
            "rewards": found,
            "measured": {key: value for key, value in one.settings.items() if key != "model"},
            "hours": sum(line["seconds"]["total"] for run in every for line in run.metrics) / 3600,
            "versions": versions(),
            "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
        }
        self._table(every, one)
        self._write(FOUND, result)
        return result

    def _curves(self, planned: Sequence[Planned]) -> tuple[list[Curve], Measurement]:
        ended, silent, measured = list[Curve](), list[Planned](), list[Measurement]()
        for each in planned:
            place = Place.of(self.path, each)
            if place.state in ("new", "begun"):
                raise ValueError(f"{each.name} has not ended: carry the study out again")
            try:
                curve, own = curves.read(each, place)
            except ValueError:
                if place.state != "failed":
                    raise
                silent.append(each)  # before it was measured
                continue
            ended.append(curve)
            measured.append(own)
        if not ended:
            raise ValueError(f"every run failed: see {self.path / 'runs'}, each failed.json")
        curves.refuse_unlike(ended, measured)
        base = {name: own[:1] for name, own in ended[0].scores.items()}
        lost = {each.name: Curve(each, (0,), base, Place.of(self.path, each).failure()) for each in silent}
        known = {curve.planned.name: curve for curve in ended} | lost
        return [known[each.name] for each in planned], measured[0]

    def _run(self, planned: Sequence[Planned], workers: int, say: Say) -> None:
        done = sum(Place.of(self.path, each).state in ("finished", "failed") for each in planned)
        number = iter(range(done + 1, len(planned) + 1))

        def ended(each: Planned, state: State) -> None:
            failure = Place.of(self.path, each).failure()
            told = f": {failure}" if failure else ""
            say(f"[{next(number, len(planned))}/{len(planned)}] {each.name} {state}{told}")

        carry_out(self.path, planned, workers, ended)

    def _split_prompts(self) -> None:
        """5 % of the training prompts, by a hash of each, are for validation."""
        whole = prompts.load(self.study.prompts)
        for name, held_out in ((schedule.TRAINING, False), (schedule.VALIDATION, True)):
            file = self.path / name
            if file.is_file():
                continue
            part = split(whole, held_out)
            file.parent.mkdir(exist_ok=True)
            rows = (
                {"prompt": part.texts[k], "category": part.categories[k]} | _about(part, k) for k in range(len(part))
            )
            whole_files.write(file, "".join(strict_json.dumps(row) + "\n" for row in rows))

    def _table(self, every: Sequence[Curve], one: Measurement) -> None:
        import pyarrow
        from pyarrow import parquet

        rows = [
            {
                "reward": run.planned.reward,
                "algorithm": run.planned.algorithm,
                "seed": run.planned.seed,
                "images": images,
                "score": name,
                "mean": float(own[number].mean()),
                "failure": run.failure,
                "values": own[number].astype("float32"),
            }
            for run in every
            for name, own in run.scores.items()
            for number, images in enumerate(run.images)
        ]
        about = {"prompts": json.dumps(one.texts), "categories": json.dumps(one.categories)}
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(about)
        with whole_files.replacing(self.path / TABLE) as partial:
            parquet.write_table(table, partial, compression="zstd")

    def _write(self, name: str, content: Any) -> None:
        whole_files.write(self.path / name, strict_json.dumps(content, 2) + "\n")


def _read(file: Path, otherwise: Any) -> Any:
    return strict_json.loads(file.read_text("utf-8")) if file.is_file() else otherwise


def _or_worst(score: float | None) -> float:
    return -float("inf") if score is None else score


def _about(part: prompts.PromptSet, k: int) -> dict[str, Any]:
    own: dict[str, Any] = {"metadata": dict(part.metadata[k])} if part.metadata else {}
    sources = prompts.described(part.sources[k], lambda path: str(path.absolute())) if part.sources else None
    return own | ({prompts.SOURCE: sources} if sources else {})


def _knobs(planned: Planned) -> dict[str, Any]:
    """What a trial tried."""
    assert planned.trial is not None
    return list(trials(planned.algorithm, planned.trial + 1))[planned.trial]
