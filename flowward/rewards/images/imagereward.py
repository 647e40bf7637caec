"""ImageReward: human preference from BLIP with cross-attention between prompt and image, run by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients import Smooth
from ..network import NetworkReward, Preprocess, Resident, linears, shared, weights
from ..revisions import located

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, from the authors' release
TOKENS = 35  # prompts are truncated to this length
HEAD = 64  # width of an attention head, in both the vision and the text model
PIXELS = Preprocess(
    (224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", "crop"
)
VISION = {  # the checkpoint: transformers
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with this prefix in their names, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def vision_of(state: Mapping[str, Tensor]) -> nn.Module:
    """transformers' BlipVisionModel from the weights of `visual_encoder`, which also give its sizes.

    Raises:
        KeyError, RuntimeError: the weights belong to another model.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    made = {}
    for key, value in state.items():
        where, name, names = "", key, VISION
        if key.startswith("blocks."):
            _, number, name = key.split(".", 2)
            where, names = f"encoder.layers.{number}.", BLOCK
        for old in names:
            if name == old or name.startswith(f"{old}."):
                made[where + names[old] + name.removeprefix(old)] = value
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        num_attention_heads=width // HEAD,
        image_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return filled(BlipVisionModel(config), made)


def text_of(state: Mapping[str, Tensor]) -> nn.Module:
    """transformers' BlipTextModel from the weights of `text_encoder`, which already have its names.

    Raises:
        KeyError, RuntimeError: the weights belong to another model.
    """
    from transformers import BlipTextConfig, BlipTextModel

    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=len({key.split(".")[2] for key in state if key.startswith("encoder.layer.")}),
        num_attention_heads=width // HEAD,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        hidden_dropout_prob=0.0,
    )
    return filled(BlipTextModel(config, add_pooling_layer=False), state)


def filled(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load weights into the network; extra weights are ignored.

    Raises:
        KeyError, RuntimeError: weights are missing, or have another shape.
    """
    if missing := network.load_state_dict(state, strict=False).missing_keys:
        raise KeyError(missing[0])
    return network


class Blip(nn.Module):
    """One number from image and prompt: the first token of a text encoder with attention to image patches."""

    def __init__(self, state: Mapping[str, Tensor], name: str):
        super().__init__()
        self.vision = vision_of(under("blip.visual_encoder.", state))
        self.text = text_of(under("blip.text_encoder.", state))
        self.head = linears(under("mlp.", state), name)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores [B] from pixels [B, 3, H, W], tokens and mask [B, L]."""
        patches = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
        ).last_hidden_state
        raw: Tensor = self.head(read[:, 0]).squeeze(-1)
        return (raw.float() - MEAN) / STD


@dataclass
class ImageReward(Smooth, NetworkReward):
    """Human preference for an image given its prompt.

    Scale: normalised so that the authors' images have mean 0 and standard deviation 1; unbounded, in practice -2.3 to
    2. Prompts are truncated after 35 tokens. The network processes image and prompt together, so prompts are not
    cached. Xu et al., 2023, arXiv:2304.05977 (Apache-2.0). The checkpoint is a pickle; only tensors are read from it.
    """

    model: str = "zai-org/ImageReward"
    """load from this hub id, folder or checkpoint file"""
    file: str = "ImageReward.pt"
    """use this checkpoint of it"""
    tokenizer: str = "google-bert/bert-base-uncased"
    """load the tokenizer from this hub id or folder"""

    def __post_init__(self) -> None:
        from transformers import AutoTokenizer

        from ...models import hub

        super().__post_init__()
        place = self.place()
        hub.quiet()
        name, revision = located(self.tokenizer)
        with hub.explained(self.tokenizer):
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self._resident = shared((ImageReward, self.model, self.file, place), lambda: self._load(place))

    def _load(self, place: tuple[str, torch.dtype, bool]) -> Resident:
        from ...models import hub

        path = hub.file(*located(self.model), self.file)
        state = weights(path)
        try:
            network = Blip(state, str(path))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not an ImageReward checkpoint: {' '.join(str(error).split())[:200]}"
            ) from error
        return Resident(network, *place)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.expect(images, prompts)
        read = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        device, dtype = self._resident.device, self._resident.dtype
        with self._resident.at_work(images.requires_grad) as network:
            parts = [
                network(PIXELS(part.to(device)).to(dtype), tokens.to(device), mask.to(device)).cpu()
                for part, tokens, mask in zip(
                    images.split(self.batch),
                    read.input_ids.split(self.batch),
                    read.attention_mask.split(self.batch),
                    strict=True,
                )
            ]
        return torch.cat(parts)
