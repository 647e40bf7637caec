"""Checkpoints of sharded weights: any layout reads what any other one has written, to the bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from processes import together
from safetensors import safe_open
from sharded_nets import LAYOUTS, damage, full, joined, network, same, step
from torch import Tensor

from flowward.learning.optimisers import load_moments
from flowward.system import checkpoint, distributed, whole_files

NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")


def state_of(layout: str | None, seed: int = 0) -> tuple[dict[str, Any], torch.optim.Optimizer]:
    """The state of a run after two steps, and its optimiser."""
    net = network(layout, seed)
    optimiser = torch.optim.AdamW(net.parameters(), 0.1)
    for _ in range(2):
        step(net, optimiser)
    rest = {"iteration": 2, "rate": float("inf"), "scalar": torch.tensor(1.5), "list": [torch.arange(3), ()]}
    return {**rest, "weights": {"policy": dict(net.named_parameters())}, "optimiser": optimiser.state_dict()}, optimiser


def shards_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """Layouts by name, also of moments."""
    weights = state["weights"]["policy"]
    moments = ("exp_avg", "exp_avg_sq")
    return {f"weights.policy.{key}": weights[key] for key in NAMES} | {
        f"optimiser.state.{number}.{name}": weights[key] for number, key in enumerate(NAMES) for name in moments
    }


def stored(where: Path, layout: str) -> tuple[dict[str, Any], torch.optim.Optimizer]:
    """Write the state in parts, and as a whole in one file."""
    state, optimiser = state_of(layout)
    checkpoint.save(where / f"{layout}.parts", state)
    whole = full(state)
    if dist.get_rank() == 0:
        checkpoint.save(where / f"{layout}.safetensors", whole)
    dist.barrier()
    return state, optimiser


def read_into(where: Path, layout: str, sources: list[str]) -> list[str]:
    """What is wrong when a run with other weights reads these checkpoints."""
    wrong = []
    for source in sources:
        state, optimiser = state_of(layout, seed=1)
        found = checkpoint.load(where / source, shards_of(state))
        for name in NAMES:
            live, new = state["weights"]["policy"][name], found["weights"]["policy"][name]
            if new.placements != live.placements or new.to_local().shape != live.to_local().shape:
                wrong.append(f"{source}: the layout of {name}")
            with torch.no_grad():
                live.copy_(new)
        load_moments(optimiser, found["optimiser"])
        now = full({**found, "weights": {"policy": state["weights"]["policy"]}, "optimiser": optimiser.state_dict()})
        if not same(now, checkpoint.load(where / f"{source.partition('.')[0]}.safetensors")):
            wrong.append(f"{source}: its numbers")
    return wrong


def later(where: Path, state: dict[str, Any]) -> bool:
    """Whether what a thread writes is the state when it began."""
    before, live = full(state), state["weights"]["policy"]
    writing = checkpoint.begin(where / "later.parts", state, dist.new_group(backend="gloo"))
    with torch.no_grad():
        for name in NAMES:
            live[name].zero_()
    seen = (where / "later.parts").exists()
    writing.finish()
    dist.barrier()
    return not seen and writing.done() and same(checkpoint.load(where / "later.parts"), before)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused(where: Path, state: dict[str, Any]) -> dict[str, str]:
    """What every process says if one of them cannot write its part, or reads a damaged one."""
    said: dict[str, str] = {}
    for number, what in ((1, "os.fsync"), (0, "flowward.system.checkpoint.save_file")):
        try:
            with patch(what, no_space if dist.get_rank() == number else _original(what)):
                checkpoint.save(where / "pair.parts", state)
        except OSError as error:
            said[what] = str(error)
    if dist.get_rank() == 0:
        shutil.copytree(where / "pair.parts", where / "bad.parts")
        damage(next((where / "bad.parts").glob("shard-00002*")))
    dist.barrier()
    try:
        checkpoint.load(where / "bad.parts", shards_of(state))
    except ValueError as error:
        said["damaged"] = str(error)
    return said


def _original(what: str) -> Any:
    return {"os.fsync": os.fsync, "flowward.system.checkpoint.save_file": checkpoint.save_file}[what]


def process(number: int, folder: str, count: int) -> None:
    where = Path(folder)
    joined(folder, number, count)
    found: dict[str, Any] = {}
    if count == 2:
        state, _ = stored(where, "pair")
        found["said"] = refused(where, state)
        found["later"] = later(where, state)
    else:
        for layout in ("four", "hybrid"):
            stored(where, layout)
        sources = [f"{name}.{kind}" for name in LAYOUTS for kind in ("parts", "safetensors")]
        found["wrong"] = {layout: read_into(where, layout, sources) for layout in ("four", "hybrid")}
    (where / f"{count}-{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, then four: each kind leaves checkpoints, and says what it has found."""
    folder = tmp_path_factory.mktemp("parts")
    for count in (2, 4):
        together(process, (str(folder), count), count)
    return folder


def told(where: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads((where / f"{count}-{number}.json").read_text()) for number in range(count)]


def test_four_processes_read_what_two_or_four_or_one_have_written(where: Path) -> None:
    """In both layouts, with the moments of the optimiser; uneven and empty parts, replicas, bf16."""
    assert [each["wrong"] for each in told(where, 4)] == [{"four": [], "hybrid": []}] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_reads_whole_tensors(where: Path, layout: str) -> None:
    found, wanted = (checkpoint.load(where / f"{layout}{kind}") for kind in (".parts", ".safetensors"))
    assert same(found, wanted) and list(found) == list(wanted)
    assert found["weights"]["policy"]["2.bias"].dtype == torch.bfloat16
    assert isinstance(found["list"], list) and found["rate"] == float("inf")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_is_written_once_and_nothing_is_pickled(where: Path, layout: str) -> None:
    folder = where / f"{layout}.parts"
    numbers: dict[str, int] = {}
    for file in folder.iterdir():
        if file.suffix == ".json":
            assert json.loads(file.read_text())["version"] == 1
            continue
        with safe_open(file, framework="pt") as content:  # which reads nothing but safetensors
            for key in content.keys():  # noqa: SIM118
                numbers[key] = numbers.get(key, 0) + content.get_tensor(key).numel()
    whole = checkpoint.load(where / f"{layout}.safetensors")
    assert {key: numbers[f"weights.policy.{key}"] for key in NAMES} == {
        key: tensor.numel() for key, tensor in whole["weights"]["policy"].items()
    }
    assert numbers["optimiser.state.0.exp_avg"] == 21
    parts = [file for file in folder.iterdir() if file.name.startswith("shard-")]
    assert len(parts) == (2 if layout == "pair" else 4)


def test_a_thread_writes_the_state_of_the_moment_when_it_began(where: Path) -> None:
    assert [each["later"] for each in told(where, 2)] == [True, True]


def test_an_error_in_one_process_reaches_all(where: Path) -> None:
    """A full disk leaves the older checkpoint of that name, and nothing half written."""
    first, second = (each["said"] for each in told(where, 2))
    assert first == second
    assert first["os.fsync"] == f"cannot write {where / 'pair.parts'}: No space left on device"
    assert first["flowward.system.checkpoint.save_file"].endswith("state.safetensors: No space left on device")
    assert "bad.parts is damaged: the content of shard-00002" in first["damaged"]
    assert not [path for path in where.iterdir() if path.name.endswith(".partial")]


BROKEN: dict[str, tuple[Any, str]] = {
    "a byte of a part": (lambda at: damage(next(at.glob("shard-00001*"))), "the content of shard-00001.* has changed"),
    "a byte of the rest": (lambda at: damage(at / "state.safetensors"), "the content of state.safetensors has changed"),
    "a byte of the manifest": (lambda at: damage(at / "manifest.json", 0.3), "is damaged: "),
    "no part": (lambda at: next(at.glob("shard-00002*")).unlink(), "shard-00002.* is missing"),
    "no rest": (lambda at: (at / "state.safetensors").unlink(), "state.safetensors is missing"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "manifest.json is missing"),
    "a short part": (
        lambda at: os.truncate(next(at.glob("shard-00002*")), 100),
        r"shard-00002.* has 100 bytes instead of [\d,]+",
    ),
    "a foreign part": (
        lambda at: shutil.copy(next(at.glob("shard-00002*")), at / "shard-00003-model.safetensors"),
        "shard-00003-model.safetensors does not belong to it",
    ),
    "another list": (lambda at: (at / "manifest.json").write_text("[1]"), "manifest.json is not what flowward writes"),
    "half a list": (lambda at: (at / "manifest.json").write_text('{"version'), "manifest.json cannot be read"),
    "a way out": (
        lambda at: (at / "manifest.json").write_text(
            '{"version": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}, "tensors": {}}'
        ),
        "manifest.json is not what flowward writes",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_folder_is_one_sentence(where: Path, tmp_path: Path, what: str) -> None:
    spoil, said = BROKEN[what]
    shutil.copytree(where / "pair.parts", tmp_path / "x.parts")
    spoil(tmp_path / "x.parts")
    for read in (checkpoint.load, checkpoint.contents):
        with pytest.raises(ValueError, match=said) as caught:
            read(tmp_path / "x.parts")
        assert str(caught.value).startswith(f"{tmp_path / 'x.parts'} is damaged: ")


def test_no_changed_byte_of_the_manifest_changes_what_is_read(where: Path, tmp_path: Path) -> None:
    """It is found, or it is a space between the entries."""
    shutil.copytree(where / "pair.parts", folder := tmp_path / "x.parts")
    wanted, whole, found = checkpoint.load(folder), (folder / "manifest.json").read_bytes(), 0
    for index in range(0, len(whole), 23):
        damage(folder / "manifest.json", index / len(whole))
        try:
            assert same(checkpoint.load(folder), wanted)
        except ValueError:
            found += 1
        (folder / "manifest.json").write_bytes(whole)
    assert found > len(whole) / 23 / 2


def test_parts_that_are_not_needed_are_not_read(where: Path) -> None:
    found = checkpoint.load(where / "four.parts", needed=lambda name: name.startswith("weights."))
    assert same(found["weights"], checkpoint.load(where / "four.safetensors")["weights"])
    moment = found["optimiser"]["state"][0]["exp_avg"]
    assert moment.device.type == "meta" and list(moment.shape) == [7, 3]
    assert checkpoint.contents(where / "four.parts") == list(found)


def test_a_hole_between_parts_is_found(where: Path, tmp_path: Path) -> None:
    """Even if the manifest knows nothing of the part: no number is left undefined."""
    shutil.copytree(where / "pair.parts", folder := tmp_path / "x.parts")
    (part := next(folder.glob("shard-00002*"))).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][part.name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"is damaged: its files have only a part of weights.policy.0"):
        checkpoint.load(folder)


def test_a_killed_write_leaves_a_folder_that_is_cleared(tmp_path: Path) -> None:
    partial = whole_files.begin_folder(tmp_path / "000002.parts")
    (partial / "shard-00001-model.safetensors").write_text("")
    for name in ("000001.parts", ".export.partial"):
        (tmp_path / name).mkdir()
    whole_files.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"000001.parts", ".export.partial"}


def test_whole_tensors_are_stored_as_before(tmp_path: Path) -> None:
    """One file, with the tree and the hash that earlier versions wrote for this state."""
    state = {"iteration": 7, "weights": {"policy": {"a.b": torch.arange(6.0).view(2, 3)}}, "step": [torch.tensor(2.0)]}
    checkpoint.save(path := tmp_path / "x.safetensors", state)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert about["flowward"] == (
        '{"dict": [["iteration", {"value": 7}], ["weights", {"dict": [["policy", {"dict": [["a.b", {"tensor": '
        '"weights.policy.a.b"}]]}]]}], ["step", {"list": [{"tensor": "step.0"}]}]]}'
    )
    assert about["sha256"] == "0034b29767973f2a144cb9e7fa299cd73211046fc64b4233a3ada529d81d6146"
    checkpoint.begin(other := tmp_path / "y.safetensors", state).finish()
    assert path.stat().st_size == other.stat().st_size and same(checkpoint.load(path), checkpoint.load(other))
    assert checkpoint.suffix(state) == ".safetensors" and not distributed.is_split(torch.ones(1))
