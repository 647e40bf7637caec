"""Run a pipeline and record what its transformer and its scheduler are called with.

The transformer may be replaced by an `answer`, so that a recording costs no network evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named arguments
Answer = Callable[[int, Call], Any]  # number of the call in its step, its arguments -> what the transformer returns


FRAMES = ("num_frames", "frames")  # the argument for it, by pipeline


class _Enough(BaseException):
    """Ends a run of the pipeline; no pipeline catches it."""


@dataclass
class Step:
    """One step of the loop."""

    calls: list[Call] = field(default_factory=list)  # of the transformer
    answers: list[Any] = field(default_factory=list)
    output: Tensor | None = None  # what `scheduler.step` got
    sample: Tensor | None = None
    after: Tensor | None = None  # what it returned


@dataclass
class Recording:
    """What one run of a pipeline did."""

    steps: list[Step] = field(default_factory=lambda: [Step()])
    sigmas: Tensor | None = None  # of the scheduler, when the loop began
    drawn: list[Tensor] = field(default_factory=list)  # tensors that `prepare_latents` returned
    decoded: Call | None = None  # the call of the decoder
    others: set[str] = field(default_factory=set)  # other networks that were called in the loop
    result: Any = None

    @property
    def done(self) -> list[Step]:
        """The steps that reached the scheduler."""
        return [each for each in self.steps if each.output is not None]


@dataclass
class How:
    """What a run of the pipeline does in other ways than usual."""

    until: int | None = None  # end after so many steps; 0: at the first call of the transformer; None: run to the end
    answer: Answer | None = None  # in place of the network
    answered: int | None = None  # only in so many steps; None: in all
    start: Tensor | None = None  # the sample to begin with
    place: int | None = None  # which of the tensors from `prepare_latents` is the sample; None: the argument `latents`
    still: bool = False  # the scheduler returns the sample that it got
    last: Tensor | None = None  # every step returns this
    stop_at_decoder: bool = False


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline can be called with."""
    return inspect.signature(type(pipe).__call__).parameters


def makes_videos(pipe: Any) -> bool:
    """Whether it is asked for a number of frames."""
    return not parameters(pipe).keys().isdisjoint(FRAMES)


def run(pipe: Any, scheduler: Any, given: Mapping[str, Any], how: How) -> Recording:
    """Call the pipeline with those of the arguments that it knows.

    Args:
        scheduler: a new one, which takes the place of the pipeline's own.

    Raises:
        ValueError and others: the pipeline refuses the arguments.
    """
    found, known = Recording(), parameters(pipe)
    more = {"latents": how.start} if how.start is not None and how.place is None else {}
    given = {name: value for name, value in {**given, **more}.items() if name in known}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _patched(pipe, scheduler, found, how):
        torch.manual_seed(0)
        with suppress(_Enough):
            found.result = pipe(**given)
    return found


@contextmanager
def _patched(pipe: Any, scheduler: Any, found: Recording, how: How) -> Iterator[None]:
    shipped = pipe.scheduler
    with ExitStack() as stack:
        scheduler.step = _step(scheduler, found, how)
        pipe.scheduler = scheduler
        stack.callback(setattr, pipe, "scheduler", shipped)
        for owner, name, made in (
            (pipe.transformer, "forward", _forward(pipe.transformer, scheduler, found, how)),
            (pipe, "prepare_latents", _prepare(getattr(pipe, "prepare_latents", None), found, how)),
            (getattr(pipe, "vae", None), "decode", _decode(getattr(pipe, "vae", None), found, how)),
        ):
            if made is not None:
                stack.enter_context(replaced(owner, name, made))
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name not in ("transformer", "vae"):
                stack.callback(part.register_forward_pre_hook(_other(name, found, how)).remove)
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while, on this instance only."""
    before = vars(owner).get(name, _Enough)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        object.__delattr__(owner, name)
        if before is not _Enough:
            object.__setattr__(owner, name, before)


def _forward(transformer: Any, scheduler: Any, found: Recording, how: How) -> Callable[..., Any]:
    usual = transformer.forward

    @wraps(usual)
    def forward(*args: Any, **named: Any) -> Any:
        step = found.steps[-1]
        if found.sigmas is None:
            found.sigmas = scheduler.sigmas.double().cpu()
        step.calls.append(pytree.tree_map(_kept, (args, named)))
        if how.until == 0:
            raise _Enough
        replaced = how.answer is not None and (how.answered is None or len(found.steps) <= how.answered)
        if replaced and how.answer is not None:
            answer = how.answer(len(step.calls) - 1, (args, named))
        else:
            answer = usual(*args, **named)
        step.answers.append(answer)
        return answer

    return forward


def _step(scheduler: Any, found: Recording, how: How) -> Callable[..., Any]:
    usual = type(scheduler).step

    @wraps(usual)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **named: Any) -> Any:
        now = found.steps[-1]
        now.output, now.sample = model_output.clone(), sample.clone()
        if how.last is not None:
            after = how.last
        elif how.still:
            after = sample
        else:
            after = usual(scheduler, model_output, timestep, sample, return_dict=False)[0]
        now.after = after.clone()
        if len(found.steps) == how.until:
            raise _Enough
        found.steps.append(Step())
        return (after,) if named.get("return_dict") is False else _Stepped(after)

    return step


class _Stepped(tuple[Tensor]):
    """What a scheduler returns, as a tuple or with a name."""

    def __new__(cls, sample: Tensor) -> _Stepped:
        return super().__new__(cls, (sample,))

    @property
    def prev_sample(self) -> Tensor:
        return self[0]


def _prepare(usual: Any, found: Recording, how: How) -> Callable[..., Any] | None:
    if usual is None:
        return None

    @wraps(usual)
    def prepare(*args: Any, **named: Any) -> Any:
        leaves, spec = pytree.tree_flatten(usual(*args, **named))
        tensors = [number for number, each in enumerate(leaves) if isinstance(each, Tensor)]
        if how.start is not None and how.place is not None:
            leaves[tensors[how.place]] = how.start.to(leaves[tensors[how.place]])
        found.drawn = [leaves[number].clone() for number in tensors]
        return pytree.tree_unflatten(leaves, spec)

    return prepare


def _decode(vae: Any, found: Recording, how: How) -> Callable[..., Any] | None:
    if vae is None:
        return None
    usual = vae.decode

    @wraps(usual)
    def decode(*args: Any, **named: Any) -> Any:
        found.decoded = pytree.tree_map(_kept, (args, named))
        if how.stop_at_decoder:
            raise _Enough
        return usual(*args, **named)

    return decode


def _other(name: str, found: Recording, how: How) -> Callable[..., None]:
    def called(module: nn.Module, args: Any) -> None:
        if found.sigmas is not None:
            found.others.add(name)

    return called


def _kept(value: Any) -> Any:
    """Pipelines change their tensors in place."""
    return value.clone() if isinstance(value, Tensor) else value
