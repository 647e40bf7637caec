"""HPSv2.1: human preference as a cosine. An open_clip checkpoint, run by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..gradients import Smooth
from ..network import NetworkReward, shared, weights
from ..revisions import located
from .clip import Clip, cosines, pretrained, readers

PARTS = {  # open_clip: transformers
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an open_clip model to those of transformers' CLIPModel.

    Both models are equal; open_clip stores queries, keys and values in one matrix, and projections transposed.

    Raises:
        ValueError: a key does not belong to an open_clip model.
    """
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in PROJECTIONS:
            made[PROJECTIONS[key]] = value.T.contiguous()
        elif key == "logit_scale":
            made[key] = value
        elif not key.endswith("attn_mask"):  # a constant
            made |= _of_tower(key, value)
    return made


def _of_tower(key: str, value: Tensor) -> dict[str, Tensor]:
    tower = "vision_model" if key.startswith("visual.") else "text_model"
    rest = key.removeprefix("visual.")
    if rest.startswith("transformer.resblocks."):
        _, _, number, name = rest.split(".", 3)
        return {f"{tower}.encoder.layers.{number}.{new}": part for new, part in _of_block(key, name, value).items()}
    for old, new in PARTS.items():
        if rest == old or rest.startswith(f"{old}."):
            return {f"{tower}.{new}{rest.removeprefix(old)}": value}
    raise ValueError(f"'{key}' is not a weight of an open_clip model")


def _of_block(key: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        return {
            f"self_attn.{part}_proj.{kind}": third.contiguous()
            for part, third in zip("qkv", value.chunk(3), strict=True)
        }
    module, _, kind = name.rpartition(".")
    if module not in BLOCK:
        raise ValueError(f"'{key}' is not a weight of an open_clip model")
    return {f"{BLOCK[module]}.{kind}": value}


@dataclass
class HPSv2(Smooth, NetworkReward):
    """Human Preference Score v2.1: the cosine of a CLIP H/14 trained on human choices between images.

    Scale: the cosine, without the logit scale. Range in theory [-1, 1]; images of good models mostly score 0.25 to
    0.33. Non-square images are padded with black, as in the authors' code, not cropped.
    Wu et al., 2023, arXiv:2306.09341 (Apache-2.0). The checkpoint is a pickle; only tensors are read from it.
    """

    model: str = "xswu/HPSv2"
    """load from this hub id, folder or checkpoint file"""
    file: str = "HPS_v2.1_compressed.pt"
    """use this checkpoint of it (HPS_v2_compressed.pt: the earlier version)"""
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """load configuration, tokenizer and image processor from this hub id or folder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        place = self.place()
        self._clip = shared((HPSv2, self.model, self.file, self.processor, place), lambda: self._load(place))

    def _load(self, place: Any) -> Clip:
        from transformers import CLIPConfig

        from ...models import hub

        hub.quiet()
        name, revision = located(self.processor)
        with hub.explained(self.processor):
            config = CLIPConfig.from_pretrained(name, revision=revision)
        tokenizer, preprocess = readers(self.processor)
        state = converted(weights(hub.file(*located(self.model), self.file)))
        network = pretrained(self.model, state, config)
        return Clip(network, tokenizer, replace(preprocess, fit="pad"), place)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        return cosines(self._clip, images, prompts, self.batch)
