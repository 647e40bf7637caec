"""The interface of a reward, and checks of the scores that it returns."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..system.asking import ServiceError
from ..system.errors import named

Metadata = Sequence[Mapping[str, Any]] | None
"""the prompt set's metadata, one mapping per image; None if it has none"""


class Reward(Protocol):
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """images float [B, 3, H, W] or [B, F, 3, H, W] in [0, 1], B prompts -> scores [B], higher is better.

        A model whose samples are no images (flowward.policies.of) passes its samples [B, ...] in their place.

        A reward must not change the images, because other rewards score them too. `metadata` comes from the prompt
        set (see Metadata); a reward that does not need it may leave this argument out: (images, prompts).

        Optional attributes describe a reward (default: False).
        - `takes_videos`: it scores whole videos.
        - `compares`: a score depends on the other images in the call, so calls must not be split.
        - `in_background`: it mostly waits for a server or a judge. It may then be called in a thread while the next
          batch is sampled, so it must be thread-safe and need little computation.
        - `verdicts`: scores of 0 and 1 mean fail and pass. This is also assumed of a reward that `Explains`.
        - `bounds`: the lowest and the highest score that there can be, such as (0.0, 1.0); intervals end there.
        - `missing`: the number of scores so far that stand in for a score that was not available. The metrics count
          them per iteration.
        - `gradient`: it has a gradient; see gradients.py.
        - `identity`: a JSON mapping of what scores depend on besides dataclass fields, such as the model behind a
          server. It is saved with every result.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A reward that can explain what is wrong with an image."""

    def explain(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> list[str]: ...


@runtime_checkable
class Reads(Protocol):
    """A reward that understands only some prompts."""

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        """Raise ValueError that names the first prompt that the reward does not understand."""
        ...


def gives_verdicts(reward: Reward) -> bool:
    """Whether scores of 0 and 1 mean fail and pass: declared by `verdicts`, or the reward `Explains`."""
    return bool(getattr(reward, "verdicts", isinstance(reward, Explains)))


def bounds_of(reward: Reward) -> tuple[float, float] | None:
    """The lowest and the highest score that there can be, if the reward declares them (`bounds`)."""
    found = getattr(reward, "bounds", None)
    return (float(found[0]), float(found[1])) if found else None


class RewardError(RuntimeError):
    """A reward failed, or did not return one finite number per image."""


@contextmanager
def served() -> Iterator[None]:
    """Inside, an error of a server becomes a RewardError."""
    try:
        yield
    except ServiceError as error:
        raise RewardError(str(error)) from error


@contextmanager
def guarded(what: str, *its_own: type[Exception]) -> Iterator[None]:
    """Inside, whatever a user's code raises becomes a RewardError; also SystemExit, which would end the program.

    Only RewardError and errors of `its_own` pass, if they have a text.

    Ctrl-C still interrupts: it raises KeyboardInterrupt in the main thread. A KeyboardInterrupt in another thread comes
    from the user's code.
    """
    try:
        yield
    except BaseException as error:
        pressed = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
        if pressed or (isinstance(error, (RewardError, *its_own)) and str(error)):
            raise
        raise RewardError(f"{what} raised {named(error)}") from error


def subjects(prompts: Sequence[str], metadata: Metadata = None) -> list[str]:
    """Keys that group images for a reward that `compares`: the prompt with its source images."""
    sources = [about.get("sources") or about.get("source", "") for about in metadata or [{}] * len(prompts)]
    return [f"{prompt}\0{source}" for prompt, source in zip(prompts, sources, strict=True)]


def refuse(reward: Reward, prompts: Sequence[str], metadata: Metadata = None, name: str = "") -> None:
    """Check a reward and its prompts before a run. Errors call it `name` (empty: as its function or class).

    Raises:
        ValueError: the reward cannot be called like a reward, or does not understand a prompt.
        RewardError: it failed in another way.
    """
    _refuse_uncallable(reward)
    if isinstance(reward, Reads):
        with guarded(f"refuse of reward '{name or _name(reward)}'", ValueError):
            reward.refuse(prompts, metadata)


def _name(reward: Any) -> str:
    return str(getattr(reward, "__name__", type(reward).__qualname__))


def _refuse_uncallable(reward: Any) -> None:
    if isinstance(reward, str):
        raise ValueError(f"'{reward}' is only the name of a reward; load it with flowward.rewards.load('{reward}')")
    if isinstance(reward, type):
        raise ValueError(f"reward {reward.__qualname__} is a class; make an instance, {reward.__qualname__}(...)")
    name = _name(reward)
    if not callable(reward):
        raise ValueError(f"{name} is not a reward; a reward is called with (images, prompts, metadata)")
    signature = _signature(reward)
    if signature and not any(_takes(signature, *call) for call in CALLS):
        raise ValueError(
            f"reward '{name}' must accept (images, prompts) or (images, prompts, metadata), but its signature is "
            f"{signature}"
        )


CALLS: tuple[tuple[int, tuple[str, ...]], ...] = ((3, ()), (2, ("metadata",)), (2, ()))
"""how a reward may be called: (number of arguments by position, arguments by name), the fullest call first"""


def _signature(reward: Any) -> inspect.Signature | None:
    """The arguments that a reward takes; None if it does not say, as code that is not Python."""
    try:
        return inspect.signature(reward.forward if isinstance(reward, torch.nn.Module) else reward)
    except (TypeError, ValueError):
        return None


def _takes(signature: inspect.Signature, count: int, names: Sequence[str]) -> bool:
    try:
        signature.bind(*[None] * count, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def called(reward: Any, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> Any:
    """Call a reward with the metadata, if it takes them."""
    signature = _signature(reward)
    takes = (call for call in CALLS if signature is None or _takes(signature, *call))
    count, names = next(takes, CALLS[0])  # a signature that fits no call raises its own error
    return reward(*(images, prompts, metadata)[:count], **dict.fromkeys(names, metadata))


def score(
    name: str,
    reward: Reward,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Metadata = None,
    frames: bool = True,
) -> Tensor:
    """Call a reward and check its scores: float32 [B], finite.

    If the reward does not take videos, the score of a video is the mean over its frames. A reward that compares then
    gets the frames of one time step together.

    Args:
        images: [B, ...], what the reward scores: images, videos, or samples of any shape.
        frames: five axes mean videos. False: samples of any shape, which are scored whole.

    Raises:
        RewardError: it raised, changed the images, or returned a wrong shape, NaN or infinity. The message names the
            reward and the prompt of the first bad score.
    """
    if frames and images.ndim == 5 and not getattr(reward, "takes_videos", False):
        if getattr(reward, "compares", False):  # frames of one video must not be compared
            return torch.stack([score(name, reward, each, prompts, metadata) for each in images.unbind(1)]).mean(0)
        many = images.shape[1]
        repeated = [prompt for prompt in prompts for _ in range(many)]
        about = [each for each in metadata for _ in range(many)] if metadata else None
        return score(name, reward, images.flatten(0, 1), repeated, about).view(-1, many).mean(1)
    edits = 0 if images.is_inference() else images._version
    with guarded(f"reward '{name}'"):
        found = called(reward, images, prompts, metadata)
    try:
        scores = torch.as_tensor(found).detach().float().cpu()
    except Exception as error:
        raise RewardError(
            f"reward '{name}' must return one number per image, but returned {type(found).__name__} ({error})"
        ) from error
    if not images.is_inference() and images._version != edits:  # other rewards and pages use the same images
        raise RewardError(f"reward '{name}' changes the images; let it work on images.clone()")
    if scores.shape != (len(images),):
        raise RewardError(f"reward '{name}' must return shape [{len(images)}], but returned {list(scores.shape)}")
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward '{name}' returned {scores[bad[0]].item()} for {len(bad)} of {len(images)} images, "
            f"the first for the prompt '{prompts[bad[0]]}'"
        )
    return scores
