"""Prompt sets from files and data sets: text, JSON lines, Parquet, the hub, and their two parts."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import pytest

from flowward import prompts
from flowward.prompts import PromptSet


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffa red circle\r\n\n  two rings  \na café\n".encode())  # with the mark that Windows writes
    found = prompts.load(str(file))
    assert found.texts == ("a red circle", "two rings", "a café")
    assert found.categories == ("colors", "counting", "all")  # the world's own texts keep their category
    assert found.name == "mine.txt" and len(found) == 3


def test_a_file_may_have_the_name_of_nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("a ring")
    assert prompts.load("mine").texts == ("a ring",)
    with pytest.raises(ValueError, match="unknown prompt set 'scene'; did you mean 'scenes'"):
        prompts.load("scene")


def test_a_long_file_is_read_and_drawn_from_quickly(tmp_path: Path) -> None:
    """Not a quadratic amount of work: the bounds hold on a slow and busy machine."""
    file = tmp_path / "long.jsonl"
    rows = ({"prompt": f"thing {i}", "category": f"kind {i % 500}", "metadata": {"n": i}} for i in range(100_000))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.process_time()
    mine = prompts.load(str(file))
    assert time.process_time() - start < 4
    start = time.process_time()
    assert len(set(mine.draw(0, 3, 2000))) == 2000 and len(set(mine.spread(2000))) == 2000
    assert time.process_time() - start < 2


# Files with more than texts


def test_json_lines_bring_categories_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "a cat ", "category": "animals", "metadata": {"n": 1}},
        {"text": "a dog", "metadata": None},
        {"prompt": 'a sign "x"', "text": "x", "size": 2},  # without `metadata` they are the other keys
        {"tag": "two_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},  # as in GenEval
        {"caption": "a line\u2028separator"},
    ]
    file.write_text("\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = prompts.load(str(file))
    assert found.texts == ("a cat", "a dog", 'a sign "x"', "a photo of a cat", "a line\u2028separator")
    assert found.categories == ("animals", "all", "all", "two_object", "all")
    assert found.metadata[:3] == ({"n": 1}, {}, {"text": "x", "size": 2})
    assert found.metadata[3] == {"tag": "two_object", "include": [{"class": "cat", "count": 1}]}
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "category": "x"}')
    assert prompts.load(str(file)).metadata == ()


def test_json_lines_that_come_again_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "n": n}) + "\n" for n, text in enumerate("abab")))
    found = prompts.load(str(file))
    assert found.texts == ("a", "b") and found.metadata == ({"n": 0}, {"n": 1})
    assert "dropped 2 of 4 prompts as duplicates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"', "mine.jsonl, line 2: not JSON"),
        ('{"prompt": "a"}\n\n["b"]', "mine.jsonl, line 3: not a JSON object: ["),
        ('{"promt": "a"}', "line 1: no key 'prompt' or 'text' or 'caption'"),
        ('{"prompt": 3}', "line 1: 'prompt' must be text, not 3"),
        ('{"prompt": " "}', "line 1: 'prompt' must be text, not ' '"),
        ('{"prompt": "a", "metadata": "b"}', "line 1: 'metadata' must be a mapping, not 'b'"),
        ('{"prompt": "a", "category": 1}', "line 1: the category must be text, not 1"),
        ('{"prompt": "a"}\n{"prompt": "b", "n": [NaN]}', "line 2: NaN is not a JSON value"),
        ('{"prompt": "a \\ud83d"}', "line 1: 'prompt' has \\ud83d, half of a character"),
        ('{"prompt": "a", "metadata": {"n": "\\udc00"}}', "line 1: 'metadata.n' has \\udc00, half of a character"),
        ('{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' comes twice"),
        ('{"prompt": "a\\u0000"}', "line 1: 'prompt' has a NUL character"),
        ('{"prompt": "a", "source": "' + 5000 * "x" + '"}', "line 1: 'source' must be the path of an image"),
        ("\n \n", "mine.jsonl contains no prompt"),
        ("\udcff", "mine.jsonl is not UTF-8 text (byte 0)"),
    ],
)
def test_broken_json_lines_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(lines.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        prompts.load(str(file))
    assert said in str(error.value) and "\n" not in str(error.value)


def table(path: Path, columns: dict[str, list[object]]) -> str:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return str(path)


def test_parquet_columns_are_metadata(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "caption": ["a cat", "a dog"],
        "width": [512, None],
        "image": [{"bytes": b"\x89PNG", "path": "a.png"}] * 2,
        "mask": [b"\x00"] * 2,
        "include": [[{"class": "cat", "count": 1}], [{"class": "dog", "count": 2}]],
    }
    found = prompts.load(table(tmp_path / "mine.parquet", columns))
    assert found.texts == ("a cat", "a dog")
    assert found.metadata[0] == {"width": 512, "include": [{"class": "cat", "count": 1}]}  # and no images
    assert "width" not in found.metadata[1]
    with pytest.raises(ValueError, match="has no column 'prompt' or 'text' or 'caption'"):
        prompts.load(table(tmp_path / "none.parquet", {"name": ["a"]}))
    with pytest.raises(ValueError, match="row 2: 'text' must be text, not None"):
        prompts.load(table(tmp_path / "hole.parquet", {"text": ["a", None]}))
    (tmp_path / "not.parquet").write_text("a cat")
    with pytest.raises(ValueError, match=r"not.parquet cannot be read as Parquet: "):
        prompts.load(str(tmp_path / "not.parquet"))


def test_a_data_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    table(folder / "train.parquet", {"prompt": ["a", "b", "a"], "n": [1, 2, 3]})
    table(folder / "test.parquet", {"prompt": ["c"], "n": [4]})
    found = prompts.load(f"hf:{folder}")
    assert found.texts == ("a", "b") and found.metadata == ({"n": 1}, {"n": 2})
    assert prompts.load(f"hf:{folder}:test").texts == ("c",)
    with pytest.raises(ValueError, match=r"cannot be loaded: .*nope"):
        prompts.load(f"hf:{folder}:nope")


@pytest.mark.parametrize("package", ["pyarrow.parquet", "datasets"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "mine.parquet").touch()
    with pytest.raises(ValueError, match=r"needs .*: pip install 'flowward\[data\]'"):
        prompts.load("hf:owner/name" if package == "datasets" else str(tmp_path / "mine.parquet"))


# Parts of a file


def test_a_prompt_never_changes_sides(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"

    def parts(count: int, backwards: bool = False) -> tuple[PromptSet, PromptSet]:
        rows = [{"prompt": f"thing {i}", "category": f"kind {i % 3}", "n": i} for i in range(count)]
        file.write_text("".join(json.dumps(row) + "\n" for row in (rows[::-1] if backwards else rows)))
        return prompts.load(f"train:{file}"), prompts.load(f"held-out:{file}")

    few, many, turned = parts(1000), parts(3000), parts(1000, backwards=True)
    for one, other, again in zip(few, many, turned, strict=True):
        assert set(one.texts) <= set(other.texts) and set(one.texts) == set(again.texts)
    assert not set(many[0].texts) & set(many[1].texts) and len(many[0]) + len(many[1]) == 3000
    assert 0.03 < len(many[1]) / 3000 < 0.07
    for mine in many:
        numbers = [int(text.split()[1]) for text in mine.texts]
        assert [about["n"] for about in mine.metadata] == numbers
        assert mine.categories == tuple(f"kind {i % 3}" for i in numbers)
    assert (few[0].name, few[1].name) == ("mine.jsonl-train", "mine.jsonl-held-out")


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a ring")
    parts = []
    for part in ("train", "held-out"):
        with contextlib.suppress(ValueError):
            parts.append(prompts.load(f"{part}:{file}"))
    assert len(parts) == 1  # the other one is empty
    with pytest.raises(ValueError, match="'ocr' is built in and cannot be split: use 'ocr' and 'ocr-held-out'"):
        prompts.load("held-out:ocr")
    with pytest.raises(ValueError, match=r"there is no prompt file at other.txt"):
        prompts.load("held-out:other.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"prompt": "a red cube"}]'),
        ("a.yaml", "- a red cube\n"),
        ("a.MD", "# Prompts\n"),
        ("a.jsonl.gz", "x"),
        ("a.docx", "x"),
    ],
)
def test_other_files_are_not_taken_for_lines_of_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"\.\w+ files are not supported; use one prompt per line"):
        prompts.load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"prompt": "a"}\n', r"contains JSON lines; give it a name that ends in \.jsonl"),
        (b"Prompt,Category\na,b\n", r"begins with headings, as a table does; give it a name that ends in \.csv"),
        (b"id\tprompts\n1\ta\n", r"begins with headings, as a table does; give it a name that ends in \.tsv"),
        (b"a cat\nPAR1\x15\x04\n", r"line 2: not plain text, it has the character '\\x15'"),
        ("a cat".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_what_is_no_plain_text_is_not_taken_for_it(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(ValueError, match=said):
        prompts.load(str(tmp_path / "a.txt"))


def test_tags_and_braces_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("{red, blue} cube\nlogo, text, flat design\n")
    assert prompts.load(str(tmp_path / "a.txt")).texts == ("{red, blue} cube", "logo, text, flat design")


def test_json_lines_by_their_other_name(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"prompt": "a red cube"}\n')
    assert prompts.load(str(tmp_path / "a.ndjson")).texts == ("a red cube",)
