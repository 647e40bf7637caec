"""Training, evaluation and the command line with images to edit."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_sets import KONTEXT, paint, written
from judges import IMAGES, first_token, judged, says, seen
from PIL import Image
from tiny_pipelines import tiny as pipeline
from tiny_policies import SMALL, policy
from tiny_runs import small
from torch import Tensor

from flowward import models
from flowward.algorithms import AdvantageFlow, FlowAWR
from flowward.cli import main
from flowward.evaluation import evaluate, images, measurement
from flowward.learning.mixing import RewardBuffer
from flowward.learning.points import Renoise
from flowward.models import diffusers
from flowward.process.rollout import Sampler
from flowward.prompts import PromptSet
from flowward.prompts.image_files import refuse_broken
from flowward.prompts.pictures import picture
from flowward.rewards import RewardError, score
from flowward.rewards.judges.judge import Judge
from flowward.rewards.reward import subjects
from flowward.training.datasets import Exemplars, Preferences
from flowward.training.trainer import Trainer

# Training and measuring


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """How much brighter than its source: wrong where metadata and images do not go together."""
    before = [picture(about["source"], (8, 8)).mean() for about in metadata]
    return images.mean((1, 2, 3)) - torch.stack(before)


def test_a_buffer_remembers_what_each_source_earned(edits: PromptSet) -> None:
    buffer, group = RewardBuffer(4), torch.tensor([0, 0, 1, 1])
    buffer.add(torch.tensor([[1.0], [2], [3], [4]]), group, [edits[0], edits[1]])
    values, owners = buffer.beside(torch.tensor([[9.0], [9]]), torch.zeros(2).long(), torch.zeros(2).long(), [edits[1]])
    assert values.flatten().tolist() == [9, 9, 3, 4] and owners.tolist() == [0] * 4
    again = RewardBuffer(4)
    again.load_state_dict(buffer.state_dict())
    assert set(again.state_dict()["kept"]) == {str(edits[0]), str(edits[1])}


def test_every_image_is_made_of_its_own_source(edits: PromptSet) -> None:
    """In training and in evaluations: what is drawn for a prompt does not depend on the others beside it."""
    one = policy(KONTEXT)
    how = AdvantageFlow(rollout=Sampler(2, grid="model"), points=Renoise(1))
    trainer = Trainer(how, one, bright, edits, small(images_per_update=6, group_size=2, microbatch=6))
    asked = [edits[1], edits[0], edits[2]]
    rollout, _ = trainer.sample(asked, 0)
    backwards, _ = trainer.sample([edits[1], edits[2], edits[0]], 0)
    torch.testing.assert_close(rollout.x0[:2], backwards.x0[:2], rtol=0, atol=1e-5)
    assert not torch.allclose(rollout.x0[2:4], backwards.x0[2:4], atol=1e-4)
    drawn = evaluate.draw(one, asked, Sampler(2, grid="model"), 0)
    alone = evaluate.draw(one, asked[:1], Sampler(2, grid="model"), 0)
    torch.testing.assert_close(drawn[:1], alone, rtol=0, atol=1e-4)
    swapped = evaluate.draw(one, [edits[0], *asked[1:]], Sampler(2, grid="model"), 0)
    assert not torch.equal(drawn[:1], swapped[:1]) and torch.allclose(drawn[1:], swapped[1:], atol=1e-4)


def test_exemplars_and_pairs_are_for_a_source(edits: PromptSet, tmp_path: Path) -> None:
    file, row = tmp_path / "e.jsonl", {"prompt": "a red cat", "image": "a.png"}
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="1 of 1 prompts with exemplars are not training prompts"):
        Exemplars.load(file).refuse(edits, 8)
    file.write_text(json.dumps({**row, "source": "sub/b.png"}))
    given = Exemplars.load(file, share=1.0, count=1)
    given.refuse(edits, 8)
    one = policy(KONTEXT)
    how = FlowAWR(rollout=Sampler(1, grid="model"), points=Renoise(1))
    trainer = Trainer(how, one, bright, edits, small(images_per_update=9, group_size=3, microbatch=9))
    rollout, _ = trainer.sample(list(edits), 0)
    assert given.graft(one, rollout, list(edits), (0, 0)).exemplar.tolist() == [False] * 5 + [True] + [False] * 3
    file.write_text(json.dumps({"prompt": "a red cat", "source": "a.png", "chosen": "a.png", "rejected": "sub/b.png"}))
    pairs = Preferences.load(file)
    assert list(pairs.prompts) == [edits[0]]
    one.refuse(list(pairs.prompts))
    collect = pairs.collector(one, 0)
    ((drawn, shown),) = collect(list(pairs.prompts), one.encode(list(pairs.prompts)), 0, torch.arange(2))
    assert drawn.x0.shape == (2, *one.latent_shape) and shown[0].mean() < shown[1].mean()


def test_a_measurement_counts_prompts_by_their_sources(edits: PromptSet, tmp_path: Path) -> None:
    how = evaluate.Evaluation(images=6, batch=4, sampler=Sampler(1, grid="model"))
    found = evaluate.measure(policy(KONTEXT), edits, how, {"bright": bright})
    numbers = {text: set() for text in edits.texts}  # type: ignore[var-annotated]
    for text, number in zip(found.texts, found.prompt.tolist(), strict=True):
        numbers[text].add(number)
    assert [len(each) for each in numbers.values()] == [2, 1]
    file = tmp_path / "found.json"
    file.write_text(measurement.to_json([found]))
    (again,) = measurement.read(file)
    assert again.prompts == found.prompts and again.categories == found.categories
    assert again.summary() == found.summary()


def test_images_are_compared_with_those_of_the_same_source(edits: PromptSet) -> None:
    about = edits.about([0, 1, 0, 2])
    names = subjects([edits.texts[i] for i in (0, 1, 0, 2)], about)
    assert names[0] == names[2] and len(set(names)) == 3
    assert len(set(subjects(["a", "b", "a"]))) == 2


def test_a_judge_sees_what_was_edited(edits: PromptSet) -> None:
    likes = lambda request: first_token(("Yes", -0.1), ("No", -3.0))  # noqa: E731
    with judged(likes) as (at, requests):
        judge = Judge(server=at, template="edit")
        score("judge", judge, IMAGES[:2], edits.texts[:2], edits.about([0, 1]))
        with pytest.raises(RewardError, match=r"needs {source}, but the metadata of 'a cat' has no such entry"):
            judge(IMAGES[:1], ["a cat"])
    shown = sorted([round(255 * mean) for mean in seen(request)[0]] for request in requests)
    assert shown == [[51, 10], [204, 200]]  # the source, and then the result
    assert all("a red cat" in seen(request)[1] for request in requests)


def test_a_judge_compares_images_of_the_same_source(edits: PromptSet) -> None:
    rows = [0, 1, 0, 1]
    with judged(lambda request: says("Image 1 is better.")) as (at, requests):
        judge = Judge(server=at, template="unified-reward-pairwise")
        found = judge(IMAGES[:4], [edits.texts[i] for i in rows], edits.about(rows))
    assert len(requests) == 2 and found[0] + found[2] == found[1] + found[3] == 1


def test_a_grid_shows_sources_beside_results(tmp_path: Path) -> None:
    sources = [(paint(tmp_path / "a.png", 0.2),)] * 2
    grid = np.asarray(images.labelled_grid(torch.ones(2, 3, 32, 32), ["x", "y"], sources=sources))
    plain = images.labelled_grid(torch.ones(2, 3, 32, 32), ["x", "y"])
    row = grid[images.MARGIN + 16, images.MARGIN : images.MARGIN + 256]
    assert grid.shape[1] > plain.width
    assert (row[:128] == 51).all() and (row[128:] == 255).all()


# The command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny-kontext"
    pipeline(KONTEXT).save_pretrained(folder)
    return str(folder)


@pytest.mark.processor
def test_train_sample_and_eval(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "CACHE", tmp_path / "cache")
    run, texts = tmp_path / "run", str(written(tmp_path))
    loading = ["--size", "32", "32", "--device", "cpu"]
    words = ["train", "--model", saved, "--prompts", texts, "--evaluation.prompts", texts, *loading,
             "--precision", "float32", "--lora-rank", "2", "--threads", "1", "--reward-buffer", "4",
             "--reward", "jpeg-compressibility", "--evaluation.images", "3", "--evaluation.sampler.steps", "1",
             "--algorithm.rollout.steps", "1", "--algorithm.rollout.grid", "model", "--images-per-update", "4",
             "--group-size", "2", "--microbatch", "4", "--iterations", "1", "--evaluate-every", "0"]  # fmt: skip
    assert main([*words, "--output", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    picture_, page, numbers = tmp_path / "out.png", tmp_path / "page.html", tmp_path / "numbers.json"
    source = ["--source", str(tmp_path / "a.png")]
    assert main(["sample", str(run), "a red cat", *source, "--count", "2", "--steps", "1", "--device", "cpu",
                 "--output", str(picture_)]) == 0  # fmt: skip
    with Image.open(picture_) as grid:
        assert grid.width == 2 * 288 + images.GAP + 2 * images.MARGIN
    how = ["--prompts", texts, "--rewards", "jpeg-compressibility", "--images", "3", "--steps", "1", *loading]
    assert main(["eval", str(run), saved, *how, "--json", str(numbers), "--html", str(page)]) == 0
    assert main(["eval", "--compare", str(numbers)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert json.dumps(str(tmp_path / "a.png")) in numbers.read_text()
    shown = re.findall('<img[^>]* alt="([^"]+)"', page.read_text())
    assert shown and [said.endswith(", source image") for said in shown] == [True, False, False] * (len(shown) // 3)
    assert main(["export", str(run), "--device", "cpu"]) == 0
    assert "pipe(image=image, prompt=prompt, num_inference_steps=1" in (run / "export" / "README.md").read_text()

    assert main(["sample", saved, "a red cat", *loading, "--output", str(tmp_path / "x.png")]) == 2
    assert "edits images, but 'a red cat' has no source image" in capsys.readouterr().err
    assert main([*words, "--evaluation.prompts", "scenes-held-out", "--output", str(tmp_path / "other")]) == 2
    assert re.search("prompts scenes-held-out: .* edits images, but '.*' has no source image", capsys.readouterr().err)
    (tmp_path / "a.png").write_text("no image")
    assert main(["sample", str(run), "a", *source, "--output", str(tmp_path / "x.png")]) == 2
    assert "a.png is not an image that can be read" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "other")]) == 2
    assert "line 1: " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.processor
def test_the_built_in_world_has_no_sources(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = str(written(tmp_path, [{"prompt": "a circle", "source": "a.png"}]))
    assert main(["train", "--model", tiny, "--prompts", texts, "--output", str(tmp_path / "run")]) == 2
    assert "cannot edit images, but 'a circle' has the source image" in capsys.readouterr().err
    assert main(["eval", tiny, "--prompts", texts, "--rewards", "balance"]) == 2
    assert "cannot edit images" in capsys.readouterr().err


def test_verify_holds_a_model_that_edits_to_its_pipeline(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", saved, "--size", "32", "32", "--device", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "changing the source of" in said and "20 laws, all hold" in said


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (tmp_path / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    with pytest.raises(ValueError, match="needs the package torchvision: pip install torchvision"):
        models.load(str(tmp_path), 2)


def test_a_saved_model_that_edits_is_loaded(saved: str) -> None:
    one = models.load(saved, 2, "float32", loading=replace(SMALL, size=(64, 32)))
    assert one.edits and one.image_size == (64, 32)
    assert not models.load("scenes", precision="float32").edits


def test_a_source_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for read in (refuse_broken, lambda path: picture(path, (8, 8))):
        with pytest.raises(ValueError, match=r"there is no image at .*nowhere\.png"):
            read(tmp_path / "nowhere.png")
