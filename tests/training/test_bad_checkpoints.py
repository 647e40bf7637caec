"""Checkpoints and models that are damaged, or another's, are refused in one sentence and left as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from program import Refused, contents, started
from safetensors.torch import save_file

from flowward import models
from flowward.cli import main
from flowward.system import checkpoint
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("cut", [0, 4, 100, 0.5, -1])
def test_truncated_checkpoints(refused: Refused, run: Path, cut: float) -> None:
    (path,) = RunFolder.open(run).checkpoints()
    data = path.read_bytes()
    path.write_bytes(data[: cut if isinstance(cut, int) else int(cut * len(data))])
    before = contents(run)
    for words in (["train", "--resume", run], ["eval", run]):
        sentence = refused(*words)
        assert sentence.startswith(f"{path} is truncated or damaged and cannot be read")
    assert contents(run) == before


def test_files_that_are_no_checkpoints(refused: Refused, run: Path) -> None:
    (path,) = RunFolder.open(run).checkpoints()
    for metadata, said in (
        (None, "is a safetensors file, but not a flowward checkpoint"),
        ({"format": "pt"}, "is a safetensors file, but not a flowward checkpoint"),
        ({"flowward": "{"}, "is damaged"),
        ({"flowward": '{"tensor": "gone"}'}, "is damaged"),
        ({"flowward": '{"list": []}'}, "is damaged"),
        ({"flowward": '{"dict": []}'}, "cannot be resumed: it contains no identity, "),
    ):
        save_file({"a": torch.zeros(3)}, path, metadata)
        for words in (["train", "--resume", run], ["eval", run]):
            assert said in refused(*words)


@pytest.mark.parametrize("damage", ["cut", "optimiser"])
def test_an_older_checkpoint_is_named_where_the_newest_is_damaged(refused: Refused, run: Path, damage: str) -> None:
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    older, newest = RunFolder.open(run).checkpoints()
    if damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-100])
        why = "is truncated or damaged and cannot be read ("
    else:
        state = checkpoint.load(newest)
        del state["optimiser"]
        checkpoint.save(newest, state)
        assert main(["eval", str(run), "--images", "6", "--steps", "1"]) == 0  # which does not need it
        why = "cannot be resumed: it contains no optimiser; "
    said = refused("train", "--resume", run, "--iterations", "2")
    assert said.startswith(f"{newest} {why}")
    assert said.endswith("; delete it to continue from 000001.safetensors, which is intact")
    older.write_bytes(b"")
    assert "to continue from 0" not in refused("train", "--resume", run, "--iterations", "2")
    older.unlink()
    assert "to continue from 0" not in refused("train", "--resume", run, "--iterations", "2")


def test_going_on_from_the_older_checkpoint(refused: Refused, run: Path) -> None:
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    older, newest = RunFolder.open(run).checkpoints()
    newest.write_bytes(newest.read_bytes()[:-100])
    assert "delete it to continue from" in refused("train", "--resume", run)
    newest.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert [path.name for path in RunFolder.open(run).checkpoints()] == [older.name, newest.name]


@pytest.mark.processor
def test_checkpoints_of_another_model(refused: Refused, tiny: str, run: Path) -> None:
    full, lora = run, started(tiny, Path("lora"), "--lora-rank", "2")
    before = contents(lora), contents(full)
    for run, rank in ((full, "2"), (lora, "4"), (lora, "None")):
        said = refused("train", "--resume", run, "--lora-rank", rank, "--iterations", "2")
        assert said == "this checkpoint belongs to another model (different weights): use the model of that run"
    assert (contents(lora), contents(full)) == before
    other = models.load(tiny, precision="float32").weights.network("policy")
    with other as network, torch.no_grad():
        next(network.parameters()).add_(1)
        network.half().save_pretrained(Path(shutil.copytree(tiny, "other")) / "transformer")
    said = refused("train", "--resume", full, "--model", "other", "--iterations", "2")
    assert said == "this checkpoint belongs to another model (different base): use the model of that run"


def test_a_run_without_a_checkpoint_cannot_be_measured(refused: Refused, run: Path) -> None:
    (run / "checkpoints/000001.safetensors").unlink()
    assert "run contains no checkpoint yet" in refused("eval", run)


@pytest.mark.processor
@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_damaged_models(refused: Refused, tiny: str, file: str) -> None:
    folder = Path(shutil.copytree(tiny, "model"))
    data = (folder / file).read_bytes()
    for cut in (data[: len(data) // 2], b""):
        (folder / file).write_bytes(cut)
        assert refused("eval", folder).startswith("cannot read the model in model: ")
    (folder / "text_encoder/config.json").write_text('{"words": []}')
    assert refused("eval", folder).startswith("cannot read the model in model: ")
