"""Objects and their colours in pictures: Mask2Former for COCO's classes, CLIP for ten colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..prompt_sets.geneval import CLASSES, COLOURS
from .geneval_rules import Found

Pixels = NDArray[np.uint8]  # [H, W, 3]

NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's own names, where GenEval's are others"""
GREY = 153  # what lies around an object whose colour is asked for: #999
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
SLIM = 8  # a crop is trimmed to this aspect, since only its middle square is looked at


@cache
def detector(name: str, device: str, dtype: str, offload: bool) -> Detector:
    """One per setting: a run that trains on a reward and measures it loads the networks once.

    Raises:
        ValueError: it cannot be loaded, or does not know COCO's classes.
    """
    try:
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil
    except ImportError as error:
        raise ValueError(f"GenEval needs a newer transformers: {str(error).splitlines()[0]}") from error

    network = _loaded(Mask2FormerForUniversalSegmentation, name, dtype)
    return Detector(name, network, _from(Mask2FormerImageProcessorPil, name), device, offload)


def usable(device: str) -> str:
    """The device, where `auto` is a GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(0, device=chosen)
    except Exception as error:  # of torch and drivers, of many kinds
        raise ValueError(f"device '{device}' cannot be used: {str(error).split(chr(10))[0]}") from error
    return chosen


@cache
def namer(name: str, device: str, dtype: str, offload: bool) -> ColourNamer:
    """The same for colours.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
    except ImportError as error:
        raise ValueError(f"GenEval needs a newer transformers: {str(error).splitlines()[0]}") from error

    network = _loaded(CLIPModel, name, dtype)
    return ColourNamer(network, _from(CLIPImageProcessorPil, name), _from(AutoTokenizer, name), device, offload)


def _from(kind: Any, name: str, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(name, **settings)
    except Exception as error:  # the hub, the network, the files: they fail in many ways
        said = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise ValueError(f"'{name}' cannot be loaded as {kind.__name__}: {said}") from error


def _loaded(kind: Any, name: str, dtype: str) -> torch.nn.Module:
    """A network in evaluation mode.

    Raises:
        ValueError: it cannot be loaded, or the file lacks some of its weights, which would then be random.
    """
    network, found = _from(kind, name, dtype=getattr(torch, dtype), output_loading_info=True)
    missing = sorted(set(found["missing_keys"]) & {key for key, _ in network.named_parameters()})
    if missing:
        raise ValueError(f"'{name}' is no {kind.__name__}: it lacks {len(missing)} weights, such as {missing[0]}")
    made: torch.nn.Module = network.eval().requires_grad_(False)
    return made


@contextmanager
def _at_work(network: torch.nn.Module, device: str, offload: bool) -> Iterator[None]:
    """The network on its device, and back in main memory afterwards where it is offloaded."""
    network.to(device)
    try:
        with torch.inference_mode():
            yield
    finally:
        if offload:
            network.to("cpu")


class Detector:
    """Mask2Former: instances of COCO's 80 classes, with scores and masks.

    An instance's score is the probability of its class times the mean probability of its mask, as in Mask2Former
    (Cheng et al., 2022, arXiv:2112.01527).
    """

    def __init__(self, name: str, network: Any, processor: Any, device: str, offload: bool):
        self.network, self.processor, self.device, self.offload = network, processor, device, offload
        labels = [NAMES.get(label.lower(), label.lower()) for _, label in sorted(network.config.id2label.items())]
        if lacking := sorted(set(CLASSES) - set(labels)):
            raise ValueError(
                f"detector '{name}' does not know {len(lacking)} of COCO's classes, such as '{lacking[0]}'"
            )
        self.labels = labels

    def __call__(self, pictures: Sequence[Pixels], confidence: float) -> list[dict[str, list[Found]]]:
        """Pictures of one size -> for each, by class, the objects with a score above `confidence`."""
        with _at_work(self.network, self.device, self.offload):
            inputs = self.processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.device, self.network.dtype)
            output = self.network(pixel_values=pixels, pixel_mask=inputs["pixel_mask"].to(self.device))
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
    """(class, score, mask [H, W]) of one picture's queries, those with a score above `confidence`, the surest first.

    Args:
        classes: logits [Q, C + 1], the last of which says that there is nothing.
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
    """The box around a mask that is not empty: right and bottom are the first column and row after it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def cut_out(picture: Pixels, found: Found) -> Image.Image:
    """An object alone: what is not in its mask is grey, what is not in its box is cut off."""
    shown = picture if found.mask is None else np.where(found.mask[..., None], picture, np.uint8(GREY))
    left, top, right, bottom = (int(edge) for edge in found.box)
    width, height = right - left, bottom - top
    across, down = max(0, width - SLIM * height) // 2, max(0, height - SLIM * width) // 2
    return Image.fromarray(shown[top + down : bottom - down, left + across : right - across])


class ColourNamer:
    """CLIP, zero-shot: which of the ten colours is nearest to an object, given what it is."""

    def __init__(self, network: Any, processor: Any, tokenizer: Any, device: str, offload: bool):
        self.network, self.processor, self.tokenizer = network, processor, tokenizer
        self.device, self.offload = device, offload
        self._texts: dict[str, Tensor] = {}

    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """Cut-out objects and their classes -> the colour of each."""
        if not crops:
            return []
        with _at_work(self.network, self.device, self.offload):
            inputs = self.processor(images=list(crops), input_data_format="channels_last", return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.device, self.network.dtype)
            seen = _unit(self.network.get_image_features(pixel_values=pixels))
            known = torch.stack([self._colours_of(name) for name in names])
            nearest = torch.einsum("bd,bcd->bc", seen, known).argmax(1)
        return [COLOURS[index] for index in nearest.tolist()]

    def _colours_of(self, name: str) -> Tensor:
        """The directions of the ten colours of a class, [10, D], each the mean over the templates."""
        if name not in self._texts:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            length = self.network.config.text_config.max_position_embeddings
            inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            inputs = inputs.to(self.device)
            words = _unit(self.network.get_text_features(**inputs)).view(len(COLOURS), len(TEMPLATES), -1)
            self._texts[name] = functional.normalize(words.mean(1), dim=-1)
        return self._texts[name].to(self.device)


def _unit(features: Any) -> Tensor:
    """Projected features of CLIP on the unit sphere, float32."""
    return functional.normalize(getattr(features, "pooler_output", features).float(), dim=-1)
