"""Runs with sharded weights: saved, resumed in another layout, taken back, killed; at once, and while they go on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from processes import together
from sharded_nets import Net, damage, full, joined, network, same, step
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException

from flowward.models.weights import Weights
from flowward.system import checkpoint
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.loop import Loop
from flowward.training.metrics import Step
from flowward.training.run import Run


class Networks(Weights):
    """Copies as networks of their own, sharded alike."""

    kind = "full"

    def __init__(self, layout: str | None):
        self.layout = layout
        self.networks: dict[str, Net] = {"policy": network(layout)}

    def add(self, name: str) -> None:
        self.networks[name] = network(self.layout).requires_grad_(False)

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        yield self.networks[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self.networks[name].named_parameters())


class Tiny(Loop[Any]):
    """Trains a tiny network to give zeros."""

    size, block = "tiny", 1

    def __init__(self, layout: str | None, run: Run, fails: dict[int, BaseException] | None = None):
        model = SimpleNamespace(weights=Networks(layout), identity={"model": "tiny"}, unlike=lambda found: [])
        algorithm: Any = SimpleNamespace(copies={"old": 0.5}, anchors={}, behaviour="policy")
        super().__init__(algorithm, model, run)
        self.fails = fails or {}

    def gather(self, *_: Any) -> Any:
        raise NotImplementedError

    def measured(self, step: Step, evaluator: Any, folder: RunFolder | None) -> Step:
        parts = {"overall": {"mean": evaluator[step.index], "low": 0, "high": 1, "n": 4}, "categories": {}}
        return replace(step, evaluation={"scores": {"balance": {"verdicts": False, **parts}}})

    def step(self) -> Step:
        if error := self.fails.pop(self.iteration + 1, None):
            raise error
        step(self.model.weights.networks["policy"], self.optimiser)
        for name in ("old", "ema"):
            self.model.weights.follow(name, 0.5)
        self.iteration += 1
        return Step(self.iteration, {}, [], {})

    @property
    def numbers(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, whole."""
        found: dict[str, Any] = full(self.state_dict())
        return found


def settings(where: Path, **changes: Any) -> Run:
    numbers: dict[str, Any] = {"iterations": 4, "images_per_update": 8, "group_size": 4, "checkpoint_every": 1}
    return Run(output=where, **{**numbers, **changes})


def opened(where: Path) -> RunFolder | None:
    """In the first process."""
    if dist.is_initialized() and dist.get_rank():
        return None
    return RunFolder.open(where) if (where / "config.yaml").exists() else RunFolder.create(where, {"model": "tiny"})


def ran(
    layout: str | None, run: Run, end: int = 9, fails: dict[int, BaseException] | None = None, evaluator: Any = None
) -> Tiny:
    """A run, or the rest of one, until this iteration."""
    assert run.output
    one, folder = Tiny(layout, run, fails), opened(run.output)
    if dist.is_initialized():
        dist.barrier()
    if state := RunFolder(run.output).state(shards=one.shards()):
        one.load_state_dict(state)
    with closing(one.steps(evaluator, folder)) as steps:
        for each in steps:
            if each.index == end:
                break
    return one


def names(where: Path) -> list[str]:
    return [path.name for path in RunFolder(where).checkpoints()]


def said(*given: Any, **changes: Any) -> str:
    """The error that ends a run."""
    try:
        ran(*given, **changes)
    except (OSError, RuntimeError) as error:
        return str(error)
    return "nothing"


@contextmanager
def full_disk_in_the_last(number: int) -> Iterator[None]:
    """The disk of the last process is full from its save `number` on, counted from 1."""
    count, real = [0], os.fsync

    def fsync(file: int) -> None:
        count[0] += 1
        if dist.get_rank() == dist.get_world_size() - 1 and count[0] >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with patch("os.fsync", fsync):
        yield


def process(number: int, folder: str) -> None:
    """What each of two processes does."""
    where = Path(folder)
    joined(folder, number, 2)
    found: dict[str, Any] = {}
    whole = ran("pair", settings(where / "whole")).numbers
    if number == 0:
        checkpoint.save(where / "whole.safetensors", whole)
    for name in ("stopped", "later"):
        how = settings(where / name, checkpoint_every=9, checkpoint_async=name == "later")
        ran("pair", how, end=2)
        found[f"{name} at 2"] = names(where / name)
        found[name] = same(ran("pair", how).numbers, whole)
    how = settings(where / "async", checkpoint_async=True)
    found["async"] = same(ran("pair", how).numbers, whole)
    trouble = {3: TrainingError("the samples are NaN or infinite")}
    for name in ("back", "back later"):
        how = settings(where / name, rollback=1, checkpoint_async=name == "back later")
        back = ran("pair", how, fails={**trouble})
        found[name] = [back.rollbacks, back.iteration, same(back.numbers["weights"], whole["weights"])]
    for name in ("full", "full later"):
        with full_disk_in_the_last(3):
            found[name] = said("pair", settings(where / name, checkpoint_async=name == "full later"))
    found["alone"] = said("pair", settings(where / "alone", checkpoint_every=9), fails={3: RuntimeError("only mine")})
    means = {0: 0.9, 1: 0.1, 2: 0.8, 3: 0.3, 4: 0.2}
    ran("pair", settings(where / "best", checkpoint_every=9, keep=1, evaluate_every=1), evaluator=means)
    ran("pair", settings(where / "single"))
    found["weights"] = full(ran("pair", settings(where / "single")).model.weights.tensors("policy"))
    if number == 0:
        checkpoint.save(where / "single.safetensors", found["weights"])
    del found["weights"]
    (where / f"{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    ran(None, settings(folder / "single", iterations=2))  # goes on with two processes
    together(process, (str(folder),), 2)
    return folder


def told(where: Path, what: str) -> Any:
    """What both processes have found."""
    first, second = (json.loads((where / f"{number}.json").read_text())[what] for number in range(2))
    assert first == second
    return first


def test_a_run_keeps_its_last_parts(where: Path) -> None:
    assert names(where / "whole") == ["000003.parts", "000004.parts"]
    for path in (where / "whole" / "checkpoints").rglob("*"):
        assert path.is_dir() or path.suffix in (".safetensors", ".json")


@pytest.mark.parametrize("name", ["stopped", "later"])
def test_a_stopped_run_goes_on_to_the_bit(where: Path, name: str) -> None:
    assert told(where, f"{name} at 2") == ["000002.parts"] and told(where, name) is True


def test_what_is_written_while_training_goes_on_is_the_same(where: Path) -> None:
    assert told(where, "async") is True
    assert names(where / "async") == names(where / "whole")
    for name in names(where / "whole"):
        one, other = (checkpoint.load(where / run / "checkpoints" / name) for run in ("async", "whole"))
        assert same(one, other)


@pytest.mark.parametrize("name", ["back", "back later"])
def test_a_run_goes_back_in_all_processes(where: Path, name: str) -> None:
    rollbacks, iteration, unchanged = told(where, name)
    assert (rollbacks, iteration) == (1, 4) and unchanged  # this loop does not use the rate that is halved


@pytest.mark.parametrize("name", ["full", "full later"])
def test_a_full_disk_of_one_process_ends_all_with_the_same_sentence(where: Path, name: str) -> None:
    text = told(where, name)
    assert text.startswith(f"cannot write {where / name / 'checkpoints'}/00000")
    assert text.endswith(".parts: No space left on device; the checkpoint 000002.parts is intact")
    assert names(where / name) == ["000001.parts", "000002.parts"]
    assert len(list((where / name / "checkpoints").iterdir())) == 2


def test_an_error_that_others_may_not_have_saves_nothing(where: Path) -> None:
    """The others might wait somewhere else, so the parts could never come together."""
    assert told(where, "alone") == "only mine"
    assert names(where / "alone") == []


def test_the_best_one_is_kept_though_only_one_process_knows_it(where: Path) -> None:
    assert names(where / "best") == ["000002.parts", "000004.parts"]


def test_runs_go_on_sharded_or_not(where: Path, tmp_path: Path) -> None:
    """From one process to two and from two to one; the sums of gradients are rounded differently."""
    alone = ran(None, settings(tmp_path / "alone"))
    assert names(where / "single") == ["000003.parts", "000004.parts"]
    shutil.copytree(where / "stopped", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "000004.parts")
    back = ran(None, settings(tmp_path / "stopped", checkpoint_every=9))
    assert names(tmp_path / "stopped") == ["000002.parts", "000004.safetensors"]
    for found in (checkpoint.load(where / "single.safetensors"), back.numbers["weights"]["policy"]):
        for key, tensor in alone.model.weights.tensors("policy").items():
            torch.testing.assert_close(found[key], tensor.detach(), rtol=0, atol=1e-5 if key[0] != "2" else 2e-2)


@pytest.mark.parametrize("what", ["shard-00002-model-00001-of-00001.safetensors", "state.safetensors"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_the_sentence_names_the_one_before(where: Path, tmp_path: Path, what: str, how: str) -> None:
    shutil.copytree(where / "whole", run := tmp_path / "run")
    file = run / "checkpoints" / "000004.parts" / what
    damage(file) if how == "changed" else file.unlink()
    with pytest.raises(ValueError, match=r"is damaged: .*; delete it to continue from 000003.parts, which is intact$"):
        RunFolder.open(run).state("weights", "optimiser")
    damage(run / "checkpoints" / "000003.parts" / "manifest.json", 0.3)
    with pytest.raises(ValueError, match="is damaged: ") as caught:
        RunFolder.open(run).state("weights", "optimiser")
    assert "intact" not in str(caught.value)


def test_parts_without_a_manifest_are_refused(where: Path, tmp_path: Path) -> None:
    shutil.copytree(where / "whole", run := tmp_path / "run")
    (run / "checkpoints" / "000004.parts" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest.json is missing; delete it to continue from 000003.parts"):
        RunFolder.open(run).state("weights")


def killed(number: int, folder: str, later: bool) -> None:
    """The second process dies when the part of the first is there, at its second checkpoint."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    joined(folder, number, 2)
    run = settings(Path(folder) / "run", checkpoint_async=later)
    real = HuggingFaceStorageWriter.write_data

    def write(self: Any, *given: Any) -> Any:
        if number == 1 and "000002" in str(self.path):
            while not list(Path(self.path).glob("shard-00001*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *given)

    with patch.object(HuggingFaceStorageWriter, "write_data", write):
        ran("pair", run)


@pytest.mark.parametrize("later", [False, True])
def test_after_a_kill_between_two_parts_the_one_before_is_taken(tmp_path: Path, later: bool) -> None:
    with pytest.raises(ProcessExitedException):
        together(killed, (str(tmp_path), later), 2)
    left, checkpoints = RunFolder.open(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    assert names(left.path) == ["000001.parts"]
    assert (checkpoints / ".000002.parts.partial" / "shard-00001-model-00001-of-00001.safetensors").is_file()
    state = left.state()
    assert state and state["iteration"] == 1
    left.forget_after(1)
    assert [path.name for path in checkpoints.iterdir()] == ["000001.parts"]


def test_one_file_is_written_while_training_goes_on(tmp_path: Path) -> None:
    """The second waits for the first, and what is written is the state at that time."""
    gate, began, real, begun = threading.Event(), threading.Event(), checkpoint._write, list[int]()

    def slow(path: Path, *given: Any) -> None:
        begun.append(len(list(path.parent.glob("[0-9]*"))))
        began.set()
        assert gate.wait(30)
        real(path, *given)

    plain = ran(None, settings(tmp_path / "plain", keep=9))
    one = Tiny(None, settings(tmp_path / "run", checkpoint_async=True, keep=9))
    with patch("flowward.system.checkpoint._write", slow), closing(one.steps(None, opened(tmp_path / "run"))) as steps:
        first = next(steps).index
        seen = [began.wait(30), names(tmp_path / "run")]
        gate.set()
        assert (first, seen) == (1, [True, []])
        assert [each.index for each in steps] == [2, 3, 4]
        assert begun == [0, 1, 2, 3]
    assert names(tmp_path / "run") == names(tmp_path / "plain")
    for name in names(tmp_path / "plain"):
        assert same(*(checkpoint.load(tmp_path / run / "checkpoints" / name) for run in ("plain", "run")))
    assert same(one.numbers, plain.numbers)


def test_an_error_of_the_thread_ends_the_run(tmp_path: Path) -> None:
    real = checkpoint._write

    def full_disk(path: Path, *given: Any) -> None:
        if path.name == "000002.safetensors":
            raise OSError(f"cannot write {path}: No space left on device")
        real(path, *given)

    with patch("flowward.system.checkpoint._write", full_disk):
        text = said(None, settings(tmp_path / "run", checkpoint_async=True))
    assert "000002.safetensors: No space left on device; the checkpoint 000001.safetensors is intact" in text
    assert "000002.safetensors" not in names(tmp_path / "run")
