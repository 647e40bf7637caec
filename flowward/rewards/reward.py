"""What a reward is, and how it is held to its word."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..system.asking import ServiceError

Metadata = Sequence[Mapping[str, Any]] | None
"""What a prompt set says of each prompt beside its text, one mapping per image; None where it says nothing"""


class Reward(Protocol):
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """images float [B, 3, H, W] or [B, F, 3, H, W] in [0, 1], B prompts -> scores [B], higher is better.

        The images are not its own: other rewards score them too, so it must not change them. `metadata` is what the
        prompt set says of each prompt (see Metadata).

        A reward may say more of itself by attributes, which are False where it has none. `takes_videos`: it scores
        videos as they are. `compares`: a score depends on the other images of the call, which must not be cut.
        `in_background`: it mostly waits for others (a server, a judge), so it may be called in a thread while the
        next batch is sampled; it is then safe to call from several threads, and computes nothing to speak of itself.
        `verdicts`: scores that are all 0 or 1 are verdicts, right or wrong; so are those of one that Explains.
        `identity`: a mapping for JSON of what scores depend on beside the fields of a dataclass (which model answers,
        say), written beside every number.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A reward that can say what is wrong with an image."""

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]: ...


@runtime_checkable
class Reads(Protocol):
    """A reward that understands only some prompts."""

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raises ValueError, naming the first prompt that it does not understand (metadata: see Metadata)."""
        ...


def gives_verdicts(reward: Reward) -> bool:
    """Whether scores of 0 and 1 are verdicts: it can say what is wrong with an image, so that others are right."""
    return bool(getattr(reward, "verdicts", isinstance(reward, Explains)))


class RewardError(RuntimeError):
    """A reward failed, or returned something that is not one finite number per image."""


@contextmanager
def served() -> Iterator[None]:
    """A server's refusal or silence, inside, is the failure of the reward that asked it."""
    try:
        yield
    except ServiceError as error:
        raise RewardError(str(error)) from error


def subjects(prompts: Sequence[str], metadata: Metadata = None) -> list[str]:
    """What a reward that `compares` tells the prompts of a call apart by: one text for two sources is two prompts."""
    sources = [about.get("source", "") for about in metadata or [{}] * len(prompts)]
    return [f"{prompt}\0{source}" for prompt, source in zip(prompts, sources, strict=True)]


def refuse(reward: Reward, prompts: Sequence[str], metadata: Metadata = None) -> None:
    """Before a run, not in it.

    Raises:
        ValueError: it is nothing that is called as a reward is, or says that it does not understand a prompt.
    """
    _refuse_uncallable(reward)
    if isinstance(reward, Reads):
        reward.refuse(prompts, metadata)


def _refuse_uncallable(reward: Any) -> None:
    if isinstance(reward, str):
        raise ValueError(f"'{reward}' is the name of a reward: flowward.rewards.load('{reward}') makes it")
    if isinstance(reward, type):
        raise ValueError(f"reward {reward.__qualname__} is a class: make one of it, {reward.__qualname__}(...)")
    name = getattr(reward, "__name__", type(reward).__qualname__)
    if not callable(reward):
        raise ValueError(f"a reward is called with images, prompts and metadata, which {name} cannot be")
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # of code that is not Python
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"reward '{name}' must take what it is called with, (images, prompts, metadata), and takes {signature}"
        ) from error


def score(name: str, reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
    """Call a reward and hold it to its word: float32 [B], finite.

    A video scores the mean of its frames where the reward takes none; one that compares sees those of one time at once.

    Raises:
        RewardError: it raised, changed the images, or returned another shape, NaN or infinity; the message names the
            reward, and the prompt of the first bad score.
    """
    if images.ndim == 5 and not getattr(reward, "takes_videos", False):
        if getattr(reward, "compares", False):  # the frames of one video are no rivals of each other
            return torch.stack([score(name, reward, each, prompts, metadata) for each in images.unbind(1)]).mean(0)
        frames = images.shape[1]
        repeated = [prompt for prompt in prompts for _ in range(frames)]
        about = [each for each in metadata for _ in range(frames)] if metadata else None
        return score(name, reward, images.flatten(0, 1), repeated, about).view(-1, frames).mean(1)
    edits = 0 if images.is_inference() else images._version
    try:
        found = reward(images, prompts, metadata)
    except RewardError:
        raise
    except Exception as error:  # a user's function may fail in any way
        raise RewardError(f"reward '{name}' raised {type(error).__name__}: {error}") from error
    try:
        scores = torch.as_tensor(found).detach().float().cpu()
    except Exception as error:
        raise RewardError(
            f"reward '{name}' returned {type(found).__name__}, not one number per image ({error})"
        ) from error
    if not images.is_inference() and images._version != edits:  # others score the same images, or show them
        raise RewardError(f"reward '{name}' changes the images that it scores: let it work on images.clone()")
    if scores.shape != (len(images),):
        raise RewardError(f"reward '{name}' returned shape {list(scores.shape)} for {len(images)} images")
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward '{name}' returned {scores[bad[0]].item()} for {len(bad)} of {len(images)} images, "
            f"the first with the prompt '{prompts[bad[0]]}'"
        )
    return scores
