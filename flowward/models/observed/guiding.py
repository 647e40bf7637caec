"""Find how a pipeline guides: an input of the network, two rows in one call, two calls, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import rows
from .calls import Call, parameters
from .findings import Findings
from .followed import Followed
from .guidance import Rule, Seen, recognised, remembers
from .leaves import FromGuidance
from .observer import SCALES, Asked, Observer, Refused

NEGATIVE = " "  # where a pipeline guides only if it is given a negative prompt, as in Qwen-Image
TRIED = (2.0, 3.0)  # guidance scales


def scales_of(observer: Observer) -> list[str]:
    """The pipeline's arguments for guidance."""
    return [name for name in SCALES if name in parameters(observer.pipe)]


def same_form(one: Call, other: Call) -> bool:
    """Whether the arguments have the same shapes."""
    forms = [
        [tuple(each.shape) if isinstance(each, Tensor) else 0 for each in pytree.tree_leaves(call)]
        for call in (one, other)
    ]
    return forms[0] == forms[1]


def guide(observer: Observer, found: Findings, followed: Followed) -> None:
    """Add the rule to the findings, and what the row without a prompt may be.

    Raises:
        Refused: the rule is not known.
    """
    for name in scales_of(observer):
        for negative in (None, NEGATIVE):
            more = {} if negative is None else {"negative_prompt": [negative]}
            if negative is not None and "negative_prompt" not in parameters(observer.pipe):
                continue
            try:
                seen = observer(scales={name: TRIED[0], **more}, until=1, answer=found.answers([found.answer] * 2))
            except Refused as error:
                raise Refused(
                    "joins the rows of its guidance in an unknown way" if not found.rule else str(error)
                ) from error
            calls = seen.steps[0].calls
            if len(calls) == 1 and same_form(calls[0], found.one):
                if moved := followed.unlike(followed.flat(calls[0])):
                    _embedded(observer, found, followed, name, moved)
                    return
                continue
            if (many := sum(map(found.many, calls))) != 2:
                raise Refused(f"evaluates {many} rows for one prompt with guidance, not 2")
            _rule(observer, found, name, more)
            found.empties = [*_in_the_calls(found, followed, calls), *_alone(observer, found, followed, bool(more))]
            return


def _alone(observer: Observer, found: Findings, followed: Followed, negative: bool) -> list[dict[str, Any]]:
    """The arguments for an empty prompt in a call of its own, where it has any."""
    try:
        texts = ("", *[NEGATIVE] * negative)
        every = [observer((Asked(text, observer.prompts[0].image),), until=0) for text in texts]
        return [found.following(followed.read(each)) for each in every]
    except Refused:
        return []


def _in_the_calls(found: Findings, followed: Followed, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """The arguments of the row that is not that of the prompt, if one of two rows is."""
    try:
        many = [found.many(call) for call in calls]
        parts = [
            rows.split(list(call), found.rule, k) if k > 1 else [call] for k, call in zip(many, calls, strict=True)
        ]
        every = [followed.flat(tuple(row)) for own in parts for row in own]
    except (rows.Unlike, Refused):  # rows that are padded to one length
        return []
    unlike = [followed.unlike(leaves) for leaves in every]
    others = [found.following(leaves) for leaves, those in zip(every, unlike, strict=True) if those]
    return others if len(others) == 1 and set().union(*unlike) <= followed.by_prompt else []


def _rule(observer: Observer, found: Findings, name: str, more: dict[str, Any]) -> None:
    """Find the rule that combines the two rows: random velocities in, what the scheduler gets out."""
    leaves, spec = pytree.tree_flatten(found.answer)
    own = leaves[found.answer_place]
    draws = _alike(own)
    made = [[each if k == found.answer_place else leaf for k, leaf in enumerate(leaves)] for each in draws]
    answers = [pytree.tree_unflatten(each, spec) for each in made]
    first, second = (found.velocity(each[None])[0] for each in draws)
    got = []
    for scale in TRIED:
        done = observer(scales={name: scale, **more}, answer=found.answers(answers)).done
        assert done[0].output is not None and done[1].output is not None
        if remembers(done[0].output.float(), done[1].output.float(), found.near):
            raise Refused("has guidance that depends on the step, or remembers earlier steps")
        got.append((done[0].output, scale))
    for v, v_0 in ((first, second), (second, first)):
        if known := recognised([Seen(v, v_0, *each) for each in got], found.near):
            found.rule_of_guidance = Rule(name, known[1], known[0], NEGATIVE if more else None)
            return
    raise Refused("combines the two rows of its guidance by a rule that is not known")


def _alike(like: Tensor) -> list[Tensor]:
    """Two random velocities; guided, some rows along the last axis get longer than in the first, and some shorter."""
    first, noise = (torch.randn(like.shape, generator=torch.Generator().manual_seed(5 + k)) for k in range(2))
    factor = 0.5 + torch.rand(*like.shape[:-1], 1, generator=torch.Generator().manual_seed(7))
    return [first.to(like), (factor * first + 0.1 * noise).to(like)]


def _embedded(observer: Observer, found: Findings, followed: Followed, name: str, moved: set[int]) -> None:
    """Guidance as an input: a + b g, found from two scales."""
    values = [followed.read(observer(scales={name: scale}, until=0)) for scale in TRIED]
    for k in moved:
        unknown = f"gives its transformer {followed.names[k]}, which follows guidance in an unknown way"
        base = followed.base[k]
        if not isinstance(base, Tensor) or k in followed.by_prompt:
            raise Refused(unknown)
        low, high = (each[k].double() for each in values)
        b = (high - low) / (TRIED[1] - TRIED[0])
        a = low - b * TRIED[0]
        if not torch.allclose(a + b * observer.off, base.double(), rtol=found.near):
            raise Refused(unknown)
        found.leaves[k] = FromGuidance(a, b, base.dtype)
    found.rule_of_guidance = Rule(name, 0.0, "embedded", None)
