"""Find a pipeline's convention by running it: two network evaluations of one row, and one of two equal rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import maps, rows
from .calls import Call, Recording
from .findings import Findings
from .followed import Followed
from .guidance import remembers
from .guiding import guide, same_form, scales_of
from .observer import STEPS, Observer, Refused, constant


def observe(observer: Observer) -> Findings:
    """What the pipeline does with its network.

    Raises:
        Refused: it is no flow, or no known convention describes it.
    """
    first, answer = _first(observer)
    _refuse_unlike_a_flow(observer, first, answer)
    one = first.steps[0].calls[0]
    rule, answer_rule = _several(observer, one, answer)
    followed = Followed(observer, one, answer)
    velocity, place = _velocity(observer, first, answer)
    sample = first.steps[0].sample
    assert sample is not None
    found = Findings(
        tuple(sample.shape[1:]),
        sample.dtype,
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
    guide(observer, found, followed)
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
        other = observer(until=0, scales=dict.fromkeys(scales_of(observer), 0.0)) if off else seen
        if len(seen.steps[0].calls) == 1 and same_form(seen.steps[0].calls[0], other.steps[0].calls[0]):
            return seen, seen.steps[0].answers[0]
    many = len(seen.steps[0].calls)
    raise Refused(f"calls its transformer {many} times a step without guidance")


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
