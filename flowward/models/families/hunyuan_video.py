"""HunyuanVideo, from text to video, and SkyReels V1, from an image to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor
from torch.nn import functional

from ..lora import ATTENTION
from ..reading import Reader
from .family import Guidance
from .video import FromImage, Video, masked, most_likely


class HunyuanVideo(Video):
    """Llama reads an instruction and the prompt, CLIP gives one vector; guidance is a network input, times 1000.

    A network without that input is guided without a classifier.
    """

    pipelines = ("HunyuanVideoPipeline",)
    masks_text = True
    own = (720, 1280, 129)
    targets = ATTENTION
    guidance: ClassVar[Guidance] = "embedded"
    published = 6.0
    text_tokens = 256
    sigmas: ClassVar[Literal["scheduler", "even"]] = "even"
    template: ClassVar[dict[str, Any]] = DEFAULT_PROMPT_TEMPLATE

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        embedded = pipe.transformer.config.guidance_embeds
        self.guidance = "embedded" if embedded else "classifier-free"  # type: ignore[misc]

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words, pooled, mask = self.pipe.encode_prompt(prompts, max_sequence_length=self.text_tokens)
        return {**masked(words, mask), "pooled": pooled}

    def readers(self) -> list[Reader]:
        form, before = self.template["template"].format, self.template["crop_start"]
        long = self._longest("Llama", self.pipe.tokenizer, form=form, before=before)
        return [long, Reader("CLIP", self.pipe.tokenizer_2, 77)]

    def given(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The network's input for samples x [B, C, F, H, W]."""
        return x

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            self.given(x, condition),
            timestep=1000 * t,
            encoder_hidden_states=condition["words"],
            encoder_attention_mask=condition["mask"],
            pooled_projections=condition["pooled"],
            guidance=torch.full_like(t, 1000 * guidance),
            return_dict=False,
        )[0]
        return v

    def guided_by(self, scale: float) -> dict[str, Any]:
        if self.guidance == "embedded":
            return super().guided_by(scale)
        return {"true_cfg_scale": scale, "negative_prompt": self.nothing}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        if self.guidance != "embedded":
            more["negative_prompt"] = [self.nothing] * len(prompts)
        return super().reference(prompts, x, steps, guidance, **more)


class HunyuanSkyReels(FromImage, HunyuanVideo):
    """SkyReels V1: the source's latents come beside those of the first frame, and zeros beside the others.

    The pipeline draws the latents of the source at random; here they are the most likely ones.
    """

    pipelines = ("HunyuanSkyreelsImageToVideoPipeline",)
    own = (544, 960, 97)

    @property
    def channels(self) -> int:
        channels: int = self.pipe.transformer.config.in_channels // 2
        return channels

    def given(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        beside = functional.pad(condition["source"], (0, 0, 0, 0, 0, x.shape[2] - 1))
        return torch.cat([x, beside], 1)

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        with most_likely(self.pipe.vae):
            return super().alone(prompt, x, steps, guidance, **more)
