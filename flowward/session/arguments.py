"""What may be given to flowward.fit: names, files, lists and functions become the parts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .. import models, rewards
from .. import prompts as prompt_table
from ..algorithms.algorithm import Algorithm, refuse_incomplete
from ..process.policy import Policy
from ..prompts import BUILT_IN, Edit, PromptSet
from ..rewards import Reward, Sum
from ..system.errors import first_invalid, unknown
from ..system.paths import absolute_code
from ..training import config
from ..training.run import Run

LISTED = "given prompts"  # name of a prompt set from a list


@dataclass(frozen=True)
class Arguments:
    """What a run is made of, from what was passed to `fit`."""

    algorithm: Algorithm
    policy: Policy
    reward: Reward
    prompts: PromptSet
    run: Run
    usual: config.Settings  # settings that the name of an algorithm stands for
    loaded: bool  # the policy was given by name, so nobody else uses it
    named: dict[str, Any]  # the entries of config.yaml that names stand for

    @property
    def main(self) -> tuple[Algorithm, Policy, Reward, PromptSet, Run]:
        """What a trainer is made of."""
        return self.algorithm, self.policy, self.reward, self.prompts, self.run

    @classmethod
    def read(
        cls,
        algorithm: Any,
        policy: Any,
        reward: Any,
        prompts: Any,
        run: Run | None,
        output: str | Path | None,
        changes: Mapping[str, Any],
    ) -> Arguments:
        """The parts from the arguments of `fit`.

        Raises:
            ValueError: an argument is of a wrong kind, or something of this name does not exist.
        """
        name = policy if isinstance(policy, str) else policy.name if isinstance(policy, Policy) else None
        chosen, usual = _algorithm(algorithm, name)
        how = _run(run, usual.run, changes, output)
        texts, where = prompt_set(prompts)
        scored, names = reward_of(reward)
        model = _policy(policy, usual, how.seed)
        named = {"reward": names, "prompts": where}
        told = {key: value for key, value in named.items() if value is not None}
        return cls(chosen, model, scored, texts, how, usual, model is not policy, told)


def _algorithm(given: Any, model: str | None) -> tuple[Algorithm, config.Settings]:
    """An algorithm and the settings for it: tested ones if it is given by name."""
    if isinstance(given, str):
        settings = config.starting(given, None, model)
        return settings.algorithm, settings
    refuse_incomplete(given)
    return given, config.Settings()


def _run(given: Run | None, usual: Run, changes: Mapping[str, Any], output: str | Path | None) -> Run:
    known = {each.name for each in fields(Run)}
    for name in changes:
        if name not in known:
            model = {"lora_rank", "lora_alpha", "lora_targets", "precision", "loading", "size", "device"}
            if name in model:
                raise ValueError(f"{name} belongs to the model: give policy=flowward.load(NAME, ...) with it")
            raise ValueError(unknown("setting", name, known))
    if given is not None and not isinstance(given, Run):
        raise ValueError(f"run must be flowward.Run(...), not {given!r:.60}")
    if output is not None:
        changes = {**changes, "output": Path(output)}
    try:
        return TypeAdapter(Run).validate_python({**asdict(given or usual), **changes})
    except ValidationError as error:
        where, said = first_invalid(error)
        raise ValueError(f"{where}: {said}" if where else said) from error


def _policy(given: Any, usual: config.Settings, seed: int) -> Policy:
    if isinstance(given, Policy):
        return given
    if not isinstance(given, str | Path):
        raise ValueError(
            f"policy must be the name of a model, or a model from flowward.load(name), not {type(given).__name__}"
        )
    adapters = usual.adapters
    return models.load(str(given), None, usual.precision, seed, usual.loading, adapters=adapters)


def reward_of(given: Any) -> tuple[Reward, list[str] | None]:
    """A reward from a name, a function, or a list of both; and the names for config.yaml, if there are only names.

    Raises:
        ValueError: a name is unknown, or this is something else.
    """
    items = [*given] if isinstance(given, list | tuple) else [given]
    if wrong := [each for each in items if not (isinstance(each, str) or callable(each))]:
        kind = type(wrong[0]).__name__
        raise ValueError(f"reward must be the name of a reward, a function, or a list of them, not {kind}")
    if items and all(isinstance(each, str) for each in items):
        return rewards.load(items), [absolute_code(each) for each in items]
    if len(items) == 1:
        return items[0], None
    parts = [term for each in items for term in rewards.terms(rewards.load(each) if isinstance(each, str) else each)]
    names = [name for name, _, _ in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two rewards are named '{twice}'; give one of the functions another name")
    return Sum(tuple(parts)), None


def prompt_set(given: Any) -> tuple[PromptSet, str | None]:
    """A prompt set from its name, a file, a list of prompts or a PromptSet; and the name for config.yaml, if any.

    Raises:
        ValueError: it does not exist, is empty, or is something else.
    """
    if isinstance(given, PromptSet):
        return given, None
    if isinstance(given, str | Path):
        return _loaded(str(given)), prompt_table.located(str(given))
    if isinstance(given, Sequence) and all(isinstance(each, str | Edit) for each in given):
        return prompt_table.of(LISTED, list(dict.fromkeys(given))), None
    raise ValueError(
        f"prompts must be the name of a prompt set, a file, a list of texts or a PromptSet, not {type(given).__name__}"
    )


def _loaded(name: str) -> PromptSet:
    try:
        return prompt_table.load(name)
    except ValueError as error:
        if " " in name and name not in BUILT_IN and not Path(name).exists():
            raise ValueError(f"{error}; to train on this text itself, give a list: [{name!r}]") from error
        raise


def listed(texts: PromptSet) -> list[dict[str, str]]:
    """The rows of a file for these prompts, which gives an equal set; empty if a file cannot hold them."""
    if texts.metadata or texts.sources or texts.name != LISTED:
        return []
    pairs = zip(texts.texts, texts.categories, strict=True)
    return [{"prompt": text, "category": category} for text, category in pairs]


def changed(given: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with other values.

    Raises:
        ValueError: it has no such setting.
    """
    known = {each.name for each in fields(given)}
    for name in changes:
        if name not in known:
            raise ValueError(unknown("setting of the evaluation", name, known))
    return replace(given, **changes)
