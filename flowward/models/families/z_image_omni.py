"""Z-Image Omni, which makes images and edits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...prompts import Prompt, sources_of, text_of
from ..reading import Reader
from .edits import Edits
from .family import padded, replaced
from .z_image import ZImage


class ZImageOmni(Edits, ZImage):
    """Text in pieces, between which the sources stand; each is there twice, as latents and as features of SigLIP 2.

    Sources are optional. Tokens of sources have the time 0 of clean data.
    """

    pipelines = ("ZImageOmniPipeline",)
    sources = range(5)  # the pipeline has no limit
    inputs = "prompt=prompt"
    reads_sources = True
    needs = ("torchvision",)  # for the image processor in transformers

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        pieces = [self._read(prompt) for prompt in prompts]
        pad = nn.utils.rnn.pad_sequence
        number = [torch.cat([each.new_full(each.shape[:1], k) for k, each in enumerate(row)]) for row in pieces]
        return {
            **padded([torch.cat(row) for row in pieces]),
            "piece": pad(number, batch_first=True),
            "features": pad([self._features(prompt) for prompt in prompts], batch_first=True),
            **self.encode_sources(prompts),
        }

    def _read(self, prompt: Prompt) -> list[Tensor]:
        """The pieces of text of one prompt, [tokens, width] each."""
        many = len(sources_of(prompt))
        rows, _ = self.pipe.encode_prompt(
            [text_of(prompt)],
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_tokens,
            num_condition_images=many,
        )
        pieces: list[Tensor] = rows[0]
        return pieces

    def _features(self, prompt: Prompt) -> Tensor:
        """[S, h, w, width] of the sources; of a white image if there are none, for their size."""
        shown = self.for_pillow(prompt) or [Image.new("RGB", (self.width, self.height), "white")]
        found = self.pipe.prepare_siglip_embeds(shown, 1, self.pipe.vae.device, self.pipe.siglip.dtype)[0]
        return torch.stack(found)[: len(sources_of(prompt))]

    def scaled(self, prompt: Prompt) -> Tensor:
        return super().scaled(prompt).bfloat16()  # as in the pipeline

    def readers(self) -> list[Reader]:
        form = lambda text: f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"  # noqa: E731
        return [self._longest("Qwen3", self.pipe.tokenizer, form=form)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        first, *others = self.seen(x, condition)
        images = torch.stack([*others, first], 1).unsqueeze(3)
        many = images.shape[1]
        lengths = condition["mask"].sum(1, dtype=torch.long).tolist()
        texts = []
        for words, piece, length in zip(condition["words"], condition["piece"], lengths, strict=True):
            number = piece[:length].long()
            texts.append([words[:length][number == k] for k in range(int(number[-1]) + 1)])
        seen = [[*row, None] if len(row) else None for row in condition["features"][:, : many - 1]]
        v = network(
            [list(row) for row in images],
            1 - t,
            texts,
            siglip_feats=seen,
            image_noise_mask=[[0] * (many - 1) + [1]] * len(x),
            return_dict=False,
        )[0]
        return -torch.stack(list(v)).squeeze(2)

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline without its lower limit of 64 pixels for sources, with an autoencoder in any precision."""
        vae, processor = self.pipe.vae, self.pipe.image_processor
        encode = vae.encode
        with (
            replaced(processor, "check_image_input", lambda image: image),
            replaced(vae, "encode", lambda images: encode(images.to(vae.dtype))),
        ):
            return super().reference(prompts, x, steps, guidance, **more)
