"""Advice: the algorithm, its settings, what fits, how long it takes, and what each line is based on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leaderboards import study

from flowward.algorithms import CLASSES
from flowward.commands import train
from flowward.models.families import FAMILIES
from flowward.process.distilled import Sign
from flowward.studies import cards, fits, sizes, starts, subjects
from flowward.studies.advice import Advice, Question, advice, choose, suitable
from flowward.studies.shipped import LEADERBOARD, leaderboard
from flowward.system import tables

SD3, FLUX = "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"
SCENES = subjects.Model("scenes", built_in=True)
TURBO = "Tongyi-MAI/Z-Image-Turbo"


def advised(
    model: str, *rewards: str, gpu: str = "none", hours: float | None = None, found: dict[str, Any] | None = None
) -> Advice:
    asked = Question(subjects.model(model), subjects.wanted(rewards), cards.named(gpu), hours)
    return advice(asked, study() if found is None else found, sizes.known(model))


def lines(found: Advice) -> dict[str, str]:
    return dict(found.lines)


def test_the_best_at_equal_time_is_recommended() -> None:
    found = choose(study({"advantageflow": 0.7}), SCENES, subjects.wanted(["scenes-strict"]))
    assert (found.algorithm, found.second) == ("advantageflow", "awm")


def test_two_that_cannot_be_told_apart_are_both_named() -> None:
    said = lines(advised("scenes", "scenes-strict"))
    assert said["Algorithm"].startswith("awm (forward process)")
    assert "62.0 % [59.5, 64.5] after 50 seconds of training, the best of 4" in said["Evidence"]
    assert "1 of 3 seeds ended below the base model" in said["Evidence"]
    second = "diffusion_nft 61.0 % [58.5, 63.5]; awm is ahead by +1.0 points [-0.5, +2.5], which is not significant"
    assert said["Second choice"] == second


def test_a_significant_difference_is_named_so() -> None:
    said = lines(advised("scenes", "scenes-strict", found=study({"awm": 0.8})))
    assert said["Second choice"].endswith("+19.0 points [+17.5, +20.5], a significant difference")


def test_of_equals_the_one_with_a_recipe_is_recommended() -> None:
    """hpsv2 has a recipe of diffusion_nft, and none of awm."""
    found = study({"advantageflow": 0.5}, seconds=study()["rewards"][0]["budgets"]["seconds"])
    own = advised(SD3, "hpsv2", gpu="80GB", found=found)
    assert own.start.recipe == "sd3.5-medium/diffusion_nft-hpsv2"
    assert "not significantly below the best, awm 62.0 %" in lines(own)["Evidence"]
    assert "Measured on the built-in model, not on yours" in lines(own)["Evidence"]


def test_a_better_one_without_a_recipe_comes_first() -> None:
    found = study(seconds=study({"awm": 0.8})["rewards"][0]["budgets"]["seconds"])
    own = advised(SD3, "hpsv2", gpu="80GB", found=found)
    assert own.start.algorithm == "awm" and own.start.recipe is None
    assert "There is no recipe for your model and reward" in lines(own)["Settings"]


def test_without_a_leaderboard_the_advice_says_so() -> None:
    own = advised(SD3, "ocr", gpu="4090", found={})
    assert "this version has no leaderboard" in lines(own)["Evidence"]
    assert own.start.recipe == "sd3.5-medium/advantageflow-ocr"
    assert "Second choice" not in lines(own)


def test_batch_and_memory_are_those_of_the_memory_command() -> None:
    """`flowward memory --config sd3.5-medium/advantageflow-ocr` counts 16.9 GB for 4 points."""
    said = lines(advised(SD3, "ocr", gpu="24GB", found={}))
    assert "16 images are sampled and 4 points trained on" in said["Batch"]
    assert said["Memory"].startswith("16.9 of 21.6 GB (nine tenths of 24 GB), no options needed")


def test_what_does_not_fit_gets_options() -> None:
    own = advised(SD3, "pickscore", gpu="7", found={})
    assert own.start.words[-3:] == ("--gradient-checkpointing", "--quantise", "nf4")
    assert "with --gradient-checkpointing --quantise nf4" in lines(own)["Memory"]
    none = advised(SD3, "pickscore", gpu="2", found={})
    assert lines(none)["Memory"].startswith("does not fit: the smallest batch needs ")
    assert "--shard all" in lines(none)["Memory"]
    assert lines(none)["Time"].startswith("not known")


def test_larger_cards_hold_no_smaller_batches() -> None:
    size, wanted = sizes.known(SD3), subjects.wanted(["pickscore"])
    assert size
    start = starts.start("crd", subjects.model(SD3), wanted)
    counted = starts.counts(start.settings, size.evaluations)
    assert counted.indivisible > 1
    ways: list[int] = []
    before = 0
    for memory in (8, 16, 24, 48, 80, 141):
        found = list(fits.fits(start.settings, counted, size, cards.Card("", memory)))
        ways.append(len(found))
        for each in found:
            assert each.peak <= 0.9 * memory
            assert each.microbatch % counted.indivisible == 0 and counted.points % each.microbatch == 0
        last = found[-1].microbatch if found else 0
        assert last >= before
        before = last
    assert ways == sorted(ways) and before


def test_settings_that_were_not_counted_are_not_taken_for_others() -> None:
    size, model = sizes.known(SD3), subjects.model(SD3)
    assert size
    settings = starts.start("awm", model, subjects.wanted(["ocr"])).settings
    assert fits.counted(settings, size)
    assert not fits.counted(replace(settings, loading=replace(settings.loading, size=(1024, 1024))), size)
    assert not fits.counted(replace(settings, lora_rank=None), size)
    kept = replace(settings, loading=replace(settings.loading, gradient_checkpointing=True))
    counted = starts.counts(kept, size.evaluations)
    first = next(fits.fits(kept, counted, size, cards.Card("", 141)))
    assert first.way == "--gradient-checkpointing"


def test_hours_are_seconds_of_an_image_times_images() -> None:
    own = advised("scenes", "scenes-strict")
    run = own.start.settings.run
    seconds = 0.013 * run.iterations * run.images
    said = lines(own)["Time"]
    assert f"{run.iterations * run.images:,} images" in said and f"about {seconds / 60:.0f} min" in said
    assert "measured on one thread of 2 CPU cores, Linux x86_64" in said


def test_a_limit_in_hours_says_how_far_it_leads() -> None:
    own = advised(SD3, "ocr", gpu="4090", hours=2, found={})
    many = int(lines(own)["Time"].split("--iterations ")[1].split()[0])
    assert 0 < many < own.start.settings.run.iterations
    assert "less than one iteration" in lines(advised(SD3, "ocr", gpu="4090", hours=1e-3, found={}))["Time"]
    assert "--iterations" not in lines(advised(SD3, "ocr", gpu="4090", hours=1e6, found={}))["Time"]


def test_a_long_run_names_the_shortest_recipe() -> None:
    said = lines(advised(SD3, "pickscore", gpu="4090"))  # flow_grpo, with the published batches of many GPUs
    assert "--config sd3.5-medium/" in said["Shorter"] and "Published batches" in said["Shorter"]
    assert "Shorter" not in lines(advised(SD3, "ocr", gpu="4090", found={}))


def test_a_card_given_by_its_memory_has_no_hours() -> None:
    assert "Name the card (such as --gpu 4090)" in lines(advised(SD3, "ocr", gpu="24GB", found={}))["Time"]


def test_a_reward_with_a_gradient_offers_algorithms_that_use_it() -> None:
    said = lines(advised(SD3, "pickscore", gpu="H100"))["Faster, riskier"]
    assert "draft, refl, srpo, adjoint_matching use (--config sd3.5-medium/draft-pickscore)" in said
    assert "exploited" in said
    assert "Faster, riskier" not in lines(advised(SD3, "ocr", gpu="H100"))
    assert "Faster, riskier" not in lines(advised(SD3, "ocr", "pickscore", gpu="H100"))
    assert "--algorithm draft" in lines(advised("scenes", "scenes-net"))["Faster, riskier"]


def test_several_rewards_can_be_mixed() -> None:
    said = lines(advised("scenes", "scenes-strict", "balance=0.5"))["Several rewards"]
    assert "--mix advantages" in said and "--palette" in said


def test_a_distilled_model_gets_algorithms_that_train_its_own_steps() -> None:
    own = advised(TURBO, "ocr", gpu="H100")
    assert own.start.algorithm == "flow_grpo"  # the only one of the study that trains steps
    assert own.start.words[-2:] == ("--algorithm.rollout.law", "cps")
    assert own.start.settings.algorithm.rollout.law == "cps"
    assert "may be step-distilled (`turbo` in the name of the model, hint)" in lines(own)["Few steps"]
    certain = subjects.Model("x", signs=(Sign("`LCM`", "here", "certain"),))
    assert certain.distilled and "advantageflow" not in suitable(certain)


def test_a_model_with_two_times_gets_the_algorithm_of_jumps() -> None:
    own = advised("scenes-4step", "scenes")
    assert own.start.words == ("--algorithm", "meanflow_advantage", "--reward", "scenes")
    assert "not compared on few-step models" in lines(own)["Evidence"]
    assert "meanflow_advantage" not in suitable(SCENES)
    anyflow = subjects.model("nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers")
    assert suitable(anyflow)[0] == "meanflow_advantage" and anyflow.videos


def test_algorithms_that_need_more_than_scores_are_not_recommended() -> None:
    found = set(suitable(SCENES))
    assert found == set(CLASSES) - {"meanflow_advantage", "opd", *subjects.by_gradient()}


def test_an_editing_model_needs_source_images() -> None:
    own = advised("Qwen/Qwen-Image-Edit-2509", "pickscore", gpu="H100")
    assert "source image" in lines(own)["Editing"]
    assert "not counted for this model" in lines(own)["Memory"]


@pytest.mark.parametrize("name", CLASSES)
def test_every_algorithm_can_be_started_as_advised(name: str) -> None:
    """With a recipe and without, the words are those that `flowward train` takes, and mean the same settings."""
    if name == "opd":
        return  # it needs teachers
    for model, reward in ((SD3, "pickscore"), ("Qwen/Qwen-Image", "ocr-strict")):
        start = starts.start(name, subjects.model(model), subjects.wanted([reward]))
        words = [word.replace("train:FILE", "scenes").replace("held-out:FILE", "scenes") for word in start.words]
        settings, _ = train.chosen(words)
        assert (settings.model, settings.reward) == (model, (reward,))
        assert type(settings.algorithm) is type(start.settings.algorithm)
        assert settings.run.images == start.settings.run.images
        assert settings.adapters is not None
        assert (
            starts.counts(settings, lambda guidance: 1).passes
            == starts.counts(start.settings, lambda guidance: 1).passes
        )


@pytest.mark.parametrize(
    ("model", "rewards", "gpu", "said"),
    [
        (SD3, ["ocr"], "none", "needs a CUDA GPU: give --gpu its name or memory"),
        ("owner/name", ["ocr"], "24", "nothing is known of owner/name without its configuration"),
        ("sceens", ["ocr"], "24", "unknown model 'sceens'; did you mean 'scenes'"),
        ("mine.py:model", ["ocr"], "24", "a model of your own code"),
        ("scenes", ["scens"], "24", "unknown reward 'scens'; did you mean 'scenes'"),
        ("scenes", ["scenes", "scenes=2"], "24", "is named twice"),
        ("scenes", ["scenes=x"], "24", "must be a number"),
        ("scenes", [], "24", "name at least one --reward"),
        ("scenes", ["scenes"], "H99", "unknown --gpu 'H99'"),
    ],
)
def test_what_cannot_be_is_one_sentence(model: str, rewards: list[str], gpu: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", ".")):
        advised(model, *rewards, gpu=gpu)


def test_a_folder_is_known_by_its_configuration(tmp_path: Path) -> None:
    def write(name: str, **given: Any) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(given))

    write("model_index.json", _class_name="FluxPipeline")
    write("transformer/config.json", guidance_embeds=False)
    found = subjects.model(str(tmp_path))
    assert found.folder == tmp_path and found.distilled and "guidance_embeds" in str(found.signs[0])
    write("transformer/config.json", guidance_embeds=True)
    assert not subjects.model(str(tmp_path)).signs
    write("scheduler/scheduler_config.json", _class_name="FlowMatchLCMScheduler")
    assert "certain" in str(subjects.model(str(tmp_path)).signs[0])
    write("model_index.json", _class_name="NoPipeline")
    with pytest.raises(ValueError, match="is a NoPipeline, which is not one of StableDiffusion3Pipeline"):
        subjects.model(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index.json cannot be read as JSON"):
        subjects.model(str(tmp_path))


def test_the_table_of_families_says_what_their_classes_say() -> None:
    for row in tables.load(subjects.FAMILIES):
        family = FAMILIES[row["pipeline"]]
        assert (row.get("edits", False), row.get("two_times", False)) == (0 not in family.sources, family.two_times)
        assert row.get("sounds", False) == row.get("notes", "").startswith(("makes sounds", "makes songs"))
        assert row.get("videos", False) == row.get("notes", "").startswith(("makes videos", "few-step videos"))


def test_models_that_were_counted_are_known() -> None:
    counted = tables.load(sizes.SHIPPED)
    assert SD3 in counted
    for name, own in counted.items():
        size = sizes.known(name)
        assert size and size.written == sizes.of(own).written and list(size.memory) == list(sizes.WAYS)
        plain, kept, packed = size.memory.values()
        assert plain.training.each > kept.training.each and kept.training.fixed > packed.training.fixed
    assert sizes.known("owner/name") is None


def test_a_leaderboard_that_is_shipped_can_be_read() -> None:
    found = leaderboard()
    assert bool(found) == LEADERBOARD.is_file()
    for rewards in (["scenes"], ["scenes-strict"], ["pickscore"]):
        assert choose(found, SCENES, subjects.wanted(rewards)).algorithm in CLASSES


def test_other_weights_of_a_recipe_are_named() -> None:
    start = starts.start("awm", subjects.model(SD3), subjects.wanted(["ocr=2"]))
    assert start.words == ("--config", "sd3.5-medium/awm-ocr", "--reward", "ocr=2")
    assert replace(start, words=()).settings.reward == ("ocr=2",)
