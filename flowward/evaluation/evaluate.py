"""Measure a model: scores with all settings that they depend on (prompts, seed, solver, steps, guidance, weights)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from .. import rewards as reward_table
from ..process.policy import Policy
from ..process.rollout import Sampler
from ..prompts import PromptSet, refuse_others, sources_of
from ..rewards import Explains, Metadata, Reward, RewardError
from ..rewards.scoring import agreement
from ..system import distributed
from ..system.errors import between, named
from ..system.paths import short_codes
from .drawing import NotFinite, batches, dealt_out, draw, of_all
from .images import thumbnails
from .measurement import Measurement
from .provenance import described, hash_of, versions
from .samples import Samples
from .statistics import interval

__all__ = [
    "Evaluation",
    "Evaluator",
    "NotFinite",
    "draw",
    "evaluate",
    "explain",
    "interval",
    "load_rewards",
    "measure",
    "settings",
]


LISTENED = 8  # sounds of an evaluation that its page can play
MOST_IMAGES = 1_000_000  # of an evaluation: more would take weeks


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how. Scores are comparable only if these settings are equal."""

    prompts: str = "scenes-held-out"
    """measure on these prompts: a built-in set, a file, or hf:owner/name; held-out:FILE takes 5 % of a file"""
    prompt_column: str | None = None
    """read prompts from this column or key, in any case (none: prompt, text, caption)"""
    rewards: tuple[str, ...] = ("scenes-strict", "balance")
    """report these scores; the first is the headline"""
    guard: tuple[str, ...] = ()
    """watch these rewards: warn if one falls while the headline rises"""
    reward_options: tuple[str, ...] = ()
    """set options of a reward, e.g. pickscore.batch=64"""
    images: int = 1200
    """sample this many images, spread evenly over the prompt categories"""
    images_per_prompt: int | None = None
    """sample this many images of every prompt, instead of a total number"""
    seed: int = 1234
    """random seed of the evaluation; equal seeds give equal images"""
    weights: Literal["policy", "ema"] = "policy"
    """measure the trained `policy` or its `ema` average"""
    batch: int | None = None
    """sample this many images at once; does not change them (none: two megapixels, at most 200 images)"""
    sampler: Sampler = field(default_factory=lambda: Sampler(grid="model"))

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"an evaluation needs at least 1 image, not {self.images}: raise images")
        between(self, 1, MOST_IMAGES, "images", *(["batch"] if self.batch is not None else []))
        if self.images_per_prompt is not None:
            between(self, 1, MOST_IMAGES, "images_per_prompt")
        if aimed := [name for name in self.guard if name in self.rewards[:1]]:
            raise ValueError(f"'{aimed[0]}' is the headline score, so it cannot be a guard: choose another guard")
        if self.seed < 0:
            raise ValueError(f"the seed of an evaluation must be 0 or more, not {self.seed}")

    @property
    def scores(self) -> tuple[str, ...]:
        """All scores, the headline first."""
        return tuple(dict.fromkeys((*self.rewards, *self.guard)))

    @property
    def names(self) -> dict[str, str]:
        """Each score with its name in results: a reward in a file is named without the folders of the file."""
        return short_codes(self.scores)

    def unlike(self, guidance: float) -> str | None:
        """A warning if the guidance of training differs; otherwise None."""
        if guidance == (own := self.sampler.guidance):
            return None
        return f"training uses guidance {guidance:g}, but the evaluation uses {own:g}"

    def chosen(self, prompts: PromptSet) -> list[int]:
        """The prompt of each image, as indices.

        Raises:
            ValueError: `prompts` is not a PromptSet, or there are too many images.
        """
        refuse_others(prompts)
        if self.images_per_prompt is None:
            return prompts.spread(self.images)
        if (every := len(prompts) * self.images_per_prompt) > MOST_IMAGES:
            raise ValueError(
                f"{len(prompts):,} prompts with {self.images_per_prompt:,} images each are {every:,} images; an "
                f"evaluation can have at most {MOST_IMAGES:,}"
            )
        return [index for index in range(len(prompts)) for _ in range(self.images_per_prompt)]


def load_rewards(names: Sequence[str], options: Sequence[str] = ()) -> dict[str, Reward]:
    """Rewards by name, or `name=weight`; `options` as for `rewards.load`. Names of files become short ones.

    Raises:
        ValueError: see `rewards.load`.
    """
    bare = {name: reward_table.weighted(name)[0] for name in names}
    strays = [option for option in options if reward_table.owner(option) not in bare.values()]
    if strays or not names:
        reward_table.load(names, strays)  # raises the error
    short = short_codes(names)
    return {
        short[name]: reward_table.load([name], [option for option in options if reward_table.owner(option) == own])
        for name, own in bare.items()
    }


def settings(
    policy: Policy, prompts: PromptSet, evaluation: Evaluation, rewards: Mapping[str, Reward]
) -> dict[str, Any]:
    """All settings that the scores of an evaluation depend on, for JSON."""
    sampler = evaluation.sampler.bound(policy.times)
    known = ("family", "base", "weights")
    return {
        "weights": evaluation.weights,
        "precision": policy.precision,
        "solver": sampler.solver,
        "steps": sampler.steps,
        **({"times": list(sampler.own)} if sampler.own else {"shift": sampler.shift}),
        "grid": sampler.grid,
        **({"tau": sampler.tau} if sampler.solver == "sa" else {}),
        "guidance": None if sampler.guidance == 1 else sampler.guidance,
        "seed": evaluation.seed,
        "prompts": prompts.name,
        "prompts_sha256": hash_of(prompts),
        "images": len(evaluation.chosen(prompts)),
        **policy.medium.settings,
        "model": {
            "name": policy.name,
            **{key: policy.identity[key] for key in known if key in policy.identity},
            **({"mixture": policy.weights.mixture.named(policy.weights.palette)} if policy.weights.mixture else {}),
        },
        "rewards": {name: described(reward) for name, reward in rewards.items()},
        "guard": [evaluation.names[name] for name in evaluation.guard if evaluation.names[name] in rewards],
        "versions": versions(),
    }


def measure(
    policy: Policy,
    prompts: PromptSet,
    evaluation: Evaluation,
    rewards: Mapping[str, Reward] | None = None,
    pictures: bool = False,
    advance: Callable[[int], object] = lambda images: None,
) -> Measurement:
    """Sample every image once and score it with every reward.

    Only one batch of images is in memory at a time, unless a reward compares the images of a prompt. Of several
    processes each scores what it sampled, and tells the others scores and thumbnails.

    Args:
        pictures: keep a thumbnail of each image.
        advance: called with the size of each finished batch.

    Raises:
        ValueError: a reward is unknown, or the model does not accept a prompt.
        RewardError: a reward failed, or samples are NaN or infinite (NotFinite).
    """
    rewards = rewards or load_rewards(evaluation.scores, evaluation.reward_options)
    chosen, medium = evaluation.chosen(prompts), policy.medium
    texts, asked = [prompts.texts[i] for i in chosen], [prompts[i] for i in chosen]
    kept, heard = list[bytes](), list[bytes]()
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    compare = [name for name, reward in rewards.items() if getattr(reward, "compares", False)]
    dealt = dealt_out(asked, bool(compare))
    mine, held = dealt[distributed.team()], list[Tensor]()
    drawn = batches(policy, asked, evaluation.sampler, evaluation.seed, evaluation.weights, evaluation.batch, mine)
    with agreement(any(getattr(each, "in_background", False) for each in rewards.values())), closing(drawn) as parts:
        for numbers, images in parts:
            part = [chosen[number] for number in numbers]
            own, about = [prompts.texts[i] for i in part], prompts.about(part, medium.facts)
            for name in rewards.keys() - compare:
                scores[name].append(reward_table.score(name, rewards[name], images, own, about, medium.frames))
            held += [images] if compare else []
            kept += thumbnails(medium.draw(images, own), max(192, medium.longest)) if pictures else []
            heard += medium.heard(images) if pictures else []
            advance(len(images))
        if held:
            part, every = [chosen[number] for number in mine.tolist()], torch.cat(held)
            own, about = [prompts.texts[i] for i in part], prompts.about(part, medium.facts)
            for name in compare:
                scores[name].append(reward_table.score(name, rewards[name], every, own, about, medium.frames))
    place = torch.cat(dealt).argsort()  # of each image among those of all processes, one after the other
    joined = {name: of_all(parts)[place] for name, parts in scores.items()}
    judged = [name for name, reward in rewards.items() if reward_table.gives_verdicts(reward)]
    return Measurement(
        policy.name,
        settings(policy, prompts, evaluation, rewards),
        tuple(texts),
        tuple(prompts.categories[i] for i in chosen),
        joined,
        frozenset(name for name in judged if ((joined[name] == 0) | (joined[name] == 1)).all()),
        _everyone(kept, place),
        sounds=_everyone(heard, place),
        sources=tuple(map(sources_of, asked)) if prompts.sources else (),
        bounds={name: known for name, own in rewards.items() if (known := reward_table.bounds_of(own))},
    )


def _everyone(files: list[bytes], place: Tensor) -> tuple[bytes, ...]:
    """The files of all processes in the order of their samples, whose places are given; none if none were kept."""
    every = [each for part in distributed.each_team(files) for each in part]
    return tuple(every[k] for k in place.tolist()) if every else ()


def evaluate(
    policy: Policy, prompts: PromptSet, evaluation: Evaluation, rewards: Mapping[str, Reward] | None = None
) -> dict[str, Any]:
    """Scores overall and per category with 95 % intervals, and the settings of the evaluation.

    `low` and `high` are the interval over noise, `over_prompts` is the interval over prompts (docs/evaluation.md).
    """
    return measure(policy, prompts, evaluation, rewards).summary()


def explain(
    reward: Reward, images: Tensor, texts: Sequence[str], metadata: Metadata = None, frames: bool = True
) -> list[str | None]:
    """A reward's explanation for each image ('' if the image is right); None if it has no explanations.

    A video is right if all its frames are; otherwise the first wrong frame gives the explanation.

    Raises:
        RewardError: the reward failed, or did not return one text per image.
    """
    if not isinstance(reward, Explains):
        return [None] * len(texts)
    if frames and images.ndim == 5 and not getattr(reward, "takes_videos", False):
        every = [explain(reward, each, texts, metadata) for each in images.unbind(1)]
        return [next(filter(None, own), "") for own in zip(*every, strict=True)]
    try:
        said = list(reward.explain(images, texts, metadata))
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        kind = type(reward).__qualname__
        raise RewardError(f"reward {kind} cannot explain its scores: {named(error)}") from error
    if len(said) != len(texts) or not all(isinstance(each, str) for each in said):
        raise RewardError(
            f"explain of reward {type(reward).__qualname__} must return one text for each of {len(texts)} images"
        )
    return list(said)


@dataclass(frozen=True)
class Evaluator:
    """Measures one policy, always with the same settings."""

    policy: Policy
    evaluation: Evaluation
    prompts: PromptSet
    pictures: int = 24
    """images in the sample grid"""
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    """rewards of the evaluation, loaded once because some contain networks (default: loaded here)"""

    def __post_init__(self) -> None:
        if not self.rewards:
            found = load_rewards(self.evaluation.scores, self.evaluation.reward_options)
            object.__setattr__(self, "rewards", found)

    @property
    def told(self) -> Evaluation:
        """The settings with the actual prompts and rewards, which may differ from the named ones in Python."""
        how = self.evaluation
        named = {short: name for name, short in how.names.items()}
        own = tuple(name for each in self.rewards if (name := named.get(each, each)) not in how.guard)
        return replace(how, prompts=self.prompts.name, rewards=own)

    def refuse(self) -> None:
        """Raises ValueError if the model or a reward does not accept a prompt."""
        refuse_others(self.prompts)
        self.policy.refuse(list(self.prompts))
        for reward in self.rewards.values():
            reward_table.refuse_kind(reward, self.policy.medium.kind)
            about = self.prompts.about(range(len(self.prompts)), self.policy.medium.facts)
            reward_table.refuse(reward, self.prompts.texts, about)

    def measure(self) -> Measurement:
        return measure(self.policy, self.prompts, self.evaluation, self.rewards)

    def scores(self) -> dict[str, Any]:
        return self.measure().summary()

    def grid(self) -> Image:
        """The sample grid: always the same prompts and seeds, with the first reward's verdict on each image."""
        return self.samples().grid()

    def samples(self) -> Samples:
        """The images of the sample grid, with the first reward's verdict on each."""
        chosen = self.prompts.spread(self.pictures)
        texts, asked = [self.prompts.texts[i] for i in chosen], [self.prompts[i] for i in chosen]
        how, medium, first = self.evaluation, self.policy.medium, next(iter(self.rewards.values()))
        images = draw(self.policy, asked, how.sampler, how.seed, how.weights, how.batch)
        with agreement():
            marks = explain(first, images, texts, self.prompts.about(chosen, medium.facts), medium.frames)
        sources, shown = list(map(sources_of, asked)), medium.draw(images, texts)
        categories = [self.prompts.categories[i] for i in chosen]
        sounds = medium.heard(images[:LISTENED])
        return Samples(shown, texts, categories, marks, sources, longest=medium.longest, sounds=sounds)
