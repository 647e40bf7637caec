"""Images from files: preference pairs that replace sampling, and exemplars that replace some samples of a group."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import prompts
from ..learning.points import PointSet
from ..process.policy import Condition, Policy
from ..process.rollout import Drawn, Rollout
from ..prompts import Prompt, PromptSet, described, prompt_of, sources_of, text_of
from ..prompts.image_files import digest, refuse_broken
from ..prompts.lines import json_rows
from ..prompts.pictures import picture
from ..prompts.rows import sources_in, text_in
from ..system.seeds import Key, numpy_generator


def read(path: Path, images: Sequence[str]) -> list[tuple[Prompt, dict[str, str]]]:
    """The prompts of a JSON Lines file, each with the paths of its images by their keys.

    A line has a `prompt`, these images, and for editing models a `source`. Image paths are relative to the file.

    Raises:
        ValueError: the file is missing or empty, a line is not JSON or lacks a key, or an image is missing or broken.
    """
    rows, look = [], cache(refuse_broken)  # check each image once
    for number, row in json_rows(path, str(path)):
        try:
            if lacking := [name for name in ("prompt", *images) if not isinstance(row.get(name), str)]:
                wanted = ", ".join(("prompt", *images))
                raise ValueError(f"it must be an object with the text fields {wanted}, but lacks {lacking[0]}")
            prompt = prompt_of(text_in(row, "prompt"), sources_in(row, path.parent))
            files = {name: path.parent / row[name] for name in images}
            for name, file in files.items():
                if not os.path.isfile(file):  # False for names that no file can have
                    raise ValueError(f"it names an image that does not exist: {row[name]}")
            for file in [*files.values(), *sources_of(prompt)]:
                look(file)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append((prompt, {name: str(file) for name, file in files.items()}))
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def _identity(images: Mapping[Prompt, Sequence[Any]]) -> str:
    """A short hash of prompts and image files, by their content and in their order."""
    found = hashlib.sha256()
    for prompt, files in images.items():
        sources = described(sources_of(prompt), digest)
        shown = [digest(Path(file)) for each in files for file in ([each] if isinstance(each, str) else each)]
        found.update(json.dumps([text_of(prompt), sources, shown]).encode())
    return found.hexdigest()[:16]


def _refuse_videos(policy: Policy) -> None:
    if not policy.medium.frames:
        raise ValueError(f"{policy.name} makes samples that are no images, but preferences and exemplars are images")
    if len(policy.latent_shape) > 3:
        raise ValueError(f"{policy.name} generates videos, but preferences and exemplars need a model for images")


def _comparing(reward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reward that `compares` the images of a prompt, so they are never torn apart."""
    reward.compares = True  # type: ignore[attr-defined]
    return reward


@dataclass(frozen=True)
class Preferences:
    """Pairs of images per prompt, the better one first. They replace the policy's own samples."""

    prompts: PromptSet
    pairs: dict[Prompt, list[tuple[str, str]]]  # prompt -> (chosen, rejected)

    @classmethod
    def load(cls, path: Path) -> Preferences:
        """From JSON Lines with `prompt`, `chosen` and `rejected`, and an optional `source` for editing models.

        Raises:
            ValueError: see `read`.
        """
        pairs: dict[Prompt, list[tuple[str, str]]] = defaultdict(list)
        for prompt, files in read(path, ("chosen", "rejected")):
            pairs[prompt].append((files["chosen"], files["rejected"]))
        return cls(prompts.of(path.name, list(pairs)), dict(pairs))

    @property
    def identity(self) -> str:
        """A short hash of all prompts and images."""
        return _identity(self.pairs)

    def refuse(self, points: Callable[[Rollout, Key], PointSet], levels: Tensor) -> None:
        """Raises ValueError if the algorithm needs the trajectory of each sample, which images from files lack."""
        pair = Rollout.of([Drawn(torch.zeros(2, 1))], Condition({"": torch.zeros(1)}), torch.zeros(2).long(), levels)
        points(pair, ("",)).take(torch.arange(2))

    @_comparing
    def reward(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """1 for each chosen image and 0 for each rejected one, in the order of `collect`."""
        return (torch.arange(len(images)) % 2 == 0).float()

    def pair(self, prompt: Prompt, key: tuple[int, int, int]) -> tuple[str, str]:
        """The files of one random pair for a prompt; key: seed, iteration, and index of the prompt in it."""
        mine = self.pairs[prompt]
        return mine[int(numpy_generator("pair", *key).integers(len(mine)))]

    def collector(
        self, policy: Policy, seed: int
    ) -> Callable[[Sequence[Prompt], Condition, int, Tensor], Iterator[tuple[Drawn, Tensor]]]:
        """A function that replaces the trainer's sampling (see trainer.Collect).

        Raises:
            ValueError: the model generates videos.
        """
        _refuse_videos(policy)

        def collect(
            asked: Sequence[Prompt], _: Condition, index: int, numbers: Tensor
        ) -> Iterator[tuple[Drawn, Tensor]]:
            if not len(numbers):  # of a process that has none
                return
            files = [self.pair(asked[n // 2], (seed, index, n // 2))[n % 2] for n in numbers.tolist()]
            images = torch.stack([picture(file, policy.image_size) for file in files])
            yield Drawn(policy.encode_images(images)), images

        return collect


@dataclass(frozen=True)
class Exemplars:
    """Given images that replace some samples of some groups. So the policy learns from images that it never samples.

    As in FlowAWR's GraftOOD (arXiv:2606.30376), an exemplar has the advantage 1 and does not affect the advantages of
    its group.
    """

    images: dict[Prompt, list[str]]  # prompt -> files
    share: float = 1 / 6  # probability that a group whose prompt has exemplars gets them
    count: int = 4  # samples replaced in such a group

    @classmethod
    def load(cls, path: Path, share: float = 1 / 6, count: int = 4) -> Exemplars:
        """From JSON Lines with `prompt` and `image`, and an optional `source` for editing models.

        Raises:
            ValueError: see `read`; or share is not in (0, 1], or count is below 1.
        """
        if not 0 < share <= 1 or count < 1:
            raise ValueError(
                f"exemplars need a share in (0, 1] and at least 1 per group, not {share} and {count}: change "
                "--exemplar-share or --exemplars-per-group"
            )
        images: dict[Prompt, list[str]] = defaultdict(list)
        for prompt, files in read(path, ("image",)):
            images[prompt].append(files["image"])
        return cls(dict(images), share, count)

    @property
    def identity(self) -> str:
        """A short hash of all prompts and images."""
        return _identity(self.images)

    def refuse(self, asked: Iterable[Prompt], group_size: int) -> None:
        """Raises ValueError if too few own samples remain in a group, or exemplars belong to unknown prompts."""
        self._refuse_small(group_size)
        known = set(asked)
        if others := [prompt for prompt in self.images if prompt not in known]:
            raise ValueError(
                f"{len(others)} of {len(self.images)} prompts with exemplars are not training prompts, "
                f"for example '{others[0]}'"
            )

    def _refuse_small(self, group_size: int) -> None:
        if self.count > group_size - 2:
            raise ValueError(
                f"{self.count} exemplars leave fewer than 2 samples in groups of {group_size}: lower "
                "--exemplars-per-group or raise --group-size"
            )

    def graft(self, policy: Policy, rollout: Rollout, asked: Sequence[Prompt], key: tuple[int, int]) -> Rollout:
        """The rollout with exemplars in it; key: seed and iteration.

        Raises:
            ValueError: fewer than two own samples would remain in a group.
        """
        members = rollout.by_group()
        self._refuse_small(members.shape[1])
        x0, given = rollout.x0.clone(), torch.zeros(len(rollout), dtype=torch.bool)
        for number, prompt in enumerate(asked):
            stream = numpy_generator("graft", *key, number)
            if prompt not in self.images or stream.random() >= self.share:
                continue
            files = stream.choice(self.images[prompt], self.count, replace=len(self.images[prompt]) < self.count)
            samples = members[number, -self.count :]
            given[samples] = True
            here = rollout.has(samples)
            if here.any():  # the others are grafted where they are
                own = [str(name) for name, is_here in zip(files, here.tolist(), strict=True) if is_here]
                pictures = torch.stack([picture(name, policy.image_size) for name in own])
                x0[rollout.rows(samples[here])] = policy.encode_images(pictures).to(x0)
        return replace(rollout, x0=x0, exemplar=given)

    def grafter(self, policy: Policy, seed: int) -> Callable[[Rollout, Sequence[Prompt], int], Rollout]:
        """`graft` with the trainer's arguments: rollout, prompts, iteration.

        Raises:
            ValueError: the model generates videos.
        """
        _refuse_videos(policy)
        return lambda rollout, asked, index: self.graft(policy, rollout, asked, (seed, index))
