"""Upload an export to the hub; what can be refused is refused before anything is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..training.record import Record
from .metadata import is_id, repository

NO_ANSWER: type[Exception] = HfHubHTTPError.__mro__[1]  # of its HTTP library: httpx or httpx2, by its version
TROUBLE = (NO_ANSWER, OSError, ValueError)


def refuse(name: str) -> None:
    """Check what can be checked before a model is loaded: the name, and that someone is logged in.

    Raises:
        ValueError: it is not owner/name, nobody is logged in, or the hub does not answer.
    """
    if not is_id(name):
        raise ValueError(f"--push-to-hub takes owner/name, not '{name}'")
    with _explained(f"cannot push to {name}"):
        HfApi().whoami()


def fetch_card(run: Record) -> None:
    """Bring the card of a run's base model into the hub's cache, if there is one: it names the licence."""
    about = run.origin()
    if name := repository(str(about["base_model"])):
        with suppress(*TROUBLE):
            hf_hub_download(name, "README.md", revision=about.get("revision"))  # nosec B615  # the revision of the run


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an export; the repository is made if there is none. Returns its address.

    Raises:
        ValueError: it could not be uploaded; the export stays.
    """
    with _explained(
        f"the export is in {folder}, but could not be uploaded",
        f"; upload it later with: hf upload {name} {shlex.quote(str(folder))}",
    ):
        api = HfApi()
        made = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of flowward")
    return str(made)


@contextmanager
def _explained(what: str, then: str = "") -> Iterator[None]:
    try:
        yield
    except TROUBLE as error:
        raise ValueError(f"{what}: {_reason(error)}{then}") from error


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "nobody is logged in to the hub; log in with `hf auth login`"
    if status in (401, 403):
        return f"the hub does not accept the token, or it may not write there ({status}); log in with `hf auth login`"
    if isinstance(error, NO_ANSWER) and status is None:
        return f"the hub does not answer ({' '.join(str(error).split())[:200]})"
    return " ".join(str(error).split())[:300]
