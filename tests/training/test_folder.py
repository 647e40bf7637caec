"""What a kill, a power cut or a user does to a run folder: it can be used again, and what is lost is told."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from program import BUDGET, Refused, started
from resumed_runs import assert_same_run, metrics, train
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.system import checkpoint
from flowward.training import assembly
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")
EXACT = ("--precision", "float32", "--threads", "1")


def test_a_folder_whose_run_died_before_its_settings_can_be_used(tiny: str) -> None:
    for path in ("run/samples", "run/checkpoints"):
        Path(path).mkdir(parents=True)
    for name in (".config.yaml.partial", "inputs.json", ".inputs.json.partial"):
        Path("run", name).write_text("{")
    started(tiny, Path("run"), *EXACT)
    assert not list(Path("run").rglob("*.partial"))


@pytest.mark.parametrize("file", ["samples/holiday.png", "checkpoints/000001.safetensors", "notes.txt"])
def test_a_folder_with_something_else_is_left_alone(refused: Refused, tiny: str, file: str) -> None:
    Path("run", file).parent.mkdir(parents=True)
    Path("run", file).write_text("mine")
    how = ["train", *BUDGET, "--model", tiny, "--reward", "balance", *EXACT, "--output", "run"]
    assert refused(*how) == "run is not an empty folder: use another --output"
    assert Path("run", file).read_text() == "mine"


def test_two_new_runs_do_not_share_a_folder(refused: Refused, tiny: str) -> None:
    Path("run").mkdir()
    with RunFolder(Path("run")).held():
        how = ["train", *BUDGET, "--model", tiny, "--reward", "balance", *EXACT, "--output", "run"]
        assert refused(*how) == "a run is still writing to run: stop it first"
    assert not list(Path("run").iterdir())


def test_the_lock_comes_before_the_state(run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: RunFolder, *needed: str) -> None:
        raise AssertionError("the state was read")

    monkeypatch.setattr(RunFolder, "state", read)
    with RunFolder.open(run).held():
        assert refused("train", "--resume", run) == f"a run is still writing to {run}: stop it first"


def test_temporary_files_of_a_killed_run_are_deleted(run: Path) -> None:
    for name in ("checkpoints/.tmpAb3dEf", "checkpoints/.000002.safetensors.partial", ".metrics.jsonl.partial"):
        (run / name).write_text("half")
    (run / "samples/.tmp").write_text("mine")
    train("--resume", run, "--iterations", "2")
    names = {path.name for path in run.rglob(".*")}
    assert names == {".tmp"}


def test_the_next_checkpoint_deletes_what_an_earlier_one_left(run: Path) -> None:
    (run / "checkpoints/.tmpAb3dEf").write_text("half")
    RunFolder.open(run).save(2, {"a": 1})
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "000001.safetensors",
        "000002.safetensors",
    ]


def test_metrics_are_on_the_disk_before_the_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    def replaced(one: Path, other: Path) -> None:
        order.append(f"named {other.name}")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    RunFolder.open(run).save(2, {"a": 1})
    name = "000002.safetensors"
    assert order == ["metrics.jsonl", f".{name}.partial", f"named {name}", "checkpoints"]


@pytest.mark.parametrize("damage", ["cut", "middle"])
def test_a_gap_in_the_metrics_is_told_and_the_evaluation_redone(
    tiny: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of iterations 2 and 3 are lost, or that of 2; the checkpoint of 3 is there."""
    whole, cut = Path("whole"), Path("cut")
    started(tiny, whole, *EXACT, "--iterations", "3", "--evaluate-every", "3")
    shutil.copytree(whole, cut)
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    kept = lines[:2] if damage == "cut" else [*lines[:2], lines[2][:30] + "\0\0\0", lines[3]]
    (cut / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    capsys.readouterr()
    train("--resume", cut)
    which = "iterations 2–3" if damage == "cut" else "iteration 2"
    assert f"warning: metrics.jsonl lacks the metrics of {which}: a power cut or" in capsys.readouterr().out
    found = {line["iteration"]: line for line in metrics(cut)}
    assert found[3]["evaluation"] == metrics(whole)[3]["evaluation"] and found[3]["images"] == 24
    assert list(found) == ([0, 1, 3])
    train("--resume", cut, "--iterations", "4")
    train("--resume", whole, "--iterations", "4")
    assert metrics(cut)[-1] == metrics(whole)[-1]


def test_a_run_without_gaps_says_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("--resume", run, "--iterations", "2")
    assert "lacks the metrics" not in capsys.readouterr().out


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "replaced"])
def test_a_deleted_folder_stays_deleted(
    tiny: str, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does the run write into a new folder of the same name, which belongs to another run."""
    calls = iter(range(99))

    def reward(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        if next(calls) == 1:
            shutil.rmtree("run")
            if again:
                Path("run").mkdir()
        return images.mean((1, 2, 3))

    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: reward)
    how = [*BUDGET, *EXACT, "--model", tiny, "--reward", "mine", "--output", "run", "--iterations", "9"]
    assert main(["train", *how, "--checkpoint-every", "1"]) == 2
    said = capsys.readouterr().err
    assert said == "flowward: run was deleted or moved in the meantime, so nothing more can be saved there\n"
    assert not list(Path("run").iterdir()) if again else not Path("run").exists()


def test_a_missing_folder_inside_is_made_again(run: Path) -> None:
    """To delete checkpoints for space is no reason to end a run."""
    folder = RunFolder.open(run)
    shutil.rmtree(run / "checkpoints")
    assert folder.save(2, {"a": 1}).is_file()


def test_a_state_that_does_not_fit_is_one_sentence(run: Path, refused: Refused) -> None:
    """Also where its hash is right: someone has written it."""
    (path,) = RunFolder.open(run).checkpoints()
    whole = checkpoint.load(path)
    for key in ("weights", "health", "optimiser"):
        for bad in (None, 5, [], {}, {"policy": {}}):
            checkpoint.save(path, {**whole, key: bad})
            refused("train", "--resume", run, "--iterations", "2")
    for moment, bad in (("exp_avg", [1]), ("exp_avg_sq", torch.zeros(2)), ("step", None)):
        optimiser = copy.deepcopy(whole["optimiser"])
        optimiser["state"][0][moment] = bad
        checkpoint.save(path, {**whole, "optimiser": optimiser})
        assert "is damaged: its state does not fit this run" in refused("train", "--resume", run, "--iterations", "2")
    checkpoint.save(path, whole)
    train("--resume", run, "--iterations", "2")


def test_a_run_from_python_keeps_its_folder_too(tiny: str) -> None:
    from tiny_runs import algorithm, bright, small

    from flowward import models, prompts

    policy = models.load(tiny, None, "float32")
    run = small(output="run", iterations=2)
    steps = assembly.train(algorithm(), policy, bright, prompts.of("mine", ["a circle", "two rings"]), run)
    next(steps)
    shutil.rmtree("run")
    with pytest.raises(OSError, match="run was deleted or moved in the meantime"):
        next(steps)
    assert not Path("run").exists()


def test_a_line_that_was_cut_by_a_kill_is_written_again(tiny: str) -> None:
    whole, cut = Path("whole"), Path("cut")
    started(tiny, whole, *EXACT, "--iterations", "2", "--checkpoint-every", "1")
    shutil.copytree(whole, cut)
    max((cut / "checkpoints").iterdir()).unlink()
    lines = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(lines[: -len(json.dumps(json.loads(lines.splitlines()[-1]))) // 2])
    train("--resume", cut)
    assert_same_run(whole, cut)
