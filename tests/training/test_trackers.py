"""Trackers receive what the run folder holds, continue a resumed run, and never end or delay one.

TensorBoard is always tested. The others are tested where they are installed, offline.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from resumed_runs import BUDGET, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracker_readers import READERS, Received

from flowward import models, prompts
from flowward import train as train_in_python
from flowward.algorithms import AdvantageFlow
from flowward.cli import main
from flowward.pages import report
from flowward.training import config, trackers
from flowward.training.folder import RunFolder
from flowward.training.health import Health
from flowward.training.run import Run, TrackerName

SHORT = [*BUDGET, "--precision", "float32", "--evaluate-every", "2"]
LONG = 60.0  # seconds; nothing waits so long


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every tracker offline and in an empty folder; every iteration has a health warning; no report."""
    place = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "SWANLAB_MODE"):
            patch.setenv(name, "offline")
        patch.setenv("TRACKIO_DIR", str(place / "trackio"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        patch.chdir(place)
        patch.setattr(report, "write", lambda folder: folder / "report.html")
        patch.setattr(Health, "check", lambda self, metrics: ["a warning of this iteration"])
        yield place


@pytest.fixture(scope="module", params=READERS)
def sent(request: pytest.FixtureRequest, tiny: str, surroundings: Path) -> tuple[RunFolder, Received]:
    """A run that was killed after four iterations and resumed after two, and what its tracker has."""
    pytest.importorskip(request.param)
    run = surroundings / "runs" / request.param
    train(*SHORT, "--model", tiny, "--output", run, "--iterations", "4", "--checkpoint-every", "2", "--track",
          request.param)  # fmt: skip
    RunFolder.open(run).checkpoints()[-1].unlink()
    train("--resume", run)
    return RunFolder.open(run), READERS[request.param](run)


def test_every_number_of_the_folder_arrives(sent: tuple[RunFolder, Received]) -> None:
    folder, received = sent
    lines = folder.lines()
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3, 4]
    clock = ("seconds/", "speed/")  # W&B keeps those of the interrupted run
    expected = {(name, line["iteration"]): value for line in lines for name, value in trackers.numbers(line).items()}
    assert received.numbers.keys() >= expected.keys()
    for (name, step), value in expected.items():
        if not name.startswith(clock):
            assert received.numbers[name, step] == pytest.approx(value, rel=1e-6), (name, step)
    assert {"reward", "seconds/train", "evaluation/balance/overall/low"} <= {name for name, _ in expected}


def test_warnings_pictures_and_settings_arrive(sent: tuple[RunFolder, Received]) -> None:
    _, received = sent
    assert set(received.texts) == {1, 2, 3, 4}
    assert all("a warning of this iteration" in text for text in received.texts.values())
    assert received.pictures == {0, 2, 4} and received.extremes == {2, 4}
    assert str(received.settings["run.learning_rate"]) == "0.001" and received.settings["algorithm.name"]


def test_a_resumed_run_is_the_same_one_in_its_tracker(sent: tuple[RunFolder, Received]) -> None:
    folder, received = sent
    assert len(received.runs) == 1 and len(json.loads((folder.path / trackers.IDS).read_text())) == 1


class Broken(trackers.Tracker):
    """It fails when the named method is called."""

    fails = ""

    def __init__(self, start: trackers.Start, resumed: bool):
        self.start, self.made = start, self
        self.fail("start")

    def fail(self, name: str) -> None:
        if name == self.fails:
            raise OSError("the disk is full")

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.fail("numbers" if step == 1 else "")

    def text(self, name: str, text: str, step: int) -> None:
        self.fail("text" if step == 1 else "")

    def picture(self, name: str, path: Path, step: int) -> None:
        self.fail("picture")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.fail("settings")

    def finish(self) -> None:
        self.fail("finish")


@pytest.mark.parametrize("fails", ["start", "settings", "numbers", "text", "picture", "finish"])
def test_a_tracker_that_fails_costs_one_warning(
    fails: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fails", fails)
    monkeypatch.setitem(trackers.KINDS, "tensorboard", Broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*SHORT, "--model", tiny, "--output", tmp_path / "run", "--iterations", "3", "--track", "tensorboard")
    told = [each for line in RunFolder.open(tmp_path / "run").lines() for each in line["health"]]
    told = [each for each in [*told, *(str(each.message) for each in caught)] if each.startswith("tracking with")]
    assert told == ["tracking with tensorboard failed and is off until the run is resumed: OSError: the disk is full"]


def test_a_tracker_that_hangs_delays_nothing(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(Broken, "numbers", lambda self, values, step: never.wait(LONG))
    monkeypatch.setitem(trackers.KINDS, "wandb", Broken)
    monkeypatch.setattr(trackers, "refuse_missing", lambda names: None)
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    with pytest.warns(UserWarning, match="tracking with wandb did not finish: its last iterations may be missing"):
        train(*SHORT, "--model", tiny, "--output", tmp_path / "run", "--iterations", "1", "--track", "wandb")
    never.set()
    assert [line["iteration"] for line in RunFolder.open(tmp_path / "run").lines()] == [0, 1]


def test_only_the_process_with_the_folder_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "KINDS", {})
    with trackers.opened(("tensorboard",), None, 0) as found:
        found.send({"iteration": 1, "reward": 1.0})
    assert found.news() == []


def test_the_table_is_that_of_the_setting() -> None:
    assert tuple(trackers.KINDS) == get_args(TrackerName)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tensorbord", "--track takes tensorboard|wandb|trackio|swanlab|mlflow ..., not 'tensorbord'"),
        ("mlflow", '--track mlflow needs a package that is not installed: pip install "flowward[mlflow]"'),
    ],
)
def test_what_cannot_track_is_refused_first(
    name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert main(["train", "--output", str(tmp_path / "run"), "--track", name]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_setting_in_a_file_or_in_python_is_refused_too() -> None:
    with pytest.raises(
        ValueError, match="unknown tracker 'comet'; known: tensorboard, wandb, trackio, swanlab, mlflow"
    ):
        Run(track=("comet",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config: run\.track"):
        config.from_dict({"run": {"track": ["comet"]}})
    assert config.from_dict({"run": {"track": "tensorboard"}}).run.track == ("tensorboard",)
    assert Run(track=("wandb", "wandb")).track == ("wandb",)


def test_a_run_without_a_folder_cannot_be_tracked(tiny: str) -> None:
    policy, texts = models.load(tiny, None, "float32"), prompts.of("mine", ("a circle",))
    run = Run(track=("tensorboard",), images_per_update=8, group_size=4)
    with pytest.raises(ValueError, match="set `output` beside `track`"):
        list(
            train_in_python(
                AdvantageFlow(), policy, lambda images, texts, metadata=None: images[:, 0, 0, 0], texts, run
            )
        )


def test_trackers_may_change_when_a_run_is_resumed(tiny: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(*SHORT, "--model", tiny, "--output", run, "--iterations", "1")
    train("--resume", run, "--iterations", "2", "--track", "tensorboard")
    assert {step for _, step in READERS["tensorboard"](run).numbers} == {2}
    before = shutil.copytree(run / "tensorboard", tmp_path / "before")
    train("--resume", run, "--iterations", "3", "--track")
    assert RunFolder.open(run).config()["run"]["track"] == []
    assert len(list(before.rglob("*"))) == len(list((run / "tensorboard").rglob("*")))


def test_a_run_that_goes_back_is_tracked_once(tiny: str, tmp_path: Path) -> None:
    """TensorBoard forgets what came after the checkpoint."""
    folder = RunFolder.create(tmp_path / "run", {})
    with trackers.opened(("tensorboard",), folder, 0) as found:
        for iteration, reward in ((1, 1.0), (2, 2.0), (3, 3.0)):
            found.send({"iteration": iteration, "reward": reward, "health": ["look"], "evaluation": None})
        found.go_back(1)
        found.send({"iteration": 2, "reward": 5.0, "health": ["look"]})
    read = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(1, 1.0), (2, 5.0)]


def test_names_have_characters_that_every_tracker_takes() -> None:
    line = {"iteration": 1, "pull@3": 1, "reward/r.py:bright": 2.0, "seconds": {"train": 3.0}, "health": ["a"]}
    assert trackers.numbers(line) == {"pull/3": 1.0, "reward/r.py_bright": 2.0, "seconds/train": 3.0}
    assert trackers.flat({"run": {"seed": 0, "betas": [0.9, 0.999], "output": None}, "edits": True}) == {
        "run.seed": 0, "run.betas": "[0.9, 0.999]", "run.output": "None", "edits": True,
    }  # fmt: skip
