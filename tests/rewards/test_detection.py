"""Instances of Mask2Former, and objects cut out of pictures."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from flowward.rewards.objects.detection import GREY, box_of, cut_out, instances
from flowward.rewards.objects.geneval_rules import Found


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
