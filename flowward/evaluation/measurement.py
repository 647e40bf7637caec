"""The scores of all images of one model, their means with intervals, and their JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..prompts import Prompt, Sources, described, prompt_of, sources_of, text_of
from ..system import strict_json
from .statistics import bootstrap, bounds, interval


@dataclass(frozen=True)
class Measurement:
    """The scores of N images of one model. Image k of every model starts from the same noise."""

    name: str  # of the model
    settings: dict[str, Any]  # all settings that the scores depend on
    texts: tuple[str, ...]  # N prompts
    categories: tuple[str, ...]  # N, of the prompts
    scores: dict[str, Tensor]  # each [N] float32; the first is the headline
    verdicts: frozenset[str]  # names of the pass/fail scores, 0 or 1
    pictures: tuple[bytes, ...] = ()  # N thumbnails (PNG or JPEG), if they were kept
    sounds: tuple[bytes, ...] = ()  # N small WAV files, if they were kept and samples are sounds
    sources: tuple[Sources, ...] = ()  # the source images of each of N edits, or empty
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of the scores that have some

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def headline(self) -> str:
        return next(iter(self.scores))

    @property
    def guards(self) -> tuple[str, ...]:
        """Scores of guards, which are not optimised."""
        return tuple(name for name in self.settings.get("guard", ()) if name in self.scores)

    @property
    def prompt(self) -> NDArray[np.int64]:
        """[N] the number of each image's prompt; equal prompts have equal numbers."""
        return numbered(self.prompts)

    @property
    def prompts(self) -> list[Prompt]:
        """[N] the prompt of each image, with its source images for edits."""
        return [prompt_of(*each) for each in zip(self.texts, self.sources or [()] * len(self), strict=True)]

    def rows(self) -> dict[str, NDArray[np.int64]]:
        """The images of each category."""
        own = np.array(self.categories)
        return {name: np.flatnonzero(own == name) for name in dict.fromkeys(self.categories)}

    def summary(self) -> dict[str, Any]:
        """The settings, and under `scores` each mean with its intervals, overall and per category.

        `low` and `high` are the interval over noise. `over_prompts` is the interval over prompts; it is None if there
        are fewer than two prompts, or if all pass/fail scores agree. See docs/evaluation.md.
        """
        over = _over_prompts(self.scores, self.prompt, numbered(self.categories))
        parts = {
            category: _over_prompts({name: own[at] for name, own in self.scores.items()}, self.prompt[at])
            for category, at in self.rows().items()
        }
        scores = {}
        for name, own in self.scores.items():
            verdicts, limits = name in self.verdicts, self.bounds.get(name)
            categories = {
                category: {**interval(own[at], verdicts, limits), **parts[category][name]}
                for category, at in self.rows().items()
            }
            overall = {**interval(own, verdicts, limits), **over[name]}
            known = {"bounds": list(limits)} if limits else {}
            scores[name] = {"verdicts": verdicts, **known, "overall": overall, "categories": categories}
            for each in (overall, *categories.values()):
                if verdicts and each["mean"] in (0, 1):  # resampling shows no spread, but that does not prove it
                    each["over_prompts"] = None
        return {**self.settings, "scores": scores}


def numbered(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """A number per distinct name, in order of first occurrence."""
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])


def _over_prompts(
    scores: dict[str, Tensor], prompt: NDArray[np.int64], strata: NDArray[np.int64] | None = None
) -> dict[str, dict[str, Any]]:
    prompts = len(np.unique(prompt))
    if prompts < 2:
        return {name: {"over_prompts": None, "prompts": prompts} for name in scores}
    means = bootstrap(torch.stack(list(scores.values()), 1).numpy(), prompt, strata)
    return {name: {"over_prompts": list(bounds(means[:, k])), "prompts": prompts} for k, name in enumerate(scores)}


def to_json(found: Sequence[Measurement], differences: Sequence[dict[str, Any]] = ()) -> str:
    """Measurements of the same prompts as JSON. The scores of all images are one string, exact in float32."""
    first = found[0]
    category = dict(zip(first.prompts, first.categories, strict=True))
    said = {
        "texts": [text_of(prompt) for prompt in category],
        **({"sources": [described(sources_of(prompt)) or "" for prompt in category]} if first.sources else {}),
        "categories": list(category.values()),
        "prompt_of_image": " ".join(map(str, first.prompt)),
        "models": {
            each.name: {**each.summary(), "per_image": {name: packed(own) for name, own in each.scores.items()}}
            for each in found
        },
        "differences": list(differences),
    }
    return strict_json.dumps(said, 2) + "\n"


class Loose(BaseModel):
    """Other keys may come beside the named ones."""

    model_config = ConfigDict(strict=True, extra="allow")


class Verdicts(Loose):
    verdicts: bool
    bounds: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class Named(Loose):
    name: str


class Measured(Loose):
    model: Named
    scores: dict[str, Verdicts]
    per_image: dict[str, str]
    guard: list[str] = []
    rewards: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}


class File(Loose):
    """What `read` and comparisons rely on."""

    texts: list[str]
    categories: list[str]
    sources: list[str | list[str]] = []  # "": none; a list: several
    prompt_of_image: str
    models: dict[str, Measured]


def read(path: Path) -> list[Measurement]:
    """The measurements in a file of `to_json`, without thumbnails.

    Raises:
        ValueError: it cannot be read, or is another kind of file.
    """
    try:
        said = strict_json.loads(path.read_text("utf-8"))
        File.model_validate(said)
        order = [int(number) for number in said["prompt_of_image"].split()]
        texts = tuple(said["texts"][k] for k in order)
        categories = tuple(said["categories"][k] for k in order)
        own = said.get("sources")
        sources = tuple(_sources(own[k]) for k in order) if own else ()
        return [replace(_read(name, own, texts, categories), sources=sources) for name, own in said["models"].items()]
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} was not written by `flowward eval --json`, or is damaged") from error


def _sources(written: str | list[str]) -> Sources:
    return tuple(Path(each) for each in ([written] if isinstance(written, str) else written) if each)


def _read(name: str, said: dict[str, Any], texts: tuple[str, ...], categories: tuple[str, ...]) -> Measurement:
    settings = {key: value for key, value in said.items() if key not in ("scores", "per_image")}
    scores = {key: unpacked(own) for key, own in said["per_image"].items()}
    verdicts = frozenset(key for key, own in said["scores"].items() if own["verdicts"])
    bounds = {key: (own["bounds"][0], own["bounds"][1]) for key, own in said["scores"].items() if own.get("bounds")}
    if not scores or not texts or any(len(own) != len(texts) for own in scores.values()):
        raise ValueError("the numbers of scores and images differ")
    if not all(own.isfinite().all() for own in scores.values()):
        raise ValueError("a score is not finite")
    return Measurement(name, settings, texts, categories, scores, verdicts, bounds=bounds)


def packed(scores: Tensor) -> str:
    """Numbers [N] as text, each the shortest one with the same float32 value."""
    return " ".join(str(number).removesuffix(".0") for number in scores.float().numpy())


def unpacked(text: str) -> Tensor:
    return torch.tensor([float(number) for number in text.split()], dtype=torch.float32)


def told_apart(found: Sequence[tuple[str, Measurement]]) -> list[Measurement]:
    """Unique names for pairs (origin, measurement): models of equal name get their origin as a prefix, or a number."""
    names, earlier = Counter(each.name for _, each in found), Counter[str]()
    wished = [f"{origin}: {each.name}" if names[each.name] > 1 else each.name for origin, each in found]
    unique = []
    for name in wished:
        earlier[name] += 1
        unique.append(f"{name} ({earlier[name]})" if earlier[name] > 1 else name)
    return [
        replace(each, name=name, settings={**each.settings, "model": {**each.settings["model"], "name": name}})
        for (_, each), name in zip(found, unique, strict=True)
    ]
