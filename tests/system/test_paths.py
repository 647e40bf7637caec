"""Names of files as absolute paths, and what is in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowward.system import paths


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("r.py").write_text("")


def test_a_path_that_exists_is_absolute_and_a_name_stays(tmp_path: Path) -> None:
    assert paths.absolute("r.py") == paths.absolute("~/r.py") == str(tmp_path / "r.py")
    for name in ("", "owner/name", "scenes", "~nobody/x"):
        assert paths.absolute(name) == name
    assert paths.absolute_code("r.py:bright=0.5") == f"{tmp_path / 'r.py'}:bright=0.5"
    for name in ("package.module:bright", "http://127.0.0.1:80", "pickscore=2", "gone.py:bright"):
        assert paths.absolute_code(name) == name


def test_code_has_a_short_name_unless_two_would_be_the_same() -> None:
    assert paths.short_code("/a/b/r.py:bright=2") == "r.py:bright=2"
    assert paths.short_code("http://a/b:8000") == "http://a/b:8000"
    one, other, third = "/a/r.py:bright", "/b/r.py:bright", "/b/r.py:dark"
    assert paths.short_codes([one, other, third]) == {one: one, other: other, third: "r.py:dark"}


def test_a_fingerprint_is_that_of_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WHOLE", 100)
    monkeypatch.setattr(paths, "PART", 10)
    Path("folder/sub").mkdir(parents=True)
    Path("folder/sub/small").write_bytes(b"x" * 100)
    large = Path("folder/large")
    large.write_bytes(b"a" * 10 + b"b" * 200 + b"c" * 10)
    seen = {paths.fingerprint(Path("folder")), paths.fingerprint(large)}
    for change in (b"z" + b"a" * 9 + b"b" * 200 + b"c" * 10, b"a" * 10 + b"b" * 201 + b"c" * 10):
        large.write_bytes(change)
        seen |= {paths.fingerprint(Path("folder")), paths.fingerprint(large)}
    Path("folder/sub/small").rename("folder/sub/other")
    assert len(seen | {paths.fingerprint(Path("folder"))}) == 7
