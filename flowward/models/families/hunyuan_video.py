"""HunyuanVideo, from text or an image to video, and SkyReels V1, from an image to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as from_image
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...prompts import sources_of, text_of
from ..lora import ATTENTION
from ..reading import Reader
from .family import Guidance
from .video import FromImage, KeepsFirst, Video, masked, most_likely


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


NOISE = 0.999  # of the pipeline's start from an image; the rest is the source
MARKS = 4  # tokens behind a prompt that the pipeline cuts out of its text


class HunyuanImageToVideo(KeepsFirst, HunyuanVideo):
    """Llava reads the prompt beside the source, which is also the first latent frame.

    The empty prompt of a network without an input for guidance has a black picture. The pipeline mixes a thousandth of
    the source into the noise; here samples start from noise alone.
    """

    pipelines = ("HunyuanVideoImageToVideoPipeline",)
    template = from_image.DEFAULT_PROMPT_TEMPLATE
    one_time = True

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        if (kind := pipe.transformer.config.image_condition_type) != "token_replace":
            raise ValueError(
                f"{type(pipe).__name__} can be trained only if its first frame is the image (token_replace), not with "
                f"{kind}: use hunyuanvideo-community/HunyuanVideo-I2V"
            )
        super().__init__(pipe, *size, **more)

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [self._read(prompt) for prompt in prompts]
        words, pooled, mask = (torch.cat(each) for each in zip(*rows, strict=True))
        found = {**masked(words, mask), "pooled": pooled}
        return found | (self.beside_text(prompts) if all(map(sources_of, prompts)) else {})

    def _read(self, prompt: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Words [1, tokens, width], a vector [1, width] and a mask [1, tokens]."""
        seen: dict[str, Any] = {"image": Image.new("RGB", (self.width, self.height))}
        if sources_of(prompt):
            seen = {"image": self.picture(prompt), "image_embed_interleave": 4}  # the pipeline's number
        found: tuple[Tensor, Tensor, Tensor] = self.pipe.encode_prompt(
            prompt=[text_of(prompt)], max_sequence_length=self.text_tokens, **seen
        )
        return found

    def readers(self) -> list[Reader]:
        begin, before = self.template["template"].split("{}")[0], self.template["crop_start"]
        most = self.text_tokens - MARKS
        long = Reader("Llava", self.pipe.tokenizer, most, lambda text: begin + text, before, more=True, sliced=True)
        return [long, Reader("CLIP", self.pipe.tokenizer_2, 77)]

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        start = (x - (1 - NOISE) * self.first_frames([prompt]).to(x)) / NOISE
        return super().alone(prompt, start, steps, guidance, **more)
