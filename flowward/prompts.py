"""Prompt sets. Which prompts an iteration trains on is a pure function of (seed, iteration)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import unknown
from .streams import numpy_generator


@dataclass(frozen=True)
class Edit:
    """What to do with an image."""

    text: str
    source: Path  # of the image

    def __str__(self) -> str:
        """Unlike that of any other edit."""
        return f"{self.text} [{self.source}]"


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


def _scenes(held_out: bool) -> PromptSet:
    from .scenes.grammar import prompts

    mine = [prompt for prompt in prompts().values() if prompt.held_out == held_out]
    name = "scenes-held-out" if held_out else "scenes"
    return PromptSet(name, tuple(p.text for p in mine), tuple(p.request.category for p in mine))


def _geneval(held_out: bool) -> PromptSet:
    from .prompt_sets import geneval

    return geneval.made(held_out)


def _ocr(held_out: bool) -> PromptSet:
    from .prompt_sets import ocr

    return ocr.made(held_out)


def _drawbench() -> PromptSet:
    from .prompt_sets import drawbench

    return drawbench.made()


BUILT_IN: dict[str, Callable[[], PromptSet]] = {
    "scenes": lambda: _scenes(held_out=False),
    "scenes-held-out": lambda: _scenes(held_out=True),
    "geneval": lambda: _geneval(held_out=False),
    "geneval-held-out": lambda: _geneval(held_out=True),
    "ocr": lambda: _ocr(held_out=False),
    "ocr-held-out": lambda: _ocr(held_out=True),
    "drawbench-style": _drawbench,
}
HELD_OUT = 20  # one of so many prompts is held out of a set that is split
HUB = "hf:"
SOURCE = "source"  # of an image to edit, in files and in metadata


def load(name_or_path: str) -> PromptSet:
    """A built-in set by name, a file, a data set of the hub (`hf:owner/name[:split]`), or a part of these.

    A file is UTF-8 text with one prompt per line (empty lines are skipped), or by its ending JSON lines (.jsonl,
    .ndjson) or Parquet (.parquet), which may bring categories and metadata: see `prompt_sets.files`. `train:NAME` and
    `held-out:NAME` are two parts of a set, 95 and 5 % of it, by a hash of each text: see `split`.

    Raises:
        ValueError: no such set or file; or it is empty, broken, or holds a prompt twice (a text file); the message says
            where.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]()
    part, colon, whole = name_or_path.partition(":")
    if colon and part in ("train", "held-out"):
        if whole in BUILT_IN:
            raise ValueError(f"only files and data sets are split: '{whole}' is built in, {_parts_of(whole)}")
        return split(load(whole), held_out=part == "held-out")
    from .prompt_sets import files

    if name_or_path.startswith(HUB):
        return files.hub(name_or_path.removeprefix(HUB))
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ValueError(unknown("prompt set", name_or_path, BUILT_IN) + " (or name a text file, one prompt per line)")
    if not path.is_file():
        raise ValueError(f"there is no prompt file at {path}")
    return files.READERS.get(path.suffix.lower(), files.text_file)(path)


def _parts_of(name: str) -> str:
    held_out = f"{name}-held-out"
    return f"with '{held_out}' beside it" if held_out in BUILT_IN else "and is one part"


def split(whole: PromptSet, held_out: bool) -> PromptSet:
    """The prompts that are held out (5 %), or the others: by each text, and name of its source, alone.

    So lines may be added to a file, removed or sorted, and no prompt changes sides.

    Raises:
        ValueError: that part is empty.
    """
    from .prompt_sets.picks import number

    names = [each if isinstance(each, str) else f"{each.text} {each.source.name}" for each in whole]
    kept = [i for i, name in enumerate(names) if (number(name) % HELD_OUT == 0) == held_out]
    name = f"{whole.name}-{'held-out' if held_out else 'train'}"
    if not kept:
        raise ValueError(f"{name} is empty: {len(whole)} prompts are too few to be split")
    return PromptSet(
        name,
        tuple(whole.texts[i] for i in kept),
        tuple(whole.categories[i] for i in kept),
        metadata=tuple(whole.metadata[i] for i in kept) if whole.metadata else (),
        sources=tuple(whole.sources[i] for i in kept) if whole.sources else (),
    )


def of(name: str, given: Sequence[Prompt]) -> PromptSet:
    """A set from prompts; texts of the scenes world keep their categories."""
    from .scenes.grammar import prompts

    known, texts, sources = prompts(), [text_of(each) for each in given], tuple(source_of(each) for each in given)
    categories = tuple(known[t].request.category if t in known else "all" for t in texts)
    return PromptSet(name, tuple(texts), categories, sources=sources if any(sources) else ())
