"""Stable Audio 3 (2026, arXiv:2605.17991): music and sound effects from a text."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule
from torch import Tensor

from ..reading import Reader
from .sound import ADAPTABLE, Sound

LOW, HIGH = -6.2, 2.0  # the pipeline's ends of the logarithm of signal to noise


class StableAudio3(Sound):
    """Stereo. T5Gemma reads the text, always padded to 256 tokens, and the padding has an effect.

    The released medium model is step-distilled (`stochastic_sampling` in its scheduler); the base model is a flow.
    """

    pipelines = ("StableAudio3Pipeline",)
    targets = ("to_qkv", "to_q", "to_kv", "to_out")
    text_tokens, fixed_text = 256, "256 text tokens, always"
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})
    lora_first = ADAPTABLE
    usual = 10.0

    @property
    def longest(self) -> float:
        longest: float = self.pipe.duration_embedder.config.max_val
        return longest

    @property
    def hop(self) -> int:
        hop: int = self.pipe.vae.downsampling_ratio
        return hop

    @property
    def steps(self) -> int:
        return ceil(self.seconds * self.rate / self.hop)

    @property
    def heard(self) -> tuple[int, int]:
        return self.pipe.vae.config.audio_channels, int(self.seconds * self.rate)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pipe.vae.config.latent_dim, self.steps)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask = self.pipe.encode_prompt(prompts, self.pipe.transformer.device, 1)
        return {"words": words, "kept": mask}  # not "mask", whose padding may be left out

    def readers(self) -> list[Reader]:
        return [Reader("T5Gemma", self.pipe.tokenizer, min(self.text_tokens, self.pipe.tokenizer.model_max_length))]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        length = self.pipe.encode_duration(self.seconds, x.device, 1, len(x)).to(x.dtype)
        words, mask = self.pipe.prepare_cross_attention(condition["words"], condition["kept"], length)
        v: Tensor = network(
            x,
            t * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=words,
            global_hidden_states=length,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return v

    def sized_by(self) -> dict[str, Any]:
        return {"duration": self.seconds}

    def scheduler(self) -> Any:
        """Without the noise that the sampler of a distilled model adds."""
        known = {**self.pipe.scheduler.config, "stochastic_sampling": False}
        return FlowMatchEulerDiscreteScheduler.from_config(known)

    def times(self, steps: int) -> tuple[float, ...]:
        scheduler = self.scheduler()
        scheduler.set_timesteps(sigmas=logsnr_sigma_schedule(steps, LOW, HIGH))
        return tuple(scheduler.sigmas.double().tolist())

    def decode(self, x0: Tensor) -> Tensor:
        waveform: Tensor = self.pipe.vae.decode(x0).sample
        return waveform[..., : self.heard[1]]

    def encode_images(self, images: Tensor) -> Tensor:
        z: Tensor = self.pipe.vae.encode(images).latents
        return z
