"""What a study compares: one YAML file.

model: scenes
algorithms: [advantageflow, diffusion_nft, flow_grpo]
rewards: {strict: [scenes-strict], both: [scenes, balance]}
seeds: [0, 1, 2]
budgets: {images: 11520, evaluations: 250000, seconds: 300}
search: {trials: 4}
options: {run: {images_per_update: 288}}
variants: {short-steps: {algorithm: {name: advantageflow, gamma: 5}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..algorithms import ALGORITHMS
from ..algorithms.presets import PRESETS
from ..rewards import weighted
from ..system.errors import at_least_one, between, first_invalid, positive, unknown
from ..system.nested import joined, lists_of_one, refuse_unknown
from ..training.config import from_dict, settings_type
from ..training.record import read_yaml

BETWEEN = dict.fromkeys(map(ord, "-_."))  # what a name may have beside letters and digits


@dataclass(frozen=True)
class Budgets:
    """How far the runs are compared. Each that is given is a comparison of its own."""

    images: int | None = None
    """training images"""
    evaluations: float | None = None
    """forward passes of the network per run; a pass forward and backward counts as many as it was measured to cost"""
    seconds: float | None = None
    """seconds of training on one thread, from the measured costs"""

    def __post_init__(self) -> None:
        positive(self, *self.given)
        if not self.given:
            raise ValueError("name at least one of images, evaluations and seconds")

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(name for name in ("images", "evaluations", "seconds") if getattr(self, name) is not None)


@dataclass(frozen=True)
class Search:
    """The same number of trials for every algorithm, measured on prompts that no run trains on or is compared on."""

    trials: int = 4
    """settings to try per algorithm and reward; the first is its preset"""
    images: int | None = None
    """training images of a trial (none: a third of the longest run)"""
    seed: int = 100
    """seed of the trials; the compared runs have others"""
    measured: int = 600
    """images of the evaluation that chooses"""

    def __post_init__(self) -> None:
        at_least_one(self, "trials", "measured")
        if self.trials == 1:
            raise ValueError(
                "a search needs at least 2 trials, since the first is the preset: raise trials, or leave it out"
            )
        if self.images is not None:
            at_least_one(self, "images")


@dataclass(frozen=True)
class Study:
    """A study as it was asked for."""

    budgets: Budgets
    algorithms: tuple[str, ...] = ()
    rewards: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"scenes": ("scenes",)})
    """what is optimised, by a short name each"""
    model: str = "scenes"
    prompts: str = "scenes"
    seeds: tuple[int, ...] = (0, 1, 2)
    score: str = "scenes-strict"
    """the headline of every evaluation"""
    scores: tuple[str, ...] = ("balance",)
    """what is measured beside it"""
    held_out: str = "scenes-held-out"
    """prompts of the comparison"""
    images: int = 1200
    """images of each evaluation"""
    points: int = 6
    """evaluations of a run, after the base model's"""
    search: Search | None = None
    target: float | None = None
    """a headline score; how much it takes to reach it is told"""
    precision: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    """settings of all runs, as in a config file"""
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """the same for the runs of one algorithm, by its name"""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """more to compare, by a name of your own: settings as in a config file, with `algorithm.name`; never searched"""

    def __post_init__(self) -> None:
        at_least_one(self, "images", "points")
        if not self.entries or not self.rewards or not self.seeds:
            raise ValueError("algorithms (or variants), rewards and seeds need at least one entry each")
        for entry in self.entries:
            self._refuse(entry)
        for what, given in (("algorithm", self.algorithms), ("seed", self.seeds)):
            if twice := [each for each in given if list(given).count(each) > 1]:
                raise ValueError(f"{what} {twice[0]} is named twice")
        for what, names in (("reward", self.rewards), ("variant", self.variants)):
            for name in names:
                if name.startswith(".") or not name.translate(BETWEEN).isalnum():
                    raise ValueError(
                        f"'{name}' is no name for a {what} here: it names folders, so use only letters, digits, '-', "
                        "'_' and '.'"
                    )
        for seed in self.seeds:
            between(_Seed(seed), 0, 2**31 - 1, "seed")
        if self.search and self.search.seed in self.seeds:
            raise ValueError(
                f"the search has the seed {self.search.seed} of a compared run: choose another search.seed"
            )
        for key in ("reward", "prompts", "model"):
            if key in self.options:
                raise ValueError(f"options.{key}: name it at the top of the file")
        for name in self.own:
            if name not in self.algorithms:
                raise ValueError(unknown("algorithm of this study", name, self.algorithms))

    def _refuse(self, entry: str) -> None:
        if entry in self.variants and entry in ALGORITHMS:
            raise ValueError(f"variant {entry} has the name of an algorithm: give it another name")
        name = self.kind(entry)
        if name not in ALGORITHMS:
            raise ValueError(unknown("algorithm", name, ALGORITHMS))
        if "scenes" not in PRESETS[name]:
            raise ValueError(f"{name} has no preset of its own size to start from: leave it out")
        made = settings_type(name)().model
        if made not in (self.model, "scenes"):
            raise ValueError(f"{name} is for another kind of model, {made}: give it a study with model: {made}")

    @property
    def entries(self) -> tuple[str, ...]:
        """What is compared: algorithms, and variants by the names that they were given."""
        return (*self.algorithms, *self.variants)

    def kind(self, entry: str) -> str:
        """The algorithm that an entry is a form of.

        Raises:
            ValueError: a variant does not name it.
        """
        if entry not in self.variants:
            return entry
        name = self.variants[entry].get("algorithm", {}).get("name")
        if not isinstance(name, str):
            raise ValueError(f"variants.{entry} needs the name of an algorithm: algorithm: {{name: advantageflow}}")
        return name

    def given(self, entry: str) -> dict[str, Any]:
        """The settings of the file for the runs of an entry."""
        if entry in self.variants:
            return joined(self.options, self.variants[entry])
        return joined(joined(self.options, self.own.get(entry, {})), {"algorithm": {"name": entry}})

    @property
    def measured(self) -> tuple[str, ...]:
        """All scores of an evaluation, the headline first."""
        optimised = [weighted(name)[0] for names in self.rewards.values() for name in names]
        return tuple(dict.fromkeys((self.score, *self.scores, *optimised)))


@dataclass(frozen=True)
class _Seed:
    seed: int


def read(file: Path) -> Study:
    """The study that a file describes.

    Raises:
        ValueError: it cannot be read, or a name or value in it is impossible; the sentence names the place.
    """
    return of(read_yaml(file), str(file))


def of(given: Mapping[str, Any], where: str = "study") -> Study:
    """A study from a mapping. `rewards: [a, b]` gives each reward its own name."""
    given = dict(given)
    rewards = given.get("rewards")
    if isinstance(rewards, str):
        rewards = [rewards]
    if isinstance(rewards, list):
        given["rewards"] = {name if isinstance(name, str) else "+".join(name): name for name in rewards}
    if isinstance(given.get("rewards"), Mapping):
        given["rewards"] = {name: [each] if isinstance(each, str) else each for name, each in given["rewards"].items()}
    kind = TypeAdapter(Study)
    usual = kind.dump_python(Study(Budgets(1), ("advantageflow",), search=Search()), mode="json")
    free = dict.fromkeys(("rewards", "options", "own", "variants"))  # whose keys are not those of a study
    refuse_unknown(given, {**usual, **free}, where)
    try:
        found = kind.validate_python(lists_of_one({"algorithms": [], "scores": []}, given))
    except ValidationError as error:
        place, said = first_invalid(error)
        raise ValueError(f"{where}: {f'{place}: ' if place else ''}{said}") from error
    for name in found.entries:
        from_dict(found.given(name))  # raises for options that are unknown
    return found
