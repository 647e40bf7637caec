"""Cache of encoded prompts on disk: each prompt is encoded once, then the text encoders can be freed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..prompts import SOURCE, SOURCES, Prompt
from ..prompts.image_files import digest
from ..system.whole_files import permit, reason, replacing

ELSEWHERE = "name another folder with the environment variable FLOWWARD_CACHE"


def cache_folder() -> Path:
    """FLOWWARD_CACHE or ~/.cache/flowward; among temporary files for a user without a home, as in some containers."""
    try:
        return Path(os.environ.get("FLOWWARD_CACHE", "~/.cache/flowward")).expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "flowward"


class PromptCache:
    """A folder of safetensors files with encoded prompts; prompts are read one by one.

    The key is a hash of the prompt's text and of the content of its source images. The folder's name identifies the
    encoder. Files are written atomically, and their headers list their content, so there is no index to become stale.
    Tensors with a `mask` are stored at the length of their text, and sources without padding. All are padded with zeros
    when read together.

    Raises:
        ValueError: a file in the folder is damaged, or the folder cannot be made.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16):
        self.folder, self.dtype = folder, dtype
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"prompts cannot be encoded into {folder} ({error.strerror}): {ELSEWHERE}") from error
        self._places: dict[str, Path] = {}  # hash -> file
        for path in sorted(folder.glob("*.safetensors")):
            self._learn(path)

    def _learn(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as opened:
                names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged; remove it, then its prompts are encoded again") from error
        self._places |= {name.partition(".")[0]: path for name in names}

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that are not in the cache, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if address(prompt) not in self._places]

    def add(self, prompts: Sequence[Prompt], tensors: Mapping[str, Tensor]) -> None:
        """Store encoded prompts, one row each.

        Raises:
            OSError: the file cannot be written; no partial file is left.
        """
        mask, found = tensors.get("mask"), {}
        for row, prompt in enumerate(prompts):
            for name, tensor in tensors.items():
                own = tensor[row]
                if name == SOURCE:
                    own = own[: int(tensors[SOURCES][row])] if SOURCES in tensors else own
                elif mask is not None and tensor.shape[:2] == mask.shape and name != "image":
                    own = own[: int(mask[row].sum(dtype=torch.long))]  # bf16 cannot count past 256
                found[f"{address(prompt)}.{name}"] = own.to("cpu", self.dtype, copy=True).contiguous()
        path = self.folder / f"{address(''.join(map(address, prompts)))}.safetensors"
        try:
            with replacing(path, shared=True) as partial:
                save_file(found, partial)
                permit(partial)
        except (SafetensorError, OSError) as error:  # safetensors has its own kind, for a full disk too
            raise OSError(f"cannot write {path}: {reason(error)}; {ELSEWHERE}") from error
        self._learn(path)

    def rows(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Named tensors [N, ...] of these prompts, float32; reads nothing else.

        Raises:
            KeyError: a prompt is missing.
        """
        read = [self._read(prompt) for prompt in prompts]
        return {
            name: nn.utils.rnn.pad_sequence([row[name] for row in read], batch_first=True)
            if read[0][name].ndim
            else torch.stack([row[name] for row in read])
            for name in read[0]
        }

    def _read(self, prompt: Prompt) -> dict[str, Tensor]:
        key = address(prompt)
        with safe_open(self._places[key], "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(f"{key}.")]  # noqa: SIM118 (no mapping)
            return {name.partition(".")[2]: opened.get_tensor(name).float() for name in names}


def address(prompt: Prompt) -> str:
    """The cache key of a prompt: 40 hexadecimal digits."""
    whole = prompt if isinstance(prompt, str) else f"{'+'.join(map(digest, prompt.sources))} {prompt.text}"
    return hashlib.sha256(whole.encode()).hexdigest()[:40]
