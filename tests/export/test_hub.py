"""`flowward export --push-to-hub`: refused before anything is written, or uploaded whole; the export is never lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from flowward.cli import main
from flowward.export import hub

Refused = Callable[..., str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the hub is asked for, in order; nothing leaves this machine."""
    calls = list[tuple[str, dict[str, Any]]]()

    def answers(name: str) -> Callable[..., str]:
        def answer(self: HfApi, *words: Any, **more: Any) -> str:
            calls.append((name, {**more, "words": words}))
            return "https://huggingface.co/me/mine"

        return answer

    for name in ("whoami", "create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, answers(name))
    monkeypatch.setattr(hub, "hf_hub_download", answers("download"))
    return calls


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*words: Any, **more: Any) -> Any:
        raise error

    return fail


def test_the_export_is_uploaded_as_it_lies_there(
    run: Path, asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--push-to-hub", "me/mine", "--private"]) == 0
    assert [name for name, _ in asked] == ["whoami", "create_repo", "upload_folder"]
    made, uploaded = asked[1][1], asked[2][1]
    assert made["words"] == ("me/mine",) and made["private"] is True and made["exist_ok"] is True
    assert uploaded["repo_id"] == "me/mine" and (Path(uploaded["folder_path"]) / "README.md").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/me/mine"


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "/mine", "me/mi ne", "", "https://huggingface.co/me/mine"])
def test_a_name_that_is_none_is_refused_before_writing(run: Path, refused: Refused, asked: Any, name: str) -> None:
    assert f"--push-to-hub takes owner/name, not '{name}'" in refused("export", run, f"--push-to-hub={name}")
    assert not asked and not (run / "export").exists()


def test_private_without_an_upload_is_refused(run: Path, refused: Refused) -> None:
    assert "--private belongs to --push-to-hub" in refused("export", run, "--private")
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalTokenNotFoundError("Token is required"), "nobody is logged in to the hub; log in with `hf auth login`"),
        (hub.NO_ANSWER("Name or service\nnot known"), "the hub does not answer (Name or service not known)"),
    ],
)
def test_without_a_login_or_network_nothing_is_written(
    run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setattr(HfApi, "whoami", failing(error))
    assert refused("export", run, "--push-to-hub", "me/mine") == f"cannot push to me/mine: {says}"
    assert not (run / "export").exists()


def test_an_upload_that_fails_leaves_the_export(
    run: Path, refused: Refused, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response:
        status_code, headers, request = 403, dict[str, str](), None

    error = HfHubHTTPError("Forbidden", response=Response())  # type: ignore[arg-type]
    monkeypatch.setattr(HfApi, "upload_folder", failing(error))
    said = refused("export", run, "--push-to-hub", "me/mine")
    assert "could not be uploaded: the hub does not accept the token" in said
    assert said.endswith(f"upload it later with: hf upload me/mine {run}/export")
    assert (run / "export" / "README.md").is_file()
