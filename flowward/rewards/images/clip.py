"""PickScore and CLIPScore, the cosine between an image and its prompt, and the CLIP model that they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...system.errors import positive
from ..gradients import Smooth
from ..network import Embedded, NetworkReward, Place, Preprocess, Resident, shared
from ..revisions import located


class Clip:
    """A CLIP model (Radford et al., 2021, arXiv:2103.00020): images and texts as vectors of length 1.

    Raises:
        ValueError: the tokenizer does not belong to the model.
    """

    def __init__(self, network: Any, tokenizer: Any, preprocess: Preprocess, place: Place):
        known, read = len(tokenizer), network.config.text_config.vocab_size
        if not read // 2 < known <= read:  # transformers also makes a tokenizer if its files are missing
            raise ValueError(
                f"the tokenizer has {known} tokens, but the text model {read}; its files are missing, or belong to "
                "another model"
            )
        self.scale = float(network.logit_scale.detach().float().exp())  # half precision would be wrong by 0.03 %
        self.width: int = network.config.projection_dim
        self.resident, self.tokenizer, self.preprocess = Resident(network, *place), tokenizer, preprocess
        self._texts = Embedded(self._embed_texts)

    def images(self, images: Tensor | Sequence[Tensor], batch: int) -> Tensor:
        """Embed images [B, 3, H, W] in [0, 1], or B images [3, H, W] of any sizes: [B, D], float32 on the CPU.

        Raises:
            RewardError: the device is out of memory.
        """
        with self.resident.at_work(_graphed(images)) as network:
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
        """Embed B prompts: [B, D], float32 on the CPU. Prompts are cached, and truncated at the model's token limit.

        Raises:
            RewardError: the device is out of memory.
        """
        return self._texts(prompts, batch)

    def _embed_texts(self, prompts: list[str], batch: int) -> Tensor:
        length = self.resident.network.config.text_config.max_position_embeddings
        # Always pad to full length: attention is causal, so padding changes nothing, and shapes stay the same.
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        with self.resident.at_work() as network:
            parts = [
                _vectors(network.get_text_features(input_ids=part.to(self.resident.device)))
                for part in tokens.split(batch)
            ]
        return torch.cat(parts)


def _graphed(images: Tensor | Sequence[Tensor]) -> bool:
    """Whether a gradient with respect to the images is wanted."""
    return isinstance(images, Tensor) and images.requires_grad


def _vectors(features: Any) -> Tensor:
    """Normalised features; transformers 5 returns them in an object, earlier versions as a tensor."""
    plain: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(plain.float(), dim=-1).cpu()


def load(reward: NetworkReward, processor: str = "") -> Clip:
    """Load a CLIP model from a folder or the hub; `processor` has the tokenizer and image processor (empty: the model).

    Raises:
        ValueError: it cannot be found or read, lacks weights, or is not a CLIP model; the device does not exist.
    """
    return of(reward.model, processor or reward.model, reward.place())


def of(model: str, source: str, place: Place) -> Clip:
    """The CLIP model `model`, with tokenizer and image processor from `source`, at this device and dtype."""
    return shared((Clip, model, source, place), lambda: Clip(pretrained(model), *readers(source), place))


def pretrained(model: str, state: Mapping[str, Tensor] | None = None, config: Any = None) -> nn.Module:
    """transformers' CLIPModel, from a folder or hub id, or from a state dict with its keys.

    Raises:
        ValueError: it cannot be read, or its weights do not match a CLIP model.
    """
    from transformers import AutoConfig, CLIPModel

    from ...models import hub

    hub.quiet()
    name, revision = located(model)
    with hub.explained(model):
        config = config or AutoConfig.from_pretrained(name, revision=revision)
    if config.model_type != "clip":
        raise ValueError(f"{model} is not a CLIP model, but of type {config.model_type}")
    with hub.explained(model):
        network, report = CLIPModel.from_pretrained(
            None if state is not None else name,
            revision=revision,
            config=config,
            state_dict=state,
            output_loading_info=True,
        )
    # transformers would leave missing weights random, and so make every score random.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{model} is an incomplete CLIP model: {len(missing)} weights are missing, such as {missing[0]}"
        )
    made: nn.Module = network
    return made


def readers(source: str) -> tuple[Any, Preprocess]:
    """Tokenizer and image preprocessing of a model.

    Raises:
        ValueError: they cannot be found or read, or their preprocessing is not supported.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    from ...models import hub

    name, revision = located(source)
    with hub.explained(source):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        return tokenizer, Preprocess.of(AutoImageProcessor.from_pretrained(name, revision=revision))


@dataclass
class PickScore(Smooth, NetworkReward):
    """Human preference for an image given its prompt: logit scale times cosine of a CLIP H/14 trained on human choices.

    Scale: 100 cos. Range in theory [-100, 100]; images of a good model mostly score 18 to 24. The difference between
    two images is the log odds that a person prefers one. Some frameworks divide by 26 (`divisor=26`).
    Kirstain et al., 2023, arXiv:2305.01569; weights and data under the licence on their page.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """load tokenizer and image processor from this hub id or folder (empty: those of `model`)"""
    divisor: float = 1.0
    """divide scores by this"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "divisor")
        self._clip = load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        return cosines(self._clip, images, prompts, self.batch) * self._clip.scale / self.divisor


@dataclass
class CLIPScore(Smooth, NetworkReward):
    """Prompt alignment: the cosine of the CLIP embeddings of an image and its prompt.

    Scale: the cosine. Range in theory [-1, 1]; images that fit their prompt mostly score 0.2 to 0.35. Other scales: the
    paper has 2.5 max(cos, 0) (`factor=2.5 floor=true`), torchmetrics 100 max(cos, 0), and frameworks that follow
    Flow-GRPO 100 cos / 30. The paper uses ViT-B/32 and starts each prompt with "A photo depicts"; flowward does not.
    Hessel et al., 2021, arXiv:2104.08718; weights of Radford et al., 2021 (MIT).
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    """load tokenizer and image processor from this hub id or folder (empty: those of `model`)"""
    factor: float = 1.0
    """multiply cosines by this"""
    floor: bool = False
    """replace negative cosines by 0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "factor")
        self._clip = load(self, self.processor)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        scores = self.factor * cosines(self._clip, images, prompts, self.batch)
        return scores.clamp(min=0) if self.floor else scores


def cosines(clip: Clip, images: Tensor, prompts: Sequence[str], batch: int) -> Tensor:
    """The cosine of each image [B, 3, H, W] with its prompt, [B]."""
    return (clip.images(images, batch) * clip.texts(prompts, batch)).sum(-1)
