"""Search over own documents: ranking by hand, passages, the index on disk, and questions that stand in documents."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from flowward.agent.search import PASSAGE, Document, Search, copied, leak, passages, read, same_words, words
from flowward.agent.tools import ToolError

TEXTS = {
    "rivers.md": "# Rivers of Europe\n\nThe Danube flows through Vienna.\n\nThe Rhine flows through Basel.",
    "lakes.txt": "Lake Constance lies at Bregenz.",
    "deep/mountains.txt": "The Zugspitze is 2962 m high.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        path = tmp_path / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path / "documents"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_titles_are_headings_or_names_of_files(folder: Path) -> None:
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "empty.txt").write_text("  \n")
    assert [each.title for each in read(folder)] == ["deep/mountains.txt", "lakes.txt", "Rivers of Europe"]


def test_json_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "all.jsonl", {"text": "one", "title": "First"}, {"text": "two", "year": 1})
    assert read(path) == [Document("First", "one"), Document("line 2", "two")]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"title": "x"}], "line 1: a document needs a `text`"),
        ([{"text": 5}], "line 1: a document needs"),
        ([{"text": "a"}, {"text": "b", "title": 3}], "line 2: a document needs"),
        ([["text"]], "line 1: not a JSON object"),
        ([{"text": " "}], "there are no documents"),
    ],
)
def test_wrong_lines_are_named(rows: list[object], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        read(lines(tmp_path / "all.jsonl", *rows))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none at"):
        read(tmp_path / "missing")
    with pytest.raises(ValueError, match="there are no documents in"):
        read(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text \(byte 1\)"):
        read(tmp_path)


def test_a_result_has_title_and_passage(folder: Path, cache: Path) -> None:
    search = Search(folder, cache=cache)
    assert search(query="How high is the ZUGSPITZE?").split("\n")[0] == (
        "[1] deep/mountains.txt: The Zugspitze is 2962 m high."
    )
    assert search(query="europe").startswith("[1] Rivers of Europe: # Rivers of Europe\n")  # words of the title count
    with pytest.raises(ToolError, match="no document has any of these words"):
        search(query="quantum")
    with pytest.raises(ToolError, match="no document"):
        search(query="?!")


def test_the_order_is_that_of_bm25(tmp_path: Path, cache: Path) -> None:
    """Lucene's BM25 (k1 = 1.5, b = 0.75), by hand."""
    texts = ["red red blue", "red green", "blue blue blue green yellow", "yellow", "red red red red red green black"]
    place = lines(tmp_path / "all.jsonl", *[{"text": text, "title": "-"} for text in texts])
    search = Search(place, results=5, cache=cache)
    query = "red green"
    bags = [Counter(text.split()) for text in texts]
    mean = sum(bag.total() for bag in bags) / len(bags)

    def score(bag: Counter[str]) -> float:
        total = 0.0
        for word in query.split():
            holders = sum(word in each for each in bags)
            idf = math.log(1 + (len(bags) - holders + 0.5) / (holders + 0.5))
            total += idf * bag[word] / (bag[word] + 1.5 * (0.25 + 0.75 * bag.total() / mean))
        return total

    order = sorted(range(5), key=lambda at: -score(bags[at]))
    expected = [texts[at] for at in order if score(bags[at]) > 0]
    assert [each.text for each in search.best(query)] == expected


def test_equal_passages_keep_their_order(tmp_path: Path, cache: Path) -> None:
    texts = ["the same words", "other words of more than the same number", "nothing"]
    dice = random.Random(0)
    rows = [{"text": dice.choice(texts), "title": str(n)} for n in range(900)]
    found = Search(lines(tmp_path / "all.jsonl", *rows), results=900, cache=cache).best("same words")
    assert [each.text for each in found] == sorted((each.text for each in found), key=texts.index)
    assert len(found) == sum(row["text"] != texts[2] for row in rows)
    for text in texts:
        numbers = [int(each.title) for each in found if each.text == text]
        assert numbers == sorted(numbers)


def test_passages_hold_every_word_once_and_fit() -> None:
    text = "\n\n".join(" ".join(f"w{p}x{n}" for n in range(size)) for p, size in enumerate((3, 400, 20, 1, 90, 700)))
    parts = list(passages(Document("t", text)))
    assert all(0 < len(part.text) <= PASSAGE and part.title == "t" for part in parts)
    assert [word for part in parts for word in words(part.text)] == words(text)
    assert len(parts) < 1.6 * len(text) / PASSAGE + 1
    assert [len(part.text) for part in passages(Document("t", "字" * 2500))] == [1000, 1000, 500]


def test_the_index_is_built_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    first = Search(folder, cache=cache)
    monkeypatch.setattr(bm25s.BM25, "index", lambda *a, **k: pytest.fail("built again"))
    again = Search(folder, cache=cache)
    assert again(query="Danube Vienna") == first(query="Danube Vienna")
    assert [path.name for path in cache.iterdir()] == [next(cache.iterdir()).name]


def test_changed_documents_have_an_index_of_their_own(folder: Path, cache: Path) -> None:
    Search(folder, cache=cache)
    (folder / "lakes.txt").write_text("Lake Geneva lies at Lausanne.")
    assert "Lausanne" in Search(folder, cache=cache)(query="lake")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 20])
def test_a_damaged_index_is_built_again(folder: Path, cache: Path, keep: int) -> None:
    before = Search(folder, cache=cache)(query="lake")
    for path in next(cache.iterdir()).iterdir():
        path.write_bytes(path.read_bytes()[:keep])
    assert Search(folder, cache=cache)(query="lake") == before
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_an_index_that_cannot_be_written_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the index cannot be written to .*FLOWWARD_CACHE"):
        Search(folder, cache=tmp_path / "file")


def test_the_cache_folder_is_that_of_flowward(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWWARD_CACHE", str(tmp_path / "own"))
    Search(folder)
    assert len(list((tmp_path / "own" / "search").iterdir())) == 1


def test_questions_in_documents_are_a_leak() -> None:
    documents = [
        Document("faq", "Q: who?\n\nWhat is the capital of France?\nParis."),
        Document("Who wrote Faust?", "Goethe."),
        Document("plain", "Paris is the capital of France."),
    ]
    questions = ["what is the capital of  France", "Who wrote Faust?", "What is Paris?"]
    assert copied(documents, questions) == [(questions[0], "faq"), (questions[1], "Who wrote Faust?")]
    assert (said := leak(documents, questions)) and said.startswith("2 of 3 questions stand in the documents")
    assert leak(documents, ["What is Paris?"]) is None and leak(documents, []) is None


def test_a_query_that_is_the_question() -> None:
    assert same_words("Who wrote 'Faust'?", "who wrote faust") and not same_words("wrote who", "who wrote")
