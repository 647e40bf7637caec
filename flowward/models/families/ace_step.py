"""ACE-Step 1.5: songs and music from a description and lyrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.pipelines.ace_step import pipeline_ace_step
from torch import Tensor, nn

from ...process.distilled import Sign
from ..reading import Reader
from .sound import Sound

SHIFT = 3.0  # the pipeline's default
PEAK = 10 ** (-1 / 20)  # of every waveform: -1 dB
LYRICS = re.compile(r"^\s*\[", re.MULTILINE)  # they begin at the first line with a part, such as [verse]
GUIDED = {"eta": 0.0, "norm_threshold": 2.5, "use_original_formulation": True}


class AceStep(Sound):
    """Stereo. A prompt is a description; from its first line with a part in brackets, such as [verse], it is lyrics.

    The pipeline pads the texts of a batch to the same length and attends to the padding, so a sound depends on its
    batch. Here each prompt is as in a batch of its own. Guidance is projected (APG, arXiv:2410.02416), without the
    momentum over earlier steps that the pipeline adds: a velocity is a function of x, t and the prompt.
    """

    pipelines = ("AceStepPipeline",)
    masks_text = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 256
    encoders = ("condition_encoder",)
    usual = 60.0

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        if pipe.is_turbo:  # guidance is part of its weights
            self.guidance = "none"  # type: ignore[misc]

    @property
    def reads(self) -> list[Any]:
        return [self.seconds]  # which the prompt names

    @property
    def hop(self) -> int:
        return prod(self.pipe.vae.config.downsampling_ratios)

    @property
    def steps(self) -> int:
        return ceil(self.seconds * self.pipe.latents_per_second)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pipe.transformer.config.audio_acoustic_hidden_dim, self.steps)

    def distilled(self) -> list[Sign]:
        turbo = [Sign("`is_turbo: true`", "transformer/config.json", "certain")] * bool(self.pipe.is_turbo)
        return [*super().distilled(), *turbo]

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        rows = [self._encoded(*parts(prompt)) for prompt in prompts]
        return {
            "words": nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "mask": nn.utils.rnn.pad_sequence([row.new_ones(len(row)) for row in rows], batch_first=True),
        }

    def _encoded(self, description: str, lyrics: str) -> Tensor:
        """Lyrics, timbre and description of one prompt: [L, D]."""
        encoder = self.pipe.condition_encoder
        text, text_mask, sung, sung_mask = self.pipe.encode_prompt(
            description, lyrics, encoder.device, audio_duration=self.seconds, max_text_length=self.text_tokens
        )
        reference = encoder.silence_latent[:, : ceil(30 * self.pipe.latents_per_second)].to(text.dtype)
        first = torch.zeros(1, dtype=torch.long, device=text.device)
        words, _ = encoder(text, text_mask, sung, sung_mask, reference, first)
        row: Tensor = words[0]
        return row

    def empty(self) -> dict[str, Tensor]:
        """A learned token: as many copies of it as a prompt has tokens have the same effect."""
        token: Tensor = self.pipe.condition_encoder.null_condition_emb.detach()
        return {"words": token, "mask": token.new_ones(1, 1)}

    def readers(self) -> list[Reader]:
        return [self._longest("Qwen3", self.pipe.tokenizer, form=self._described)]

    def _described(self, prompt: str) -> str:
        text, _ = self.pipe._format_prompt(*parts(prompt), audio_duration=self.seconds)
        return str(text)

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        given, time = x.transpose(1, 2), t.to(x.dtype)  # the network embeds a time in the precision that it comes in
        silent = self.pipe.condition_encoder.silence_latent  # [1, 15000, C], repeated for longer sounds
        silence = silent[:, torch.arange(x.shape[-1], device=x.device) % silent.shape[1]].to(x.dtype).expand_as(given)
        _let_carry(network)
        v: Tensor = network(
            given,
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=torch.cat([condition["words"], condition["mask"][..., None]], -1),
            context_latents=torch.cat([silence, torch.ones_like(silence)], -1),
            return_dict=False,
        )[0]
        return v.transpose(1, 2)

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        return normalized_guidance(v, v_0, scale - 1, norm_dim=(2,), **GUIDED)

    def sized_by(self) -> dict[str, Any]:
        own = {} if self.text_tokens == type(self).text_tokens else {"max_text_length": self.text_tokens}
        return {"audio_duration": self.seconds, **own}

    def times(self, steps: int) -> tuple[float, ...]:
        scheduler = self.scheduler()
        scheduler.set_timesteps(sigmas=self.pipe._get_timestep_schedule(steps, SHIFT).tolist())
        return tuple(scheduler.sigmas.double().tolist())

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time, and without momentum."""
        own, pipeline_ace_step.MomentumBuffer = pipeline_ace_step.MomentumBuffer, _no_momentum
        try:
            found = []
            for k, prompt in enumerate(prompts):
                description, lyrics = parts(prompt)
                start = x[k : k + 1].transpose(1, 2)
                found.append(super().reference([description], start, steps, guidance, lyrics=[lyrics], **more))
        finally:
            pipeline_ace_step.MomentumBuffer = own
        return torch.cat(found).transpose(1, 2)

    def decode(self, x0: Tensor) -> Tensor:
        """Waveforms whose largest value is PEAK, as the pipeline makes them."""
        waveform: Tensor = self.pipe.vae.decode(x0).sample.float()
        return waveform * (PEAK / waveform.abs().amax((1, 2), keepdim=True).clamp(min=1e-6))


def parts(prompt: str) -> tuple[str, str]:
    """Description and lyrics."""
    begin = LYRICS.search(prompt)
    return (prompt[: begin.start()].strip(), prompt[begin.start() :].strip()) if begin else (prompt, "")


def _no_momentum(momentum: float) -> None:
    return None


def _let_carry(network: Any) -> None:
    """Let text tokens carry their mask, as one more channel, to the cross-attention: diffusers gives it none.

    In a channel it is there too when gradient checkpointing runs a block again.
    """
    embedder = network.condition_embedder  # with adapters on it another module: ask now, not when the network is made
    if getattr(embedder, "carries", False):
        return
    embedder.carries = True
    embedder.register_forward_pre_hook(_without_mask)
    embedder.register_forward_hook(_with_mask)
    for block in network.layers:
        block.cross_attn.register_forward_pre_hook(_masked, with_kwargs=True)


def _without_mask(embedder: Any, given: tuple[Tensor]) -> tuple[Tensor] | None:
    (words,) = given
    embedder.kept = words[..., embedder.in_features :]
    return (words[..., : embedder.in_features],)


def _with_mask(embedder: Any, given: tuple[Tensor], found: Tensor) -> Tensor:
    return torch.cat([found, embedder.kept.to(found.dtype)], -1)


def _masked(attention: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    words, width = named["encoder_hidden_states"], attention.to_k.in_features
    if words.shape[-1] == width:  # from the pipeline
        return given, named
    mask = words[:, None, None, :, width] > 0
    return given, {**named, "encoder_hidden_states": words[..., :width], "attention_mask": mask}
