"""LongCat-AudioDiT: speech and sound effects from a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import _normalize_text
from torch import Tensor, nn

from ..reading import Reader
from .sound import ADAPTABLE, Sound


class LongCatAudio(Sound):
    """One channel. UMT5 reads the text; the network takes 1 - t and time before channels, and returns -v.

    The pipeline pads the texts of a batch to the same length, and convolutions over the text carry the padding into the
    prompts, so a sound depends on its batch. Here each prompt is as in a batch of its own. The empty prompt has the
    length of the prompt, and zeros.
    """

    pipelines = ("LongCatAudioDiTPipeline",)
    masks_text = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens, fixed_text = 512, "as many text tokens as its tokenizer"
    emptied = ("words",)
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})
    lora_first = ADAPTABLE
    usual = 10.0

    @property
    def longest(self) -> float:
        longest: float = self.pipe.max_wav_duration
        return longest

    @property
    def rate(self) -> int:
        rate: int = self.pipe.vae.config.sample_rate
        return rate

    @property
    def hop(self) -> int:
        hop: int = self.pipe.vae_scale_factor
        return hop

    @property
    def steps(self) -> int:
        return int(self.seconds * self.rate // self.hop)

    @property
    def heard(self) -> tuple[int, int]:
        return self.pipe.vae.config.in_channels, self.steps * self.hop

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pipe.latent_dim, self.steps)

    def joined(self, transformers: Mapping[str, Any]) -> Any:
        network: Any = super().joined(transformers)
        if not network._forward_pre_hooks:
            network.register_forward_pre_hook(_told_of_padding, with_kwargs=True)
            for block in network.text_conv_layer if network.text_conv else ():
                for each in (block, block.grn):
                    each.register_forward_pre_hook(_without_padding)
        return network

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, lengths = self.pipe.encode_prompt(
            [_normalize_text(each) for each in prompts], self.pipe.transformer.device
        )
        mask = (torch.arange(words.shape[1], device=words.device) < lengths[:, None]).to(words.dtype)
        return {"words": words * mask[..., None], "mask": mask}

    def readers(self) -> list[Reader]:
        known = self.pipe.tokenizer.model_max_length
        most = known if 0 < known <= 32_768 else self.text_tokens  # as the pipeline does
        return [Reader("UMT5", self.pipe.tokenizer, most, form=_normalize_text)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        given = x.transpose(1, 2)
        v: Tensor = network(
            hidden_states=given,
            encoder_hidden_states=condition["words"],
            encoder_attention_mask=condition["mask"] > 0,
            timestep=1 - t,
            latent_cond=torch.zeros_like(given),
            return_dict=False,
        )[0]
        return -v.transpose(1, 2)

    def sized_by(self) -> dict[str, Any]:
        return {"audio_duration_s": self.seconds}

    def times(self, steps: int) -> tuple[float, ...]:
        """The scheduler's own run from 0 to 1."""
        return tuple(1 - sigma for sigma in super().times(steps))

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time."""
        found = [
            super(LongCatAudio, self).reference([prompt], x[k : k + 1].transpose(1, 2), steps, guidance, **more)
            for k, prompt in enumerate(prompts)
        ]
        return torch.cat(found).transpose(1, 2)

    def decode(self, x0: Tensor) -> Tensor:
        waveform: Tensor = self.pipe.vae.decode(x0).sample
        return waveform

    def encode_images(self, images: Tensor) -> Tensor:
        z: Tensor = self.pipe.vae.encode(images, sample_posterior=False).latents
        return z


def _told_of_padding(network: Any, given: Any, named: Any) -> None:
    """Before a pass, let the convolutions over the text know which tokens are padding."""
    kept = named["encoder_attention_mask"][..., None]
    for block in network.text_conv_layer if network.text_conv else ():
        block.kept = block.grn.kept = kept


def _without_padding(layer: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0] * layer.kept,)  # type: ignore[operator]
