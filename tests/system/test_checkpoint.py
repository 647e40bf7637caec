"""State on disk: it comes back as it was, and a failure leaves the old file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowward.system import checkpoint, whole_files


def through_disk(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    checkpoint.save(folder / "copy.safetensors", state)
    return checkpoint.load(folder / "copy.safetensors")


def test_any_nest_survives_the_disk(tmp_path: Path) -> None:
    tensors = [
        torch.arange(6).reshape(2, 3).T,  # not contiguous
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.tensor([True, False]),
    ]
    state: dict[Any, Any] = {
        "a.b": tensors[0],
        "a": {"b": tensors[1], 0: {"exp_avg": tensors[2]}, "0": tensors[3]},
        7: None,
        "numbers": [1, 2.5, float("inf"), True, "text ñ", ()],
        "betas": (0.9, (0.999, None)),
        "empty": {},
        "lists": [[], [tensors[0][0]], {"x": [None]}],
    }
    found = through_disk(tmp_path, state)
    assert list(found) == list(state)
    for original, read in (
        (tensors[0], found["a.b"]),
        (tensors[1], found["a"]["b"]),
        (tensors[2], found["a"][0]["exp_avg"]),
        (tensors[3], found["a"]["0"]),
        (tensors[0][0], found["lists"][1][0]),
    ):
        assert read.dtype == original.dtype and torch.equal(read, original)
    assert list(found["a"]) == ["b", 0, "0"]
    assert found["numbers"] == state["numbers"] and found["numbers"][3] is True
    assert found["betas"] == state["betas"] and found[7] is None
    assert (found["empty"], found["lists"][0], found["lists"][2]) == ({}, [], {"x": [None]})


def test_a_state_without_tensors(tmp_path: Path) -> None:
    assert through_disk(tmp_path, {"iteration": 3}) == {"iteration": 3}


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    shared = torch.ones(3)
    checkpoint.save(tmp_path / "x", {"a": shared, "b": shared, "c": torch.nn.Parameter(shared)})
    shared.zero_()
    found = checkpoint.load(tmp_path / "x")
    assert all(torch.equal(found[key], torch.ones(3)) and not found[key].requires_grad for key in "abc")


def test_an_optimiser_survives_the_disk(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], 0.1, betas=(0.8, 0.99))
    weight.grad = torch.tensor([1.0, -2, 3])
    optimiser.step()
    other = torch.nn.Parameter(weight.detach().clone())
    again = torch.optim.AdamW([other], 0.5)
    again.load_state_dict(through_disk(tmp_path, optimiser.state_dict()))
    for parameter, one in ((weight, optimiser), (other, again)):
        parameter.grad = torch.tensor([0.5, 0.5, 0.5])
        one.step()
    assert torch.equal(weight, other)


@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "flowward.system.checkpoint.save_file"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(where, full)
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, -1])
def test_a_number_that_the_disk_has_changed_is_found(tmp_path: Path, place: float) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(1000), "b": [torch.ones(1000, dtype=torch.bfloat16)]})
    data = bytearray(path.read_bytes())
    header = len(data) - 6000
    data[-1 if place == -1 else header + int(place * 6000)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: its content has changed since it was written"):
        checkpoint.load(path)


def test_a_description_that_was_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"iteration": 10, "a": torch.zeros(3)})
    path.write_bytes(path.read_bytes().replace(rb"\"value\": 10", rb"\"value\": 11"))
    with pytest.raises(ValueError, match="its hash does not match"):
        checkpoint.load(path)


def test_a_checkpoint_of_an_older_version_has_no_hash(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x", {"flowward": '{"dict": [["a", {"tensor": "a"}]]}'})
    assert torch.equal(checkpoint.load(tmp_path / "x")["a"], torch.ones(2))


@pytest.mark.parametrize(
    "tree", ['{"list": [' * 100_000, '{"list": [' * 5000 + '{"value": 1}' + "]}" * 5000, "5", "[]"]
)
def test_a_deep_or_strange_tree_is_one_sentence(tmp_path: Path, tree: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x", {"flowward": tree})
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(tmp_path / "x")


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    left, others = [".000002.safetensors.partial", ".tmpAb3dEf"], [".gitignore", "tmp", ".tmp", "000001.safetensors"]
    for name in (*left, *others):
        (tmp_path / name).write_text("")
    whole_files.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_safetensors_still_names_its_temporary_files_like_that(tmp_path: Path) -> None:
    """A process that dies while it writes leaves one; `clear` has to know its name."""
    code = (
        "import resource, signal, sys, torch; from safetensors.torch import save_file\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); save_file({'a': torch.zeros(9999)}, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")])
    assert done.returncode == -signal.SIGXFSZ
    assert len(list(tmp_path.iterdir())) == 1
    whole_files.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
