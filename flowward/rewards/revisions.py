"""Which commit of a repository on the hub a reward is loaded from, so that nobody can exchange its weights unseen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PINNED = {
    "yuvalkirstain/PickScore_v1": "a4e4367c6dfa7288a00c550414478f865b875800",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "zai-org/ImageReward": "5736be03b2652728fb87788c9797b0570450ab72",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "trl-lib/ddpo-aesthetic-predictor": "cf4bd10345610935a80a5d3be9a3133c50f121e4",
}
NEWEST = "main"  # the branch of a repository that is not pinned


def located(where: str) -> tuple[str, str]:
    """(folder, file or hub id, revision) of `owner/name`, `owner/name@revision`, or a path, which has no revision."""
    if Path(where).exists():
        return where, NEWEST
    name, _, revision = where.partition("@")
    return name, revision or PINNED.get(name, NEWEST)


def commits(places: Iterable[str]) -> dict[str, str]:
    """{"commits": "owner/name COMMIT, ..."} of the places on the hub; empty if there are none.

    The commit of a branch is that of the files in the cache of the hub; it is unknown before they are downloaded.
    """
    known = {name: _commit(name, revision) for name, revision in map(located, places) if not Path(name).exists()}
    return {"commits": ", ".join(f"{name} {commit}" for name, commit in sorted(known.items()))} if known else {}


def _commit(name: str, revision: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    reference = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "refs" / revision
    return reference.read_text("utf-8").strip() if reference.is_file() else f"{revision} (commit unknown)"
