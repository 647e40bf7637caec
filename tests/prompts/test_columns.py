"""Prompts from tables: CSV, TSV, every type of a Parquet column, and data sets on disk."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pytest

from flowward import prompts


def refusal(name: str | Path, column: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        prompts.load(str(name), column)
    assert "\n" not in str(error.value)
    return str(error.value)


# CSV and TSV


def test_tables_have_headings_in_any_case(tmp_path: Path) -> None:
    """As DrawBench and PartiPrompts are published."""
    draw, parti = tmp_path / "draw.csv", tmp_path / "parti.tsv"
    draw.write_text('\ufeffPrompts,Category\r\nA red car.,Colors\r\n\r\n"Two cats, one dog","Counting"\r\n', "utf-8")
    parti.write_text('Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tB-1\na sign "Hi"\tArts\t\tB-2\n')
    found = prompts.load(str(draw), "prompts")
    assert found.texts == ("A red car.", "Two cats, one dog") and found.categories == ("Colors", "Counting")
    assert found.metadata == ()
    found = prompts.load(str(parti))
    assert found.texts == ("bond", 'a sign "Hi"') and found.categories == ("Abstract", "Arts")
    assert found.metadata == ({"Challenge": "Basic", "Note": "B-1"}, {"Note": "B-2"})
    assert prompts.load(str(parti), "NOTE").texts == ("B-1", "B-2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Prompts,Category\na,b\n", "no column 'prompt' or 'text' or 'caption' (found: 'Prompts', 'Category'); name"),
        ("A red car.,Colors\n", "(found: 'A red car.', 'Colors')"),
        ("prompt,prompt\na,b\n", "has two columns 'prompt'"),
        ("Prompt,PROMPT\na,b\n", "two keys that differ only in case, 'Prompt' and 'PROMPT'"),
        ("prompt,n\na,1\nb\n", "mine.csv, line 3: 1 values, but 2 headings"),
        ('prompt\n"a" sign\n', "mine.csv, line 2: not valid CSV"),
        ('prompt\n"a', "not valid CSV"),
        ("prompt\n", "contains no prompt"),
        ("", "contains no prompt"),
        ("prompt,n\n,1\n", "mine.csv, line 2: 'prompt' must be text, not None"),
        ("prompt\na\udcff\n", "is not UTF-8 text"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert said in refusal(tmp_path / "mine.csv")


def test_a_column_is_named_where_there_are_columns_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a ring")
    assert "is plain text and has no columns" in refusal(tmp_path / "a.txt", "prompt")
    assert "'geneval' is built in and has no column 'prompt'" in refusal("geneval", "prompt")
    (tmp_path / "a.jsonl").write_text('{"Positive": "a cat", "text": "x"}\n{"positive": "a dog"}\n')
    found = prompts.load(str(tmp_path / "a.jsonl"), "positive")
    assert found.texts == ("a cat", "a dog") and found.metadata == ({"text": "x"}, {})
    assert "line 1: no key 'negative' (found: 'Positive', 'text')" in refusal(tmp_path / "a.jsonl", "negative")


def test_an_exact_name_comes_before_one_in_another_case(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"Prompt": "x", "text": "a cat", "Category": "y", "tag": "animals"}')
    found = prompts.load(str(tmp_path / "a.jsonl"))
    assert found.texts == ("a cat",) and found.categories == ("animals",)
    assert found.metadata == ({"Prompt": "x", "Category": "y", "tag": "animals"},)


# Parquet


def written(path: Path, **columns: Any) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"caption": ["a red circle", "a blue square"], **columns}), path)
    return path


def values(name: str) -> Any:
    arrow = pytest.importorskip("pyarrow")
    numbers = arrow.array([1, 2], arrow.int64())
    day, price = datetime.date(2024, 1, 2), decimal.Decimal("1.50")
    return {
        "timestamp": arrow.array([datetime.datetime(2024, 1, 2)] * 2, arrow.timestamp("us")),
        "nanoseconds": numbers.cast(arrow.timestamp("ns")),
        "zone": arrow.array([datetime.datetime(2024, 1, 2)] * 2, arrow.timestamp("s", "UTC")),
        "day": arrow.array([day, None]),
        "time": numbers.cast(arrow.time64("us")),
        "duration": numbers.cast(arrow.duration("s")),
        "decimal": arrow.array([price, None], arrow.decimal128(5, 2)),
        "large decimal": arrow.array([decimal.Decimal(10**70)] * 2, arrow.decimal256(76, 0)),
        "half": arrow.array([1.5, 2.5], arrow.float16()),
        "unsigned": arrow.array([2**64 - 1, 0], arrow.uint64()),
        "dictionary": arrow.array(["u", "v"]).dictionary_encode(),
        "struct": arrow.array([{"day": day, "n": [1]}, None]),
        "list": arrow.array([[day], []]),
        "map": arrow.array([[("k", 1)], []], arrow.map_(arrow.string(), arrow.int64())),
        "null": arrow.array([None, None]),
        "bool": arrow.array([True, None]),
        "large text": arrow.array(["u", "v"], arrow.large_string()),
        "binary": arrow.array([b"x", b"y"]),
        "fixed binary": arrow.array([b"x", b"y"], arrow.binary(1)),
        "list of binary": arrow.array([[b"x"], [b"y"]]),
    }[name]


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("timestamp", "2024-01-02T00:00:00"),
        ("zone", "2024-01-02T00:00:00+00:00"),
        ("day", "2024-01-02"),
        ("time", "00:00:00.000001"),
        ("duration", "0:00:01"),
        ("decimal", "1.50"),
        ("large decimal", "1" + 70 * "0"),
        ("half", 1.5),
        ("unsigned", 2**64 - 1),
        ("dictionary", "u"),
        ("struct", {"day": "2024-01-02", "n": [1]}),
        ("list", ["2024-01-02"]),
        ("map", [["k", 1]]),
        ("bool", True),
        ("large text", "u"),
        ("null", None),
        ("binary", None),
        ("fixed binary", None),
        ("list of binary", None),
    ],
)
def test_every_column_becomes_plain_json(tmp_path: Path, kind: str, right: Any) -> None:
    found = prompts.load(str(written(tmp_path / "mine.parquet", x=values(kind))))
    first = found.metadata[0] if found.metadata else {}
    assert first == ({} if right is None else {"x": right})
    assert json.loads(json.dumps(found.metadata, allow_nan=False)) == list(found.metadata)


def test_columns_that_cannot_be_read_are_refused_with_their_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    far = arrow.array([1, 2**60], arrow.int64()).cast(arrow.timestamp("us"))  # the year 38,503
    assert "row 2: 'x' of type timestamp[us] cannot be read" in refusal(written(tmp_path / "far.parquet", x=far))
    data = [None, arrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), arrow.py_buffer(b"a\xff")]
    text = arrow.Array.from_buffers(arrow.string(), 2, data)
    assert "row 2: 'x' of type string cannot be read" in refusal(written(tmp_path / "utf8.parquet", x=text))
    for name, column in (("nan", [1.0, float("nan")]), ("inner", [[1.0], [float("nan")]])):
        said = refusal(written(tmp_path / f"{name}.parquet", x=column))
        assert f"{name}.parquet, row 2: 'x" in said and "is NaN, which JSON cannot hold" in said


def test_names_of_columns_with_dots_or_twice(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    found = prompts.load(str(written(tmp_path / "dots.parquet", **{"x.y": [1, 2], "x": [3, 4]})))
    assert found.metadata == ({"x.y": 1, "x": 3}, {"x.y": 2, "x": 4})
    twice = arrow.table([arrow.array(["a"]), arrow.array([1]), arrow.array([2])], names=["text", "x", "x"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    assert "has two columns 'x'" in refusal(tmp_path / "twice.parquet")


# Data sets on disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_saved_data_sets_are_read(tmp_path: Path, cache: None) -> None:
    from datasets import Dataset, DatasetDict

    rows = {"Caption": ["a red circle", "a blue square"], "day": [datetime.date(2024, 1, 2)] * 2}
    one, both = Dataset.from_dict(rows), tmp_path / "both"
    one.select([1]).save_to_disk(str(tmp_path / "one"))
    found = prompts.load(f"hf:{tmp_path / 'one'}")
    assert found.texts == ("a blue square",) and found.metadata == ({"day": "2024-01-02"},)
    assert "cannot be loaded: it was saved without splits; leave out ':test'" in refusal(f"hf:{tmp_path / 'one'}:test")
    DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(both))
    assert prompts.load(f"hf:{both}").texts == ("a red circle", "a blue square")
    assert prompts.load(f"hf:{both}:test").texts == ("a red circle",)
    assert "it has no split 'nope', only train, test" in refusal(f"hf:{both}:nope")


def test_folders_of_tables_are_read_by_column(tmp_path: Path, cache: None) -> None:
    pytest.importorskip("datasets")
    for name, text in (("draw/train.csv", "Prompts,Category\nA red car.,Colors\n"),
                       ("parti/train.tsv", "Prompt\tCategory\tNote\nbond\tAbstract\tB-1\n")):  # fmt: skip
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    draw, parti = f"hf:{tmp_path / 'draw'}", f"hf:{tmp_path / 'parti'}"
    assert "has no column 'prompt' or 'text' or 'caption' (found: 'Prompts', 'Category')" in refusal(draw)
    assert prompts.load(draw, "prompts").texts == ("A red car.",)
    found = prompts.load(parti)
    assert found.texts == ("bond",) and found.categories == ("Abstract",) and found.metadata == ({"Note": "B-1"},)


def test_text_files_in_a_folder_are_not_taken_for_prompts(tmp_path: Path, cache: None) -> None:
    pytest.importorskip("datasets")
    for name in ("LICENSE.txt", "notes.txt"):
        (tmp_path / name).write_text("You may not.\n")
    (tmp_path / "rows.csv").write_text("prompt\na cat\n")
    assert "it has no table, only text files" in refusal(f"hf:{tmp_path}")
