"""Rewards are loaded from fixed commits of the hub, unless another revision is named, and the commit is recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import transformers

from flowward.evaluation.provenance import described
from flowward.models import hub
from flowward.rewards.images.aesthetic import Aesthetic
from flowward.rewards.images.clip import CLIPScore, PickScore
from flowward.rewards.images.hps import HPSv2
from flowward.rewards.images.imagereward import ImageReward
from flowward.rewards.objects.geneval import GenEval
from flowward.rewards.revisions import PINNED, commits, located

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"


class Asked(Exception):
    """A file of the hub was asked for."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(hub id, revision) of all that is asked of the hub, which has nothing."""
    found = []

    def refuse(where: Any, *_: Any, revision: str = "not given", **__: Any) -> None:
        found.append((where, revision))
        raise OSError("no hub")

    for kind in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.CLIPConfig,
                 transformers.Mask2FormerForUniversalSegmentation):  # fmt: skip
        monkeypatch.setattr(kind, "from_pretrained", refuse)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    return found


@pytest.mark.parametrize("kind", [PickScore, CLIPScore, HPSv2, ImageReward, Aesthetic])
def test_built_in_rewards_ask_for_fixed_commits(kind: Any, asked: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError):
        kind()
    assert asked and all(revision == PINNED[name] for name, revision in asked)


def test_another_revision_is_asked_for_by_name(asked: list[tuple[str, str]]) -> None:
    for model in ("openai/clip-vit-large-patch14@main", "owner/name@v1.0", "owner/name"):
        with pytest.raises(ValueError):
            CLIPScore(model)
    with pytest.raises(ValueError):
        GenEval("owner/detector@abc")
    assert asked == [
        ("openai/clip-vit-large-patch14", "main"), ("owner/name", "v1.0"), ("owner/name", "main"),
        ("owner/detector", "abc"),
    ]  # fmt: skip


def test_a_folder_has_no_revision(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located(clip) == (clip, "main") and described(CLIPScore(clip)).get("commits") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my@home").mkdir()
    assert located("my@home") == ("my@home", "main")


def test_the_commit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned or not: that of a branch is the one in the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    references = tmp_path / "models--owner--name" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("b" * 40)
    found = commits(["owner/name", "openai/clip-vit-large-patch14", f"owner/other@{'c' * 40}", "owner/new"])
    assert found == {
        "commits": f"openai/clip-vit-large-patch14 {PINNED['openai/clip-vit-large-patch14']}, owner/name {'b' * 40}, "
        f"owner/new main (commit unknown), owner/other {'c' * 40}"
    }


def test_the_page_lists_the_pinned_commits() -> None:
    rows = dict(re.findall(r"^\| `([\w./-]+/[\w./-]+)` \| `([0-9a-f]{40})` \|$", DOCS.read_text("utf-8"), re.MULTILINE))
    assert rows == PINNED
