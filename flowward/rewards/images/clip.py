"""Rewards that are a cosine between an image and its prompt: PickScore and CLIPScore; and the CLIP behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...system.errors import positive
from ..network import Embedded, NetworkReward, Place, Preprocess, Resident, shared


class Clip:
    """A CLIP model (Radford et al., 2021, arXiv:2103.00020): images and texts as vectors of length 1.

    Raises:
        ValueError: the tokenizer is not the model's.
    """

    def __init__(self, network: Any, tokenizer: Any, preprocess: Preprocess, place: Place):
        known, read = len(tokenizer), network.config.text_config.vocab_size
        if not read // 2 < known <= read:  # transformers makes a tokenizer of a folder without its files, too
            raise ValueError(
                f"the tokenizer knows {known} tokens and the text model {read}: its files are missing, or are of "
                "another model"
            )
        self.scale = float(network.logit_scale.detach().float().exp())  # half precision would be off by 0.03 %
        self.width: int = network.config.projection_dim
        self.resident, self.tokenizer, self.preprocess = Resident(network, *place), tokenizer, preprocess
        self._texts = Embedded(self._embed_texts)

    def images(self, images: Tensor | Sequence[Tensor], batch: int) -> Tensor:
        """[B, 3, H, W] in [0, 1], or B images [3, H, W] of any sizes -> [B, D], float32 on the CPU.

        Raises:
            RewardError: the memory of the device is full.
        """
        with self.resident.at_work() as network:
            parts = [
                _vectors(network.get_image_features(pixel_values=self._prepared(images[start : start + batch])))
                for start in range(0, len(images), batch)
            ]
        return torch.cat(parts)

    def _prepared(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        device, dtype = self.resident.device, self.resident.dtype
        if isinstance(images, Tensor):
            return self.preprocess(images.to(device)).to(dtype)
        return torch.cat([self.preprocess(image[None].to(device)) for image in images]).to(dtype)

    def texts(self, prompts: Sequence[str], batch: int) -> Tensor:
        """B prompts -> [B, D], float32 on the CPU. A prompt is embedded once, and cut where the model stops reading.

        Raises:
            RewardError: the memory of the device is full.
        """
        return self._texts(prompts, batch)

    def _embed_texts(self, prompts: list[str], batch: int) -> Tensor:
        length = self.resident.network.config.text_config.max_position_embeddings
        # Always the whole length: the text model looks back only, so padding changes nothing, and shapes stay the same.
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        with self.resident.at_work() as network:
            parts = [
                _vectors(network.get_text_features(input_ids=part.to(self.resident.device)))
                for part in tokens.split(batch)
            ]
        return torch.cat(parts)


def _vectors(features: Any) -> Tensor:
    """Of length 1; transformers 5 returns features in an object, earlier versions did not."""
    plain: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(plain.float(), dim=-1).cpu()


def load(reward: NetworkReward, processor: str = "") -> Clip:
    """A CLIP model from a folder or the hub, with tokenizer and image processor (of `processor`, if it has none).

    Raises:
        ValueError: it cannot be found or read, lacks weights, or is no CLIP model; there is no such device.
    """
    return of(reward.model, processor or reward.model, reward.place())


def of(model: str, source: str, place: Place) -> Clip:
    """The same from the model, from where its tokenizer and image processor are, and where it should run."""
    return shared((Clip, model, source, place), lambda: Clip(pretrained(model), *readers(source), place))


def pretrained(model: str, state: Mapping[str, Tensor] | None = None, config: Any = None) -> nn.Module:
    """transformers' CLIPModel, from where `model` says or from a state of its keys.

    Raises:
        ValueError: it cannot be read, or does not have exactly the weights of such a model.
    """
    from transformers import AutoConfig, CLIPModel

    from ...models import hub

    hub.quiet()
    with hub.explained(model):
        config = config or AutoConfig.from_pretrained(model)
    if config.model_type != "clip":
        raise ValueError(f"{model} is not a CLIP model, but {config.model_type}")
    with hub.explained(model):
        network, report = CLIPModel.from_pretrained(
            None if state is not None else model, config=config, state_dict=state, output_loading_info=True
        )
    # What a checkpoint lacks would be left random, and every score with it.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{model} is not a whole CLIP model: {missing[0]} is missing ({len(missing)} weights in all)")
    made: nn.Module = network
    return made


def readers(source: str) -> tuple[Any, Preprocess]:
    """Tokenizer and image preprocessing of a model.

    Raises:
        ValueError: they cannot be found or read, or do what is not known here.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    from ...models import hub

    with hub.explained(source):
        return AutoTokenizer.from_pretrained(source), Preprocess.of(AutoImageProcessor.from_pretrained(source))


@dataclass
class PickScore(NetworkReward):
    """How a person would choose among images for a prompt: logit scale times cosine of a CLIP H/14 trained on choices.

    Scale: 100 cos. Range in theory [-100, 100]; images of a good model mostly score 18 to 24, and the difference
    between two images is the log odds of a choice. Some frameworks divide by 26 (`divisor=26`).
    Kirstain et al., 2023, arXiv:2305.01569; weights and data under the licence on their page.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """id or folder of tokenizer and image processor (empty: those of `model`)"""
    divisor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "divisor")
        self._clip = load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        return cosines(self._clip, images, prompts, self.batch) * self._clip.scale / self.divisor


@dataclass
class CLIPScore(NetworkReward):
    """Does an image show what its prompt says: the cosine of their CLIP embeddings.

    Scale: the cosine. Range in theory [-1, 1]; images that fit their prompt mostly score 0.2 to 0.35. The score of the
    paper is 2.5 max(cos, 0) (`factor=2.5 floor=true`), torchmetrics' 100 max(cos, 0), that of the frameworks after
    Flow-GRPO 100 cos / 30. The paper has ViT-B/32 and begins each prompt with "A photo depicts"; this does not.
    Hessel et al., 2021, arXiv:2104.08718; weights of Radford et al., 2021 (MIT).
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """id or folder of tokenizer and image processor (empty: those of `model`)"""
    factor: float = 1.0
    floor: bool = False
    """score negative cosines 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "factor")
        self._clip = load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        scores = self.factor * cosines(self._clip, images, prompts, self.batch)
        return scores.clamp(min=0) if self.floor else scores


def cosines(clip: Clip, images: Tensor, prompts: Sequence[str], batch: int) -> Tensor:
    """Of each image [B, 3, H, W] with its prompt, [B]."""
    return (clip.images(images, batch) * clip.texts(prompts, batch)).sum(-1)
