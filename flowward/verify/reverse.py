"""Laws of each reverse-process paper about its random steps, weights and trees, in addition to those in steps.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ..algorithms import FlowGRPO
from ..algorithms.policy_gradient import beyond_trust, step_nats
from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.flow import grid, over
from ..process.laws import LAWS as STEPS
from ..process.laws import excess
from ..process.plans import Branches, Chain
from ..process.windows import Window
from .check import Check, Kind, compared, equation, number, real, slope
from .generic import Subject, linear
from .steps import RATIOS, cost_laws, on_policy, ratio_laws, samples, schedule_laws, shared

DDPO, GRPO, CPS, DANCE = "2305.13301", "2505.05470", "2509.05952", "2505.07818"
MIX, TEMP, G2, GUARD = "2507.21802", "2508.04324", "2510.01982", "2510.22319"
DPPO, PRECISE = "2606.11025", "2605.23522"


def ddpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, DDPO)
    yield from cost_laws(kind, DDPO, 50, 49)
    times = grid(50, 1.0, "linear")[1:-1]
    t, s = times[:-1], times[1:]
    (a, b), (a_s, b_s) = (_preserving(level) for level in (t, s))
    sigma = (b_s**2 / b**2 * (1 - a**2 / a_s**2)).sqrt()
    kept = (b_s**2 - sigma**2).clamp_min(0).sqrt()  # y_s = a_s x0 + kept eps + sigma z, y = (a + b) x
    expected = torch.stack([a_s + kept, kept * (1 - t) - a_s * t, sigma], 1) / (a_s + b_s)[:, None]
    law = STEPS["ddim"](1.0)
    found = torch.tensor([law.coefficients(*ends) for ends in pairwise(times.tolist())], dtype=torch.float64)
    said = "steps equal DDIM's on a variance-preserving schedule, with states divided by a + b"
    yield compared(said, "derived 11", found, expected, 1e-9)


def _preserving(t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise coefficients with the same signal-to-noise ratio whose squares sum to 1."""
    length = ((1 - t) ** 2 + t**2).sqrt()
    return (1 - t) / length, t / length


def flow_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, GRPO)
    yield from cost_laws(kind, GRPO, 10, 9)
    for ratio, clip in (("sum", 0.1), ("cps", 1e-5), ("guard", 2e-6)):
        yield from ratio_laws(partial(kind, ratio=ratio, clip=clip), Subject.first(kind()))
    draw = kind().rollout
    times = draw.times
    law, a = STEPS["flow-sde"](draw.noise), draw.noise
    found = torch.tensor(law.coefficients(times[0], times[1], times[1]), dtype=torch.float64)
    expected = torch.tensor([1 - a**2 / 2, times[1] - 1, a], dtype=torch.float64)
    yield compared("first step: P = 1 - a^2 / 2, Q = -(t - s), sigma = a", "derived 11", found, expected)
    q = torch.tensor([law.coefficients(t, s)[1] for t, s in pairwise(times[1:])], dtype=torch.float64)
    lengths = torch.tensor([s - t for t, s in pairwise(times[1:])], dtype=torch.float64)
    yield compared("any other: Q = -(t - s) (1 + a^2 / 2)", "derived 11", q, lengths * (1 + a**2 / 2))
    level = excess(law, times[8], times[9], times[1])
    yield number("noise after the last trained step, relative to the correct level", "derived 11", level, 26.9, 0.05)
    yield from _precise(kind)


def _precise(kind: Kind) -> Iterator[Check]:
    """The noise schedules that solve a step exactly while x0 does not change."""
    draw = kind().rollout
    for name in ("precise", "precise-held", "dance-precise"):
        for check in schedule_laws(kind(rollout=replace(draw, law=name))):
            yield replace(check, law=f"{name}: {check.law}")

    def steps(name: Any, strength: float, *times: float) -> Tensor:
        law = STEPS[name](strength)
        return torch.tensor([law.coefficients(*ends, draw.times[1]) for ends in pairwise(times)], dtype=torch.float64)

    found, expected = steps("precise", math.sqrt(2), *draw.times), steps("ddim", 1.0, *draw.times)
    yield compared("precise with a = sqrt(2): steps equal DDIM's with full noise", "derived 11", found, expected)
    middle = torch.tensor(draw.times[1:-2], dtype=torch.float64)
    for name in ("precise", "dance-precise"):
        at, once = steps(name, 0.7, *middle.tolist()), steps(name, 0.7, draw.times[1], draw.times[-3])
        kept = (at[:, 0] - (1 - middle[1:])) / middle[1:]  # of the predicted noise, in each step
        share = (once[:, 0] - (1 - middle[-1:])) / middle[-1:]
        law = f"{name}: the noise kept in one long step is the product over short steps"
        yield compared(law, PRECISE, kept.prod()[None], share)
    p, _, sigma = steps("precise-held", 0.7, *draw.times[:2])[0].tolist()
    found = torch.tensor([(p - (1 - draw.times[1])) / draw.times[1], sigma / draw.times[1]])
    expected = torch.tensor([math.exp(-(0.7**2) / 2), math.sqrt(1 - math.exp(-(0.7**2)))])
    yield compared(
        "precise-held: the first step keeps e^{-a^2 / 2} of the initial noise", "derived 11", found, expected
    )


def flow_grpo_fast(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, CPS)
    yield from cost_laws(kind, GRPO, 10, 3)
    starts = [kind().rollout.window.steps(10, 0, iteration) for iteration in range(60)]
    apart = sum(len(steps) != 3 or steps.start > 2 for steps in starts) + abs(len({s.start for s in starts}) - 3)
    yield number("windows that are not three of the first five steps, or positions never drawn", GRPO, apart, 0, 0)
    early = partial(kind, ratio="gaussian", rollout=Branches(one=True, high=6, fanout=9, noise=0.8, cohorts="prompt"))
    subject = Subject.first(early())
    for check in on_policy(early(), subject, GRPO):
        yield replace(check, law=check.law.replace("on policy", "on policy, branching"))


def dance_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, DANCE)
    yield from cost_laws(kind, DANCE, 16, 9)
    found, _ = samples(replace(kind().rollout, share=1.0), size=12)
    assert found.steps is not None
    starts = found.steps.x[found.steps.number == 0]
    yield number("different initial noises among the samples of a prompt", DANCE, len(starts.unique(dim=0)), 1, 0)
    chosen, _ = samples(kind().rollout, size=12)
    assert chosen.steps is not None
    sets = chosen.steps.number.view(12, -1).unique(dim=0)
    yield number("different sets of trained steps among 12 samples", DANCE, len(sets), 12, 0)


def mix_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, MIX)
    yield from cost_laws(kind, MIX, 25, 4)
    window = kind().rollout.window
    found = [window.steps(25, 0, iteration).start for iteration in (0, 24, 25, 299)]
    law = "first step of the window in iterations 0, 24, 25, 299"
    yield compared(law, MIX, torch.tensor(found), torch.tensor([0, 0, 1, 11]), 0.0)
    yield from _all_steps(kind)


def _all_steps(kind: Kind) -> Iterator[Check]:
    """A window of all steps gives Flow-GRPO, bit for bit."""
    chain = Chain(6)
    mix = kind(rollout=replace(chain, window=Window(5, "random")), credit=ZScore("pooled"))
    flow = FlowGRPO(rollout=chain, beta=0.0)
    one, two = (Subject.of(each, 4, linear) for each in (flow, mix))
    apart = (one.rollout.x0 - two.rollout.x0).abs().max() + (one.points.z - two.points.z).abs().max()
    v = one.old + real(*one.old.shape) / 50
    apart = apart + (one.loss(v, one.old, one.old) - two.loss(v, two.old, two.old)).abs().max()
    law = "with a window of all steps, samples, noise and loss equal Flow-GRPO's bit for bit"
    yield number(law, "derived 12", apart.item(), 0, 0)


def mix_grpo_flash(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, MIX)
    yield from cost_laws(kind, MIX, 11, 4)
    draw = kind().rollout
    ends = [draw.at(0, iteration).segments[-1].times for iteration in range(0, 600, 20)]
    off = sum(abs(times[-1]) + sum(t <= s for t, s in pairwise(times)) for times in ends)
    yield number("coarse grids that do not decrease to 0, in 600 iterations", MIX, off, 0, 0)
    costs = [samples(draw, iteration)[1] for iteration in range(0, 300, 20)]
    law = "network evaluations per sample, mean over 300 iterations"
    yield number(law, MIX, sum(costs) / len(costs), 15.6, 1e-9)
    frozen = replace(draw, window=replace(draw.window, order="frozen"), tail=0.2)
    yield number("network evaluations per sample of Flash*, tail 0.2", MIX, samples(frozen, 299)[1], 7, 0)
    yield from _all_steps(kind)


def tempflow_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, TEMP)
    yield from cost_laws(kind, TEMP, (36 + 1080) / 216, 9 / 54)
    p = Subject.first(kind()).points
    each = p.weight.sum(1)
    yield number("mean weight of a step", TEMP, each.mean().item(), 1, 1e-12)
    law = "weight over sigma: 1 / mean(sigma), the code's 2.25"
    yield compared(law, TEMP, each / p.sigma, torch.full_like(each, 2.2522), 5e-5)
    pull = (each * p.q / p.sigma).abs()[1:9] / p.length[1:9]
    yield compared("the gradient of a step is proportional to its length", "derived 11", pull, pull[:1].expand_as(pull))
    a = p.advantage
    yield compared("mean advantage of the children of a state", TEMP, a.mean(1), torch.zeros_like(each), 1e-12)
    other = FlowGRPO(rollout=Chain(10, 1.0, "linear"), beta=0.04)
    s = Subject.first(other)
    silent, v = replace(s.points, advantage=0 * s.points.advantage), s.old + real(*s.old.shape)
    found = equation(kind(beta=0.004), silent, s.old, s.old)(v)
    law = "beta 0.004 equals Flow-GRPO's 0.04 if t - s = 0.1"
    yield compared(law, "derived 10", found, equation(other, silent, s.old, s.old)(v))


def g2rpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, G2)
    two = partial(kind, rollout=replace(kind().rollout, strides=(1, 2)))
    _, cost = samples(two().rollout)
    law = "network evaluations per prompt with two grids: 8 + 12 (92 + 48 - 8), the first of both is shared"
    yield number(law, G2, cost * 192, 8 + 12 * 132, 1e-9)
    found, _ = samples(kind().rollout)
    assert found.steps is not None
    yield number("forward passes with gradient per prompt, for 96 children", G2, len(found.steps.x), 8, 0)
    s = Subject.of(kind(), 288, linear)
    p, v = s.points, s.old + real(*s.old.shape) / 50
    parts = [
        replace(p, z=p.z[:, k : k + 1], advantage=p.advantage[:, k : k + 1], weight=p.weight[:, k : k + 1])
        for k in range(12)
    ]
    together = equation(kind(), p, s.old, s.old)
    apart = [equation(kind(), part, s.old, s.old) for part in parts]

    def added(v: Tensor) -> Tensor:
        return torch.stack([loss(v) for loss in apart]).sum(0)

    yield compared("one forward pass for 12 children: loss as with 12 passes", "derived 12", together(v), added(v))
    yield compared(
        "one forward pass for 12 children: gradient as with 12 passes",
        "derived 12",
        slope(together, v),
        slope(added, v),
    )
    done = s.rollout
    assert done.steps is not None
    views = done.advantage[done.steps.sample]
    yield compared("advantages of three grids are added up", G2, p.advantage, views.sum(2))
    again = kind(points=RandomSteps(views="restandardised"))
    a = Subject.of(again, 288, linear).points.advantage
    yield compared("restandardised: variance 1", "derived 12", a.var(1, correction=0), torch.ones(len(a)), 1e-3)


def grpo_guard(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, GUARD)
    yield from cost_laws(kind, GRPO, 10, 9)
    s = Subject.first(kind())
    p = s.points
    yield compared("weight: 1 / (t - s)", GUARD, p.weight[:, 0] * p.length, torch.ones_like(p.length))
    pull = slope(equation(kind(), _unit(p), s.old, s.old), s.old).flatten(1)
    pull = pull.norm(dim=1)[1:9]
    yield compared(
        "with the same noise, gradients of all steps but the first are equally large",
        "derived 11",
        pull,
        pull[:1].expand_as(pull),
    )


def flow_dppo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, DPPO)
    yield from cost_laws(kind, GRPO, 10, 3)
    s = Subject.first(kind())
    p, old = s.points, s.old
    v = old + real(*old.shape) / 3
    at, to = (over(p.q, old) * each for each in (v, old))
    exact = kl_divergence(Normal(to, over(p.sigma, to)), Normal(at, over(p.sigma, at))).flatten(1).sum(1)
    nats = step_nats(v, old, p.q, p.sigma)
    yield compared("KL of a step: D Q^2 mean(d^2) / 2 sigma^2, in nats", DPPO, nats, exact, 1e-9)
    unlimited = kind(trust=1e12)
    free = equation(kind(clip=1e-2, trust=None), replace(p, fresh=True), old, old)
    gap = slope(equation(unlimited, replace(p, fresh=True), old, old), old) - slope(free, old)
    yield compared("before the first update: the gradient equals that of a clip", DPPO, gap, torch.zeros_like(gap), 0.0)
    yield from _outward(p, old)


def _outward(points: Any, old: Tensor) -> Iterator[Check]:
    """Which steps beyond the trust are stopped, by each of the three tests."""
    one = replace(
        points, z=points.z[:, :1], advantage=points.advantage[:, :1], weight=torch.ones_like(points.weight[:, :1])
    )
    far = old + 2 * real(*old.shape, seed=5)

    def stopped(outward: Any, sign: float = 1.0, mirrored: float = 1.0, trust: float = 0.0) -> Tensor:
        z, a = mirrored * one.z, sign * one.advantage
        return beyond_trust(far, old, z, a, one.q, one.sigma, trust, outward)[:, 0].double()

    law = "outward `noise`: steps stopped for A and z, less those for -A and -z"
    gap = stopped("noise") - stopped("noise", -1.0, -1.0)
    yield compared(law, "derived 9", gap, torch.zeros_like(gap), 0.0)
    drawn, shift = over(one.sigma, old) * one.z[:, 0], over(one.q, old) * (far - old)
    law = "outward `ratio`: steps stopped, those whose density ratio moved with A"
    moved = (RATIOS["sum"][1](drawn, shift, one.sigma) * one.advantage[:, 0] > 0).double()
    yield compared(law, DPPO, stopped("ratio"), moved, 0.0)
    nats = step_nats(far, old, one.q, one.sigma)
    middle = nats.median().item()
    law = "outward `ratio`: of these, the ones with KL >= trust"
    yield compared(law, DPPO, stopped("ratio", trust=middle), moved * (nats >= middle), 0.0)
    v = far.clone().requires_grad_()
    rise = torch.autograd.grad(step_nats(v, old, one.q, one.sigma).sum(), v)[0]
    pull = slope(equation(FlowGRPO(clip=None, trust=1e12, beta=0.0), one, old, old), far)
    law = "outward `gradient`: steps stopped, those whose descent raises the KL"
    yield compared(law, DPPO, stopped("gradient"), ((-pull * rise).flatten(1).sum(1) > 0).double(), 0.0)


def _unit(points: Any) -> Any:
    """The same points with noise 1 and advantage 1 everywhere."""
    return replace(points, z=torch.ones_like(points.z), advantage=torch.ones_like(points.advantage))


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {
    "ddpo": ddpo,
    "flow_grpo": flow_grpo,
    "flow_grpo_fast": flow_grpo_fast,
    "dance_grpo": dance_grpo,
    "mix_grpo": mix_grpo,
    "mix_grpo_flash": mix_grpo_flash,
    "tempflow_grpo": tempflow_grpo,
    "g2rpo": g2rpo,
    "grpo_guard": grpo_guard,
    "flow_dppo": flow_dppo,
}
