"""What a decoded sample is (an image, a video, a sound, or any other tensor), and how pages show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

from torch import Tensor

from . import sound, spectrograms

Files = Callable[[Tensor], list[bytes]]  # samples [B, *shape] -> B files, or none
Draw = Callable[[Tensor, Sequence[str]], Tensor]  # samples [B, *shape], B prompts -> pictures [B, 3, H, W] in [0, 1]


def unchanged(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Images are their own pictures."""
    return samples


def none(samples: Tensor) -> list[bytes]:
    """Samples that are not written as files of their own."""
    return []


@dataclass(frozen=True)
class Medium:
    """What a decoded sample is. The training loop, evaluations and pages ask this, and nothing else about samples."""

    noun: str  # what samples are called: the kind of a run in config.yaml, and the key of their number in metrics.jsonl
    shape: tuple[int, ...]  # of a decoded sample; of a video, that of a frame
    about: str  # for messages about memory, such as 'images of 32 x 32'
    settings: Mapping[str, Any]  # what an evaluation records about its samples
    size: int  # numbers in a sample (pixels of an image), for the default batch of evaluations
    draw: Draw = field(default=unchanged, compare=False)
    longest: int = 160  # side of a picture in a report, in pixels
    kind: str = ""  # images, videos or sounds; empty for other tensors
    frames: bool = False  # a sample with one axis more is a video, whose frames can be scored one by one
    savings: str = ""  # options that save memory in decoding
    bounds: tuple[float, float] = (0.0, 1.0)  # of the numbers in a sample
    facts: Mapping[str, Any] = field(default_factory=dict)  # what rewards read about samples, beside the metadata
    files: Files = field(default=none, compare=False)  # samples as files, such as WAV
    heard: Files = field(default=none, compare=False)  # small files of sounds, for the players of a page
    suffix: str = ""  # of the name of such a file; empty: there are none


def images(height: int, width: int, latent_frames: int | None = None) -> Medium:
    """Images [3, height, width] in [0, 1], or videos of them with `latent_frames` frames before they are decoded."""
    settings: dict[str, Any] = {"image_size": [height, width]}
    if latent_frames is not None:
        settings["latent_frames"] = latent_frames
    size, about = height * width * (latent_frames or 1), f"images of {height} x {width}"
    kind = "images" if latent_frames is None else "videos"
    return Medium("images", (3, height, width), about, settings, size, kind=kind, frames=True, savings="--vae-tiling")


def samples(shape: tuple[int, ...], draw: Draw, longest: int) -> Medium:
    """Tensors of this shape that are not decoded; `draw` makes pictures of them, of at most `longest` pixels."""
    settings = {"samples": "samples", "sample_shape": list(shape)}
    return Medium(
        "samples", shape, f"samples of shape {list(shape)}", settings, prod(shape), draw, longest, bounds=(-inf, inf)
    )


def waveforms(channels: int, length: int, rate: int) -> Medium:
    """Waveforms [channels, length] in [-1, 1], with `rate` samples per second (Hz). Pages show them as spectrograms.

    Raises:
        ValueError: the rate is not a positive whole number.
    """
    sound.refuse_rate(rate)
    shape = (channels, length)
    settings = {"samples": "sounds", "sample_shape": list(shape), "rate": rate}
    return Medium(
        "sounds",
        shape,
        f"sounds of {length / rate:.3g} s",
        settings,
        prod(shape),
        lambda samples, prompts: spectrograms.pictures(samples, rate),
        spectrograms.SHOWN,
        kind="sounds",
        bounds=(-1.0, 1.0),
        facts={"rate": rate},
        files=lambda samples: [sound.wav(each, rate) for each in samples],
        heard=lambda samples: [sound.preview(each, rate) for each in samples],
        suffix=".wav",
    )
