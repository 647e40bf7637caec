"""One page of several runs: works offline, takes no text for markup, and says what cannot be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from watched_runs import made

from flowward.cli import main
from flowward.pages.watch import compare, overlay


def values(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="runs">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_runs_are_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "runs" / "<b>one", many=11)
    made(tmp_path / "runs" / "two", many=6, algorithm={"name": "<i>mine</i>"})
    page = tmp_path / "all.html"
    assert main(["compare", str(tmp_path / "runs"), "--output", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{page}\n" and err == ""
    html, found = page.read_text("utf-8"), values(page)
    assert [each["id"] for each in found["runs"]] == ["<b>one", "two"]
    assert found["runs"][1]["settings"]["algorithm.name"] == "<i>mine</i>"
    assert found["runs"][0]["series"]["score/x-strict"]["low"] == [40.0] * 3
    assert found["pictures"]["two"]["0"][0]["prompt"] == "<b>a cat</b>"
    assert "<b>" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL) and "<i>mine" not in html
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", html)


def test_what_cannot_be_compared_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        made(tmp_path / name, headline=score) for name, score in (("a", "x-strict"), ("b", "x-strict"), ("c", "y"))
    ]
    folders.append(made(tmp_path / "d", many=0))
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "all.html")]) == 0
    assert capsys.readouterr().err == (
        "flowward: the headline scores differ and cannot be compared: x-strict on held-out (a, b); y on held-out (c); "
        "no evaluation has been recorded for d\n"
    )


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [made(tmp_path / name) for name in ("x/first", "y/first", "x/second")]
    compare.write(folders, tmp_path / "all.html")
    assert [each["id"] for each in values(tmp_path / "all.html")["runs"]] == ["x/first", "y/first", "second"]
    deep = [Path("/a/b/c"), Path("/b/c"), Path("/c")]
    assert len(set(overlay.short(deep))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "at least two runs"),
        (["one", "one"], "is named twice"),
        (["one", "gone"], "is not a run folder"),
        (["one", "two", "--output", "gone/all.html"], "its folder does not exist"),
        (["one", "two", "--output", "one"], "it is a folder"),
        (["one", "damaged"], "config.yaml is damaged"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, words: list[str], said: str, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "one")
    made(tmp_path / "two")
    made(tmp_path / "damaged", model=7)
    monkeypatch.chdir(tmp_path)
    assert said in refused("compare", *words)
    assert not (tmp_path / "compare.html").exists()


def test_pictures_of_many_evaluations_fit_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [made(tmp_path / name) for name in ("one", "two")]
    picture = json.loads((runs[0] / "samples" / "000000.json").read_text())["samples"][0]
    for k in range(40):
        saved = {"iteration": k, "samples": [{**picture, "number": n} for n in range(30)]}
        (runs[0] / "samples" / f"{k:06d}.json").write_text(json.dumps(saved))
    monkeypatch.setattr(compare, "ROOM", 1000)
    compare.write(runs, tmp_path / "all.html")
    found = values(tmp_path / "all.html")["pictures"]["one"]
    assert len(found) == compare.EVALUATIONS and {"0", "39"} <= found.keys()
    assert {len(each) for each in found.values()} == {4}
