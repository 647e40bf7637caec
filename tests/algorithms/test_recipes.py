"""Every recipe builds, at its own size, and takes a step on a tiny pipeline of its family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import policy
from tiny_runs import bright, points_of_a_group, snapshot, taught

from flowward import prompts, rewards
from flowward.algorithms import ALGORITHMS
from flowward.algorithms.presets import PRESETS
from flowward.learning.jumps import trained_by
from flowward.models.families import FAMILIES
from flowward.process.completions import CompletedChain
from flowward.process.policy import Policy
from flowward.training import config, config_files, recipes
from flowward.training.record import read_yaml
from flowward.training.run import Run
from flowward.training.trainer import Trainer
from flowward.verify import model

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
PIPELINES = {
    "sd3.5-medium": "StableDiffusion3Pipeline",
    "flux.1-dev": "FluxPipeline",
    "flux.1-kontext": "FluxKontextPipeline",
    "flux.2-dev": "Flux2Pipeline",
    "flux.2-klein": "Flux2KleinPipeline",
    "qwen-image": "QwenImagePipeline",
    "qwen-image-edit": "QwenImageEditPlusPipeline",
    "z-image": "ZImagePipeline",
    "wan2.1-1.3b": "WanPipeline",
    "wan2.2-5b": "WanPipeline",
    "wan2.2-14b": "WanPipeline",
    "hunyuanvideo-1.5": "HunyuanVideo15Pipeline",
    "ltx": "LTXPipeline",
    "anyflow-wan2.1-14b": "AnyFlowPipeline",
}
every = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
TEXTS = ["a cat", "two dog on the left"]
NUMBERS = [f"{n}" for n in range(64)]


def read(path: Path) -> Any:
    return config.from_dict(config_files.read([path]))


def shortened(settings: Any, one: Policy) -> Run:
    """One update of the fewest images that belong together, all its points in one pass."""
    bound = replace(settings.algorithm, rollout=settings.algorithm.rollout.bound(one.times))
    settings = replace(settings, algorithm=bound)
    leaves = settings.algorithm.rollout.leaves
    least = 2 * leaves if isinstance(bound.rollout, CompletedChain) else leaves  # its chains are compared
    few = max(least, min(settings.run.group_size, 4 - 4 % leaves))
    run = replace(settings.run, group_size=few, images_per_update=2 * few, updates_per_iteration=1, rollout_batch=few)
    points = points_of_a_group(replace(settings, run=run))
    return replace(run, microbatch=2 * len(points), warmup=0)


@every
def test_a_recipe_takes_a_step(path: Path, tmp_path: Path) -> None:
    """And what it takes changes the adapters alone, which a full-size batch of the same settings could divide."""
    settings = read(path)
    short = {} if FAMILIES[PIPELINES[path.parent.name]].fixed_text else {"text_tokens": 16}
    one = policy(PIPELINES[path.parent.name], settings.lora_rank and 2, **short)
    asked, more = (model.asked_of(one, each, tmp_path) for each in (TEXTS, NUMBERS))
    texts, many = prompts.of("two", asked), prompts.of("many", more)
    teachers = taught(settings.algorithm, one, texts)
    Trainer(settings.algorithm, one, bright, many, settings.run, teachers=teachers)
    trainer = Trainer(settings.algorithm, one, bright, texts, shortened(settings, one), teachers=teachers)
    before = snapshot(one)
    metrics = trainer.step().metrics
    assert torch.tensor([value for value in metrics.values()]).isfinite().all()
    assert metrics["gradient_norm"] > 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in snapshot(one).items())


@every
def test_what_a_recipe_names_is_there(path: Path) -> None:
    """Rewards, prompts and sizes; memory is found out on the card, and a comment says how to start it."""
    settings = read(path)
    names = [rewards.weighted(item)[0] for item in (*settings.reward, *settings.evaluation.rewards)]
    assert set(names) <= rewards.REWARDS.keys()
    for name in (settings.prompts, settings.evaluation.prompts):
        own = name in ("edits.jsonl", "held-out.jsonl")  # the user's, as a comment says
        assert own or name.startswith("hf:") or len(prompts.load(name)) > 50
    if settings.teachers:
        assert {word.partition("=")[0] for word in settings.teachers} <= {*prompts.load(settings.prompts).categories}
    assert settings.run.memory == "auto" and settings.lora_rank
    assert settings.precision == "bf16"  # what it gives does not depend on where it is started
    assert settings.evaluation.sampler.guidance == settings.algorithm.rollout.guidance
    assert f"flowward train --config recipes/{path.parent.name}/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", [path for path in RECIPES if "base" in read_yaml(path)], ids=lambda path: path.stem)
def test_a_recipe_over_another_says_what_the_list_shows(path: Path) -> None:
    """It is read without torch for lists, and completely for a run."""
    plain = recipes.given(path)
    exact = config_files.read([path])
    assert plain == exact


def test_there_is_a_recipe_for_every_algorithm_and_published_reward() -> None:
    """On Stable Diffusion 3.5 Medium: a recipe for each preset that was published for it."""
    named = [read_yaml(path)["algorithm"] for path in RECIPES if path.parent.name == "sd3.5-medium"]
    jumping = {name for name, kind in ALGORITHMS.items() if trained_by(kind().points) == "jumps"}
    assert {each["name"] for each in named} == ALGORITHMS.keys() - jumping  # diffusers has no SD3.5 with two times
    assert {config_files.read([path])["algorithm"]["name"] for path in RECIPES} == set(ALGORITHMS)
    used = {(each["name"], each["preset"]) for each in named}
    published = {(name, preset) for name in PRESETS for preset in PRESETS[name] if preset != "scenes"}
    elsewhere = {
        "flux",
        "flux-frozen",
        "flux-scripts",
        "hunyuan-video",
        "video",
        "mix_grpo",
        "paper",  # of AdvantageFlow it is used, of MeanFlowAdvantage on AnyFlow
        "paper-large",
        "paper-adaptive",
        "precise",
        "qwen-image",
    }
    assert {pair for pair in published if pair[1] not in elsewhere} <= used
