"""Every family of models, held to its pipeline in diffusers on a tiny one with random weights."""

from __future__ import annotations

import inspect
import itertools
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import TINY, tiny
from tiny_runs import close, plain, snapshot
from torch import Tensor

import flowward
from flowward import card, export, exported, models, prompts
from flowward.algorithms import ALGORITHMS, AdvantageFlow
from flowward.cli import main
from flowward.commands import train
from flowward.commands.options import policy_of
from flowward.images import stills
from flowward.memory import OutOfMemory
from flowward.models import Loading, diffusers
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.policy import Condition
from flowward.models.weights import Adapted, LoRA
from flowward.points import Renoise
from flowward.presets import PRESETS, published
from flowward.rewards import score
from flowward.rewards.jpeg import Compressible, Incompressible, kilobytes
from flowward.rollout import Sampler
from flowward.run import Run
from flowward.trainer import Trainer
from flowward.verify import model


def policy(name: str, rank: int | None = 2, **more: Any) -> DiffusersPolicy:
    torch.set_num_threads(1)
    given = {"frames": 5} if name == "WanPipeline" else {}
    return DiffusersPolicy(name, FAMILIES[name](tiny(name), 32, 32, **given, **more), rank, "float32")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_half_precision(name: str, tmp_path: Path) -> None:
    """As on a GPU: bf16 weights, adapters in float32 (small steps survive), velocities and images near float32's."""
    found = []
    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        given = {"frames": 5} if name == "WanPipeline" else {}
        family = FAMILIES[name](tiny(name).to(dtype), 32, 32, **given)
        one = DiffusersPolicy(name, family, 2, precision)  # type: ignore[arg-type]
        one.weights.add("old")
        adapters = [*one.weights.tensors("policy").values(), *one.weights.tensors("old").values()]
        assert {tensor.dtype for tensor in adapters} == {torch.float32}
        assert family.pipe.transformer.dtype == dtype
        x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
        texts = ["a cat", "two dog on the left"]
        v = one.under("policy", 2.0)(x, t, one.encode(model.edits(texts, tmp_path) if one.edits else texts))
        v.square().mean().backward()
        assert v.dtype == torch.float32
        gradients = [tensor.grad for tensor in adapters if tensor.grad is not None]  # the last text stream gets none
        assert 2 * len(gradients) > 0.8 * len(adapters) and all(grad.isfinite().all() for grad in gradients)
        images = one.decode(x)
        assert one.encode_images(images).dtype == images.dtype == torch.float32
        found.append((v.detach(), images))
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() / exact.norm() < 0.05


def test_images_are_encoded_one_by_one_where_the_autoencoder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures from files are on the CPU, and those of an iteration are too many for an autoencoder at once."""
    one, seen = policy("StableDiffusion3Pipeline"), []
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = one.family.encode_images(2 * images - 1)
    torch.testing.assert_close(one.encode_images(images), together, rtol=0, atol=1e-5)

    def encode(images: Tensor) -> Tensor:
        seen.append((images.device.type, len(images)))
        return images

    monkeypatch.setattr(one.family, "encode_images", encode)
    monkeypatch.setattr(one, "_cast", nullcontext)
    one.device = torch.device("meta")  # a device that every machine has, and that mixes with no other
    one.encode_images(images)
    assert seen == [("meta", 1)] * 3


def test_two_transformers_that_share_the_work_by_time(tmp_path: Path) -> None:
    """Wan 2.2-A14B is what its pipeline is, both are trained and exported, and a batch may hold times of either."""
    family: Any = FAMILIES["WanPipeline"](tiny("of two"), 32, 32, frames=5)
    one = DiffusersPolicy("two", family, 2, "float32")
    x, t = torch.randn(4, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.2, 1, 0])
    condition = one.encode(["a cat", "a dog", "a cat", "two"])
    mixed = one.velocity(x, t, condition)
    alone = torch.cat([one.velocity(x[k : k + 1], t[k : k + 1], condition[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)
    mixed.square().mean().backward()
    touched = {name.split(".")[0] for name, tensor in one.weights.tensors("policy").items() if tensor.grad is not None}
    assert touched == {"transformer", "transformer_2"}
    assert export.lora(one, tmp_path) == tmp_path / export.LORA_FILE
    assert (tmp_path / "transformer_2" / export.LORA_FILE).is_file()
    assert not [f"{check.law}: {check.measured}" for check in model.laws(one) if not check.holds]


def test_every_family_has_a_tiny_pipeline() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_what_its_pipeline_is(name: str) -> None:
    broken = [f"{check.law}: {check.measured}" for check in model.laws(policy(name)) if not check.holds]
    assert not broken


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline, as diffusers writes it."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny("StableDiffusion3Pipeline").save_pretrained(folder)
    return folder


SMALL = Loading(size=(32, 32), device="cpu")


def test_a_folder_is_loaded_as_it_was_saved(saved: Path) -> None:
    loaded, here = models.load(str(saved), 2, "float32", loading=SMALL), policy("StableDiffusion3Pipeline")
    assert loaded.identity == here.identity
    x = torch.randn(2, *here.latent_shape)
    found, expected = (model.drawn(each, ["a red cat", "dog"], x, 2.0) for each in (loaded, here))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


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
        (lambda folder: _index(folder, "[]"), "does not hold a mapping"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("null"), "cannot be read: TypeError: "),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{}"), "cannot be read: KeyError: "),
        (lambda folder: _without_a_tensor(folder / "transformer"), "files of its transformer lack .*1 weights"),
        (lambda folder: _without_a_tensor(folder / "vae"), "files of its vae lack"),
        (lambda folder: _without_a_tensor(folder / "text_encoder_3"), "files of a T5EncoderModel lack"),
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
        models.load(str(folder), 2, "float32", loading=SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (Loading(size=(30, 32), device="cpu"), "the height of .* must be a multiple of 4 pixels, not 30"),
        (Loading(size=(32, 0), device="cpu"), "the width of .* must be a multiple of 4 pixels, not 0"),
        (Loading(size=(32, 32), frames=5, device="cpu"), "makes images, not videos of 5 frames"),
        (Loading(device="cuda:77"), "there is no device 'cuda:77' here"),
        (Loading(device="tpu"), "there is no device 'tpu' here"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(saved: Path, how: Loading, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        models.load(str(saved), 2, "float32", loading=how)


def test_the_built_in_model_leaves_no_choice() -> None:
    with pytest.raises(ValueError, match="leaves no choice of size"):
        models.load("scenes", loading=SMALL)


@pytest.mark.parametrize("frames", [4, 0])
def test_a_video_has_one_frame_more_than_a_multiple_of_four(frames: int) -> None:
    with pytest.raises(ValueError, match="1 \\+ a multiple of 4 frames"):
        FAMILIES["WanPipeline"](tiny("WanPipeline"), 32, 32, frames)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "ZImagePipeline", "WanPipeline"])
def test_an_image_larger_than_its_places_is_refused(name: str) -> None:
    """At once, not by an index out of its range in the first evaluation."""
    kind, pipe = FAMILIES[name], tiny(name)
    given = {"frames": 5} if name == "WanPipeline" else {}
    family = kind(pipe, 32, 32, **given)
    most, multiple = family.places, family.multiple
    assert most
    with pytest.raises(ValueError, match=f"the width .* must be at most {most * multiple} pixels"):
        kind(pipe, 32, (most + 1) * multiple, **given)
    one = DiffusersPolicy(name, kind(pipe, multiple, most * multiple, **given), 2, "float32")
    with torch.no_grad():
        assert one.velocity(torch.zeros(1, *one.latent_shape), torch.ones(1), one.encode(["a cat"])).isfinite().all()


def test_a_distilled_model_knows_no_guidance() -> None:
    """FLUX.2-klein says so itself; FLUX.1-schnell is the one without an input for it."""
    klein, schnell = tiny("Flux2KleinPipeline"), tiny("FluxPipeline")
    klein.register_to_config(is_distilled=True)
    schnell.transformer.register_to_config(guidance_embeds=False)
    for pipe in (klein, schnell):
        family = FAMILIES[type(pipe).__name__]
        with pytest.raises(ValueError, match="knows no guidance"):
            DiffusersPolicy("distilled", family(pipe, 32, 32), None, "float32").under("policy", 3.0)
        assert family(tiny(type(pipe).__name__), 32, 32).guidance in ("classifier-free", "embedded")


def test_shorter_text_is_padded_with_zeros() -> None:
    """Rows of two encodings stand together, whatever their lengths."""
    one, other = Condition({"words": torch.ones(1, 2, 3)}), Condition({"words": torch.ones(2, 4, 3)})
    both = one.cat(other).tensors["words"]
    assert both.shape == (3, 4, 3)
    assert both[0].sum(-1).tolist() == [3, 3, 0, 0]
    torch.testing.assert_close(other.cat(one).tensors["words"][2], both[0])


def test_an_exported_lora_says_where_it_comes_from(tmp_path: Path) -> None:
    file = export.lora(policy("StableDiffusion3Pipeline"), tmp_path, about={"algorithm": "awm", "guidance": 1.0})
    assert exported.read(file) == {"version": flowward.__version__, "algorithm": "awm", "guidance": 1.0}
    with pytest.raises(ValueError, match="no LoRA to export"):
        export.lora(policy("StableDiffusion3Pipeline", None), tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StableDiffusion3Pipeline", "pipe(prompt, {}, guidance_scale=4.5)"),
        ("QwenImagePipeline", "pipe(prompt, {}, true_cfg_scale=4.5, negative_prompt=' ')"),
        ("ZImagePipeline", "pipe(prompt, {}, guidance_scale=3.5)"),
        ("FluxKontextPipeline", "pipe(image, prompt, {}, max_area=1024, _auto_resize=False, guidance_scale=4.5)"),
        ("SanaPipeline", "pipe(prompt, {}, use_resolution_binning=False, guidance_scale=4.5)"),
        ("WanPipeline", "pipe(prompt, {}, num_frames=5, guidance_scale=4.5)"),
    ],
)
def test_a_card_says_how_this_pipeline_is_called(name: str, says: str, tmp_path: Path) -> None:
    about = {"base_model": "owner/name", "steps": 28, "guidance": 4.5}
    told = card._use(tmp_path, policy(name), about, ["pytorch_lora_weights.safetensors"])
    assert says.format("num_inference_steps=28, height=32, width=32") in told
    shorter = card._use(tmp_path, policy(name, text_tokens=20), about, ["pytorch_lora_weights.safetensors"])
    assert "width=32, max_sequence_length=20, " in shorter
    untold = card._use(tmp_path, policy(name), {"base_model": "owner/name"}, ["pytorch_lora_weights.safetensors"])
    assert untold.endswith('pipe.load_lora_weights("this/folder")\n```\n')  # an algorithm that does not say


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_as_long_as_the_pipeline_takes_it(name: str) -> None:
    called = inspect.signature(type(tiny(name)).__call__).parameters
    assert FAMILIES[name].text_tokens == called["max_sequence_length"].default


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "FluxPipeline", "FluxKontextPipeline", "QwenImagePipeline"]
)
def test_text_longer_than_the_pipeline_reads_is_refused(name: str) -> None:
    """Before a training whose result the pipeline could not draw again."""
    most, pipe = FAMILIES[name].most_text, tiny(name)
    assert most is not None and FAMILIES[name](pipe, 32, 32, text_tokens=most).text_tokens == most
    with pytest.raises(ValueError, match=f"{name} reads text of at most {most} tokens, not {most + 1}"):
        FAMILIES[name](pipe, 32, 32, text_tokens=most + 1)
    with pytest.raises(ValueError, match=f"greater than {most}"):
        pipe(prompt="a cat", max_sequence_length=most + 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_cut_where_it_is_told_to_be(name: str, tmp_path: Path) -> None:
    if name == "QwenImageEditPlusPipeline":  # whose text has the image in it
        with pytest.raises(ValueError, match="reads text of any length"):
            policy(name, text_tokens=20)
        return
    texts, one = ["a red cat " * 20], policy(name, text_tokens=20)
    words = one.encode(model.edits(texts, tmp_path) if one.edits else texts).tensors["words"]
    assert words.shape[1] == 20 + 77 * (name == "StableDiffusion3Pipeline")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_known_again_in_another_precision(name: str) -> None:
    pipe = tiny(name)
    for parameter in pipe.transformer.parameters():  # not numbers that bf16 has anyway
        parameter.data.add_(1e-3)
    first = diffusers.fingerprint(pipe.transformer)
    assert diffusers.fingerprint(pipe.transformer.to(torch.bfloat16)) == first
    next(pipe.transformer.parameters()).data.add_(0.5)
    assert diffusers.fingerprint(pipe.transformer) != first


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
    assert "out of memory with images of 32 x 32, 3 of them drawn at once: lower --batch" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny("StableDiffusion3Pipeline")), "to", fail)
        assert main(words) == 2
    assert f"out of memory with the whole of {saved} on cpu" in capsys.readouterr().err
    empty = policy("StableDiffusion3Pipeline").family.empty()
    monkeypatch.setattr(family, "encode", lambda self, texts: empty if texts == [""] else fail())
    with pytest.raises(OutOfMemory, match="out of memory with prompts encoded 1 at once"):
        policy("StableDiffusion3Pipeline").prepare(["a cat"], tmp_path)


def test_images_do_not_depend_on_how_many_are_drawn_at_once(saved: Path, tmp_path: Path) -> None:
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
    words += ["--output", str(tmp_path / "a.png")]
    pictures = []
    for batch in ("1", "8"):
        assert main([*words, "--batch", batch]) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_a_scheduler_without_times_for_one_step_says_so() -> None:
    with pytest.raises(ValueError, match="scheduler of QwenImagePipeline has no times for 1 step"):
        policy("QwenImagePipeline").times(1)
    assert policy("FluxPipeline").times(1) == (1.0, 0.0)


def test_a_run_is_sampled_as_it_was_trained_with_other_means() -> None:
    trained = Loading(size=(32, 64), text_tokens=20, vae_slicing=True, device="cuda:1")
    asked = Loading(size=(32, 64), vae_tiling=True)
    assert asked.of_run("it", trained) == replace(trained, vae_tiling=True, device="auto")
    for other, says in (
        (Loading(size=(64, 64)), "it is loaded as it was trained, with size 32 64, not 64 64: leave it out"),
        (Loading(frames=5), "with frames as the model has it, not 5"),
        (Loading(text_tokens=10), "with text_tokens 20, not 10"),
    ):
        with pytest.raises(ValueError, match=says):
            other.of_run("it", trained)


def test_the_card_of_the_built_in_model_names_the_command_that_knows_it(tmp_path: Path) -> None:
    about = {"base_model": "scenes", "steps": 10, "guidance": 1.0}
    told = card._use(tmp_path, models.load("scenes", 2, "float32"), about, ["pytorch_lora_weights.safetensors"])
    assert 'flowward sample this/folder "PROMPT" --steps 10 --guidance 1.0' in told
    assert "diffusers" not in told


def test_a_run_on_a_real_pipeline_from_the_command_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, resume and sample, with the words that a user types."""
    monkeypatch.setattr(diffusers, "CACHE", tmp_path / "cache")
    run, texts = tmp_path / "run", tmp_path / "prompts.txt"
    texts.write_text("a red cat\na small dog\ntwo blue squares\n")
    words = ["train", "--model", str(saved), "--prompts", str(texts), "--evaluation.prompts", str(texts),
             "--size", "32", "32", "--device", "cpu", "--precision", "float32", "--lora-rank", "2", "--threads", "1",
             "--reward", "jpeg-compressibility", "--evaluation.images", "4", "--evaluation.sampler.steps", "2",
             "--algorithm.rollout.steps", "2", "--algorithm.rollout.grid", "model", "--images-per-update", "4",
             "--group-size", "2", "--microbatch", "4", "--iterations", "1", "--evaluate-every", "0"]  # fmt: skip
    assert main([*words, "--output", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    picture = tmp_path / "cat.png"
    assert main(["sample", str(run), "a red cat", "--count", "2", "--steps", "2", "--output", str(picture)]) == 0
    assert picture.is_file()
    assert main(["export", str(run), "--merged", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "iteration 2" in said.out
    assert "Traceback" not in said.err
    assert main(["export", str(run)]) == 2  # what is there stays
    told = (run / "export" / "README.md").read_text()
    assert f"base_model: {saved}" in told and "| guidance | 1.0 |" in told and "pipe.load_lora_weights" in told
    assert (run / "export" / "reward.svg").is_file() and (run / "export" / "after.png").is_file()

    trained = policy_of(str(run), "policy")
    assert isinstance(trained, DiffusersPolicy)
    pipe, x = trained.family.pipe, torch.randn(2, *trained.latent_shape)
    expected = model.drawn(trained, ["a red cat", "dog"], x, 1.0)
    pipe.transformer = type(pipe.transformer).from_pretrained(run / "export" / "transformer")
    merged = trained.family.reference(["a red cat", "dog"], x, model.STEPS, 1.0)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_real_model_starts_from_published_settings(saved: Path, algorithm: str) -> None:
    """On the times of its own scheduler; nobody wants the batches of the built-in world there."""
    settings = train._default(algorithm, None, str(saved))
    chosen = PRESETS[algorithm][published(algorithm)]
    assert settings.algorithm == replace(chosen.algorithm, rollout=settings.algorithm.rollout)
    assert settings.run.images == replace(Run(), **chosen.run).images
    assert settings.algorithm.rollout.grid == "model"
    times = settings.algorithm.rollout.bound(policy("StableDiffusion3Pipeline").times).times
    assert len(times) == settings.algorithm.rollout.steps + 1
    scenes, default = train._default(algorithm, "scenes", str(saved)), train._default(algorithm, None, None)
    assert (scenes.algorithm, scenes.run) == (default.algorithm, default.run)


def test_a_real_model_needs_a_reward(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", str(saved)]) == 2
    assert "name a --reward" in capsys.readouterr().err


def test_a_video_is_scored_by_its_frames() -> None:
    videos = torch.rand(2, 3, 3, 16, 16)
    expected = torch.stack([kilobytes(video).mean() for video in videos])
    torch.testing.assert_close(score("jpeg", Incompressible(), videos, ["a", "b"]), expected)

    class Whole(Incompressible):
        takes_videos = True

        def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
            return images.mean((1, 2, 3, 4))

    torch.testing.assert_close(score("mine", Whole(), videos, ["a", "b"]), videos.mean((1, 2, 3, 4)))


def test_a_video_is_shown_by_three_frames() -> None:
    video = torch.rand(2, 5, 3, 8, 8)
    torch.testing.assert_close(stills(video), torch.cat([video[:, 0], video[:, 2], video[:, 4]], -1))
    assert stills(video[:, 0]).shape == (2, 3, 8, 8)
    assert stills(video[:, :1]).shape == (2, 3, 8, 8)


def test_smooth_images_are_smaller_as_jpeg() -> None:
    flat, noisy = torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32)
    both = torch.cat([flat, noisy])
    small, large = kilobytes(both).tolist()
    assert 0 < small < large < 3 * 32 * 32 / 1000 * 1.5
    torch.testing.assert_close(Compressible()(both, ["", ""]), -kilobytes(both))


def velocities(one: DiffusersPolicy) -> Tensor:
    x, t = torch.randn(3, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9])
    v = one.velocity(x, t, one.encode(["a red cat", "dog", "a"]))
    (v * x).mean().backward()
    return torch.cat([v.detach().flatten(), *(p.grad.flatten() for p in one.weights.tensors("policy").values())])


@pytest.mark.parametrize(
    "how", [{"gradient_checkpointing": True}, {"attention": "native"}, {"vae_slicing": True}, {"vae_tiling": True}]
)
def test_what_saves_memory_changes_nothing(saved: Path, how: dict[str, Any]) -> None:
    one, other = (
        models.load(str(saved), 2, "float32", loading=replace(SMALL, **more))  # type: ignore[arg-type]
        for more in ({}, how)
    )
    assert isinstance(one, DiffusersPolicy) and isinstance(other, DiffusersPolicy)
    torch.testing.assert_close(velocities(other), velocities(one), rtol=0, atol=1e-5)
    x0 = torch.randn(3, *one.latent_shape)
    torch.testing.assert_close(other.decode(x0), one.decode(x0), rtol=0, atol=1e-5)


def test_an_attention_that_is_not_there_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="attention 'sag'"):
        models.load(str(saved), 2, "float32", loading=replace(SMALL, attention="sag"))


def test_compiling_without_a_compiler_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"takes a C\+\+ compiler, and there is no .*: install it, or leave it out"):
        models.load(str(saved), 2, "float32", loading=replace(SMALL, compile_blocks=True))


def test_a_quantised_model_is_nearly_the_same_and_trains_its_adapters(saved: Path) -> None:
    pytest.importorskip("torchao")
    whole, small = (
        models.load(str(saved), 2, "float32", loading=replace(SMALL, quantise=how))  # type: ignore[arg-type]
        for how in (None, "int8")
    )
    assert isinstance(whole, DiffusersPolicy) and isinstance(small, DiffusersPolicy)
    assert type(small.family.pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    v, w = velocities(whole), velocities(small)
    assert 0 < (v - w).norm() / v.norm() < 0.05
    assert small.identity["base"] != whole.identity["base"]


@pytest.mark.parametrize(
    ("rank", "how", "missing", "says"),
    [
        (None, {"quantise": "int8"}, "", "train LoRA adapters"),
        (2, {"quantise": "int8", "merge_lora": True}, "", "do not merge them"),
        (
            2,
            {"quantise": "int8"},
            "torchao.quantization",
            "^--quantise int8 needs a package: pip install 'flowward\\[quantise\\]'",
        ),
        (2, {"quantise": "nf4"}, "bitsandbytes", "pip install 'flowward\\[quantise\\]'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch, rank: int | None, how: dict[str, Any], missing: str, says: str
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=says):
        models.load(str(saved), rank, "float32", loading=replace(SMALL, **how))


def test_4_bits_are_refused_on_the_cpu(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    with pytest.raises(ValueError, match="4 bits need a CUDA device: use --quantise int8"):
        models.load(str(saved), 2, "float32", loading=replace(SMALL, quantise="nf4"))


def test_all_weights_are_trained_in_float32_and_adapters_leave_the_base_in_half_precision(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU in bf16: an optimiser's small steps would be rounded away in bf16 weights."""
    monkeypatch.setattr(diffusers.hub, "device", lambda wish: torch.device("cpu"))  # not the word, so like another one
    for rank, expected in ((None, torch.float32), (2, torch.bfloat16)):
        one = models.load(str(saved), rank, "bf16", loading=SMALL)
        assert isinstance(one, DiffusersPolicy)
        assert {tensor.dtype for tensor in one.weights.tensors("policy").values()} == {torch.float32}
        assert one.family.pipe.transformer.transformer_blocks[0].ff.net[2].weight.dtype == expected
        assert one.family.pipe.vae.dtype == torch.bfloat16
        assert velocities(one).isfinite().all()


def test_merged_adapters_say_the_same_and_leave_no_trace() -> None:
    one = policy("StableDiffusion3Pipeline")
    weights = one.weights
    assert isinstance(weights, LoRA)
    weights.add("old")
    with torch.no_grad():
        for tensor in [*weights.tensors("policy").values(), *weights.tensors("old").values()]:
            tensor.normal_(std=0.3)
    base = {key: tensor.clone() for key, tensor in one.family.pipe.transformer.state_dict().items()}
    texts, x = ["a red cat", "dog"], torch.randn(2, *one.latent_shape)
    for name in ("policy", "old", "reference"):
        apart = model.drawn(one, texts, x, 1.0, name)
        weights.merge = True
        with weights.still(name):
            merged = model.drawn(one, texts, x, 1.0, name)
            if name == "old":
                with pytest.raises(RuntimeError, match="cannot be 'policy' now"):
                    one.velocity(x, torch.ones(2), one.encode(texts))
        weights.merge = False
        torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)
        assert name == "reference" or not torch.equal(merged, model.drawn(one, texts, x, 1.0, "reference"))
    after = one.family.pipe.transformer.state_dict()
    assert base.keys() == after.keys()
    assert all(torch.equal(base[key], after[key]) for key in base)
    assert all(tensor.requires_grad for tensor in weights.tensors("policy").values())


def test_merging_that_fails_amid_the_layers_leaves_none_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    one = policy("StableDiffusion3Pipeline")
    weights, x, t, condition = one.weights, torch.randn(1, *one.latent_shape), torch.ones(1), one.encode(["dog"])
    assert isinstance(weights, LoRA)
    with torch.no_grad():
        for tensor in weights.tensors("policy").values():
            tensor.normal_(std=0.3)
    before, real, calls = one.velocity(x, t, condition).detach(), Adapted.get_delta_weight, itertools.count()

    def fail(self: Adapted, name: str) -> Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA")
        return real(self, name)

    monkeypatch.setattr(Adapted, "get_delta_weight", fail)
    weights.merge = True
    with pytest.raises(torch.OutOfMemoryError), weights.still("policy"):
        pass
    assert torch.equal(one.velocity(x, t, condition), before)


def trained(one: DiffusersPolicy) -> dict[str, Tensor]:
    """The weights after two iterations with old and reference, in plain gradient steps."""
    run = Run(iterations=2, images_per_update=4, group_size=2, microbatch=4, rollout_batch=4)
    how = AdvantageFlow(rollout=Sampler(3, grid="model"), points=Renoise(1))
    trainer = plain(Trainer(how, one, Compressible(), prompts.of("mine", ["a red cat", "dog", "a"]), run))
    trainer.step()
    trainer.step()
    return snapshot(one)


def test_training_with_merged_rollouts_is_training() -> None:
    merged = policy("StableDiffusion3Pipeline")
    merged.weights.merge = True  # type: ignore[attr-defined]
    close(trained(policy("StableDiffusion3Pipeline")), trained(merged))


@pytest.mark.parametrize("rank", [2, 16])  # a low one, and one that is cheaper as a sum
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_adapted_layers_are_those_of_peft(precision: Any, rank: int) -> None:
    """Velocities and gradients, with the adapters of each name and without."""
    ours, theirs = policy("StableDiffusion3Pipeline", rank), policy("StableDiffusion3Pipeline", rank)
    ours.precision = theirs.precision = precision
    layers = [module for module in theirs.family.network.modules() if isinstance(module, Adapted)]
    assert {layer._cheaper_as_a_sum(rank) for layer in layers} == {rank == 16}
    assert len(layers) == len(list(ours.weights.tensors("policy"))) / 2
    for layer in layers:
        layer.__class__ = peft.tuners.lora.Linear
    found = []
    for one in (ours, theirs):
        one.weights.add("old")
        for seed, name in enumerate(("policy", "old")):
            for tensor in one.weights.tensors(name).values():
                tensor.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
        condition = one.encode(["a cat", "two dog on the left"])
        v = one.velocity(x, t, condition)
        v.square().mean().backward()
        gradients = [tensor.grad for tensor in one.weights.tensors("policy").values() if tensor.grad is not None]
        others = [one.velocity(x, t, condition, name) for name in ("old", "reference")]
        found.append([tensor.detach() for tensor in (v, *others, *gradients)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= (1e-5 if precision == "float32" else 0.02) * other.norm()
