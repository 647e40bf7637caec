"""GenEval: its rules on objects put there by hand, and the whole way through tiny networks with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_mask2former
import tiny_pipelines
import torch
import transformers
from torch import Tensor

from flowward import prompts, rewards
from flowward.prompts.geneval import CLASSES, COLOURS
from flowward.rewards import RewardError
from flowward.rewards.objects.detection import GREY, box_of, cut_out, instances
from flowward.rewards.objects.geneval import GenEval, StrictGenEval, requests
from flowward.rewards.objects.geneval_rules import (
    Box,
    Found,
    Request,
    coloured,
    intersection_over_union,
    kept,
    reason,
    relations,
    share,
)

# Where one box lies, seen from another


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ((0, 40, 20, 60), {"left of"}),
        ((80, 40, 100, 60), {"right of"}),
        ((40, 0, 60, 20), {"above"}),
        ((40, 80, 60, 100), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # both cosines are (40 - 4) / 56.6 = 0.64
        ((80, 0, 100, 20), {"right of", "above"}),
        ((40, 40, 60, 60), set()),  # the same box
        ((36.1, 40, 56.1, 60), set()),  # 3.9 apart, the margin is 0.1 * (20 + 20) = 4
        ((34, 40, 54, 60), set()),  # 6 apart: (6 - 4) / 6 is not above a half
        ((30, 40, 50, 60), {"left of"}),  # 10 apart: (10 - 4) / 10 is
        ((31, 40, 51, 60), {"left of"}),  # 9 apart: 5 / 9
        ((32, 40, 52, 60), set()),  # 8 apart: exactly a half
        ((0, 15, 20, 35), {"left of"}),  # dx 40, dy 25: cosines 36 / 47.2 and 21 / 47.2 = 0.44
        ((0, 12, 20, 32), {"left of"}),  # dy 28: 24 / 48.8 = 0.49
        ((0, 10, 20, 30), {"left of", "above"}),  # dy 30: 26 / 50 = 0.52
    ],
)
def test_relations_by_hand(one: Box, expected: set[str]) -> None:
    assert relations(one, (40, 40, 60, 60)) == expected


def some_boxes(count: int) -> list[Box]:
    corners = np.random.default_rng(0).uniform(0, 100, (count, 2, 2))
    return [(*low.tolist(), *high.tolist()) for low, high in zip(corners.min(1), corners.max(1), strict=True)]


def test_relations_turn_with_the_picture() -> None:
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    turned = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}
    boxes = some_boxes(24)
    for one in boxes:
        for other in boxes:
            found = relations(one, other)
            assert relations(other, one) == {mirrored[each] for each in found}
            assert relations(transposed(one), transposed(other)) == {turned[each] for each in found}
            assert relations(scaled(one), scaled(other)) == found
            assert not {"left of", "right of"} <= found and not {"above", "below"} <= found


def transposed(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def scaled(box: Box) -> Box:
    """Twice as large, and elsewhere."""
    return 2 * box[0] + 7, 2 * box[1] - 3, 2 * box[2] + 7, 2 * box[3] - 3


def test_overlaps_by_hand() -> None:
    assert intersection_over_union((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert intersection_over_union((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert intersection_over_union((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert intersection_over_union((0, 0, 0, 0), (0, 0, 0, 0)) == 0


# Which objects count


def found(*scores: float, box: Box = (0, 0, 10, 10)) -> list[Found]:
    return [Found(box, score) for score in scores]


def test_objects_below_the_threshold_do_not_count() -> None:
    objects = {"cat": found(0.2, 0.9, 0.31), "dog": found(0.3)}
    assert kept(objects, 0.3) == {"cat": found(0.9, 0.31)}  # the surest first, and above, not at
    assert kept(objects, 0.9) == {}
    assert len(kept({"cat": found(*[0.5] * 20)}, 0.3)["cat"]) == 16


def test_boxes_are_suppressed_where_it_is_asked_for() -> None:
    near = [Found((0, 0, 10, 10), 0.5), Found((1, 0, 11, 10), 0.9), Found((50, 0, 60, 10), 0.7)]
    assert len(kept({"cat": near, "dog": near}, 0.3)["cat"]) == 3  # the paper's evaluation suppresses none
    assert kept({"cat": near}, 0.3, overlap=0.8)["cat"] == [near[1], near[2]]
    assert len(kept({"cat": near}, 0.3, overlap=0.82)["cat"]) == 3  # 90 / 110 = 0.818
    assert len(kept({"cat": near[:1], "dog": near[1:2]}, 0.3, overlap=0.5)) == 2  # other classes do not matter


# The six categories, each right and wrong

LEFT, MIDDLE, RIGHT = (0, 40, 20, 60), (40, 40, 60, 60), (80, 40, 100, 60)


def at(*boxes: Box) -> list[Found]:
    return [Found(box, 0.99 - 0.01 * place) for place, box in enumerate(boxes)]


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def judged(
    about: Mapping[str, Any], objects: Mapping[str, Sequence[Found]], colours: Mapping[int, Sequence[str]] | None = None
) -> tuple[str, float]:
    request = Request.of("a prompt", about)
    asked = coloured(request, objects)
    assert {number: len(each) for number, each in asked.items()} == {
        number: len(each) for number, each in (colours or {}).items()
    }
    return reason(request, objects, colours or {}), share(request, objects, colours or {})


CAT, DOG = {"include": [clause("cat")]}, {"include": [clause("cat"), clause("dog")]}
THREE = {"tag": "counting", "include": [clause("cup", 3)], "exclude": [clause("cup", 4)]}
RED = {"include": [clause("car", color="red")]}
PLACED = {"include": [clause("cat"), clause("dog", position=["left of", 0])]}
BOTH = {"include": [clause("car", color="red"), clause("cup", color="blue")]}


@pytest.mark.parametrize(
    ("about", "objects", "colours", "wrong", "earned"),
    [
        (CAT, {"cat": at(LEFT)}, {}, "", 1),
        (CAT, {"cat": at(LEFT), "dog": at(RIGHT)}, {}, "", 1),  # others may be there
        (CAT, {"dog": at(LEFT)}, {}, "no cat", 0),
        (CAT, {"cat": at(LEFT, RIGHT)}, {}, "", 0),  # at least one for the benchmark, exactly one for the share
        (DOG, {"cat": at(LEFT), "dog": at(RIGHT)}, {}, "", 1),
        (DOG, {"cat": at(LEFT)}, {}, "no dog", 1 / 2),
        (DOG, {}, {}, "no cat; no dog", 0),
        (THREE, {"cup": at(LEFT, MIDDLE, RIGHT)}, {}, "", 1),
        (THREE, {"cup": at(LEFT, MIDDLE)}, {}, "2 of 3 cup", 2 / 3),
        (THREE, {"cup": at(*[LEFT] * 4)}, {}, "4 cup, must be fewer than 4", 2 / 3),
        (THREE, {"cup": at(*[LEFT] * 9)}, {}, "9 cup, must be fewer than 4", 0),  # never below 0
        (RED, {"car": at(LEFT)}, {0: ["red"]}, "", 1),
        (RED, {"car": at(LEFT)}, {0: ["blue"]}, "car is blue, not red", 1 / 2),
        (RED, {}, {}, "no car", 0),
        (RED, {"car": at(LEFT, RIGHT)}, {0: ["red"]}, "", 0),  # the surest is red, but there are two
        (PLACED, {"cat": at(MIDDLE), "dog": at(LEFT)}, {}, "", 1),
        (PLACED, {"cat": at(MIDDLE), "dog": at(RIGHT)}, {}, "dog is not left of cat", 2 / 3),
        (PLACED, {"cat": at(MIDDLE)}, {}, "no dog", 1 / 3),
        (PLACED, {"dog": at(LEFT)}, {}, "no cat; dog is not left of cat", 1 / 3),
        (PLACED, {"cat": at(MIDDLE, LEFT), "dog": at(LEFT)}, {}, "", 1 / 3),  # of the surest cat, but there are two
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["red"], 1: ["blue"]}, "", 1),
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["blue"], 1: ["red"]},
         "car is blue, not red; cup is red, not blue", 1 / 2),
        (BOTH, {"car": at(LEFT), "cup": at(RIGHT)}, {0: ["red"], 1: ["red"]}, "cup is red, not blue", 3 / 4),
        (BOTH, {"car": at(LEFT)}, {0: ["red"]}, "no cup", 1 / 2),
    ],
)  # fmt: skip
def test_judgements_by_hand(about: Any, objects: Any, colours: dict[int, list[str]], wrong: str, earned: float) -> None:
    said, share_ = judged(about, objects, colours)
    assert said == wrong
    assert share_ == pytest.approx(earned)


def test_what_the_benchmark_combines() -> None:
    two_red = {"include": [clause("car", 2, color="red")]}
    assert judged(two_red, {"car": at(LEFT, RIGHT)}, {0: ["red", "blue"]}) == (
        "car is red and blue, not red", pytest.approx((1 + 1 / 2) / 2))  # fmt: skip
    every = {"include": [clause("cat"), clause("dog", 2, position=["left of", 0])]}
    assert judged(every, {"cat": at(RIGHT), "dog": at(LEFT, MIDDLE)}) == ("", 1)
    assert judged(every, {"cat": at(MIDDLE), "dog": at(LEFT, RIGHT)})[0] != ""  # both dogs must be left of it
    no_dog = {"include": [clause("cat")], "exclude": [clause("dog", 1)]}
    assert judged(no_dog, {"cat": at(LEFT)}) == ("", 1)
    assert judged(no_dog, {"cat": at(LEFT), "dog": at(RIGHT)}) == ("1 dog, must be fewer than 1", 1 / 2)
    red_target = {"include": [clause("cat", color="red"), clause("dog", position=["left of", 0])]}
    said, earned = judged(red_target, {"cat": at(MIDDLE), "dog": at(LEFT)}, {0: ["blue"]})
    assert said == "cat is blue, not red; dog is not left of cat"  # there is no right target
    assert earned == pytest.approx(2 / 4)


def test_a_whole_share_is_a_right_picture() -> None:
    """On pictures with objects at random, for prompts of all categories."""
    rng = np.random.default_rng(0)
    mine, boxes = prompts.load("geneval-held-out"), some_boxes(40)
    whole = right = 0
    for i in mine.spread(300):
        request = Request.of(mine.texts[i], mine.metadata[i])
        for _ in range(4):
            objects = {
                each.name: [Found(boxes[rng.integers(40)], float(rng.uniform(0.91, 1)))
                            for _ in range(rng.integers(each.count + 2))] for each in request.include
            }  # fmt: skip
            objects = kept(objects, 0.9)
            colours = {n: [str(rng.choice((request.include[n].colour, "red"))) for _ in each]
                       for n, each in coloured(request, objects).items()}  # fmt: skip
            said, earned = reason(request, objects, colours), share(request, objects, colours)
            assert 0 <= earned <= 1
            assert earned < 1 or not said
            assert share(request, {}, {}) <= earned
            whole, right = whole + (earned == 1), right + (not said)
    assert 100 < whole < right < 1000


# Metadata


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, "has no GenEval metadata"),
        ({}, "has no GenEval metadata"),
        ({"text": "x"}, "has no GenEval metadata"),
        ({"include": [{"class": "zebra crossing", "count": 1}]}, "does not name one of COCO's 80 classes"),
        ({"include": ["cat"]}, "does not name one of COCO's 80 classes"),
        ({"include": [{"class": "cat"}]}, "the count must be an integer of at least 1, not None"),
        ({"include": [clause("cat", 0)]}, "at least 1, not 0"),
        ({"include": [clause("cat", True)]}, "at least 1, not True"),
        ({"include": [clause("cat", color="beige")]}, "the colour must be one of red, "),
        ({"include": [clause("cat", position=["left of", 0])]}, "number of an earlier clause, not ['left of', 0]"),
        ({"include": [clause("cat"), clause("dog", position=["near", 0])]}, "a position must be one of left of, "),
        ({"include": [clause("cat"), clause("dog", position="left of")]}, "a position must be"),
        ({"include": [clause("cat")], "exclude": [{"class": "dog"}]}, "the count must be"),
        ({"include": 3}, "has invalid GenEval metadata"),
    ],
)  # fmt: skip
def test_other_metadata_are_refused(about: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        requests(["a right one", "a wrong one"], [CAT, about])
    assert said in str(error.value) and "the prompt 'a wrong one' has" in str(error.value)


@pytest.mark.parametrize("name", ["geneval", "geneval-held-out"])
def test_the_built_in_prompts_are_understood(name: str) -> None:
    mine = prompts.load(name)
    asked = requests(mine.texts, mine.metadata)
    assert {request.tag for request in asked} == set(mine.categories)
    assert len(set(asked)) == len(mine)


# Instances and crops


def test_instances_are_those_of_the_library() -> None:
    """At the size that transformers computes masks in, they are its own; its scores are rounded to six places."""
    torch.manual_seed(0)
    classes, masks = 3 * torch.randn(20, 6), 4 * torch.randn(20, 12, 12)
    output = transformers.models.mask2former.modeling_mask2former.Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes[None], masks_queries_logits=masks[None]
    )
    library = transformers.Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        output, threshold=0.3, return_binary_maps=True
    )[0]
    expected = {(each["label_id"], each["score"]): mask.bool().numpy()
                for each, mask in zip(library["segments_info"], library["segmentation"], strict=True)}  # fmt: skip
    mine = instances(classes, masks, (384, 384), 0.3)
    assert len(mine) == len(expected) > 5
    assert {(label, round(score, 6)) for label, score, _ in mine} == set(expected)
    assert all((mask == expected[label, round(score, 6)]).all() for label, score, mask in mine)
    assert [score for _, score, _ in mine] == sorted((score for _, score, _ in mine), reverse=True)
    assert instances(classes, masks, (384, 384), 0.9999) == []


def test_boxes_and_crops_by_hand() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2, 3:5] = mask[4, 4] = True
    assert box_of(mask) == (3, 2, 5, 5)
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    crop = np.asarray(cut_out(picture, Found(box_of(mask), 1, mask)))
    expected = np.full((3, 2, 3), GREY)
    expected[0], expected[2, 1] = picture[2, 3:5], picture[4, 4]
    assert (crop == expected).all()
    assert (np.asarray(cut_out(picture, Found((1, 0, 4, 2), 1))) == picture[:2, 1:4]).all()
    long = np.zeros((100, 2, 3), np.uint8)
    assert cut_out(long, Found((0, 0, 2, 100), 1)).size == (2, 16)  # only the middle square is ever looked at


# The whole way


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
