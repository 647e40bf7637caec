"""Runs of a study in processes: what is kept, continued and told; stopped at any moment; and a whole small study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowward.studies import costs, plan, pool, schedule
from flowward.studies.folder import StudyFolder
from flowward.studies.pool import Place, carry_out
from flowward.studies.schedule import Planned

FAKE = """
import json, pathlib, sys, time
words = sys.argv[2:]
run = pathlib.Path(words[-1])
how = (run.parent / "asked.yaml").read_text()
run.mkdir(exist_ok=True)
with open(run.parent / "calls.txt", "a") as file:
    file.write(" ".join(words[:1]) + "\\n")
if "refuse" in how:
    print("flowward: this cannot be"), sys.exit(2)
(run / "config.yaml").write_text("x: 1")
if "slow" in how and words[0] != "--resume":
    time.sleep(60)
(run / "summary.json").write_text(json.dumps({"finished": True}))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of `flowward` that takes no time."""
    file = tmp_path / "fake.py"
    file.write_text(FAKE)
    monkeypatch.setattr(pool, "PROGRAM", (sys.executable, str(file)))
    return tmp_path / "study"


def planned(name: str, what: str = "quick") -> Planned:
    return Planned(name, "awm", "one", 0, None, {"what": what})


def test_what_is_done_is_kept_and_what_fails_is_told(fake: Path) -> None:
    every, told = [planned("a"), planned("b", "refuse"), planned("c")], []
    carry_out(fake, every, 2, lambda each, state: told.append((each.name, state)))
    assert sorted(told) == [("a", "finished"), ("b", "failed"), ("c", "finished")]
    assert Place.of(fake, every[1]).failure() == "this cannot be"
    carry_out(fake, every, 2, lambda each, state: told.append((each.name, state)))
    assert len(told) == 3  # nothing is done twice, and a failed run is not tried again
    assert (fake / "runs" / "a" / "calls.txt").read_text() == "--config\n"


def test_a_run_that_was_killed_is_continued(fake: Path) -> None:
    place = Place.of(fake, planned("a"))
    carry_out(fake, [planned("a")], 1, lambda *told: None)
    (place.run / "summary.json").unlink()
    assert place.state == "begun"
    carry_out(fake, [planned("a")], 1, lambda *told: None)
    assert (place.folder / "calls.txt").read_text() == "--config\n--resume\n" and place.state == "finished"


def test_other_settings_in_the_folder_of_a_run_are_refused_before_anything_begins(fake: Path) -> None:
    carry_out(fake, [planned("a")], 1, lambda *told: None)
    with pytest.raises(ValueError, match="has a run of other settings than a of this study"):
        carry_out(fake, [planned("b"), planned("a", "other")], 1, lambda *told: None)
    assert not (fake / "runs" / "b").exists()


def test_a_stopped_study_leaves_no_run_behind(fake: Path) -> None:
    """SIGTERM: the run is asked to save and waited for; the study goes on with it."""
    place, started = Place.of(fake, planned("a", "slow")), time.monotonic()

    def stop(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            carry_out(fake, [planned("a", "slow")], 1, lambda *told: None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 30 and place.state == "begun" and place.failure() is None
    carry_out(fake, [planned("a", "slow")], 1, lambda *told: None)
    assert place.state == "finished"


def test_a_folder_has_one_study(tmp_path: Path) -> None:
    given: dict[str, Any] = {"algorithms": ["awm"], "budgets": {"images": 1000}}
    StudyFolder.begin(tmp_path / "study", plan.of(given))
    StudyFolder.begin(tmp_path / "study", plan.of({**given, "seeds": [0, 1, 2]}))  # the same, written out
    with pytest.raises(
        ValueError, match="has a study of other settings, and results of other settings cannot be merged"
    ):
        StudyFolder.begin(tmp_path / "study", plan.of({**given, "seeds": [0]}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        StudyFolder.begin(tmp_path / "mine", plan.of(given))


SMALL = {
    "algorithms": ["advantageflow", "flow_grpo"],
    "rewards": ["balance"],
    "score": "balance",
    "scores": ["jpeg-compressibility"],
    "seeds": [0, 1],
    "budgets": {"images": 16, "evaluations": 60},
    "points": 2,
    "images": 12,
    "precision": "float32",
    "options": {
        "run": {"images_per_update": 8, "group_size": 4, "microbatch": 8, "rollout_batch": 8},
        "algorithm": {"rollout": {"steps": 2}},
        "evaluation": {"sampler": {"steps": 2}},
    },
}
FIXED = {
    "advantageflow": {"images": 8, "forward": 2.0, "trained": 2.0, "backward": 2.0, "seconds": 0.1},
    "flow_grpo": {"images": 8, "forward": 2.0, "trained": 1.0, "backward": 2.0, "seconds": 0.1},
}


@pytest.mark.slow
def test_a_study_that_is_killed_comes_to_the_same_numbers(tiny: str, tmp_path: Path) -> None:
    """Four runs with real training. Costs are given, since measured ones differ from study to study."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "model": tiny}))
    found = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        StudyFolder.begin(folder, plan.read(file))
        (folder / "costs.json").write_text(json.dumps(FIXED))
        command = [sys.executable, "-m", "flowward", "study", str(file), "--output", str(folder), "--workers", "2"]
        if name == "killed":
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
            while not list(folder.glob("runs/*/*/*/*/run/config.yaml")):
                time.sleep(0.1)
            process.kill()  # its runs go on, and the next command waits for them
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "16 images; the base model has" in done.stdout and "study.html" in done.stdout
        assert "2 algorithms on" in (folder / "study.html").read_text("utf-8")
        found.append(json.loads((folder / "study.json").read_text()))
    first, second = ({key: own for key, own in each.items() if key not in ("machine", "hours")} for each in found)
    assert first == second
    rows = first["rewards"][0]["budgets"]["images"]["algorithms"]
    assert set(rows) == {"advantageflow", "flow_grpo"} and all(len(own["seeds"]) == 2 for own in rows.values())
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "whole" / "results.parquet")
    assert table.num_rows >= 2 * 2 * 3 * 2 and len(table["values"][0]) == 12


def test_costs_are_counted_and_measured_on_one_thread(tiny: str) -> None:
    """AdvantageFlow: two sampling steps, two points with two copies each, of which the first iteration needs none."""
    study = plan.of({**SMALL, "model": tiny})
    threads = torch.get_num_threads()
    found = costs.measured(schedule.for_cost(study, "advantageflow"))
    assert torch.get_num_threads() == threads
    assert (found.images, found.forward, found.trained) == (8, 6.0, 2.0)
    assert found.backward >= 1 and found.seconds > 0
    assert costs.measured(schedule.for_cost(study, "flow_grpo"), 2.5).backward == 2.5
