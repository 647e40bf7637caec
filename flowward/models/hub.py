"""Folders and the hub: find files, choose a device, and explain every failure in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

UNREADABLE = (TypeError, KeyError, AttributeError, ImportError)  # raised by readers on unexpected content


def device(wish: str) -> str:
    """The device to use; `auto` is a CUDA device if there is one, otherwise the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"this machine has no device '{chosen}': {str(error).splitlines()[0]}") from error
    return chosen


def file(where: str, revision: str, name: str) -> Path:
    """The file `name` of a folder or of a revision of a hub repository; `where` itself if it is a file.

    Raises:
        ValueError: there is no such file, or it cannot be downloaded.
    """
    path = Path(where)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise ValueError(f"{path} has no file {name}")
        return path / name
    with explained(where):
        return Path(hf_hub_download(where, name, revision=revision))


def folder(where: str, patterns: Sequence[str]) -> Path:
    """A folder with those files of a hub repository that match a pattern.

    Raises:
        ValueError: it cannot be downloaded.
    """
    with explained(where):
        return Path(snapshot_download(where, allow_patterns=[*patterns]))  # nosec B615  # the user's choice


def quiet() -> None:
    """Silence transformers: no warnings about unused weights, and progress bars only on a terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()


@contextmanager
def whole() -> Iterator[None]:
    """Inside, transformers rejects files with missing weights; by default it only warns and keeps random ones.

    The language-model head may be missing, because text encoders do not use it.

    Raises:
        ValueError: weights are missing.
    """
    from transformers import PreTrainedModel

    plain = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: Any, *args: Any, **kwargs: Any) -> Any:
        network, report = plain.__func__(cls, *args, **{**kwargs, "output_loading_info": True})
        if missing := sorted(name for name in report["missing_keys"] if not name.startswith("lm_head.")):
            raise ValueError(
                f"the files of {cls.__name__} lack {len(missing)} weights, such as {missing[0]}; download them again"
            )
        return network

    PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = plain


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Inside, errors of the hub, diffusers and transformers become one sentence.

    Raises:
        ValueError: in place of any of these errors.
    """
    try:
        yield
    except (
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        HfHubHTTPError,
        OSError,
        ValueError,
        RuntimeError,
        SafetensorError,
        *UNREADABLE,
    ) as error:
        raise ValueError(_sentence(name, error)) from error


def _sentence(name: str, error: Exception) -> str:
    for cause in (error, error.__cause__):  # transformers wraps the hub's errors in its own
        match cause:
            case GatedRepoError():
                return (
                    f"{name} is gated; accept its licence on its hub page, then log in with a token that has access "
                    "(hf auth login)"
                )
            case RevisionNotFoundError():
                return f"{name} has no such revision on the hub; check the branch, tag or commit"
            case RepositoryNotFoundError():
                return (
                    f"the hub has no model {name}, or it is private; check the name, or log in with a token that has "
                    "access (hf auth login)"
                )
            case HFValidationError():
                return f"there is no folder {name}, and it is not a valid hub id; write owner/name"
    kind = f"{type(error).__name__}: " if isinstance(error, UNREADABLE) else ""  # their text alone is not clear
    return f"the model {name} cannot be read: {kind}{' '.join(str(error).split())[:300]}"
