"""A closed language: all of its sentences, what each means, and a split into training and held-out ones.

The split is by content, through hashing: no phrasing of a held-out request is on the training side. So a held-out score
measures composition and not memory.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Generic, Protocol, TypeVar

from .prompt import PromptSet

HELD_OUT_SHARE = 0.2


class Asked(Protocol):
    """The content of a prompt."""

    @property
    def category(self) -> str: ...


R = TypeVar("R", bound=Asked)


@dataclass(frozen=True)
class Sentence(Generic[R]):
    """A sentence of a language, its meaning, and its side of the split."""

    text: str
    request: R
    held_out: bool


@dataclass(frozen=True)
class Language(Generic[R]):
    """The sentences that some requests can be written as. Values are computed once, when they are asked for."""

    name: str
    categories: tuple[str, ...]
    requests: Callable[[], Iterator[R]]
    texts: Callable[[R], Iterator[str]]  # all phrasings of a request
    unit: Callable[[R], str]  # a key shared by requests that are held out together
    by_phrasing: frozenset[str] = frozenset()  # categories with so few contents that their phrasings are split

    @cache  # noqa: B019  # languages live as long as the program
    def prompts(self) -> dict[str, Sentence[R]]:
        """All sentences of the language: text -> Sentence, in a fixed order (category by category)."""
        found: dict[str, Sentence[R]] = {}
        requests = list(self.requests())
        for category in self.categories:
            mine = [request for request in requests if request.category == category]
            units = [(self.unit(r), r, list(self.texts(r))) for r in mine]
            if category in self.by_phrasing:
                units = [(key + text, r, [text]) for key, r, texts in units for text in texts]
            keys = sorted({key for key, _, _ in units}, key=_rank)
            held_out = set(keys[: round(HELD_OUT_SHARE * len(keys))])
            for key, request, texts in units:
                for text in texts:
                    found[text] = Sentence(text, request, key in held_out)
        return found

    @cache  # noqa: B019
    def split(self, held_out: bool, category: str | None = None) -> tuple[str, ...]:
        """The texts of one side of the split, of all categories or one."""
        return tuple(
            p.text for p in self.prompts().values() if p.held_out == held_out and category in (None, p.request.category)
        )

    def made(self, held_out: bool) -> PromptSet:
        """One side of the split, as a PromptSet."""
        mine = [prompt for prompt in self.prompts().values() if prompt.held_out == held_out]
        name = f"{self.name}-held-out" if held_out else self.name
        return PromptSet(name, tuple(p.text for p in mine), tuple(p.request.category for p in mine))

    def parse(self, text: str) -> Sentence[R]:
        """The meaning of a prompt; upper and lower case are equal.

        Raises:
            ValueError: the text is not a sentence of this language; the message contains the nearest one.
        """
        found = self._by_key()
        if (key := _key(text)) not in found:
            near = found[difflib.get_close_matches(key, list(found), n=1, cutoff=0.0)[0]].text
            raise ValueError(f"'{text}' is not a prompt of the {self.name} world; the nearest one is '{near}'")
        return found[key]

    def knows(self, text: str) -> bool:
        """Whether a text is a sentence of this language."""
        return _key(text) in self._by_key()

    @cache  # noqa: B019
    def _by_key(self) -> dict[str, Sentence[R]]:
        return {_key(text): prompt for text, prompt in self.prompts().items()}

    @cache  # noqa: B019
    def vocabulary(self) -> tuple[str, ...]:
        """All words of the language, sorted; the text encoder's ids start at 1 (0 is padding)."""
        return tuple(sorted({word for text in self.prompts() for word in text.lower().split()}))


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _rank(key: str) -> str:
    """A fixed pseudo-random order, the same on every machine and Python version."""
    return hashlib.sha256(key.encode()).hexdigest()


def plural(noun: str) -> str:
    """'crosses' of 'cross', 'rings' of 'ring'."""
    return noun + ("es" if noun.endswith("s") else "s")


def with_article(noun: str) -> str:
    """'a ring', 'an orange ring'."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
