"""What comes from folders or the hub: finding files, choosing a device, and one sentence for whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
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

UNREADABLE = (TypeError, KeyError, AttributeError, ImportError)  # of readers that meet what they do not expect


def device(wish: str) -> str:
    """`auto` is a CUDA device where there is one, otherwise the CPU.

    Raises:
        ValueError: there is no such device.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device '{chosen}' here: {str(error).splitlines()[0]}") from error
    return chosen


def file(where: str, name: str, revision: str | None = None) -> Path:
    """The file `name` of a folder or of a repository on the hub; or `where` itself, where that is a file.

    Raises:
        ValueError: there is none, or it cannot be had.
    """
    path = Path(where)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise ValueError(f"there is no file {name} in {path}")
        return path / name
    with explained(where):
        return Path(hf_hub_download(where, name, revision=revision))


def quiet() -> None:
    """No remarks of transformers on parts of a model that are not used; progress bars on a terminal alone."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()


@contextmanager
def whole() -> Iterator[None]:
    """Inside, transformers reads no network whose files lack weights: it would leave them random, with a remark.

    The head that makes words of hidden states may be missing: nobody asks a text encoder for words.

    Raises:
        ValueError: weights are missing.
    """
    from transformers import PreTrainedModel

    plain = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: Any, *args: Any, **kwargs: Any) -> Any:
        network, report = plain.__func__(cls, *args, **{**kwargs, "output_loading_info": True})
        if missing := sorted(name for name in report["missing_keys"] if not name.startswith("lm_head.")):
            raise ValueError(f"the files of a {cls.__name__} lack {missing[0]} ({len(missing)} weights in all)")
        return network

    PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = plain


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What the hub, diffusers and transformers raise, in a sentence.

    Raises:
        ValueError: anything went wrong.
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
    for cause in (error, error.__cause__):  # transformers raises the hub's errors as the cause of others
        match cause:
            case GatedRepoError():
                return (
                    f"{name} is gated: accept its licence on its page, and log in with a token that may read it "
                    "(hf auth login)"
                )
            case RevisionNotFoundError():
                return f"{name} has no such revision on the hub"
            case RepositoryNotFoundError():
                return (
                    f"there is no model {name} on the hub, or it is private: then log in with a token that may read it "
                    "(hf auth login)"
                )
            case HFValidationError():
                return f"there is no folder {name}, and no model on the hub can have such a name"
    kind = f"{type(error).__name__}: " if isinstance(error, UNREADABLE) else ""  # whose text alone says little
    return f"the model {name} cannot be read: {kind}{' '.join(str(error).split())[:300]}"
