"""What a run from Python is measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..evaluation.evaluate import Evaluation, Evaluator, load_rewards
from ..prompts import BUILT_IN
from ..rewards import Reward, terms, weighted
from ..system.paths import short_codes
from .arguments import Arguments, changed, prompt_set, reward_of

WORLDS = ("scenes", "scenes-64")  # prompt sets of the built-in worlds, which their checkers can judge
FEW = 60  # images of an evaluation outside of it


def evaluator(parts: Arguments, given: Any = None) -> Evaluator:
    """What measures a run: see `fit` for what `given` may be. By default the held-out prompts of the training set.

    Raises:
        ValueError: it is of a wrong kind, or has prompts or rewards that do not exist.
    """
    if isinstance(given, Evaluator):
        if given.policy is not parts.policy:
            raise ValueError("the evaluator measures another model: give it the policy that is trained")
        return given
    if isinstance(given, Evaluation):
        texts, _ = prompt_set(given.prompts)
        return Evaluator(parts.policy, given, texts)
    if isinstance(given, Mapping):
        return asked(_usual(parts), **given)
    if given is None or isinstance(given, bool):
        return _usual(parts)
    raise ValueError(
        f"evaluation must be True, False, a mapping of settings or an Evaluation, not {type(given).__name__}"
    )


def asked(usual: Evaluator, prompts: Any = None, rewards: Any = None, **changes: Any) -> Evaluator:
    """An evaluator with other prompts, rewards or settings.

    Raises:
        ValueError: they are of a wrong kind, or do not exist.
    """
    how, texts, scores = changed(usual.evaluation, changes), usual.prompts, dict(usual.rewards)
    if prompts is not None:
        texts, where = prompt_set(prompts)
        how = replace(how, prompts=where or texts.name)
    if rewards is not None:
        reward, names = reward_of(rewards)
        scores = load_rewards(names) if names else {name: own for name, _, own in terms(reward)}
        how = replace(how, rewards=tuple(names or scores), guard=())
    return replace(usual, evaluation=how, prompts=texts, rewards=scores)


def _usual(parts: Arguments) -> Evaluator:
    held_out = f"{parts.prompts.name}-held-out"
    texts, where = prompt_set(held_out) if held_out in BUILT_IN else (parts.prompts, parts.named.get("prompts"))
    own, names = _scores(parts)
    world = texts.name.removesuffix("-held-out") in WORLDS
    usual = parts.usual.evaluation
    if world and names == ("scenes",):  # strict accuracy says the same, and more clearly
        own, names = {}, ()
    more = [name for name in usual.rewards if world and name not in own]
    sampler = replace(usual.sampler, guidance=parts.algorithm.rollout.guidance)
    how = replace(
        usual,
        prompts=where or texts.name,
        rewards=(*names, *more),
        images=usual.images if world else FEW,
        sampler=sampler,
    )
    return Evaluator(parts.policy, how, texts, rewards={**own, **load_rewards(more)} if more else own)


def _scores(parts: Arguments) -> tuple[dict[str, Reward], tuple[str, ...]]:
    """The rewards of training by their names in results, and the names to load them by, if they have such names."""
    found = terms(parts.reward)
    if not (given := parts.named.get("reward")):
        return {name: reward for name, _, reward in found}, tuple(name for name, _, _ in found)
    names = tuple(weighted(item)[0] for item in given)
    short = short_codes(names)
    return {short[name]: reward for name, (_, _, reward) in zip(names, found, strict=True)}, names
