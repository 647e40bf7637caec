"""flowward sample"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..evaluation import images
from ..evaluation.evaluate import draw
from ..models.loading import Loading
from ..process.rollout import Sampler
from ..prompts import prompt_of
from ..prompts.image_files import refuse_broken
from ..system.errors import positive
from .options import parse, said
from .policies import policy_of, remark_on_guidance, warn_of_guidance


@dataclass(frozen=True)
class Sample:
    """Draw images for prompts, as one labelled grid."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """built-in model, a run folder, an export, or a pipeline of diffusers (folder, or owner/name on the hub)"""
    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT [PROMPT ...]")]
    """one or more prompts"""
    source: Path | None = None
    """image to edit, for a model that does"""
    count: int = 4
    """images per prompt"""
    batch: int | None = None
    """images drawn at once, which does not change them (None: as many as make two megapixels, at most 200)"""
    output: Path = Path("sample.png")
    """the grid, as PNG"""
    overwrite: bool = False
    """write over an output that exists"""
    seed: int = 0
    weights: Literal["policy", "ema"] = "policy"
    """of a run"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    sampler: Annotated[Sampler, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: Sampler(grid="model"))

    def __post_init__(self) -> None:
        if self.count < 1 or not self.prompts:
            raise ValueError("name at least one prompt, and draw at least one image of it")
        if self.batch is not None:
            positive(self, "batch")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, it is {self.seed}")
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"images are written as PNG: give --output a name that ends in .png, not {self.output}")
        if self.output.exists() and not self.overwrite:
            raise ValueError(f"{self.output} exists: name another --output, or say --overwrite")


def run(words: list[str]) -> int:
    chosen = parse(Sample, words, "sample")
    if chosen.source:
        refuse_broken(chosen.source)
    warn_of_guidance(chosen.model, chosen.sampler.guidance)
    policy = policy_of(chosen.model, chosen.weights, chosen.loading, said=said(words))
    remark_on_guidance(chosen.model, policy, chosen.sampler.guidance)
    texts = [prompt for prompt in chosen.prompts for _ in range(chosen.count)]
    asked = [prompt_of(text, chosen.source) for text in texts]
    policy.refuse(asked)
    drawn = draw(policy, asked, chosen.sampler, chosen.seed, batch=chosen.batch)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    sources = [chosen.source] * len(texts) if chosen.source else []
    images.save(images.labelled_grid(drawn, texts, columns=chosen.count, sources=sources), chosen.output)
    print(f"{len(texts)} images of {policy.name}: {chosen.output}")
    return 0
