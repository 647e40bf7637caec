"""flowward sample"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import models
from ..evaluation import images
from ..evaluation.evaluate import draw
from ..models.loading import Loading
from ..process.rollout import Sampler
from ..prompts import prompt_of
from ..prompts.image_files import refuse_broken
from ..system import whole_files
from ..system.errors import between
from ..system.precision import Wish
from ..system.terminal import tell, visible
from ..training.record import refuse_other_kinds
from . import outputs
from .help import Page
from .options import parse, said
from .policies import mix, policy_of, remark_on_guidance, warn_of_guidance

MOST = 10_000  # images of one grid

PAGE = Page(
    about="Sample images for prompts and save them as one labelled grid.",
    examples=(
        ("sample scenes 'a red circle'", "four images of the built-in model"),
        ("sample runs/first 'two rings' --count 8 --output rings.png", "eight images of a trained model"),
    ),
    first=(
        *(
            "count",
            "output",
            "overwrite",
            "steps",
            "guidance",
            "solver",
            "seed",
            "weights",
            "at",
            "size",
            "seconds",
            "source",
            "batch",
        ),
        *("device", "precision"),
    ),
)


@dataclass(frozen=True)
class Sample:
    """Sample images for prompts and save them as one labelled grid."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """`scenes`, a run folder, an export, or a diffusers pipeline (folder or owner/name)"""
    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT [PROMPT ...]")]
    """one or more prompts"""
    source: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """image to edit, for models that edit images; again for each further image"""
    count: int = 4
    """images per prompt"""
    batch: int | None = None
    """images sampled at once; does not change them (none: two megapixels, at most 200 images)"""
    output: Path | None = None
    """PNG file of the grid (none: sample.png, or sample-2.png if that exists); sounds get sample.1.wav and so on"""
    overwrite: bool = False
    """replace an output file that exists"""
    seed: int = 0
    """random seed; the same seed gives the same images"""
    weights: Literal["policy", "ema"] = "policy"
    """weights of a run: the trained `policy` or its `ema` average"""
    at: int | Literal["best"] | None = None
    """use a run's checkpoint of this iteration, or with its `best` headline score (none: the newest)"""
    mixture: tuple[str, ...] = ()
    """weights of a palette's adapters, e.g. scenes-strict=0.7 balance=0.3 (none: equal ones)"""
    precision: Wish | None = None
    """precision of the networks (none: that of the run or export, else auto)"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    sampler: Annotated[Sampler, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: Sampler(grid="model"))

    def __post_init__(self) -> None:
        if self.count < 1 or not self.prompts:
            raise ValueError("name at least one prompt, and draw at least one image of it")
        between(self, 1, MOST, "count", *(["batch"] if self.batch is not None else []))
        if (many := len(self.prompts) * self.count) > MOST:
            raise ValueError(f"one grid can show at most {MOST:,} images, not {many:,}")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, it is {self.seed}")
        if self.output and self.output.suffix.lower() != ".png":
            raise ValueError(f"images are written as PNG: give --output a name that ends in .png, not {self.output}")
        if self.output and self.output.is_dir():
            raise ValueError(f"{self.output} is a folder: name a PNG file with --output")
        if self.output:
            outputs.refuse(self.output, self.overwrite)


def run(words: list[str]) -> int:
    chosen = parse(Sample, words, "sample", page=PAGE)
    chosen = replace(chosen, model=models.located(chosen.model))
    refuse_other_kinds(chosen.model, "solve")
    for source in chosen.source:
        refuse_broken(source)
    warn_of_guidance(chosen.model, chosen.sampler.guidance)
    policy = policy_of(chosen.model, chosen.weights, chosen.loading, chosen.precision, said(words), chosen.at)
    mix(policy, chosen.mixture)
    remark_on_guidance(chosen.model, policy, chosen.sampler.guidance)
    texts = [prompt for prompt in chosen.prompts for _ in range(chosen.count)]
    asked = [prompt_of(text, chosen.source) for text in texts]
    policy.refuse(asked)
    for remark in policy.remarks_on(asked):
        tell(remark)
    file = outputs.chosen(chosen.output, Path("sample.png"), chosen.overwrite)
    many, suffix = len(texts) if policy.medium.suffix else 0, policy.medium.suffix
    beside = [file.with_suffix(f".{k}{suffix}") for k in range(1, many + 1)]
    for each in beside:
        outputs.refuse(each, chosen.overwrite)
    drawn = draw(policy, asked, chosen.sampler, chosen.seed, batch=chosen.batch)
    file.parent.mkdir(parents=True, exist_ok=True)
    sources = [chosen.source] * len(texts)
    shown = policy.medium.draw(drawn, texts)
    images.save(images.labelled_grid(shown, texts, columns=chosen.count, sources=sources), file)
    for each, content in zip(beside, policy.medium.files(drawn), strict=True):
        whole_files.write(each, content)
    more = f", {beside[0]} to {beside[-1].name}" if beside else ""
    print(visible(f"{len(texts)} {policy.medium.noun} of {policy.name}: {file}{more}"))
    return 0
