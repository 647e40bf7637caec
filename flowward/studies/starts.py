"""How to begin a run with an algorithm: a recipe if there is one for the model and the reward, else a preset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..algorithms.presets import facts, published
from ..learning.jumps import trained_by
from ..process.plans import Branches, Chain, corrects
from ..process.splits import Splits
from ..training import batches, config, config_files, recipes
from ..training.counting import rows
from .cards import Passes
from .sizes import RANK, SIDE
from .subjects import Model, Recipe, Wanted, every_recipe

BUILT_IN = "scenes"  # the preset at the size of the built-in model
STEADY_NOISE = "cps"  # a noise schedule that asks nothing of the network but its prediction


@dataclass(frozen=True)
class Start:
    """A run that can be started."""

    algorithm: str
    preset: str
    settings: Any  # training.config.Settings
    words: tuple[str, ...]  # of `flowward train`
    recipe: str | None = None  # for this model and these rewards


@dataclass(frozen=True)
class Counts:
    """What an iteration has."""

    points: int  # per update
    indivisible: int  # points that stay together
    passes: Passes  # per image


def recipe(algorithm: str, model: Model, wanted: Wanted | None) -> Recipe | None:
    """The plainest recipe of an algorithm for this model and these rewards (None: any)."""
    found = [
        each
        for each in every_recipe()
        if (each.algorithm, each.model) == (algorithm, model.name)
        and (wanted is None or each.rewards == frozenset(wanted.names))
    ]
    return min(found, key=lambda each: (len(each.name), each.name), default=None)


def start(algorithm: str, model: Model, wanted: Wanted) -> Start:
    """The settings to begin with, and the words of their command."""
    own = recipe(algorithm, model, wanted)
    if own:
        given = config_files.read([recipes.located(own.name)])
        words, preset = ["--config", own.name], str(own.given["algorithm"].get("preset", BUILT_IN))
        if set(wanted.given) != set(own.given["reward"]):  # other weights
            words += ["--reward", *wanted.given]
    else:
        preset = _preset(algorithm, model, wanted)
        given, words = _of_preset(algorithm, preset, model, wanted)
    given = {**given, "reward": list(wanted.given)}
    settings = config.from_dict(given)
    if model.signs and corrected(settings.algorithm):
        ours = given["algorithm"]
        given = {**given, "algorithm": {**ours, "rollout": {**ours.get("rollout", {}), "law": STEADY_NOISE}}}
        settings, words = config.from_dict(given), [*words, "--algorithm.rollout.law", STEADY_NOISE]
    return Start(algorithm, preset, settings, tuple(words), own.name if own else None)


def _preset(algorithm: str, model: Model, wanted: Wanted) -> str:
    if model.built_in:
        return BUILT_IN
    named = [name for name in wanted.names if name in facts(algorithm).presets]
    return named[0] if len(wanted.names) == 1 and named else published(algorithm)


def _of_preset(algorithm: str, preset: str, model: Model, wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """The settings as in a config file, and as words."""
    given: dict[str, Any] = {"model": model.name, "algorithm": {"name": algorithm, "preset": preset}}
    words = ["--algorithm", algorithm]
    if model.built_in:
        words += ["--model", model.name] * (config.settings_type(algorithm)().model != model.name)
        return given, [*words, "--reward", *wanted.given]
    words += ["--preset", preset, "--model", model.name]
    if not model.videos and not model.sounds:
        given["loading"] = {"size": [SIDE, SIDE]}
        words += ["--size", str(SIDE), str(SIDE)]
    if config.settings_type(algorithm, preset)().lora_rank is None:
        given["lora_rank"] = RANK
        words += ["--lora-rank", str(RANK)]
    return given, [*words, "--reward", *wanted.given, *_prompts(wanted), "--memory", "auto"]


def _prompts(wanted: Wanted) -> Sequence[str]:
    """Those of a recipe with the same rewards."""
    for each in every_recipe():
        if each.rewards == frozenset(wanted.names):
            return ["--prompts", each.given["prompts"], "--evaluation.prompts", each.given["evaluation"]["prompts"]]
    return ["--prompts", "train:FILE", "--evaluation.prompts", "held-out:FILE"]


def corrected(algorithm: Any) -> bool:
    """Whether its random steps use a score, which a step-distilled model does not have."""
    if trained_by(algorithm.points) != "steps":
        return False
    rollout = algorithm.rollout.bound(even)
    return isinstance(rollout, Chain | Branches | Splits) and corrects(rollout)


def even(steps: int) -> tuple[float, ...]:
    """Times from 1 to 0 where a model's own are not known: only their number matters."""
    return tuple(1 - number / steps for number in range(steps + 1))


def counts(settings: Any, evaluations: Callable[[float], int]) -> Counts:
    """The training points and network passes of an iteration.

    Args:
        evaluations: network passes of a velocity with this guidance.
    """
    run, algorithm = settings.run, settings.algorithm
    rollout = algorithm.rollout.bound(even)
    found = batches.counted(algorithm, rollout, run)
    points = found.per_update * run.updates_per_iteration / run.images
    frozen = sum(evaluations(guidance) for guidance in algorithm.anchors.values())
    passes = Passes(
        rows(rollout, run) / run.group_size * evaluations(rollout.guidance),
        points * evaluations(algorithm.guidance),
        points * frozen,
    )
    return Counts(found.per_update, found.indivisible, passes)
