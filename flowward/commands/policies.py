"""What `sample`, `eval` and `export` share: the policy that a name stands for, and remarks about its guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import models
from ..export import exported
from ..export.trained import load as policy_of
from ..learning.mixtures import named
from ..models.mixture import parsed
from ..process.policy import Policy
from ..system.terminal import tell
from ..training.record import Record

__all__ = ["mix", "policy_of", "remark_on_guidance", "warn_of_guidance"]


def mix(policy: Policy, words: Sequence[str]) -> None:
    """Give a palette the mixture that `name=weight` words name, if there are some; its name says so.

    Raises:
        ValueError: the model is no palette, or the mixture is impossible.
    """
    if not words:
        return
    palette = policy.weights.palette
    if not palette:
        raise ValueError(f"{policy.name} has no adapters to mix, since it is no palette: leave out --mixture")
    policy.weights.mixture.default = mixture = parsed(words, palette)
    policy.name += f" at {named(mixture, palette)}"


def warn_of_guidance(name: str, guidance: float) -> None:
    """Say so where a run is sampled with another guidance than its samples had in training."""
    trained = _trained_with(name)
    if trained is not None and trained != guidance:
        said = f"{name} was trained on samples with guidance {trained:g}, and is sampled with {guidance:g} now"
        tell(f"{said} (--guidance {trained:g} for the same)")


def remark_on_guidance(name: str, policy: Policy, guidance: float) -> None:
    """Say so where a model that was not trained here is sampled with another guidance than it was made for."""
    if _trained_with(name) is None and (remark := policy.remark(guidance)):
        tell(f"{remark} (--guidance)")


def _trained_with(name: str) -> float | None:
    """The guidance of the samples that a run or an export was trained on."""
    path = Path(name := models.located(name))
    about = Record.open(path).origin() if (path / "config.yaml").is_file() else exported.facts(name)
    return about.get("guidance")
