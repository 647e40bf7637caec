"""The model of the larger built-in world: its shape, its training from scratch, and what is assumed of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowward import models
from flowward.models.names import world_of
from flowward.models.scenes import SHIPPED_64
from flowward.prompts import scenes64
from flowward.scenes import world as worlds
from flowward.scenes.design import LARGE, SMALL
from flowward.scenes.network import Networks, WordEncoder, new_autoencoder, new_transformer
from flowward.scenes.pretrain import pretrain
from flowward.scenes.recipe import Pretrain64
from flowward.training import config

TINY = replace(LARGE, width=32, layers=2, heads=2, text_width=32)
STEPS: dict[str, Any] = {"autoencoder_steps": 4, "autoencoder_batch": 4, "steps": 6, "stop": 4, "batch": 4}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining of scenes-64 makes a model that takes no time."""
    monkeypatch.setitem(worlds.WORLDS, "scenes-64", replace(worlds.WORLDS["scenes-64"], design=TINY))
    monkeypatch.setattr("flowward.scenes.pretrain.SHARD", 2)
    monkeypatch.setattr("flowward.scenes.pretrain.MEASURED", 11)
    monkeypatch.setattr("flowward.scenes.pretrain.SCALED", 16)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of `flowward pretrain scenes-64`, with a tiny untrained model."""
    made: Path = tmp_path_factory.mktemp("large")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = Networks.new(TINY)
    networks.autoencoder.register_to_config(shift_factor=0.0)
    networks.save(made)
    return str(made)


def test_the_networks_are_small_enough_to_train_on_a_processor() -> None:
    count = sum(p.numel() for network in (new_transformer(LARGE), new_autoencoder(LARGE)) for p in network.parameters())
    assert count < 6e6
    tokens = (LARGE.size // 8) ** 2
    assert tokens == 64


def test_every_prompt_can_be_read_and_told_from_every_other() -> None:
    texts = list(scenes64.prompts())
    ids = WordEncoder(LARGE.vocabulary(), 8, LARGE.length).tokenize(texts)
    assert len({tuple(row) for row in ids.tolist()}) == len(texts)


def test_a_folder_is_loaded_with_its_own_size(folder: str) -> None:
    policy = models.load(folder, precision="float32")
    assert policy.latent_shape == (8, 16, 16) and policy.image_size == (64, 64)
    x = torch.zeros(2, *policy.latent_shape)
    v = policy.velocity(x, torch.ones(2), policy.encode(['the word "SUN"', "a star between a ring and a cross"]))
    assert v.shape == x.shape and policy.decode(x).shape == (2, 3, 64, 64)
    assert policy.encode_images(torch.zeros(2, 3, 64, 64)).shape == x.shape


def test_its_prompts_are_the_default(folder: str, tiny: str) -> None:
    assert [world_of(name) for name in ("scenes", "scenes-4step", "scenes-64", tiny, folder)] == [
        *("scenes", "scenes", "scenes-64", "scenes", "scenes-64")
    ]
    for name in ("scenes-64", folder):
        settings = config.starting("flow_grpo", None, name)
        assert (settings.prompts, settings.evaluation.prompts) == ("scenes-64", "scenes-64-held-out")
    settings = config.starting("flow_grpo", None, tiny)
    assert (settings.prompts, settings.evaluation.prompts) == ("scenes", "scenes-held-out")


@pytest.mark.skipif(SHIPPED_64.is_dir(), reason="the weights are in this version")
def test_weights_that_are_not_shipped_are_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"weights of scenes-64 are not in this version: make them with `flowward pre"):
        models.load("scenes-64", precision="float32")


def test_pretraining_that_is_killed_ends_with_the_same_weights(small: None, tmp_path: Path) -> None:
    def lines(name: str, stop_after: int | None = None) -> list[dict[str, Any]]:
        made = []
        config = Pretrain64(tmp_path / name, save_every=2, measure_every=2, precision="float32", **STEPS)
        for line in pretrain(config):
            made.append(line)
            if len(made) == stop_after:
                break
        return made

    whole = lines("whole")
    assert [line["stage"] for line in whole] == ["autoencoder", "flow"] and "strict" in whole[-1]
    cut = tmp_path / "cut"
    lines("cut", 1)  # ends before the last step of the autoencoder is saved
    lines("cut")
    for file in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        one, other = (tmp_path / name / "model" / f"{file}.safetensors" for name in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    assert world_of(str(cut / "model")) == "scenes-64"


def test_pretraining_goes_on_from_networks_that_were_trained_elsewhere(small: None, tmp_path: Path) -> None:
    """With both stages, or from the autoencoder alone; the autoencoder stays as it was."""
    made = {"save_every": 2, "precision": "float32", **STEPS}
    list(pretrain(Pretrain64(tmp_path / "first", **made)))
    start = tmp_path / "first" / "model"
    lines = list(pretrain(Pretrain64(tmp_path / "more", **{**made, "stop": 6}, start=start, begin=4)))
    assert [(line["stage"], line["step"]) for line in lines] == [("flow", 6)]
    files = [Path("vae") / "diffusion_pytorch_model.safetensors", Path("text_encoder") / "model.safetensors"]
    same = [(start / each).read_bytes() == (tmp_path / "more" / "model" / each).read_bytes() for each in files]
    assert same == [True, False]
    for name in ("transformer", "text_encoder"):
        shutil.rmtree(start / name)
    lines = list(pretrain(Pretrain64(tmp_path / "anew", **made, start=start)))
    assert [(line["stage"], line["step"]) for line in lines] == [("flow", 4)]
    with pytest.raises(ValueError, match="no transformer with text encoder that could be at step 2"):
        list(pretrain(Pretrain64(tmp_path / "bare", **made, start=start, begin=2)))
    with pytest.raises(ValueError, match=r"has no autoencoder: .*vae.* is missing"):
        list(pretrain(Pretrain64(tmp_path / "none", **made, start=tmp_path)))


def test_networks_of_another_world_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the vae in .* has other sizes than this world needs"):
        Networks.new(SMALL).take(Path(folder))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"begin": 4}, "begin says how far the networks of --start are: give both"),
        ({"begin": 20_000, "start": Path("x")}, "begin must be below stop, 20000, not 20000"),
        ({"begin": -1}, "begin must not be negative"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Pretrain64(Path("output"), **given)


def test_a_model_of_another_world_is_not_distilled(folder: str, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("pretrain", "scenes-4step", "--teacher", folder, "--output", tmp_path / "few")
    assert said.endswith("draws other pictures: distil a model of `scenes`")
