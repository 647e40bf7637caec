"""The tool `search`: BM25 over the user's own documents, a folder of .txt and .md files or JSON lines.

Documents are cut into passages, and a query finds passages. The index is built once and kept in the cache folder, under
a hash of the passages and of how they are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prompts.lines import MARK, json_rows
from ..system.terminal import tell
from ..system.whole_files import reason
from .tools import Card, ToolError

RESULTS = 3  # passages that a query returns
PASSAGE = 1000  # most characters of one
MANY = 20_000  # passages whose index takes more than a few seconds
TEXTS = (".txt", ".md")
WORD = re.compile(r"\w+")
READING = "passages of 1000; words \\w+ in lower case; bm25s"  # part of the hash: change it with what it describes


@dataclass(frozen=True)
class Document:
    title: str
    text: str


def read(place: Path) -> list[Document]:
    """The documents of a folder (.txt and .md, with those of folders within) or of JSON lines (`text`, `title`).

    The title of a file is its first heading, or its name.

    Raises:
        ValueError: there is nothing, a file is not UTF-8, or a line has no `text`.
    """
    if place.is_dir():
        found = [_file(path, place) for path in sorted(place.rglob("*")) if path.suffix.lower() in TEXTS]
    elif place.suffix.lower() == ".jsonl":
        found = list(_lines(place))
    else:
        raise ValueError(f"search needs a folder of .txt and .md files, or a .jsonl file; there is none at {place}")
    found = [each for each in found if each.text.strip()]
    if not found:
        raise ValueError(f"there are no documents in {place}: search reads .txt, .md and .jsonl")
    return found


def _file(path: Path, folder: Path) -> Document:
    try:
        text = path.read_text("utf-8").lstrip(MARK)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from error
    heading = re.match(r"\s*#+\s+(\S.*)", text) if path.suffix.lower() == ".md" else None
    return Document(heading[1].strip() if heading else path.relative_to(folder).as_posix(), text)


def _lines(path: Path) -> Iterator[Document]:
    for number, row in json_rows(path, str(path)):
        text, title = row.get("text"), row.get("title") or f"line {number}"
        if not isinstance(text, str) or not isinstance(title, str):
            raise ValueError(f"{path}, line {number}: a document needs a `text`, and its `title` must be a text")
        yield Document(title, text)


def passages(document: Document) -> Iterator[Document]:
    """A document in parts of at most PASSAGE characters: whole paragraphs if they fit, else cut between words."""
    part = ""
    for piece in _pieces(document.text):
        if part and len(part) + len(piece) + 1 > PASSAGE:
            yield Document(document.title, part)
            part = ""
        part = f"{part}\n{piece}" if part else piece
    if part:
        yield Document(document.title, part)


def _pieces(text: str) -> Iterator[str]:
    """The paragraphs of a text, the long ones in parts."""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = paragraph.strip()
        while len(rest) > PASSAGE:
            at = max(rest.rfind(" ", 0, PASSAGE), rest.rfind("\n", 0, PASSAGE))
            at = at if at > PASSAGE // 2 else PASSAGE  # languages without spaces
            yield rest[:at].strip()
            rest = rest[at:].strip()
        if rest:
            yield rest


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Search:
    """The tool `search`.

    Args:
        place: a folder or a .jsonl file, see `read`.
        cache: where indices are kept (None: `search` in flowward's cache folder).

    Raises:
        ValueError: bm25s is not installed, or see `read`.
    """

    def __init__(self, place: Path, results: int = RESULTS, cache: Path | None = None):
        try:
            import bm25s  # noqa: F401
        except ImportError as error:
            raise ValueError("search needs bm25s; pip install 'flowward[agent]'") from error
        if results < 1:
            raise ValueError(f"search must return at least 1 result, not {results}")
        self.documents, self.results = read(place), results
        self.passages = [passage for document in self.documents for passage in passages(document)]
        self._index = _kept(self.passages, cache or _own_cache())
        self.card = Card(
            "search",
            f"Finds passages in {len(self.documents):,} documents by the words of a query.",
            {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "the words to look for"}},
                "required": ["query"],
            },
            f"Returns the {results} best passages. It compares words, not meanings: use names and rare words.",
        )

    def __call__(self, **arguments: Any) -> str:
        found = self.best(str(arguments["query"]))
        if not found:
            raise ToolError("no document has any of these words; try other ones")
        return "\n".join(f"[{place}] {each.title}: {each.text}" for place, each in enumerate(found, 1))

    def best(self, query: str) -> list[Document]:
        """The best passages, best first; those with equal scores in the order of the documents."""
        import numpy as np

        known = self._index.get_tokens_ids(words(query))
        if not known:
            return []
        scores = self._index.get_scores_from_ids(known)
        order = np.argsort(-scores, kind="stable")[: self.results]
        return [self.passages[at] for at in order if scores[at] > 0]


def _own_cache() -> Path:
    from ..models.cache import cache_folder

    return cache_folder() / "search"


def _kept(found: Sequence[Document], cache: Path) -> Any:
    """The index of these passages, from the cache if it is there and whole."""
    import bm25s

    whole = hashlib.sha256(f"{READING} {bm25s.__version__}".encode())
    for each in found:
        whole.update(f"\0{len(each.title)} {len(each.text)} {each.title}{each.text}".encode("utf-8", "surrogatepass"))
    folder = cache / whole.hexdigest()[:40]
    if folder.is_dir():
        with suppress(Exception):  # damaged: it is built again
            return bm25s.BM25.load(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if len(found) >= MANY:
        tell(f"building the index of {len(found):,} passages, once")
    index = bm25s.BM25()
    index.index([[*words(each.title), *words(each.text)] for each in found], show_progress=False)
    _keep(index, folder)
    return index


def _keep(index: Any, folder: Path) -> None:
    """Write an index beside its place, then rename it, so that it is whole or not there.

    Raises:
        ValueError: it cannot be written.
    """
    own = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=folder.parent))
        index.save(own)
        with suppress(FileExistsError, NotADirectoryError):
            os.rename(own, folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have written it
            raise ValueError(
                f"the index cannot be written to {folder.parent}: {reason(error)}; name another folder with the "
                "environment variable FLOWWARD_CACHE"
            ) from error
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def same_words(one: str, other: str) -> bool:
    """Whether two texts have the same words in the same order, whatever their case and punctuation."""
    return words(one) == words(other)


def copied(documents: Iterable[Document], questions: Sequence[str]) -> list[tuple[str, str]]:
    """(question, title) of each question that is a document, a paragraph, a line or a title of the documents.

    Such a document may hold the answer too, so success says little about other questions.
    """
    asked = {tuple(words(question)): question for question in reversed(questions) if words(question)}
    found: dict[str, str] = {}
    for each in documents:
        for part in (each.title, each.text, *re.split(r"\n\s*\n", each.text), *each.text.split("\n")):
            question = asked.get(tuple(words(part)))
            if question is not None:
                found.setdefault(question, each.title)
    return [(question, found[question]) for question in dict.fromkeys(questions) if question in found]


def leak(documents: Iterable[Document], questions: Sequence[str]) -> str | None:
    """A warning if questions stand in the documents; otherwise None."""
    found = copied(documents, questions)
    if not found:
        return None
    few = "; ".join(f"'{question[:60]}' in {title}" for question, title in found[:3])
    return (
        f"{len(found):,} of {len(questions):,} questions stand in the documents of search, so answers may stand there "
        f"too: {few}{' and others' if len(found) > 3 else ''}"
    )
