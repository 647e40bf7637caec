"""Detect objects and their colours: Mask2Former for COCO's classes, CLIP for ten colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...prompts.geneval import CLASSES, COCO, COLOURS
from ..images.clip import Clip
from ..network import Place, Resident, shared
from ..revisions import located
from .geneval_rules import Found

Pixels = NDArray[np.uint8]  # [H, W, 3]

GREY = 153  # background of an object whose colour is classified: #999
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
SLIM = 8  # maximum aspect ratio of a crop, because CLIP sees only its centre square


def detector(name: str, place: Place) -> Detector:
    """Load Mask2Former from a folder or the hub, shared by all rewards with the same settings.

    Raises:
        ValueError: it cannot be loaded, lacks weights, or does not know COCO's classes.
    """
    return shared((Detector, name, place), lambda: _detector(name, place))


def _detector(model: str, place: Place) -> Detector:
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    from ...models import hub

    hub.quiet()
    name, revision = located(model)
    with hub.explained(model):
        network, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            name, revision=revision, output_loading_info=True
        )
        processor = Mask2FormerImageProcessorPil.from_pretrained(name, revision=revision)
    if missing := sorted({key for key, _ in network.named_parameters()} & set(report["missing_keys"])):
        raise ValueError(
            f"{model} is an incomplete Mask2Former: {len(missing)} weights are missing, such as {missing[0]}"
        )
    return Detector(model, Resident(network, *place), processor)


class Detector:
    """Mask2Former: instances of COCO's 80 classes, with scores and masks.

    An instance's score is the probability of its class times the mean probability of its mask, as in Mask2Former
    (Cheng et al., 2022, arXiv:2112.01527).
    """

    def __init__(self, name: str, resident: Resident, processor: Any):
        self.resident, self.processor = resident, processor
        known = resident.network.config.id2label
        labels = [COCO.get(label.lower(), label.lower()) for _, label in sorted(known.items())]
        if lacking := sorted(set(CLASSES) - set(labels)):
            raise ValueError(
                f"detector '{name}' lacks {len(lacking)} of COCO's classes, such as '{lacking[0]}'; use a COCO model"
            )
        self.labels = labels

    def __call__(self, pictures: Sequence[Pixels], confidence: float) -> list[dict[str, list[Found]]]:
        """Pictures of one size -> for each, its objects by class, with a score above `confidence`."""
        device, dtype = self.resident.device, self.resident.dtype
        with self.resident.at_work() as network:
            inputs = self.processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
            pixels = inputs["pixel_values"].to(device, dtype)
            output = network(pixel_values=pixels, pixel_mask=inputs["pixel_mask"].to(device))
            size = pictures[0].shape[:2]
            logits = zip(output.class_queries_logits.float(), output.masks_queries_logits.float(), strict=True)
            return [self._objects(classes, masks, size, confidence) for classes, masks in logits]

    def _objects(
        self, classes: Tensor, masks: Tensor, size: tuple[int, ...], confidence: float
    ) -> dict[str, list[Found]]:
        found: dict[str, list[Found]] = {}
        for label, score, mask in instances(classes, masks, size, confidence):
            found.setdefault(self.labels[label], []).append(Found(box_of(mask), score, mask))
        return found


def instances(
    classes: Tensor, masks: Tensor, size: tuple[int, ...], confidence: float
) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """(class, score, mask [H, W]) of one picture's queries with a score above `confidence`, highest first.

    Args:
        classes: logits [Q, C + 1]; the last one is for "no object".
        masks: logits [Q, h, w].
        size: H and W.
    """
    probability = classes.softmax(-1)[:, :-1]
    query, label = (probability > confidence).nonzero().unbind(1)  # a score is never above its probability
    sure = probability[query, label]
    order = sure.argsort(descending=True, stable=True)[: len(classes)]
    query, label, sure = query[order], label[order], sure[order]
    if not len(query):
        return []
    grown = functional.interpolate(masks[query][None], size=size, mode="bilinear", align_corners=False)[0]
    inside = grown > 0
    area = inside.sum((1, 2))
    score = sure * (grown.sigmoid() * inside).sum((1, 2)) / (area + 1e-6)
    chosen = ((score > confidence) & (area > 0)).nonzero().flatten()
    chosen = chosen[score[chosen].argsort(descending=True, stable=True)]
    cut = inside[chosen].cpu().numpy()
    return list(zip(label[chosen].tolist(), score[chosen].tolist(), cut, strict=True))


def box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The box around a non-empty mask; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def cut_out(picture: Pixels, found: Found) -> Image.Image:
    """Cut out an object: crop to its box, with grey outside its mask."""
    shown = picture if found.mask is None else np.where(found.mask[..., None], picture, np.uint8(GREY))
    left, top, right, bottom = (int(edge) for edge in found.box)
    width, height = right - left, bottom - top
    across, down = max(0, width - SLIM * height) // 2, max(0, height - SLIM * width) // 2
    return Image.fromarray(shown[top + down : bottom - down, left + across : right - across])


class ColourNamer:
    """Zero-shot CLIP: the most similar of ten colours, given an object's class."""

    def __init__(self, clip: Clip):
        self.clip = clip

    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str], batch: int) -> list[str]:
        """The colour of each cut-out object, given its class."""
        if not crops:
            return []
        pixels = [torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255 for crop in crops]
        known = {name: self._colours_of(name, batch) for name in dict.fromkeys(names)}
        directions = torch.stack([known[name] for name in names])
        nearest = torch.einsum("bd,bcd->bc", self.clip.images(pixels, batch), directions).argmax(1)
        return [COLOURS[index] for index in nearest.tolist()]

    def _colours_of(self, name: str, batch: int) -> Tensor:
        """Text embeddings [10, D] of a class in ten colours, averaged over the templates."""
        texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
        words = self.clip.texts(texts, batch).view(len(COLOURS), len(TEMPLATES), -1)
        return functional.normalize(words.mean(1), dim=-1)
