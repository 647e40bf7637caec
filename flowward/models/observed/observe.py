"""Find a pipeline's convention by running it: two network evaluations of one row, and one of two equal rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import maps, rows, times
from .calls import Call, Recording, parameters
from .findings import Findings
from .guidance import Rule, Seen, recognised, remembers
from .leaves import Constant, FromGuidance, FromPrompt, FromSample, FromTime, Leaf, Stored
from .observer import SCALES, STEPS, Observer, Refused, constant

NEGATIVE = " "  # where a pipeline guides only if it is given a negative prompt, as in Qwen-Image
TRIED = (2.0, 3.0)  # guidance scales


def observe(observer: Observer) -> Findings:
    """What the pipeline does with its network.

    Raises:
        Refused: it is no flow, or no known convention describes it.
    """
    first, answer = _first(observer)
    _refuse_unlike_a_flow(observer, first, answer)
    one = first.steps[0].calls[0]
    rule, answer_rule = _several(observer, one, answer)
    followed = _Followed(observer, one, answer, rule)
    velocity, place = _velocity(observer, first, answer)
    found = Findings(
        tuple(first.steps[0].sample.shape[1:]),  # type: ignore[union-attr]
        followed.leaves,
        followed.names,
        followed.spec,
        one,
        answer,
        followed.half,
        rule,
        answer_rule,
        place,
        velocity,
        followed.stored,
    )
    if not found.stored:
        raise Refused("does not pass anything of the prompt to its transformer")
    _guide(observer, found, followed, answer)
    return found


def _first(observer: Observer) -> tuple[Recording, Any]:
    """One step without guidance, and what the network returned."""
    for off in (1.0, 0.0):  # Z-Image guides at 1
        observer.off = off
        seen = observer(until=1)
        if not seen.steps[0].calls:
            raise Refused("does not call its transformer in the loop")
        if not seen.done:
            raise Refused("does not call scheduler.step in its loop")
        other = observer(until=0, scales=dict.fromkeys(_scales(observer), 0.0)) if off else seen
        if len(seen.steps[0].calls) == 1 and _same_form(seen.steps[0].calls[0], other.steps[0].calls[0]):
            return seen, seen.steps[0].answers[0]
    many = len(seen.steps[0].calls)
    raise Refused(f"calls its transformer {many} times a step without guidance")


def _scales(observer: Observer) -> list[str]:
    return [name for name in SCALES if name in parameters(observer.pipe)]


def _same_form(one: Call, other: Call) -> bool:
    """Whether the arguments have the same shapes."""
    forms = [
        [tuple(each.shape) if isinstance(each, Tensor) else 0 for each in pytree.tree_leaves(c)] for c in (one, other)
    ]
    return forms[0] == forms[1]


def _refuse_unlike_a_flow(observer: Observer, first: Recording, answer: Any) -> None:
    """Raise Refused if the loop is not that of a flow that begins with noise; also find where the noise comes in."""
    sample = first.steps[0].sample
    assert sample is not None and first.sigmas is not None
    if not 0.7 < sample.float().std() < 1.4:
        raise Refused("does not begin with standard normal noise")
    places = [k for k, each in enumerate(first.drawn) if each.shape == sample.shape and torch.equal(each, sample)]
    observer.place = places[0] if places else None
    probe = torch.randn(sample.shape, generator=torch.Generator().manual_seed(2)).to(sample)
    whole = observer(start=probe, answer=constant(answer))
    steps = whole.done
    if whole.others:
        raise Refused(f"calls another network in its loop: {', '.join(sorted(whole.others))}")
    got = steps[0].sample
    assert got is not None
    if got.shape != probe.shape or not torch.equal(got, probe):
        raise Refused("does not begin with the samples that it is given as `latents`")
    if len(steps) != STEPS or len(first.sigmas) < 2:
        raise Refused(f"takes {len(steps)} steps where {STEPS} are asked for")
    for before, after in pairwise(steps):
        assert before.after is not None and after.sample is not None
        if not torch.equal(before.after.to(after.sample), after.sample):
            raise Refused("changes its samples between steps")
        if len(before.calls) != len(after.calls):
            raise Refused("guides in some steps only")
    sigmas = whole.sigmas
    assert sigmas is not None
    if len(sigmas) != STEPS + 1 or not bool((sigmas.diff() < 0).all()) or sigmas[0] > 1 + 1e-6 or sigmas[-1] != 0:
        raise Refused("has a scheduler whose times do not fall from 1 to 0")


def _several(observer: Observer, one: Call, answer: Any) -> tuple[rows.Rule | None, rows.Rule | None]:
    """How rows are joined; None if rows must be evaluated one by one."""
    sample = observer(until=1, answer=constant(answer)).steps[0].sample
    assert sample is not None
    try:
        start = torch.cat([sample, sample])
        two = observer(observer.prompts[:1] * 2, start=start, until=1).steps[0]
        return rows.learned(list(one), list(two.calls[0])), rows.learned(answer, two.answers[0])
    except (rows.Unlike, Refused):
        return None, None


class _Followed:
    """What each argument of the network follows: found by changing one thing at a time."""

    def __init__(self, observer: Observer, one: Call, answer: Any, rule: rows.Rule | None):
        self.observer, self.one, self.answer = observer, one, answer
        pairs, self.spec = pytree.tree_flatten_with_path(_plain(one))
        self.base = [leaf for _, leaf in pairs]
        self.names = [_name(path, number) for number, (path, _) in enumerate(pairs)]
        self.half = any(isinstance(each, Tensor) and each.dtype == torch.bfloat16 for each in self.base)
        self.near = 1e-2 if self.half else 1e-5
        if self.changed(observer(until=0)):
            raise Refused(f"gives its transformer random numbers: {self.names[min(self.changed(observer(until=0)))]}")
        self.start = observer(until=1, answer=lambda *_: answer).steps[0].sample
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
        found: set[int] = set()
        axis: dict[int, int] = {}
        for prompt in self.observer.prompts[1:]:
            leaves = self.read(self.observer((prompt,), until=0))
            for k in self.unlike(leaves):
                found.add(k)
                self._refuse_other(k, leaves[k])
                axis |= {k: _axis(self.base[k], leaves[k], self.names[k])} if isinstance(leaves[k], Tensor) else {}
        for k in sorted(found):
            self.leaves[k] = FromPrompt(self.names[k])
            self.stored.append(Stored(self.names[k], self.base[k], axis.get(k, self._usual_axis(k))))
        return found

    def _usual_axis(self, k: int) -> int:
        """The axis of the words, if texts of all lengths have the same shape: the second, after that of the rows."""
        value = self.base[k]
        return 1 if isinstance(value, Tensor) and value.ndim > 1 and len(value) == 1 else 0

    def _refuse_other(self, k: int, value: Any) -> None:
        if type(value) is not type(self.base[k]):
            raise Refused(f"gives its transformer {self.names[k]} for some prompts only")

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
                one = maps.found(lambda x, k=k: given(x)[k], self.start)  # type: ignore[misc]
            except maps.NotElementwise as error:
                raise Refused(f"changes the sample before its transformer gets it as {self.names[k]}") from error
            self.leaves[k] = FromSample(one, self.base[k].dtype, self.names[k] if k in self.by_prompt else None)


def _velocity(observer: Observer, first: Recording, answer: Any) -> tuple[maps.Map, int]:
    """From what the network returns to what the scheduler gets, and which of the returned tensors it is."""
    leaves, spec = pytree.tree_flatten(answer)
    tensors = [k for k, each in enumerate(leaves) if isinstance(each, Tensor) and each.is_floating_point()]

    def got(k: int, value: Tensor, step: int = 0) -> Tensor:
        changed = pytree.tree_unflatten([value if j == k else each for j, each in enumerate(leaves)], spec)
        output = observer(until=step + 1, answer=constant(changed)).steps[step].output
        assert output is not None
        return output

    usual = first.steps[0].output
    assert usual is not None
    used = [k for k in tensors if not torch.equal(got(k, leaves[k] + 1), usual)]
    if len(used) != 1:
        raise Refused(f"uses {len(used)} of the tensors that its transformer returns, not 1")
    place = used[0]
    try:
        one = maps.found(lambda x: got(place, x[0]), leaves[place][None])
    except maps.NotElementwise as error:
        raise Refused("changes what its transformer returns by more than a choice of numbers and a scale") from error
    if bool((one.index < 0).any()) or bool(one.shift.abs().max() > 1e-6):
        raise Refused("gives its scheduler numbers that its transformer did not return")
    x = torch.randn(leaves[place].shape, generator=torch.Generator().manual_seed(4)).to(leaves[place])
    if remembers(got(place, x).float(), got(place, x, 1).float(), 1e-2 if x.dtype == torch.bfloat16 else 1e-5):
        raise Refused("changes what its transformer returns in another way at every step")
    return one, place


def _guide(observer: Observer, found: Findings, followed: _Followed, answer: Any) -> None:
    """Find the kind of guidance: an input of the network, two rows in one call, two calls, or none."""
    for name in _scales(observer):
        for negative in (None, NEGATIVE):
            more = {} if negative is None else {"negative_prompt": [negative]}
            if negative is not None and "negative_prompt" not in parameters(observer.pipe):
                continue
            seen = observer(scales={name: TRIED[0], **more}, until=1, answer=found.answers([answer] * 2))
            calls = seen.steps[0].calls
            if len(calls) == 1 and _same_form(calls[0], followed.one):
                if moved := followed.unlike(followed.flat(calls[0])):
                    _embedded(observer, found, followed, name, moved)
                    return
                continue
            found.empty, order = _without(found, followed, calls)
            _rule(observer, found, followed, name, more, order, answer)
            return


def _rows_of(found: Findings, followed: _Followed, calls: Sequence[Call]) -> list[list[Any]]:
    parts = []
    for call in calls:
        if (many := found.many(call)) == 1:
            parts.append(followed.flat(call))
        else:
            parts += [followed.flat(tuple(each)) for each in rows.split(list(call), found.rule, many)]
    return parts


def _without(found: Findings, followed: _Followed, calls: Sequence[Call]) -> tuple[dict[str, Any], int]:
    """The arguments of the row without a prompt that follow the prompt, and which row it is: 0 or 1."""
    every = _rows_of(found, followed, calls)
    if len(every) != 2:
        raise Refused(f"evaluates {len(every)} rows for one prompt with guidance, not 2")
    unlike = [followed.unlike(leaves) for leaves in every]
    if all(unlike) or not any(unlike):
        raise Refused("does not evaluate the prompt itself in one of the two rows of its guidance")
    number = 0 if unlike[0] else 1
    if more := unlike[number] - followed.by_prompt:
        raise Refused(f"gives its transformer another {followed.names[min(more)]} for the empty prompt")
    for k in unlike[number]:
        followed._refuse_other(k, every[number][k])
    return {followed.names[k]: every[number][k] for k in followed.by_prompt}, number


def _rule(
    observer: Observer, found: Findings, followed: _Followed, name: str, more: dict[str, Any], order: int, answer: Any
) -> None:
    """Find the rule that combines the two rows: random velocities in, what the scheduler gets out."""
    leaves, spec = pytree.tree_flatten(answer)
    own = leaves[found.answer_place]
    draws = [torch.randn(own.shape, generator=torch.Generator().manual_seed(5 + k)).to(own) for k in range(2)]
    made = [[each if k == found.answer_place else leaf for k, leaf in enumerate(leaves)] for each in draws]
    answers = [pytree.tree_unflatten(each, spec) for each in made]
    seen, again = [], None
    v, v_0 = (found.velocity(each[None])[0] for each in (draws if order == 1 else draws[::-1]))
    for scale in TRIED:
        done = observer(scales={name: scale, **more}, answer=found.answers(answers)).done
        assert done[0].output is not None
        again = done[1].output
        assert again is not None
        if remembers(done[0].output.float(), again.float(), followed.near):
            raise Refused("has guidance that depends on the step, or remembers earlier steps")
        seen.append(Seen(v, v_0, done[0].output, scale))
    known = recognised(seen, followed.near)
    if known is None:
        raise Refused("combines the two rows of its guidance by a rule that is not known")
    found.rule_of_guidance = Rule(name, known[1], known[0], NEGATIVE if more else None)


def _embedded(observer: Observer, found: Findings, followed: _Followed, name: str, moved: set[int]) -> None:
    """Guidance as an input: a + b g, found from two scales."""
    values = [followed.read(observer(scales={name: scale}, until=0)) for scale in TRIED]
    for k in moved:
        if not isinstance(followed.base[k], Tensor) or k in followed.by_prompt:
            raise Refused(
                f"has an argument of its transformer that follows guidance in an unknown way: {followed.names[k]}"
            )
        low, high = (each[k].double() for each in values)
        b = (high - low) / (TRIED[1] - TRIED[0])
        a = low - b * TRIED[0]
        if not torch.allclose(a + b * observer.off, followed.base[k].double(), rtol=followed.near):
            raise Refused(
                f"has an argument of its transformer that follows guidance in an unknown way: {followed.names[k]}"
            )
        found.leaves[k] = FromGuidance(a, b, followed.base[k].dtype)
    found.rule_of_guidance = Rule(name, 0.0, "embedded", None)


def _plain(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, named = call
    return tuple(args), dict(named)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _axis(a: Tensor, b: Tensor, name: str) -> int:
    """The only axis along which two prompts differ in length."""
    unlike = [k for k, (one, other) in enumerate(zip(a.shape, b.shape, strict=True)) if one != other]
    if len(unlike) > 1:
        raise Refused(f"has an argument of its transformer with {len(unlike)} axes that follow the prompt: {name}")
    return unlike[0] if unlike else (1 if a.ndim > 1 and len(a) == 1 else 0)


def _name(path: Any, number: int) -> str:
    words = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
    said = "_".join(word for word in words if not word.isdigit())
    return f"{said or 'input'}_{number}"
