"""A Mask2Former so small that it runs in no time, with weights from a formula; it is sure of what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tiny_clip import fill

from flowward.prompts.geneval import CLASSES

OTHERWISE = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
LABELS = [OTHERWISE.get(name, name) for name in CLASSES]  # as the hub's weights name COCO's classes


def unfilled(labels: Sequence[str]) -> transformers.Mask2FormerForUniversalSegmentation:
    """With the weights of an initialisation."""
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
        id2label=dict(enumerate(labels)), label2id={name: number for number, name in enumerate(labels)},
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


def network() -> transformers.Mask2FormerForUniversalSegmentation:
    with torch.random.fork_rng(devices=[]):
        made = unfilled(LABELS)
    fill(made)
    with torch.no_grad():
        made.class_predictor.weight.mul_(8)
    return made


def save(folder: Path, made: transformers.Mask2FormerForUniversalSegmentation | None = None) -> str:
    (made or network()).save_pretrained(folder)
    transformers.Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)
