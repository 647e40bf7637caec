"""Prompts and prompt sets. The prompts of an iteration depend on (seed, iteration) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

from ..system.errors import unknown
from ..system.seeds import numpy_generator

Sources = tuple[Path, ...]
"""the images that a prompt edits, in their order; () if it has none"""


@dataclass(frozen=True)
class Edit:
    """An instruction to edit an image, or to make one from several images."""

    text: str
    source: Path  # the image to edit
    more: Sources = ()  # further images, in the order in which the model sees them

    @property
    def sources(self) -> Sources:
        """All images, the first one first."""
        return (self.source, *self.more)

    def __str__(self) -> str:
        """Text and sources, unique among edits."""
        return f"{self.text} [{', '.join(map(str, self.sources))}]"


SOURCE = "source"  # key of the path of an image to edit (or of a list of them), in files and in metadata
SOURCES = "sources"  # key of all paths in the metadata of a prompt with several images

Prompt = str | Edit
"""input of a model for one image: a text, or an Edit for editing models; its `str` is unique"""


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, each in a category (`all` by default).

    Rewards, pages and logs use texts. Models use prompts, `set[i]`, because one text can have several source images.
    """

    name: str
    texts: tuple[str, ...]
    categories: tuple[str, ...]  # one per text
    weights: Mapping[str, int] = field(default_factory=dict)  # sampling weights of categories, if not 1
    metadata: tuple[Mapping[str, Any], ...] = ()  # for rewards, one per text; or empty
    sources: tuple[Sources, ...] = ()  # images to edit, for each text as many as it has; or empty

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.categories)
        assert len(self.metadata) in (0, len(self.texts))
        assert len(self.sources) in (0, len(self.texts))
        if not self.texts:
            raise ValueError(f"'{self.name}' contains no prompt")
        for name, weight in self.weights.items():
            if name not in self._members:
                raise ValueError(unknown("prompt category", name, self._members))
            if weight < 0:
                raise ValueError(f"the weight of category '{name}' must be a whole number, at least 0, not {weight}")
        if not self._round():
            raise ValueError("all prompt categories have weight 0, so there is nothing to train on; raise one of them")

    @cached_property
    def _members(self) -> dict[str, list[int]]:
        """Indices of the texts of each category; categories are in order of first appearance."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.categories):
            found.setdefault(name, []).append(i)
        return found

    @cached_property
    def places(self) -> dict[Prompt, int]:
        """The index of each prompt, made once: an iteration must not cost more if the set is larger."""
        return {prompt: index for index, prompt in enumerate(self)}

    @cached_property
    def _orders(self) -> dict[str, tuple[tuple[int, int], Any]]:
        """Of each category: the seed and the epoch that was asked for last, and its order."""
        return {}

    def _round(self) -> list[tuple[str, int]]:
        """(category, number of its turn) in a round: every category once, then those with weight >= 2, and so on."""
        each = {name: self.weights.get(name, 1) for name in self._members}
        return [(name, turn) for turn in range(max(each.values(), default=0)) for name in each if turn < each[name]]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return prompt_of(self.texts[index], self.sources[index] if self.sources else ())

    def __iter__(self) -> Iterator[Prompt]:
        return (self[index] for index in range(len(self)))

    def weighted(self, given: Sequence[str]) -> PromptSet:
        """A copy with sampling weights of categories, each written `category=weight`.

        Raises:
            ValueError: a category is unknown, or a weight is not a whole number.
        """
        weights = {}
        for item in given:
            name, _, weight = item.partition("=")
            if not weight.isdecimal():
                raise ValueError(f"'{item}' is not a category weight; write category=number, e.g. {name or 'name'}=2")
            weights[name] = int(weight)
        return replace(self, weights=weights)

    def about(self, indices: Sequence[int], facts: Mapping[str, Any] | None = None) -> list[Mapping[str, Any]] | None:
        """The metadata of these prompts; None if the set has none.

        `source` is the path of the first source image. If there are several, `sources` lists the paths of all. `facts`
        about all samples, such as the rate of sounds, are added to each.
        """
        known = [self.metadata[i] for i in indices] if self.metadata else None
        if facts:
            known = [{**each, **facts} for each in known or [{}] * len(indices)]
        if not self.sources:
            return known
        sources = [self.sources[i] for i in indices]
        return [{**about, **_named(own)} for about, own in zip(known or [{}] * len(sources), sources, strict=True)]

    def draw(self, seed: int, iteration: int, count: int) -> list[int]:
        """The prompts of one iteration, as `count` indices: categories take turns, each going through its own texts.

        A category with weight w has w turns in a round. When all texts of a category have been used, they are shuffled
        again. So all texts of a category are used equally often, and none comes twice before all others have come once.
        """
        return list(islice(self.walk(seed, iteration * count), count))

    def walk(self, seed: int, start: int = 0) -> Iterator[int]:
        """The endless sequence of drawn prompts, from number `start` on; `draw` returns pieces of it."""
        order, rank = self._round(), {name: place for place, name in enumerate(self._members)}
        for number in numbers(start):
            name, turn = order[number % len(order)]
            mine = self._members[name]
            used = number // len(order) * self.weights.get(name, 1) + turn
            epoch, position = divmod(used, len(mine))
            if self._orders.get(name, (None,))[0] != (seed, epoch):  # an iteration goes on where the last one was
                self._orders[name] = (seed, epoch), _shuffled(seed, epoch, rank[name], len(mine))
            yield mine[self._orders[name][1][position]]

    def spread(self, count: int) -> list[int]:
        """`count` fixed indices for evaluation: categories take turns, each with evenly spaced texts of its own."""
        members, order = self._members, list(self._members)
        quota = {c: count // len(order) + (rank < count % len(order)) for rank, c in enumerate(order)}
        chosen = {c: [members[c][k * len(members[c]) // n if n < len(members[c]) else k % len(members[c])]
                      for k in range(n)] for c, n in quota.items()}  # fmt: skip
        return [chosen[order[k % len(order)]][k // len(order)] for k in range(count)]


def _shuffled(seed: int, epoch: int, category: int, size: int) -> Any:
    """The order [size] in which an epoch takes the texts of a category."""
    return numpy_generator("prompts", seed, epoch, category).permutation(size)


def _named(sources: Sources) -> dict[str, Any]:
    """Sources as entries of metadata, which rewards read: the first alone, and all if there are several."""
    paths = [str(each.absolute()) for each in sources]
    return {**({SOURCE: paths[0]} if paths else {}), **({SOURCES: paths} if len(paths) > 1 else {})}


def prompt_of(text: str, sources: Sequence[Path]) -> Prompt:
    """The text itself, or an Edit if there are source images."""
    return Edit(text, sources[0], tuple(sources[1:])) if sources else text


def refuse_others(given: object) -> None:
    """Raise ValueError if something is not a PromptSet, e.g. only a list or the name of a file."""
    if isinstance(given, PromptSet):
        return
    load = "flowward.prompts.load(name or file)"
    raise ValueError(f"prompts must be a PromptSet from {load} or flowward.prompts.of(name, texts), not {given!r:.60}")


def refuse_numbers(model: str, allowed: range, given: Sequence[Prompt]) -> None:
    """Raise ValueError for a prompt with more or fewer source images than a model takes."""
    most = allowed[-1]
    for prompt in given:
        many = len(sources_of(prompt))
        if many in allowed:
            continue
        if not most:
            raise ValueError(
                f"{model} cannot edit images, but '{text_of(prompt)}' has the source image {sources_of(prompt)[0]}; "
                "use an editing model, or prompts without a source"
            )
        if not many:
            raise ValueError(
                f"{model} edits images, but '{prompt}' has no source image; add a `source` to every prompt"
            )
        raise ValueError(
            f"{model} takes at most {most} source image{'s' * (most > 1)} per prompt, but '{text_of(prompt)}' has "
            f"{many}; remove some"
        )


def text_of(prompt: Prompt) -> str:
    """The text of a prompt."""
    return prompt if isinstance(prompt, str) else prompt.text


def sources_of(prompt: Prompt) -> Sources:
    """The images that a prompt edits."""
    return () if isinstance(prompt, str) else prompt.sources


def described(sources: Sources, each: Callable[[Path], str] = str) -> str | list[str] | None:
    """Sources for JSON: None, one, or a list. Files of versions with one source per prompt have the same form."""
    told = [each(path) for path in sources]
    return told if len(told) > 1 else told[0] if told else None
