"""Which prompts come when, and prompt files."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from flowward import prompts, rewards
from flowward.prompts import PromptSet, geneval, ocr
from flowward.prompts.scenes import CATEGORIES

MIXED = PromptSet("mixed", tuple("abcdefghij"), tuple("xxxxxyyyzz"))  # 5 x, 3 y, 2 z
PAIRS = ("two_object", "position", "color_attr")  # categories of GenEval with two objects
GENEVAL_FIRST = ("a photo of a parking meter", "a photo of a bus")
OCR_FIRST = 'a wooden sign above a shop door that says "Magic Theatre Society"'
ONE = PromptSet("one", tuple("abcdefg"), ("all",) * 7)


def drawn(mine: PromptSet, count: int, iterations: int, seed: int = 0) -> list[int]:
    return [i for iteration in range(iterations) for i in mine.draw(seed, iteration, count)]


def test_an_iteration_depends_on_seed_and_number_alone() -> None:
    torch.manual_seed(1)
    first = [MIXED.draw(0, iteration, 7) for iteration in range(5)]
    torch.manual_seed(2)
    backwards = [PromptSet(MIXED.name, MIXED.texts, MIXED.categories).draw(0, i, 7) for i in reversed(range(5))]
    assert first == backwards[::-1]
    assert len({tuple(ONE.draw(seed, 0, 7)) for seed in range(9)}) > 5
    assert ONE.draw(0, 0, 7) != ONE.draw(0, 1, 7)  # every round is shuffled anew


def test_categories_take_turns() -> None:
    for mine, names in ((MIXED, "xyz"), (prompts.load("scenes"), CATEGORIES)):
        categories = [mine.categories[i] for i in drawn(mine, 5, 12)]
        assert categories == [names[k % len(names)] for k in range(60)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 20])
def test_no_text_comes_twice_before_all_others_have_come(count: int) -> None:
    assert all(sorted(drawn(ONE, count, 60)[start : start + 7]) == list(range(7)) for start in range(0, 57 - 7, 7))
    order = drawn(MIXED, count, 90)
    for name, size in (("x", 5), ("y", 3), ("z", 2)):
        mine = [i for i in order if MIXED.categories[i] == name]
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size])) == size


def test_more_prompts_than_there_are_texts() -> None:
    assert Counter(ONE.draw(0, 0, 14)) == dict.fromkeys(range(7), 2)


def test_a_category_of_weight_w_has_w_turns_in_a_round() -> None:
    weighted = MIXED.weighted(["x=3", "z=0"])
    assert [weighted.categories[i] for i in drawn(weighted, 4, 2)] == list("xyxx" * 2)
    order = drawn(weighted, 5, 60)
    mine = [i for i in order if weighted.categories[i] == "x"]
    assert all(sorted(mine[start : start + 5]) == list(range(5)) for start in range(0, len(mine) - 4, 5))
    even = {"x": 1, "y": 1, "z": 1}
    assert drawn(PromptSet("even", MIXED.texts, MIXED.categories, even), 7, 9) == drawn(MIXED, 7, 9)
    assert PromptSet("m", MIXED.texts, MIXED.categories).spread(6) == weighted.spread(6)  # an evaluation has none


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["w=2"], "unknown prompt category 'w'"),
        (["x"], "'x' is not a category weight; write category=number, e.g. x=2"),
        (["x=-1"], "'x=-1' is not a category weight"),
        (["x=1.5"], "'x=1.5' is not a category weight"),
        (["x=0", "y=0", "z=0"], "nothing to train on"),
    ],
)
def test_a_bad_weight_is_refused(given: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MIXED.weighted(given)


def test_the_split_is_by_content() -> None:
    train, held_out = prompts.load("scenes"), prompts.load("scenes-held-out")
    assert not set(train.texts) & set(held_out.texts)
    assert set(train.categories) == set(held_out.categories) == set(CATEGORIES)
    assert (train.name, held_out.name) == ("scenes", "scenes-held-out")


# Evaluation


def test_an_evaluation_spreads_evenly() -> None:
    for count in (1, 4, 6, 10, 31, 100):
        chosen = MIXED.spread(count)
        assert chosen == MIXED.spread(count) and len(chosen) == count
        share = Counter(MIXED.categories[i] for i in chosen)
        assert max(share.values()) - min(share[name] for name in "xyz") <= 1
        for name in "xyz":
            times = Counter(i for i in chosen if MIXED.categories[i] == name)
            members = MIXED.categories.count(name)
            assert len(times) == min(members, share[name])
            assert not times or max(times.values()) - min(times.values()) <= 1
    assert MIXED.spread(6) == [0, 5, 8, 2, 6, 9]


def test_a_small_evaluation_walks_through_a_large_set() -> None:
    held_out = prompts.load("scenes-held-out")
    chosen = held_out.spread(36)
    assert len(set(chosen)) == 36
    for name in CATEGORIES:
        members = [i for i, own in enumerate(held_out.categories) if own == name]
        mine = [members.index(i) for i in chosen if held_out.categories[i] == name]
        steps = {b - a for a, b in pairwise(mine)}
        assert mine[0] == 0 and max(steps) - min(steps) <= 1, name


# Files


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


def test_walking_is_drawing() -> None:
    for mine in (MIXED, MIXED.weighted(["x=3", "z=0"])):
        walk = mine.walk(5)
        assert [next(walk) for _ in range(60)] == drawn(mine, 12, 5, seed=5)
        assert next(mine.walk(5, 17)) == drawn(mine, 1, 18, seed=5)[-1]


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


# Sets made by rules


def test_sets_made_by_rules_are_the_same_on_every_call() -> None:
    for name, made, size in (
        ("geneval", geneval.made, 4546),
        ("ocr", ocr.made, 3600),
    ):
        train, held_out = prompts.load(name), prompts.load(f"{name}-held-out")
        again = made.__wrapped__(False)
        assert again == train and len(train) == size
        assert not set(train.texts) & set(held_out.texts)
        assert len(set(train.texts)) == len(train) and len(set(held_out.texts)) == len(held_out)
        assert set(train.categories) == set(held_out.categories)
    drawbench = prompts.load("drawbench-style")
    assert len(drawbench) == len(set(drawbench.texts)) == 63 and len(set(drawbench.categories)) == 9
    # whatever Python, numpy and machine: a change here would move prompts from one set to the other
    assert prompts.load("geneval").texts[:2] == GENEVAL_FIRST
    assert prompts.load("ocr-held-out").texts[0] == OCR_FIRST


def meaning(about: Mapping[str, Any]) -> object:
    """What a picture must hold, the same for 'a left of b' and 'b right of a'."""
    things = [(each["class"], each["count"], each.get("color")) for each in about["include"]]
    relation = about["include"][-1].get("position", [None])[0]
    mirrored = {"right of": "left of", "below": "above"}
    if relation in mirrored:
        things, relation = things[::-1], mirrored[relation]
    return (relation, tuple(things)) if relation else (None, frozenset(things))


@pytest.mark.parametrize("name", ["geneval", "geneval-held-out"])
def test_every_prompt_of_geneval_says_what_its_metadata_say(name: str) -> None:
    mine = prompts.load(name)
    for text, category, about in zip(mine.texts, mine.categories, mine.metadata, strict=True):
        include = about["include"]
        assert about["tag"] == category
        nouns = [
            geneval.several(each["class"], each["count"])
            if each["count"] > 1
            else geneval.one(each["class"], each.get("color", ""))
            for each in include
        ]
        relation = include[-1].get("position")
        if relation:
            assert relation[1] == 0 and category == "position"
            assert text == f"a photo of {nouns[1]} {relation[0]} {nouns[0]}"
        else:
            assert text == f"a photo of {' and '.join(nouns)}"
        assert all(each["class"] in geneval.CLASSES for each in include)
        assert len({each["class"] for each in include}) == len(include) == (1 + (category in PAIRS))
        assert all(("color" in each) == (category in ("colors", "color_attr")) for each in include)
        assert not any(each["class"] == "person" and "color" in each for each in include)
        assert category != "color_attr" or include[0]["color"] != include[1]["color"]
        count = include[0]["count"]
        expected = [{"class": include[0]["class"], "count": count + 1}] if category == "counting" else []
        assert about.get("exclude", []) == expected and (count > 1) == (category == "counting")


def test_no_meaning_is_in_both_sets() -> None:
    train, held_out = ([meaning(about) for about in prompts.load(name).metadata] for name in ("geneval",
                       "geneval-held-out"))  # fmt: skip
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
    assert not set(train) & set(held_out)
    words = [{about["text"] for about in prompts.load(name).metadata} for name in ("ocr", "ocr-held-out")]
    assert not words[0] & words[1]
    assert not any(one in other for one in words[1] for other in words[0])  # nor is one the beginning of another


def test_every_combination_has_one_number() -> None:
    for kind in geneval.CATEGORIES:
        if kind.size < 10_000:
            texts = [text for place in range(kind.size) for text, _ in kind.make(place)]
            assert len(set(texts)) == len(texts)
    pairs = [geneval._pair(place, 6) for place in range(30)]
    assert len(set(pairs)) == 30 and all(a < b < 6 for a, b, _ in pairs) and {rest for *_, rest in pairs} == {0, 1}
    assert len(geneval.CLASSES) == 80


def test_articles_and_plurals() -> None:
    assert [geneval.one(name) for name in ("apple", "skis", "bus")] == ["an apple", "a pair of skis", "a bus"]
    assert geneval.one("scissors", "orange") == "a pair of orange scissors"
    assert geneval.one("umbrella", "red") == "a red umbrella" and geneval.one("car", "orange") == "an orange car"
    several = [geneval.several(name, 3) for name in ("bus", "bench", "person", "knife", "skis", "cup", "toothbrush")]
    assert several == ["three buses", "three benches", "three people", "three knives", "three pairs of skis",
                       "three cups", "three toothbrushes"]  # fmt: skip


@pytest.mark.parametrize("name", ["ocr", "ocr-held-out"])
def test_every_prompt_of_ocr_quotes_its_text(name: str) -> None:
    mine = prompts.load(name)
    for text, about in zip(mine.texts, mine.metadata, strict=True):
        assert text.count('"') == 2 and text.split('"')[1] == about["text"]
    rewards.refuse(rewards.make("ocr"), mine.texts)  # each can be read from the prompt alone


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"prompt": "a red cube"}]'),
        ("a.CSV", "prompt,category\na red cube,colors\n"),
        ("a.tsv", "prompt\tcategory\n"),
        ("a.yaml", "- a red cube\n"),
    ],
)
def test_tables_and_lists_are_not_taken_for_lines_of_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"\.\w+ files are not supported; use one prompt per line"):
        prompts.load(str(tmp_path / name))


def test_json_lines_by_their_other_name(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"prompt": "a red cube"}\n')
    assert prompts.load(str(tmp_path / "a.ndjson")).texts == ("a red cube",)
