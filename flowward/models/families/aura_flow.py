"""AuraFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..reading import Reader
from .family import Family


class AuraFlow(Family):
    """Joint attention, then blocks of one stream; text is always padded to its maximum, and the padding is zero."""

    pipelines = ("AuraFlowPipeline",)
    cuts_patches = True
    text_tokens = 256
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def side(self) -> int:
        return 1024

    @property
    def places(self) -> int:
        """The learned positions form a square, from whose middle an image takes its own."""
        return math.isqrt(self.pipe.transformer.config.pos_embed_max_size)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words}

    def readers(self) -> list[Reader]:
        return [self._longest("T5", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(x, encoder_hidden_states=condition["words"], timestep=t, return_dict=False)[0]
        return v
