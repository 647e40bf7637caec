"""A pipeline in a folder: what of it, and of what a user chooses, reaches the model; what is refused in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny
from tiny_policies import SMALL, policy
from torch.nn.modules.module import register_module_forward_hook

from flowward import models, rewards
from flowward.algorithms import ALGORITHMS
from flowward.cli import main
from flowward.evaluation.evaluate import draw
from flowward.models import Loading
from flowward.models.families import FAMILIES
from flowward.process.rollout import Sampler
from flowward.prompts import of
from flowward.system.memory import OutOfMemory
from flowward.training.run import Run
from flowward.training.trainer import Trainer
from flowward.verify import model


def test_a_folder_is_loaded_as_it_was_saved(saved: Path) -> None:
    loaded, here = models.load(str(saved), 2, "float32", loading=SMALL), policy("StableDiffusion3Pipeline")
    apart = {"text_encoders"}  # whose files leave out what can be told from the rest
    assert {key for key, value in here.identity.items() if loaded.identity[key] != value} == apart
    x = torch.randn(2, *here.latent_shape)
    found, expected = (model.drawn(each, ["a red cat", "dog"], x, 2.0) for each in (loaded, here))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("part", "says"), [("vae", "different vae"), ("text_encoder_2", "different text_encoders")])
def test_a_model_whose_other_parts_were_swapped_is_another(saved: Path, tmp_path: Path, part: str, says: str) -> None:
    """Its rewards would be others: a run neither goes on with it nor is sampled by it. Older checkpoints tell less."""
    run = Run(images_per_update=4, group_size=2, microbatch=4)

    def loaded(folder: Path) -> Trainer:
        policy = models.load(str(folder), 2, "float32", loading=SMALL)
        policy.prepare(["a cat"], tmp_path / "cache")  # type: ignore[call-arg]
        return Trainer(
            ALGORITHMS["flow_grpo"](), policy, rewards.load(["jpeg-compressibility"]), of("mine", ["a cat"]), run
        )

    one = loaded(saved)
    folder = _copy(saved, tmp_path)
    (file,) = (folder / part).glob("*.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    other, state = loaded(folder), one.state_dict()
    with pytest.raises(ValueError, match=rf"another model \({says}\)"):
        other.load_state_dict(state)
    older = {key: state["identity"][key] for key in state["identity"] if key not in ("vae", "text_encoders")}
    other.load_state_dict({**state, "identity": older})


def test_every_choice_of_loading_reaches_the_model(saved: Path) -> None:
    how = Loading(size=(64, 32), text_tokens=20, device="cpu")
    loaded = models.load(str(saved), 2, "float32", loading=how)
    assert loaded.image_size == (64, 32)
    assert loaded.latent_shape == (4, 32, 16)
    assert loaded.encode(["a cat"]).tensors["words"].shape == (1, 77 + 20, 32)


def _copy(saved: Path, to: Path) -> Path:
    return Path(shutil.copytree(saved, to / "model"))


def _index(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text)


def _without_a_tensor(part: Path) -> None:
    """As a conversion that was stopped, or knew no such weight, leaves it."""
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    del tensors[next(key for key in sorted(tensors) if "weight" in key and "embed" not in key)]
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: _index(folder, '{"_class_name": "FluxPipelin"}'), "did you mean 'FluxPipeline'"),
        (lambda folder: _index(folder, '{"_class_name": ["pipeline", "Mine"]}'), "unknown pipeline"),
        (lambda folder: _index(folder, "{"), "is not JSON"),
        (lambda folder: _index(folder, "[]"), "is not a JSON object"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("null"), "cannot be read: TypeError: "),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{}"), "cannot be read: KeyError: "),
        (lambda folder: _without_a_tensor(folder / "transformer"), "files of its transformer lack .*1 weights"),
        (lambda folder: _without_a_tensor(folder / "vae"), "files of its vae lack"),
        (lambda folder: _without_a_tensor(folder / "text_encoder_3"), "files of T5EncoderModel lack"),
        (lambda folder: shutil.rmtree(folder / "vae"), "cannot be read"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: next((folder / "transformer").glob("*.safetensors")).write_bytes(b"short"), "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_in_a_sentence(
    saved: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = _copy(saved, tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=says) as error:
        models.load(str(folder), 2, "float32", loading=SMALL).encode(["a cat"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (Loading(size=(30, 32), device="cpu"), "the height of .* must be a multiple of 4 pixels, not 30"),
        (Loading(size=(32, 30), device="cpu"), "the width of .* must be a multiple of 4 pixels, not 30"),
        (Loading(size=(32, 32), frames=5, device="cpu"), "makes images, not videos of 5 frames"),
        (Loading(device="cuda:77"), "this machine has no device 'cuda:77'"),
        (Loading(device="tpu"), "this machine has no device 'tpu'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(saved: Path, how: Loading, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        models.load(str(saved), 2, "float32", loading=how)


def test_the_built_in_model_leaves_no_choice() -> None:
    with pytest.raises(ValueError, match="does not support size"):
        models.load("scenes", loading=SMALL)


@pytest.mark.processor
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_said_wherever_it_ends(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: RuntimeError,
) -> None:
    """Not only in an iteration: as a model is loaded, prompts are encoded, and images are drawn to be looked at."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    words = ["sample", str(saved), "a cat", "--size", "32", "32", "--steps", "1", "--batch", "3", "--device", "cpu"]
    words += ["--output", str(tmp_path / "a.png")]
    family = FAMILIES["StableDiffusion3Pipeline"]
    with monkeypatch.context() as patch:
        patch.setattr(family, "decode", fail)
        assert main(words) == 2
    assert "out of memory with images of 32 x 32, 3 images sampled at once: lower --batch" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny("StableDiffusion3Pipeline")), "to", fail)
        assert main(words) == 2
    assert f"out of memory while moving {saved} to cpu" in capsys.readouterr().err
    empty = policy("StableDiffusion3Pipeline").family.empty()
    monkeypatch.setattr(family, "encode", lambda self, texts: empty if texts == [""] else fail())
    with pytest.raises(OutOfMemory, match="out of memory while encoding 1 prompts at once"):
        policy("StableDiffusion3Pipeline").prepare(["a cat"], tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_images_do_not_depend_on_how_many_are_drawn_at_once(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    """Beyond rounding: each of N layers rounds by up to eps / 2 of a value, in either direction, so that together
    they move an image by sqrt(N) eps / 2 in the mean square. Another seed would move it by a fifth of the scale."""
    monkeypatch.setattr("flowward.models.diffusers.CACHE", tmp_path)
    one, layers = models.load(str(saved), precision=precision, loading=SMALL), list[torch.nn.Module]()
    texts = ["a cat"] * 4 + ["dog"] * 4
    one.prepare(texts)
    counting = register_module_forward_hook(lambda part, *_: None if [*part.children()] else layers.append(part))
    try:
        alone = draw(one, texts, Sampler(1, grid="model"), 0, batch=1)
    finally:
        counting.remove()
    eps = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
    bound = (len(layers) / len(texts)) ** 0.5 * eps / 2
    moved = [
        (alone - draw(one, texts, Sampler(1, grid="model"), seed, batch=8)).square().mean().sqrt().item()
        for seed in (0, 1)
    ]
    assert moved[0] <= bound < 0.05 < 0.2 < moved[1]


def test_sample_says_how_many(saved: Path, tmp_path: Path) -> None:
    """In float32, in which images move by far less than one of 255 levels: a pixel is rounded to the next at most."""
    words = [
        "sample",
        str(saved),
        "a cat",
        "dog",
        "--size",
        "32",
        "32",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--overwrite",
    ]
    words += ["--precision", "float32", "--output", str(tmp_path / "a.png")]
    pictures = []
    for batch in ("1", "8"):
        assert main([*words, "--batch", batch]) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1
