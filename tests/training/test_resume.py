"""A run that was stopped and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from resumed_runs import BUDGET, assert_same, assert_same_run, metrics, state, train
from torch import Tensor

from flowward import rewards
from flowward.cli import main
from flowward.commands import running
from flowward.commands.running import _stop_signals
from flowward.evaluation.evaluate import Evaluator
from flowward.learning import snapshots
from flowward.pages import report
from flowward.rewards import RewardError
from flowward.system import checkpoint
from flowward.training import health, log
from flowward.training import metrics as metrics_module
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.processor
kinds = pytest.mark.parametrize("kind", [[], ["--lora-rank", "2"]], ids=["full", "lora"])


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the run."""
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")


@kinds
def test_two_halves_make_a_whole(tiny: str, tmp_path: Path, kind: list[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    how = [*BUDGET, *kind, "--model", tiny, "--evaluate-every", "2"]
    train(*how, "--output", whole, "--iterations", "4")
    train(*how, "--output", halves, "--iterations", "2")
    train("--resume", halves, "--iterations", "4")
    assert_same_run(whole, halves)
    lines = metrics(whole)
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["iteration"] for line in lines if "evaluation" in line] == [0, 2, 4]


def test_two_halves_make_a_whole_palette_with_a_gamma_of_its_own(tiny: str, tmp_path: Path) -> None:
    """The mixtures that are drawn, the adapters of all corners, and what the run chose for itself."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    how = [*BUDGET, "--model", tiny, "--evaluate-every", "2", "--lora-rank", "2", "--palette", "--mix", "advantages"]
    how += ["--reward", "jpeg-compressibility", "balance", "--algorithm.gamma", "auto"]
    train(*how, "--output", whole, "--iterations", "4")
    train(*how, "--output", halves, "--iterations", "2")
    train("--resume", halves, "--iterations", "4")
    assert_same_run(whole, halves)


@kinds
def test_metrics_after_the_checkpoint_are_written_again(tiny: str, tmp_path: Path, kind: list[str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how = [*BUDGET, *kind, "--model", tiny, "--evaluate-every", "2", "--checkpoint-every", "2"]
    train(*how, "--output", whole, "--iterations", "4")
    shutil.copytree(whole, cut)
    RunFolder.open(cut).checkpoints()[-1].unlink()  # which leaves that of iteration 2, and two lines after it
    text = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(text[:-30])  # the last one cut short
    train("--resume", cut)
    assert_same_run(whole, cut)


def test_without_a_checkpoint_a_run_begins_anew(tiny: str, tmp_path: Path) -> None:
    whole, early = tmp_path / "whole", tmp_path / "early"
    how = [*BUDGET, "--model", tiny, "--iterations", "2"]
    train(*how, "--output", whole)
    shutil.copytree(whole, early)
    for path in RunFolder.open(early).checkpoints():
        path.unlink()
    train("--resume", early)
    assert_same_run(whole, early)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tiny: str, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", run)
    shutil.copytree(run, copy)
    train("--resume", run)
    assert_same_run(run, copy)
    assert json.loads((run / "summary.json").read_text())["finished"]


def test_a_model_may_move_between_two_halves(tiny: str, tmp_path: Path) -> None:
    train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", tmp_path / "run")
    train("--resume", tmp_path / "run", "--iterations", "2", "--model", shutil.copytree(tiny, tmp_path / "moved"))
    assert state(tmp_path / "run")["iteration"] == 2


def test_a_checkpoint_is_for_whoever_may_read_the_rest(tiny: str, tmp_path: Path) -> None:
    """safetensors alone would make it for nobody else."""
    before = os.umask(0o027)
    try:
        train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_what_is_synced_may_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to sync anything else."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    checkpoint.save(tmp_path / "x.safetensors", {"a": 1})
    assert modes == [os.O_RDWR, os.O_RDONLY]  # the file, and its folder, which Windows does not sync


# Ends at bad moments


def test_an_evaluation_that_was_cut_short_is_made_up_for(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one, and one on the way; the training that came before them is not lost."""
    measure, moments = Evaluator.measure, iter([0, 0, 1, 0, 1, 1, 0])

    def fails(self: Evaluator) -> Any:
        if next(moments):
            raise RewardError("the scorer has gone")
        return measure(self)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how = [*BUDGET, "--model", tiny, "--evaluate-every", "1", "--iterations", "3", "--checkpoint-every", "9"]
    train(*how, "--output", whole)
    monkeypatch.setattr(Evaluator, "measure", fails)
    ends = [main(["train", *how, "--output", str(cut)]), *(main(["train", "--resume", str(cut)]) for _ in range(3))]
    assert ends == [2, 2, 2, 0]
    assert_same_run(whole, cut)


@pytest.mark.parametrize("moment", ["tally", "copies", "health"])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_stop_amid_an_iteration_is_never_saved_half(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, updates: int
) -> None:
    """Some of its weights have moved, others have not."""
    owner, name = {
        "tally": (metrics_module.Tally, "means"),
        "copies": (snapshots.WarmDecay, "__call__"),
        "health": (health.Health, "check"),
    }[moment]
    then, calls = getattr(owner, name), itertools.count(1)

    def stops(*given: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return then(*given)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how = [*BUDGET, "--model", tiny, "--iterations", "4", "--updates-per-iteration", str(updates)]
    train(*how, "--output", whole, "--checkpoint-every", "2")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stops)
        assert main(["train", *how, "--output", str(cut), "--checkpoint-every", "2"]) == 130
    assert state(cut)["iteration"] == 2
    train("--resume", cut)
    assert_same_run(whole, cut)


def test_pictures_after_the_checkpoint_go_with_their_metrics(tiny: str, tmp_path: Path) -> None:
    train(*BUDGET, "--model", tiny, "--iterations", "2", "--evaluate-every", "1", "--output", tmp_path / "run")
    (tmp_path / "run/checkpoints/.000002.safetensors.partial").write_text("half a checkpoint")
    RunFolder.open(tmp_path / "run").forget_after(1)
    assert not list((tmp_path / "run").rglob("*.partial"))
    names = [f"00000{k}{end}" for k in (0, 1) for end in ("-scores.json", ".json", ".png")]
    found = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert found == sorted([*names, "000001-best-worst.png"])


def test_weights_that_blow_up_in_the_last_iteration_are_not_saved(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is their evaluation told as if it were one: a reward may give a number to an image of NaN."""
    train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", tmp_path / "run")
    blown = ["--iterations", "2", "--learning-rate", "1e30", "--warmup", "0", "--evaluation.rewards", "scenes-strict"]
    assert main(["train", "--resume", str(tmp_path / "run"), *blown]) == 2
    assert "are NaN or infinite: its weights have diverged" in capsys.readouterr().err
    assert state(tmp_path / "run")["iteration"] == 1
    assert "evaluation" not in metrics(tmp_path / "run")[-1]


# Going on otherwise than it began


def test_images_are_counted_as_they_were(tiny: str, tmp_path: Path) -> None:
    train(*BUDGET, "--model", tiny, "--iterations", "2", "--output", tmp_path / "run")
    train("--resume", tmp_path / "run", "--iterations", "4", "--images-per-update", "4", "--microbatch", "4")
    assert [line["images"] for line in metrics(tmp_path / "run")] == [0, 8, 16, 20, 24]


def test_a_run_goes_on_in_its_own_folder(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path, reward in ((one, "balance"), (other, "jpeg-incompressibility")):
        train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", path, "--reward", reward)
    before = (other / "config.yaml").read_text()
    assert main(["train", "--resume", str(one), "--output", str(other), "--iterations", "2"]) == 2
    assert f"--resume goes on in its own folder, {one}: leave out --output" in capsys.readouterr().err
    assert (other / "config.yaml").read_text() == before
    train("--resume", one, "--output", one)


def test_two_runs_never_share_a_folder(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*BUDGET, "--model", tiny, "--iterations", "1", "--output", tmp_path / "run")
    before = metrics(tmp_path / "run")
    with RunFolder.open(tmp_path / "run").held():
        assert main(["train", "--resume", str(tmp_path / "run"), "--iterations", "2"]) == 2
    assert f"a run is still writing to {tmp_path / 'run'}: stop it first" in capsys.readouterr().err
    assert metrics(tmp_path / "run") == before
    train("--resume", tmp_path / "run", "--iterations", "2")


def test_remembered_rewards_are_those_of_the_same_reward(tiny: str, tmp_path: Path) -> None:
    how = [*BUDGET, "--model", tiny, "--reward-buffer", "8", "--iterations", "1"]
    train(*how, "--output", tmp_path / "run")
    assert state(tmp_path / "run")["rewards"]["kept"]
    train("--resume", tmp_path / "run", "--iterations", "2", "--reward", "balance", "jpeg-incompressibility")
    kept = state(tmp_path / "run")["rewards"]["kept"]
    assert {rows.shape for rows in kept.values()} == {(4, 2)}


# Signals


@contextmanager
def program(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`flowward train` in a process of its own."""
    command = [sys.executable, "-m", "flowward", "train", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout and process.stderr
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


def test_a_signal_in_the_last_iteration_leaves_nothing_to_go_on_with(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reward(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return images.mean((1, 2, 3))

    monkeypatch.setitem(rewards.REWARDS, "mine", lambda: reward)
    words = [*shlex.split(shlex.join(BUDGET).replace("balance", "mine")), "--evaluation.rewards", "balance"]
    for name, iterations, code in (("last", "1", 0), ("first", "2", 130)):
        run = tmp_path / name
        how = ["--model", tiny, "--output", str(run), "--iterations", iterations]
        assert main(["train", *words, *how]) == code
        assert ("go on with" in capsys.readouterr().out) == (code != 0)
        assert json.loads((run / "summary.json").read_text())["finished"] == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_iteration_and_saves(tiny: str, tmp_path: Path, number: signal.Signals) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    with program(*BUDGET, "--model", tiny, "--output", run, "--iterations", "500") as process:
        wait_for(process, "[2/500] reward 0.")  # an evaluation every `ended` iterations is then just that one
        used = psutil.Process(process.pid).cpu_times()
        assert used.user + used.system < 15  # the first figures come early: work, not waiting for a busy machine
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after this iteration" in err and "Traceback" not in err
    ended = state(run)["iteration"]
    assert 2 <= ended < 500 and metrics(run)[-1]["iteration"] == ended
    measured = metrics(run)[-1].pop("evaluation", None)
    assert bool(measured) == (number == signal.SIGINT) == (run / "samples" / f"{ended:06d}.png").exists()
    assert not json.loads((run / "summary.json").read_text())["finished"]

    advice = out.splitlines()[-1]
    assert advice == f"stopped and saved; go on with: flowward train --resume {shlex.quote(str(run))}"
    train(*shlex.split(advice)[-2:], "--iterations", str(ended + 2))
    every = ["--evaluate-every", str(ended)] if measured else []  # has the evaluation that the stop added
    train(*BUDGET, *every, "--model", tiny, "--output", whole, "--iterations", str(ended + 2))
    assert_same_run(whole, run)


def test_a_stop_measures_and_changes_nothing_else(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    how = [*BUDGET, "--model", tiny, "--iterations", "4"]
    train(*how, "--output", whole)
    real = log.TrainProgress.show

    def stopped(progress: Any, step: Any) -> None:
        real(progress, step)
        if step.index == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(log.TrainProgress, "show", stopped)
        assert main(["train", *map(str, how), "--output", str(run)]) == 130
    assert "iteration 2: balance" in capsys.readouterr().out
    assert [line["iteration"] for line in metrics(run) if "evaluation" in line] == [0, 2]
    train("--resume", run)
    assert_same(state(whole), state(run))
    lines = metrics(run)
    assert lines[2].pop("evaluation") and lines == metrics(whole)


def test_a_second_signal_during_the_evaluation_of_a_stop_loses_nothing(
    interruptible: None, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    how = [*BUDGET, "--model", tiny, "--iterations", "3"]
    measure, show, calls = Evaluator.measure, log.TrainProgress.show, list[int]()

    def shown(progress: Any, step: Any) -> None:
        show(progress, step)
        if step.index == 1:
            signal.raise_signal(signal.SIGINT)

    def measured(evaluator: Evaluator) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return measure(evaluator)

    with monkeypatch.context() as patch:
        patch.setattr(running, "SAME_SIGNAL", 0.0)
        patch.setattr(log.TrainProgress, "show", shown)
        patch.setattr(Evaluator, "measure", measured)
        assert main(["train", *map(str, how), "--output", str(run)]) == 130
    assert len(calls) == 2 and [line["iteration"] for line in metrics(run)] == [0, 1]
    train("--resume", run)
    train(*how, "--output", whole)
    assert_same_run(whole, run)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny: str, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    how = [*BUDGET, "--model", tiny, "--checkpoint-every", "3"]
    with program(*how, "--output", run, "--iterations", "500") as process:
        wait_for(process, "[4/500]")
        process.kill()
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    ended = state(run)["iteration"]
    assert ended % 3 == 0 and metrics(run)[-1]["iteration"] > ended
    train("--resume", run, "--iterations", str(ended + 2))
    train(*how, "--output", whole, "--iterations", str(ended + 2))
    assert_same_run(whole, run)


def test_a_second_signal_stops_at_once(
    interruptible: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes within a second by another way is the same signal."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with _stop_signals() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()
        now += 0.5
        signal.raise_signal(signal.SIGINT)
        now += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # in the middle of saving
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().err.count("once more to stop at once") == 1
