"""Named evaluations: prompts, rewards (the first is the headline) and number of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..system import tables
from ..system.errors import unknown
from .evaluate import Evaluation

FILE = Path(__file__).with_suffix(".yaml")  # where they are written down


@dataclass(frozen=True)
class Suite:
    """Prompts, rewards (the first is the headline) and number of images. Sampler options are not part of a suite."""

    prompts: str
    rewards: tuple[str, ...]
    images: int = Evaluation.images
    """number of images, spread evenly over the categories; the overall score is the mean of the categories"""
    images_per_prompt: int | None = None
    """number of images of every prompt, instead of `images`"""

    def of(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation with this suite's prompts, rewards and numbers of images."""
        return replace(
            evaluation,
            prompts=self.prompts,
            rewards=self.rewards,
            images=self.images,
            images_per_prompt=self.images_per_prompt,
        )


SUITES: dict[str, Suite] = {
    name: Suite(own["prompts"], tuple(own["rewards"]), **{key: own[key] for key in own.keys() & {"images_per_prompt"}})
    for name, own in tables.load(FILE).items()
}


def load(name_or_path: str) -> Suite:
    """A suite by name, or a suite for a prompt file, without rewards.

    Raises:
        ValueError: there is no such suite or file.
    """
    if name_or_path in SUITES:
        return SUITES[name_or_path]
    path = Path(name_or_path)
    if not path.suffix and not path.exists() and ":" not in name_or_path:
        raise ValueError(unknown("suite", name_or_path, SUITES) + " (or use a prompt file)")
    return Suite(name_or_path, ())
