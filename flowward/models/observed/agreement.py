"""A cheap check before anything is trained: in one later step, the found convention gives what the pipeline gives.

It costs at most four network evaluations of the pipeline, and as many of the found convention, twice if rows turn out
to need evaluations of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .findings import Findings
from .observer import Asked, Observer, Refused

SCALE = 2.5
ALONE = "rows of a batch change each other, so they are evaluated one by one, which is slower"


def settle(observer: Observer, found: Findings) -> tuple[str, ...]:
    """Compare prompts of two lengths at two times, with guidance, in one batch; if need be, row by row.

    Raises:
        Refused: the velocities differ.
    """
    rule = found.rule_of_guidance
    scales: dict[str, Any] = {} if rule is None else {rule.argument: SCALE - rule.offset}
    if rule is not None and rule.negative is not None:
        scales["negative_prompt"] = [rule.negative]
    x, t, words, got = _asked(observer, found, scales)
    empties = [[each] for each in found.empties] or [[]]
    apart, near = float("inf"), 5e-2 if found.half else 1e-4
    for alone in (False, True):
        found.alone = alone or found.rule is None
        for found.empties in empties:
            apart = min(apart, now := _apart(_mixed(observer, found, x, t, words), got))
            if now < near:
                return (ALONE,) * found.alone
    raise Refused(f"gives other velocities than the observed convention (relative difference {apart:.1e})")


def _asked(
    observer: Observer, found: Findings, scales: dict[str, Any]
) -> tuple[Tensor, Tensor, list[dict[str, Any]], Tensor]:
    """What the scheduler gets in the second of two steps, and of three, and from which samples, times and prompts."""
    words, x, t, expected = [], [], [], []
    for steps, prompt in zip((2, 3), observer.prompts[1:], strict=True):
        answer = found.answers([found.answer] * 2)
        seen = observer((prompt,), steps=steps, scales=scales, until=2, answer=answer, answered=1)
        step = seen.done[1]
        assert step.sample is not None and step.output is not None and seen.sigmas is not None
        words.append(found.following(pytree.tree_leaves(observer((prompt,), until=0).steps[0].calls[0])))
        x.append(step.sample)
        t.append(seen.sigmas[1].item())
        expected.append(step.output.float())
    return torch.cat(x), torch.tensor(t, device=x[0].device), words, torch.cat(expected)


@torch.no_grad()
def _mixed(observer: Observer, found: Findings, x: Tensor, t: Tensor, words: list[dict[str, Any]]) -> Tensor:
    """By the found convention."""
    network, rule = observer.pipe.transformer, found.rule_of_guidance
    with observer.cast():
        if found.empty is None or rule is None:
            return found.evaluated(network, x, t, words, SCALE).float()
        both = [*words, *_without(observer, found, rule.negative or "")]
        v, v_0 = found.evaluated(network, torch.cat([x, x]), torch.cat([t, t]), both, 1.0).float().chunk(2)
        return rule(v, v_0, SCALE)


def _without(observer: Observer, found: Findings, text: str) -> list[dict[str, Any]]:
    """The prompts without their text; their images stay."""
    assert found.empty is not None
    if observer.prompts[0].image is None:
        return [found.empty] * 2
    blank = [Asked(text, each.image) for each in observer.prompts[1:]]
    return [found.following(pytree.tree_leaves(observer((each,), until=0).steps[0].calls[0])) for each in blank]


def _apart(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()
