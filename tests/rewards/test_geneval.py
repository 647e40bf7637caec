"""GenEval as a reward: the whole way through tiny networks with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_mask2former
import tiny_pipelines
import torch
import transformers
from geneval_clauses import CAT, clause
from torch import Tensor

from flowward import rewards
from flowward.prompts.geneval import CLASSES, COLOURS
from flowward.rewards import RewardError
from flowward.rewards.objects.detection import cut_out
from flowward.rewards.objects.geneval import GenEval, StrictGenEval


def save_detector(folder: Path, labels: Sequence[str]) -> None:
    """Mask2Former with random weights, made sure enough of itself to find something."""
    torch.manual_seed(0)
    network = tiny_mask2former.unfilled(labels)
    with torch.no_grad():
        network.class_predictor.weight.mul_(400)
    tiny_mask2former.save(folder, network)


def save_clip(folder: Path) -> None:
    torch.manual_seed(1)
    text = {"vocab_size": tiny_pipelines.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    tiny_pipelines.tokenizer().save_pretrained(folder)
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("geneval")
    save_detector(made / "detector", tiny_mask2former.LABELS)
    save_clip(made / "clip")
    return made


def options(folder: Path, **more: str) -> dict[str, str]:
    return {"model": str(folder / "detector"), "clip": str(folder / "clip"), "device": "cpu", **more}


@pytest.fixture(scope="module")
def geneval(folder: Path) -> GenEval:
    made = rewards.make("geneval", options(folder, confidence="0.2", counting_confidence="0.2"))
    assert type(made) is GenEval
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(72, 96), mode="bicubic").clamp(0, 1)


def asked_of(geneval: GenEval, images: Tensor) -> tuple[list[str], list[dict[str, Any]]]:
    """For each picture a prompt for an object that the detector finds there, in a colour."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    names = [next(iter(objects)) for objects in geneval._find(list(pixels), 0.2)]
    colours = [COLOURS[i % 10] for i in range(len(names))]
    about = [{"tag": "colors", "include": [clause(name, color=colour)]} for name, colour in zip(names, colours,
             strict=True)]  # fmt: skip
    return [f"a {each['include'][0]['class']}" for each in about], about


def test_the_whole_way(geneval: GenEval, images: Tensor) -> None:
    texts, about = asked_of(geneval, images)
    scores = rewards.score("geneval", geneval, images, texts, about)
    assert scores.shape == (6,) and ((scores >= 0) & (scores <= 1)).all()
    # the colours that CLIP names make the pictures right
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    objects = geneval._find(list(pixels), 0.2)
    for i, each in enumerate(about):
        name = each["include"][0]["class"]
        surest = max(objects[i][name], key=lambda found: found.score)
        each["include"][0]["color"] = geneval._name([cut_out(pixels[i], surest)], [name], 8)[0]
    assert all(not wrong for wrong, _ in geneval.judged(images, texts, about))
    everything = [{"include": [clause(name)]} for name in CLASSES]
    one = rewards.score("geneval", geneval, images[:1].expand(80, -1, -1, -1), list(CLASSES), everything)
    assert {CLASSES[i] for i in one.nonzero().flatten().tolist()} <= set(objects[0])  # classes by name, not by number


def test_batches_order_and_dtype_change_nothing(folder: Path, geneval: GenEval, images: Tensor) -> None:
    texts, about = asked_of(geneval, images)
    scores = geneval(images, texts, about)
    how = {"confidence": "0.2", "counting_confidence": "0.2"}
    for more in ({"batch": "1"}, {"batch": "4"}, {"offload": "True"}):
        assert torch.equal(rewards.make("geneval", options(folder, **how, **more))(images, texts, about), scores)
    assert torch.equal(geneval(images.flip(0), texts[::-1], about[::-1]).flip(0), scores)
    assert torch.equal(geneval(images.double(), texts, about), scores)
    half = rewards.make("geneval", options(folder, **how, dtype="bfloat16"))(images, texts, about)
    assert half.shape == (6,) and half.isfinite().all()


def test_the_verdict_explains_itself(folder: Path, geneval: GenEval, images: Tensor) -> None:
    strict = rewards.make("geneval-strict", options(folder, confidence="0.2", counting_confidence="0.2"))
    assert isinstance(strict, StrictGenEval) and isinstance(strict, rewards.Explains)
    assert strict._find is geneval._find  # the networks are loaded once
    texts, about = asked_of(geneval, images)
    said = strict.explain(images, texts, about)
    assert strict(images, texts, about).tolist() == [float(not each) for each in said]
    nothing = [{"include": [clause("cat", 17)]}] * 6
    assert all("of 17 cat" in each or each == "no cat" for each in strict.explain(images, texts, nothing))


def test_a_tag_has_its_own_threshold(folder: Path, geneval: GenEval, images: Tensor) -> None:
    texts, about = asked_of(geneval, images)
    counting = [{"tag": "counting", "include": [clause(each["include"][0]["class"])]} for each in about]
    plain = [{**each, "tag": "single_object"} for each in counting]
    sure = rewards.make("geneval-strict", options(folder, confidence="0.2", counting_confidence="1"))
    assert sure(images, texts, plain).tolist() == [1] * 6
    assert sure(images, texts, counting).tolist() == [0] * 6
    assert sure(images, texts, [*plain[:3], *counting[3:]]).tolist() == [1, 1, 1, 0, 0, 0]  # in one batch


def test_prompts_without_metadata_are_refused(geneval: GenEval, images: Tensor) -> None:
    for reward in (geneval, rewards.Sum((("geneval", 1.0, geneval),))):
        rewards.refuse(reward, ["a"], [CAT])
        with pytest.raises(ValueError, match="the prompt 'a cat' has no GenEval metadata"):
            rewards.refuse(reward, ["a cat"])
    with pytest.raises(RewardError, match="the prompt 'a cat' has no GenEval metadata"):
        rewards.score("geneval", geneval, images[:1], ["a cat"])


# What is refused when it is made


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"batch": "0"}, "batch must be a positive number, not 0"),
        ({"most": "0"}, "most must be a positive number, not 0"),
        ({"confidence": "0"}, "confidences and overlap must be in"),
        ({"overlap": "1.5"}, "confidences and overlap must be in"),
        ({"dtype": "int8"}, "option dtype"),
        ({"detectors": "x"}, "option detectors"),
        ({"device": "gpu"}, "this machine has no device 'gpu'"),
        ({"model": "no/where/at-all"}, "it is not a valid hub id"),
    ],
)
def test_a_bad_option_is_refused(folder: Path, more: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        rewards.make("geneval", {**options(folder), **more})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_other_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    save_detector(tmp_path / "other", ["cat", "dog"])
    with pytest.raises(ValueError, match="lacks 78 of COCO's classes, such as 'airplane'"):
        rewards.make("geneval", options(folder, model=str(tmp_path / "other")))
    network = transformers.CLIPModel.from_pretrained(folder / "clip")
    state = {key: value for key, value in network.state_dict().items() if "visual_projection" not in key}
    save_clip(tmp_path / "part")
    network.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(ValueError, match=r"incomplete CLIP model: 1 weights .*, such as visual_projection.weight"):
        rewards.make("geneval", options(folder, clip=str(tmp_path / "part")))
