"""Runs on real pipelines from the command line, their exports and their cards; videos and JPEG as rewards see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import tiny
from tiny_policies import policy
from torch import Tensor

import flowward
from flowward import models
from flowward.algorithms import ALGORITHMS
from flowward.algorithms.presets import PRESETS, published
from flowward.cli import main
from flowward.commands.options import said
from flowward.evaluation.images import stills
from flowward.export import card, exported
from flowward.export import weights as export
from flowward.export.trained import load as policy_of
from flowward.models import Loading, diffusers
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.rewards import score
from flowward.rewards.images.jpeg import Compressible, Incompressible, kilobytes
from flowward.training import config
from flowward.training.run import Run
from flowward.verify import model


def test_an_exported_lora_says_where_it_comes_from(tmp_path: Path) -> None:
    file = export.lora(policy("StableDiffusion3Pipeline"), tmp_path, about={"algorithm": "awm", "guidance": 1.0})
    assert exported.read(file) == {"version": flowward.__version__, "algorithm": "awm", "guidance": 1.0}
    with pytest.raises(ValueError, match="no LoRA to export"):
        export.lora(policy("StableDiffusion3Pipeline", None), tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StableDiffusion3Pipeline", "pipe(prompt=prompt, {}, guidance_scale=4.5)"),
        ("QwenImagePipeline", "pipe(prompt=prompt, {}, true_cfg_scale=4.5, negative_prompt=' ')"),
        ("ZImagePipeline", "pipe(prompt=prompt, {}, guidance_scale=3.5)"),
        (
            "FluxKontextPipeline",
            "pipe(image=image, prompt=prompt, {}, max_area=1024, _auto_resize=False, guidance_scale=4.5)",
        ),
        ("SanaPipeline", "pipe(prompt=prompt, {}, use_resolution_binning=False, guidance_scale=4.5)"),
        ("WanPipeline", "pipe(prompt=prompt, {}, num_frames=5, guidance_scale=4.5)"),
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


def test_a_card_loads_the_lora_of_a_pipeline_without_a_loader(tmp_path: Path) -> None:
    told = card._use(tmp_path, policy("OvisImagePipeline"), {"base_model": "o/n"}, [export.LORA_FILE])
    assert 'pipe.transformer.load_lora_adapter("this/folder", use_safetensors=True)' in told


def test_a_run_is_sampled_as_it_was_trained_with_other_means() -> None:
    trained = Loading(size=(32, 64), text_tokens=20, vae_slicing=True, device="cuda:1")
    asked = Loading(size=(32, 64), vae_tiling=True)
    assert asked.of_run("it", trained) == replace(trained, vae_tiling=True, device="auto")
    undone = said(["--no-vae-slicing", "--attention", "None", "--steps=2"])
    fast = replace(trained, attention="native", compile_blocks="always")
    assert asked.of_run("it", fast, undone) == replace(asked, text_tokens=20, compile_blocks="always")
    for other, says in (
        (Loading(size=(64, 64)), "it was trained with size 32 64, not 64 64; leave out the option"),
        (Loading(frames=5), "with frames the model's own, not 5"),
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
    assert main(["export", str(run), "--output", str(run / "export")]) == 2  # what is there stays
    told = (run / "export" / "README.md").read_text()
    assert f"| base model | {saved} |" in told and "| guidance | 1.0 |" in told and "pipe.load_lora_weights" in told
    assert (run / "export" / "reward.svg").is_file() and (run / "export" / "after.png").is_file()

    trained = policy_of(str(run), "policy")
    assert isinstance(trained, DiffusersPolicy)
    pipe, x = trained.family.pipe, torch.randn(2, *trained.latent_shape)
    expected = model.drawn(trained, ["a red cat", "dog"], x, 1.0)
    pipe.transformer = type(pipe.transformer).from_pretrained(run / "export" / "transformer")
    merged = trained.family.reference(["a red cat", "dog"], x, model.STEPS, 1.0)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


def test_merged_weights_in_half_precision_are_rounded_once(tmp_path: Path) -> None:
    family = FAMILIES["StableDiffusion3Pipeline"](tiny("StableDiffusion3Pipeline").to(torch.bfloat16), 32, 32)
    one = DiffusersPolicy("half", family, 2, "bf16")
    for tensor in one.weights.tensors("policy").values():
        torch.nn.init.normal_(tensor, std=0.1)
    layer: Any = family.pipe.transformer.transformer_blocks[0].attn.to_q
    expected = (layer.get_base_layer().weight.float() + layer.get_delta_weight("policy")).bfloat16()
    written = load_file(export.merged(one, tmp_path) / "diffusion_pytorch_model.safetensors")
    assert torch.equal(written["transformer_blocks.0.attn.to_q.weight"], expected)
    assert exported.facts(str(tmp_path))["dtype"] == "bfloat16"


@pytest.mark.processor
def test_flux_says_so_where_its_guidance_is_not_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before images are drawn; samples of a run are held to the run alone."""
    monkeypatch.setattr(diffusers, "CACHE", tmp_path / "cache")
    folder, texts, run = tmp_path / "flux", tmp_path / "prompts.txt", tmp_path / "run"
    tiny("FluxPipeline").save_pretrained(folder)
    texts.write_text("a red cat\na small dog\n")
    small = ["--size", "32", "32", "--device", "cpu"]
    draw = ["--count", "1", "--steps", "1", *small]
    words = ["train", "--model", str(folder), "--prompts", str(texts), "--evaluation.prompts", str(texts), *small,
             "--precision", "float32", "--lora-rank", "2", "--threads", "1", "--reward", "jpeg-compressibility",
             "--evaluation.images", "2", "--evaluation.sampler.steps", "1", "--algorithm.rollout.steps", "2",
             "--images-per-update", "4", "--group-size", "2", "--microbatch", "4", "--iterations", "1",
             "--evaluate-every", "0", "--algorithm.rollout.guidance", "1"]  # fmt: skip
    assert main([*words, "--output", str(run)]) == 0
    assert "was published with guidance 3.5; you use 1 (--algorithm.rollout.guidance)" in capsys.readouterr().out
    for where, guidance, many in ((folder, "1", 1), (folder, "3.5", 0), (run, "1", 0)):
        picture = tmp_path / f"{where.name}-{guidance}.png"
        assert main(["sample", str(where), "a cat", *draw, "--guidance", guidance, "--output", str(picture)]) == 0
        assert capsys.readouterr().err.count("was published with guidance 3.5") == many


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_real_model_starts_from_published_settings(saved: Path, algorithm: str) -> None:
    """On the times of its own scheduler; nobody wants the batches of the built-in world there."""
    settings = config.starting(algorithm, None, str(saved))
    chosen = PRESETS[algorithm][published(algorithm)]
    assert settings.algorithm == replace(chosen.algorithm, rollout=settings.algorithm.rollout)
    assert settings.run.images == replace(Run(), **chosen.run).images
    assert settings.algorithm.rollout.grid == "model"
    times = settings.algorithm.rollout.bound(policy("StableDiffusion3Pipeline").times).times
    assert len(times) == settings.algorithm.rollout.steps + 1
    scenes, default = config.starting(algorithm, "scenes", str(saved)), config.starting(algorithm, None, None)
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
