"""What a prompt is, and sets of prompts. Which prompts an iteration uses is a pure function of (seed, iteration)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

from ..system.errors import unknown
from ..system.streams import numpy_generator


@dataclass(frozen=True)
class Edit:
    """What to do with an image."""

    text: str
    source: Path  # of the image

    def __str__(self) -> str:
        """Unlike that of any other edit."""
        return f"{self.text} [{self.source}]"


SOURCE = "source"  # of an image to edit, in files and in metadata

Prompt = str | Edit
"""what a model makes one image from: a text or, where it edits images, an Edit; `str` of it tells it from all others"""


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, each in a category (one category where nobody cares).

    Rewards, pages and logs see texts. Models see prompts, `set[i]`: one text may come with many
    sources.
    """

    name: str
    texts: tuple[str, ...]
    categories: tuple[str, ...]  # one per text
    weights: Mapping[str, int] = field(default_factory=dict)  # turns of a category in each round, where it is not 1
    metadata: tuple[Mapping[str, Any], ...] = ()  # one per text, for rewards that need more than it; or none at all
    sources: tuple[Path | None, ...] = ()  # one per text: the image that it edits, if any; or none at all

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.categories)
        assert len(self.metadata) in (0, len(self.texts))
        assert len(self.sources) in (0, len(self.texts))
        if not self.texts:
            raise ValueError(f"'{self.name}' holds no prompt")
        for name, weight in self.weights.items():
            if name not in self._members:
                raise ValueError(unknown("category of prompts", name, self._members))
            if weight < 0:
                raise ValueError(f"the weight of a category must be a whole number, at least 0, not {weight}")
        if not self._round():
            raise ValueError("every category of these prompts has the weight 0: there is nothing to train on")

    @cached_property
    def _members(self) -> dict[str, list[int]]:
        """Of each category, in the order in which they first come: where its texts are."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.categories):
            found.setdefault(name, []).append(i)
        return found

    def _round(self) -> list[tuple[str, int]]:
        """(category, which of its turns) in a round: all once, then those with a second turn, and so on."""
        each = {name: self.weights.get(name, 1) for name in self._members}
        return [(name, turn) for turn in range(max(each.values(), default=0)) for name in each if turn < each[name]]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return prompt_of(self.texts[index], self.sources[index] if self.sources else None)

    def __iter__(self) -> Iterator[Prompt]:
        return (self[index] for index in range(len(self)))

    def weighted(self, given: Sequence[str]) -> PromptSet:
        """The same with weights, each `category=weight`.

        Raises:
            ValueError: no such category, or a weight that is not a whole number.
        """
        weights = {}
        for item in given:
            name, _, weight = item.partition("=")
            if not weight.isdecimal():
                raise ValueError(f"'{item}' is no weight of a category: write it as {name or 'name'}=2")
            weights[name] = int(weight)
        return replace(self, weights=weights)

    def about(self, indices: Sequence[int]) -> list[Mapping[str, Any]] | None:
        """The metadata of these prompts, the path of a `source` among it; None where the set has none."""
        known = [self.metadata[i] for i in indices] if self.metadata else None
        if not self.sources:
            return known
        sources = [self.sources[i] for i in indices]
        return [
            {**about, SOURCE: str(source.absolute())} if source else about
            for about, source in zip(known or [{}] * len(sources), sources, strict=True)
        ]

    def draw(self, seed: int, iteration: int, count: int) -> list[int]:
        """The prompts of one iteration, as `count` indices: categories take turns, each runs through its own texts.

        A category of weight w has w turns in a round.

        Every category is shuffled anew whenever it has been used up, so over many iterations the texts of a category
        are used equally often, and no text comes twice before all others have come once.
        """
        return list(islice(self.walk(seed, iteration * count), count))

    def walk(self, seed: int, start: int = 0) -> Iterator[int]:
        """All prompts that are ever drawn, one after the other, from number `start` on: `draw` cuts this in pieces."""
        order, rank = self._round(), {name: place for place, name in enumerate(self._members)}
        shuffled: dict[str, tuple[int, list[int]]] = {}  # of each category: its present round, in order
        for number in numbers(start):
            name, turn = order[number % len(order)]
            mine = self._members[name]
            used = number // len(order) * self.weights.get(name, 1) + turn
            epoch, position = divmod(used, len(mine))
            if name not in shuffled or shuffled[name][0] != epoch:
                shuffle = numpy_generator("prompts", seed, epoch, rank[name]).permutation(len(mine))
                shuffled[name] = epoch, shuffle.tolist()
            yield mine[shuffled[name][1][position]]

    def spread(self, count: int) -> list[int]:
        """`count` fixed indices for evaluation: categories take turns, each evenly through its own texts, repeating."""
        members, order = self._members, list(self._members)
        quota = {c: count // len(order) + (rank < count % len(order)) for rank, c in enumerate(order)}
        chosen = {c: [members[c][k * len(members[c]) // n if n < len(members[c]) else k % len(members[c])]
                      for k in range(n)] for c, n in quota.items()}  # fmt: skip
        return [chosen[order[k % len(order)]][k // len(order)] for k in range(count)]


def prompt_of(text: str, source: Path | None) -> Prompt:
    """A text alone, or what to do with an image."""
    return text if source is None else Edit(text, source)


def refuse_others(given: object) -> None:
    """Raises ValueError where something is no set of prompts, though it may stand for one."""
    if isinstance(given, PromptSet):
        return
    load = "flowward.prompts.load(name or file)"
    raise ValueError(f"prompts are a set, as {load} or flowward.prompts.of(name, texts) makes one, not {given!r:.60}")


def text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.text


def source_of(prompt: Prompt) -> Path | None:
    return None if isinstance(prompt, str) else prompt.source
