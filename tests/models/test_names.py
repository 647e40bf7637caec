"""What a name stands for: whatever exists is said to be what it is, and what the same thing is called works too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Refused, started
from safetensors.torch import save_file

from flowward import models
from flowward.cli import main
from flowward.models import Adapters, names


def file(path: Path, content: Any = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, tuple):
        save_file({content[0]: torch.ones(2, 2)}, path, {"flowward": json.dumps({"base_model": "owner/base"})})
    else:
        path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda at: file(at / "x.gguf"), "holds quantised weights of one network"),
        (lambda at: file(at / "x.ckpt"), "is a pickle, which can run code"),
        (lambda at: file(at / "x.bin"), "is a pickle"),
        (lambda at: file(at / "x.txt"), "is a file, not a model; give the folder of a diffusers pipeline"),
        (lambda at: file(at / "x.safetensors"), "cannot be read as a safetensors file"),
        (lambda at: file(at / "x.safetensors", ("model.diffusion_model.a",)), "from_single_file, then save_pretrained"),
        (lambda at: file(at / "x.safetensors", ("a.lora_A.weight",)), "x.safetensors is a LoRA, not a model; train "
         "from it with --model owner/base --init-lora"),
        (lambda at: file(at / models.LORA_FILE, ("a.lora_A.weight",)).parent, "is a LoRA, not a model"),
        (lambda at: file(at / "adapter_model.safetensors", ("a.lora_A.weight",)).parent, "is a LoRA, not a model"),
        (lambda at: file(at / "run/checkpoints/000001.safetensors", ("a",)), "is a checkpoint of a run; continue with "
         "--resume"),
        (lambda at: file(at / "run/checkpoints/000001.parts/state.safetensors").parent, "is a checkpoint of a run; "),
        (lambda at: file(at / "config.yaml").parent, "is a run folder, not a model"),
        (lambda at: file(at / "flowward.json", {"base_model": "owner/base"}).parent, "holds trained weights of"),
        (lambda at: file(at / "config.json", {"_class_name": "SD3Transformer2DModel"}).parent, "network .SD3"),
        (lambda at: file(at / "config.json", {"model_type": "qwen2"}).parent, "is a single network .qwen2"),
        (lambda at: file(at / "config.json", []).parent, "is a single network .unknown class"),
        (lambda at: file(at / "a" / "model_index.json", {}).parents[1], "is a folder of models; give one"),
        (lambda at: file(at / "x.gguf").parent, "x.gguf holds quantised weights"),
        (lambda at: file(at / "models--owner--name" / "refs" / "main").parents[1], "give owner/name to download"),
        (lambda at: at, "is a folder, but not a model; give the folder"),
        (lambda at: at / "gone" / "x.safetensors", "there is no file"),
        (lambda at: at / "gone", "there is no file or folder .*gone"),
    ],
)  # fmt: skip
def test_what_exists_is_said_to_be_what_it_is(tmp_path: Path, made: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        models.load(str(made(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("https://huggingface.co/owner/na-me.2", "owner/na-me.2"),
        ("https://huggingface.co/owner/name/", "owner/name"),
        ("hf.co/owner/name", "owner/name"),
        ("http://www.huggingface.co/owner/name/tree/main", "owner/name"),
        ("owner/name", "owner/name"),
        ("owner/name/", "owner/name"),
        ("scenes", "scenes"),
        (
            "https://huggingface.co/owner/name/tree/v2",
            "is a branch or folder of owner/name; give",
        ),
        ("https://huggingface.co/owner/name/blob/main/x.safetensors", "is one file of owner/name"),
        ("https://huggingface.co/datasets/owner/name", "is not the page of a model .but one of datasets"),
        ("https://example.org/owner/name", "is not a model's page on huggingface.co"),
    ],
)
def test_the_page_of_a_model_is_the_model(name: str, found: str) -> None:
    if found in ("owner/na-me.2", "owner/name", "scenes"):
        assert names.located(name) == found and names.is_pipeline(name) == (found != "scenes")
    else:
        with pytest.raises(ValueError, match=found):
            models.load(name)


def test_other_paths_of_a_pipeline_are_the_pipeline(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / "models--owner--name"
    shutil.copytree(saved, cache / "snapshots" / "abc")
    for name in (cache, cache / "snapshots", cache / "snapshots" / "abc", "~/models--owner--name/snapshots/abc"):
        assert names.located(str(name)) == str(cache / "snapshots" / "abc") and names.is_pipeline(str(name))
    assert names.located(f"{saved}/model_index.json") == str(saved)
    shutil.copytree(cache / "snapshots" / "abc", cache / "snapshots" / "def")
    with pytest.raises(ValueError, match=r"several versions of the model; give one of its folders, such as .*abc"):
        names.located(str(cache))
    file(cache / "refs" / "main", b"def\n")
    assert names.located(str(cache)) == str(cache / "snapshots" / "def")
    assert not names.is_pipeline(str(saved / "transformer"))
    with pytest.raises(ValueError, match=f"is a single network .SD3Transformer2DModel.*, {saved}$"):
        models.load(str(saved / "transformer"))


def test_commands_take_them_too(
    tiny: str, elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("HOME", str(Path(tiny).parent))
    short = f"~/{Path(tiny).name}"
    run = started(short, tmp_path / "run", "--precision", "float32")
    assert f"model: {tiny}" in (run / "config.yaml").read_text()
    small = ["--steps", "1", "--precision", "float32"]
    assert main(["sample", short, "a circle", "--count", "1", *small]) == 0
    assert main(["eval", short, "--images", "2", "--rewards", "balance", *small]) == 0
    lora = file(tmp_path / "x.safetensors", ("a.lora_A.weight",))
    for words in (["train", "--model", lora, "--reward", "balance"], ["train", "--model", run]):
        assert "not a model; " in refused(*words)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "need a rank, or a LoRA to start from"),
        ({"rank": 0}, "LoRA rank must be between 1 and 4096, not 0"),
        ({"rank": 2, "alpha": 0.0}, "LoRA alpha must be a positive number of at most 1,000,000, not 0"),
        ({"rank": 2, "alpha": float("nan")}, "LoRA alpha must be a positive number of at most 1,000,000, not nan"),
        ({"rank": 2, "targets": ()}, "name at least one layer"),
        ({"rank": 2, "start": "x"}, "follow the LoRA that training starts from, x: leave them out"),
    ],
)
def test_adapters_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Adapters(**given)
