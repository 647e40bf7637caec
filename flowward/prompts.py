"""Prompt sets. Which prompts an iteration trains on is a pure function of (seed, iteration)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import unknown
from .streams import numpy_generator


@dataclass(frozen=True)
class PromptSet:
    """Distinct texts, each in a category (one category where nobody cares)."""

    name: str
    texts: tuple[str, ...]
    categories: tuple[str, ...]  # one per text
    weights: Mapping[str, int] = field(default_factory=dict)  # turns of a category in each round, where it is not 1
    metadata: tuple[Mapping[str, Any], ...] = ()  # one per text, for rewards that need more than it; or none at all

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.categories)
        assert len(self.metadata) in (0, len(self.texts))
        for name, weight in self.weights.items():
            if name not in self.categories:
                raise ValueError(unknown("category of prompts", name, dict.fromkeys(self.categories)))
            if weight < 0:
                raise ValueError(f"the weight of a category must be a whole number, at least 0, not {weight}")
        if not self._round():
            raise ValueError("every category of these prompts has the weight 0: there is nothing to train on")

    def _round(self) -> list[tuple[str, int]]:
        """(category, which of its turns) in a round: all once, then those with a second turn, and so on."""
        each = {name: self.weights.get(name, 1) for name in dict.fromkeys(self.categories)}
        return [(name, turn) for turn in range(max(each.values(), default=0)) for name in each if turn < each[name]]

    def __len__(self) -> int:
        return len(self.texts)

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
        """The metadata of these prompts; None where the set has none."""
        return [self.metadata[i] for i in indices] if self.metadata else None

    def draw(self, seed: int, iteration: int, count: int) -> list[int]:
        """The prompts of one iteration, as `count` indices: categories take turns, each runs through its own texts.

        A category of weight w has w turns in a round.

        Every category is shuffled anew whenever it has been used up, so over many iterations the texts of a category
        are used equally often, and no text comes twice before all others have come once.
        """
        names, order = list(dict.fromkeys(self.categories)), self._round()
        members = {c: [i for i, own in enumerate(self.categories) if own == c] for c in names}
        drawn = []
        for number in range(iteration * count, (iteration + 1) * count):
            name, turn = order[number % len(order)]
            mine = members[name]
            used = number // len(order) * self.weights.get(name, 1) + turn
            epoch, position = divmod(used, len(mine))
            shuffle = numpy_generator("prompts", seed, epoch, names.index(name)).permutation(len(mine))
            drawn.append(mine[int(shuffle[position])])
        return drawn

    def spread(self, count: int) -> list[int]:
        """`count` fixed indices for evaluation: categories take turns, each evenly through its own texts, repeating."""
        order = list(dict.fromkeys(self.categories))
        members = {c: [i for i, own in enumerate(self.categories) if own == c] for c in order}
        quota = {c: count // len(order) + (rank < count % len(order)) for rank, c in enumerate(order)}
        chosen = {c: [members[c][k * len(members[c]) // n if n < len(members[c]) else k % len(members[c])]
                      for k in range(n)] for c, n in quota.items()}  # fmt: skip
        return [chosen[order[k % len(order)]][k // len(order)] for k in range(count)]


def _scenes(held_out: bool) -> PromptSet:
    from .scenes.grammar import prompts

    mine = [prompt for prompt in prompts().values() if prompt.held_out == held_out]
    name = "scenes-held-out" if held_out else "scenes"
    return PromptSet(name, tuple(p.text for p in mine), tuple(p.request.category for p in mine))


BUILT_IN = ("scenes", "scenes-held-out")


def load(name_or_path: str) -> PromptSet:
    """A built-in set by name, or a UTF-8 text file with one prompt per line (empty lines are skipped).

    Raises:
        ValueError: no such set or file; the file is empty, not UTF-8, or holds a prompt twice.
    """
    if name_or_path in BUILT_IN:
        return _scenes(held_out=name_or_path == "scenes-held-out")
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ValueError(unknown("prompt set", name_or_path, BUILT_IN) + " (or name a text file, one prompt per line)")
    if not path.is_file():
        raise ValueError(f"there is no prompt file at {path}")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} is not UTF-8 text (byte {error.start})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"prompt file {path} holds no prompt")
    first: dict[str, int] = {}
    for number, text in numbered:
        if text in first:
            raise ValueError(f"prompt file {path} holds '{text}' twice, in lines {first[text]} and {number}")
        first[text] = number
    return of(path.name, list(first))


def of(name: str, texts: Sequence[str]) -> PromptSet:
    """A set from texts; those of the scenes world keep their categories."""
    from .scenes.grammar import prompts

    known = prompts()
    categories = tuple(known[t].request.category if t in known else "all" for t in texts)
    return PromptSet(name, tuple(texts), categories)
