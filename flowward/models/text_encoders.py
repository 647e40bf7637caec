"""The networks that read prompts, left in their files until a prompt has to be read: they can be half of a model."""

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

FIRST = 8  # numbers of each tensor, which stand for it


def digest(tensors: Iterator[tuple[str, tuple[int, ...], Tensor]]) -> str:
    """A short hash of a network: of every tensor's name, shape and first numbers, so that it takes no time.

    It is the same in whatever precision they are held.
    """
    found = hashlib.sha256()
    for name, shape, first in tensors:
        found.update(f"{name} {shape} {first.flatten()[:FIRST].bfloat16().tolist()}".encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class TextEncoders:
    """Those of a pipeline in a folder.

    Args:
        model: the name that the pipeline was asked for by.
        kind: its class.
        names: of the text encoders among its components.
        variant: of the files of weights, such as fp16.
        dtype, device: that they will have.
    """

    model: str
    kind: Any
    folder: Path
    names: tuple[str, ...]
    variant: str | None
    dtype: torch.dtype
    device: str

    def fingerprints(self) -> list[str]:
        """Of each, from its files: which of them holds a tensor does not matter.

        Raises:
            ValueError: a file is damaged.
        """
        return [digest(self._tensors(name)) for name in self.names]

    def configs(self) -> list[str]:
        """What each is built by."""
        return [(self.folder / name / "config.json").read_text("utf-8") for name in self.names]

    def _tensors(self, component: str) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        places: dict[str, Path] = {}
        for file in files(self.folder / component, self.variant):
            try:
                with safe_open(file, "pt") as opened:
                    places |= dict.fromkeys(opened.keys(), file)
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged: {error}") from error
        for name, file in sorted(places.items()):
            with safe_open(file, "pt") as opened:
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                few = (*[slice(1)] * (len(shape) - 1), slice(FIRST))  # of the first row of each dimension
                yield name, shape, part[few] if shape else opened.get_tensor(name)

    def read_into(self, pipe: Any) -> None:
        """Have the pipeline hold them, and its tokenizers if it has let them go; all else that it has stays.

        Raises:
            ValueError: they cannot be read.
            OutOfMemory: there is no room for them.
        """
        there = {name: part for name, part in pipe.components.items() if part is not None}
        with hub.explained(self.model), hub.whole():
            whole = self.kind.from_pretrained(
                self.folder, variant=self.variant, dtype=self.dtype, use_safetensors=True, **there
            )
        for name, part in whole.components.items():
            if name not in there and part is not None:
                setattr(pipe, name, part)
        with memory.explained(f"with the text encoders of {self.model} on {self.device}, beside its other networks"):
            for name in self.names:
                getattr(pipe, name).requires_grad_(False).eval().to(self.device)


def files(folder: Path, variant: str | None) -> list[Path]:
    """The weights of a network; others of another variant may lie beside them."""
    every = sorted(folder.glob("*.safetensors"))
    own = [file for file in every if variant and f".{variant}" in file.name]
    return own or [file for file in every if file.name.count(".") == 1]
