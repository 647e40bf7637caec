"""What each argument of a network follows: found by changing one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...process.policy import MIXTURE, UNTIL
from . import maps, times
from .calls import Call, Recording
from .leaves import LENGTHS, Constant, FromPrompt, FromSample, FromTime, Leaf, Stored
from .observer import STEPS, Observer, Refused

PLAIN = (Tensor, str, int, float, bool, torch.dtype, torch.device, type(None))  # kinds of arguments without a state


class Followed:
    """What each argument of the network follows: found by changing one thing at a time."""

    def __init__(self, observer: Observer, one: Call, answer: Any):
        self.observer, self.one, self.answer = observer, one, answer
        pairs, self.spec = pytree.tree_flatten_with_path(_plain(one))
        self.base = [leaf for _, leaf in pairs]
        self.names = _names([path for path, _ in pairs], list(signature(observer.pipe.transformer.forward).parameters))
        self.half = any(isinstance(each, Tensor) and each.dtype == torch.bfloat16 for each in self.base)
        self.near = 1e-2 if self.half else 1e-5
        if held := [type(each).__name__ for each in self.base if not isinstance(each, PLAIN)]:
            raise Refused(f"gives its transformer an object that may have a state: {held[0]}")
        if self.changed(observer(until=0)):
            raise Refused(f"gives its transformer random numbers: {self.names[min(self.changed(observer(until=0)))]}")
        start = observer(until=1, answer=lambda *_: answer).steps[0].sample
        assert start is not None
        self.start = start
        self.leaves: list[Leaf] = [Constant(each) for each in self.base]
        self.stored: list[Stored] = []
        self.by_prompt = self._prompts()
        self._times()
        self._samples()

    def read(self, seen: Recording, step: int = 0) -> list[Any]:
        """The arguments of a call, in order.

        Raises:
            Refused: they have another structure.
        """
        return self.flat(seen.steps[step].calls[0])

    def flat(self, call: Any) -> list[Any]:
        leaves, spec = pytree.tree_flatten(_plain(call))
        if spec != self.spec:
            raise Refused("gives its transformer arguments of another structure for another prompt")
        return leaves

    def changed(self, seen: Recording, step: int = 0) -> set[int]:
        """Which arguments are not those of the first call."""
        return self.unlike(self.read(seen, step))

    def unlike(self, leaves: Sequence[Any]) -> set[int]:
        return {k for k, (a, b) in enumerate(zip(self.base, leaves, strict=True)) if not _equal(a, b)}

    def _prompts(self) -> set[int]:
        every = [self.base, *(self.read(self.observer((prompt,), until=0)) for prompt in self.observer.prompts[1:])]
        found = set().union(*(self.unlike(leaves) for leaves in every))
        for k in sorted(found):
            values = [leaves[k] for leaves in every if leaves[k] is not None]
            if len({type(each) for each in values}) != 1:
                raise Refused(f"gives its transformer {self.names[k]} of another kind for another prompt")
            axis = _axis(values, self.names[k]) if isinstance(values[0], Tensor) else 0
            self.leaves[k] = FromPrompt(self.names[k])
            self.stored.append(Stored(self.names[k], values[0], axis))
        return found

    def _times(self) -> None:
        seen = self.observer(still=True, start=self.start, answer=lambda *_: self.answer)
        every = [self.read(seen, step) for step in range(STEPS)]
        moving = set().union(*(self.unlike(leaves) for leaves in every[1:]))
        if not moving:
            raise Refused("does not tell its transformer the time")
        for k in moving:
            if k in self.by_prompt:
                raise Refused(f"has an argument of its transformer that follows both time and prompt: {self.names[k]}")
            values = [torch.as_tensor(leaves[k]) for leaves in every]
            assert seen.sigmas is not None
            clock = times.clock(values, seen.sigmas[:STEPS].tolist(), self.near)
            if clock is None:
                raise Refused(
                    f"has an argument of its transformer that follows the time in an unknown way: {self.names[k]}"
                )
            self.leaves[k] = FromTime(clock, torch.float32 if values[0].is_floating_point() else values[0].dtype)

    def _samples(self) -> None:
        probe = torch.randn(self.start.shape, generator=torch.Generator().manual_seed(3)).to(self.start)

        def given(x: Tensor) -> list[Any]:
            return self.read(self.observer(start=x, until=0))

        moving = self.unlike(given(probe))
        if not moving:
            raise Refused("does not pass the sample to its transformer")
        for k in moving:
            if isinstance(self.leaves[k], FromTime):
                raise Refused(f"has an argument of its transformer that follows both time and sample: {self.names[k]}")
            try:
                one = maps.found(partial(_entry, given, k), self.start)
            except maps.NotElementwise as error:
                raise Refused(f"changes the sample before its transformer gets it as {self.names[k]}") from error
            self.leaves[k] = FromSample(one, self.base[k].dtype, self.names[k] if k in self.by_prompt else None)


def _entry(given: Callable[[Tensor], list[Any]], k: int, x: Tensor) -> Tensor:
    found: Tensor = given(x)[k]
    return found


def _plain(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, named = call
    return tuple(args), dict(named)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _axis(values: Sequence[Tensor], name: str) -> int:
    """The only axis along which prompts differ in length; if they do not, the second, after that of the rows."""
    shapes = [each.shape for each in values]
    if len({len(shape) for shape in shapes}) > 1:
        raise Refused(f"gives its transformer {name} with other axes for another prompt")
    unlike = [k for k, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if len(unlike) > 1:
        raise Refused(f"gives its transformer {name}, which has {len(unlike)} axes that follow the prompt")
    return unlike[0] if unlike else (1 if len(shapes[0]) > 1 and shapes[0][0] == 1 else 0)


def _names(paths: Sequence[Any], positional: Sequence[str]) -> list[str]:
    """A name for each argument; entries of lists and dicts, and names that conditions have already, get a number."""
    found = []
    for path in paths:
        keys = [getattr(key, "key", getattr(key, "idx", "")) for key in path[1:]]  # first: args or named
        if keys and isinstance(keys[0], int):
            keys[0] = positional[keys[0]] if keys[0] < len(positional) else "input"
        found.append("_".join(str(key) for key in keys if isinstance(key, str)) or "input")
    kept = (LENGTHS, UNTIL, MIXTURE, "mask", "source")
    return [name if found.count(name) == 1 and name not in kept else f"{name}_{k}" for k, name in enumerate(found)]
