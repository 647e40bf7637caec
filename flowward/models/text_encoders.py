"""Text encoders, not loaded until a prompt must be encoded: they can be half of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..system import memory
from . import hub

FIRST = 8  # values of each tensor in the digest


def digest(tensors: Iterator[tuple[str, tuple[int, ...], Tensor]]) -> str:
    """A short, fast hash of a network, from the name, shape and first values of every tensor.

    It is the same in every precision.
    """
    found = hashlib.sha256()
    for name, shape, first in tensors:
        found.update(f"{name} {shape} {first.flatten()[:FIRST].bfloat16().tolist()}".encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a pipeline in a folder.

    Args:
        model: the name or path that the user gave.
        kind: the class of the pipeline.
        names: the component names of the text encoders.
        variant: of the weight files, such as fp16.
        dtype, device: for the loaded encoders.
    """

    model: str
    kind: Any
    folder: Path
    names: tuple[str, ...]
    variant: str | None
    dtype: torch.dtype
    device: str

    def fingerprints(self) -> list[str]:
        """The digest of each, from its files; it does not depend on how tensors are split over files.

        Raises:
            ValueError: a file is damaged.
        """
        return [digest(self._tensors(name)) for name in self.names]

    def configs(self) -> list[str]:
        """The configuration of each, as JSON."""
        return [(self.folder / name / "config.json").read_text("utf-8") for name in self.names]

    def _tensors(self, component: str) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        for name, file in sorted(where(self.folder / component, self.variant).items()):
            with safe_open(file, "pt") as opened:
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                few = (*[slice(1)] * (len(shape) - 1), slice(FIRST))  # the first row in every dimension
                yield name, shape, part[few] if shape else opened.get_tensor(name)

    def read_into(self, pipe: Any) -> None:
        """Load them into the pipeline, and its tokenizers if they were freed; other components stay.

        Raises:
            ValueError: they cannot be read.
            OutOfMemory: the device has too little memory.
        """
        freed = ("text_encoder", "tokenizer")  # other components that are None stay so
        there = {name: part for name, part in pipe.components.items() if part is not None or not name.startswith(freed)}
        with hub.explained(self.model), hub.whole():
            whole = self.kind.from_pretrained(
                self.folder, variant=self.variant, dtype=self.dtype, use_safetensors=True, **there
            )
        for name, part in whole.components.items():
            if name not in there and part is not None:
                setattr(pipe, name, part)
        with memory.explained(
            f"while moving the text encoders of {self.model} to {self.device}, next to its other networks"
        ):
            for name in self.names:
                getattr(pipe, name).requires_grad_(False).eval().to(self.device)


def files(folder: Path, variant: str | None) -> list[Path]:
    """The weight files of a network in this variant; files of other variants are skipped."""
    every = sorted(folder.glob("*.safetensors"))
    own = [file for file in every if variant and f".{variant}" in file.name]
    return own or [file for file in every if file.name.count(".") == 1]


def where(folder: Path, variant: str | None) -> dict[str, Path]:
    """The weight file of each tensor of a network.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[str, Path] = {}
    for file in files(folder, variant):
        try:
            with safe_open(file, "pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged; download it again ({error})") from error
    return found
