"""What the equation of the reverse process implies, and what each paper says of its steps, weights and trees.

Points are made by the algorithm's own rollout, credit and points (generic.Subject), so that its law, tree and weights
are those that train. Per step with the noise z: d = v - v_old, means over the N elements of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ..algorithms import FlowGRPO
from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.flow import grid, mean, over
from ..process.laws import LAWS as STEPS
from ..process.laws import excess
from ..process.noise import Noise
from ..process.plans import Branches, Chain
from ..process.policy import Condition
from ..process.rollout import Drawn
from ..process.windows import Window
from .check import Check, compared, differences, equation, number, real, slope
from .generic import SHAPE, WORLD, Subject, linear

Kind = Callable[..., Any]  # an algorithm's class
DDPO, GRPO, CPS, DANCE = "2305.13301", "2505.05470", "2509.05952", "2505.07818"
MIX, TEMP, G2, GUARD = "2507.21802", "2508.04324", "2510.01982", "2510.22319"
N = 8  # elements of a sample

# What the densities of x_s and the shift of its mean give, in words and as numbers: of r = x_s - mean, of the shift
# Q d, and of sigma. The residual under the old policy is sigma z, under the new one sigma z - Q d.
Density = Callable[[Tensor, Tensor, Tensor], Tensor]


def _density(drawn: Tensor, shift: Tensor, sigma: Tensor) -> Tensor:
    """log p_new - log p_old, summed over elements, [B]."""
    law = Normal(torch.zeros_like(drawn), over(sigma, drawn))
    return (law.log_prob(drawn - shift) - law.log_prob(drawn)).flatten(1).sum(1)


RATIOS: dict[str, tuple[str, Density]] = {
    "gaussian": ("1/N of that of the densities of x_s", lambda r, m, s: _density(r, m, s) / N),
    "sum": ("that of the densities of x_s", _density),
    "cps": ("2 sigma^2 / N of that of the densities of x_s", lambda r, m, s: 2 * s**2 * _density(r, m, s) / N),
    "guard": (
        "sigma (1/N of that of the densities of x_s, + mean(dmu^2) / 2 sigma^2)",
        lambda r, m, s: s * (_density(r, m, s) / N + mean(m**2) / (2 * s**2)),
    ),
}
ALPHA: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "gaussian": ("Q / sigma", lambda q, s: q / s),
    "sum": ("N Q / sigma", lambda q, s: N * q / s),
    "cps": ("2 sigma Q", lambda q, s: 2 * s * q),
    "guard": ("Q", lambda q, s: q),
}


def shared(kind: Kind, source: str) -> Iterator[Check]:
    """What holds for every law, tree, ratio and weight, at the algorithm's own points."""
    algorithm = kind()
    subject = Subject.first(algorithm)
    yield from _on_policy(algorithm, subject, source)
    yield from _ratio(kind, subject)
    yield from _divergence(kind, subject)
    few, old = subject.points[:24], subject.old[:24]  # so that none is at the corner of its clip
    loss = equation(algorithm, few, old, old + real(*old.shape, seed=1) / 10)
    yield differences("autograd = central differences", loss, old + real(*old.shape) / 50)
    yield from _steps(algorithm)


def _on_policy(algorithm: Any, subject: Subject, source: str) -> Iterator[Check]:
    p, (said, alpha) = subject.points, ALPHA[algorithm.ratio]
    share = p.weight * p.advantage.clamp(-5, 5) * alpha(p.q, p.sigma)[:, None]
    expected = -(share[..., None, None] * p.z).sum(1) / N
    law = f"on policy: -(1/N) w A alpha z, alpha = {said}, |A| <= 5"
    yield compared(law, source, subject.slope(), expected)
    first = replace(p, fresh=True, known={"old": subject.old + 1})
    found = slope(equation(algorithm, first, subject.old, subject.old), subject.old)
    yield compared("on policy before the first update, whatever was recorded: the same", source, found, expected)


def _alone(points: Any, advantage: float) -> Any:
    """One step of each state, with this advantage and the weight 1."""
    one = torch.ones_like(points.weight[:, :1])
    return replace(points, z=points.z[:, :1], advantage=advantage * one, weight=one)


def _log_rho(algorithm: Any, points: Any, old: Tensor, v: Tensor) -> Tensor:
    """What the loss takes log rho for, [B]: for A = -1 it is rho upwards of 1, for A = 1 it is -rho downwards of 1."""
    up, down = (equation(algorithm, _alone(points, a), old, old)(v) for a in (-1.0, 1.0))
    return torch.where(up > 1, up, -down).log()


def _ratio(kind: Kind, subject: Subject) -> Iterator[Check]:
    bare, p, old = kind(beta=0.0), subject.points, subject.old
    said, density = RATIOS[bare.ratio]
    v = old + real(*old.shape) / 10
    drawn, shift = over(p.sigma, old) * p.z[:, 0], over(p.q, old) * (v - old)
    found = _log_rho(bare, p, old, v)
    yield compared(f"log rho is {said}", "derived 9", found, density(drawn, shift, p.sigma), 1e-9)
    mirrored = _log_rho(bare, replace(p, z=-p.z), old, v)
    if bare.ratio == "guard":
        bias, law = torch.zeros_like(found), "0, so that neither side of the clip is favoured"
    else:
        bias, law = density(0 * drawn, shift, p.sigma), "-gamma mean(d^2), below 0"
    law = f"{bare.ratio}: log rho, averaged over z and -z, is {law}"
    yield compared(law, "derived 9", (found + mirrored) / 2, bias, 1e-9)
    same = _log_rho(bare, p, old, old.clone())
    law = f"{bare.ratio}: log rho at the same velocity, exactly"
    yield compared(law, "derived 9", same, torch.zeros_like(same), 0.0)
    half = equation(bare, _alone(_narrow(p), 1.0), old.bfloat16(), old)(old.bfloat16())
    law = f"{bare.ratio}: rho - 1 at the same velocity in bfloat16, exactly"
    yield compared(law, "derived 9", -half - 1, 0 * half, 0.0)
    law = f"{bare.ratio}: no gradient beyond the clip, for A > 0 up and for A < 0 down: share"
    yield number(law, "1707.06347", _clipped(bare, p, old), 1, 0)


def _narrow(points: Any) -> Any:
    """As a network in half precision leaves them."""
    return replace(points, z=points.z.bfloat16(), known={name: v.bfloat16() for name, v in points.known.items()})


def _clipped(algorithm: Any, points: Any, old: Tensor) -> float:
    """Share of states that the clip treats as it should, three clips away from 1 on both sides, for both signs of A."""
    alpha = ALPHA[algorithm.ratio][1](points.q, points.sigma)
    z, right = points.z[:, 0], []
    for a in (1.0, -1.0):
        for side in (1.0, -1.0):
            v = old + over(side * 3 * algorithm.clip / (alpha * mean(z**2)), z) * z
            still = slope(equation(algorithm, _alone(points, a), old, old), v).flatten(1).abs().amax(1) == 0
            right.append((still == (a == side)).double().mean())
    return torch.stack(right).mean().item()


def _divergence(kind: Kind, subject: Subject) -> Iterator[Check]:
    """Between x_s under the policy and under the reference; from the loss where nothing is to be learnt."""
    p, old = subject.points, subject.old
    silent = replace(p, advantage=torch.zeros_like(p.advantage))
    v, reference = (old + real(*old.shape, seed=seed) / 3 for seed in (1, 2))
    at, to = (over(p.q, old) * each for each in (v, reference))
    exact = mean(kl_divergence(Normal(at, over(p.sigma, at)), Normal(to, over(p.sigma, to))))
    kinds = {
        "exact": ("1/N KL(x_s)", exact),
        "per-noise": ("(t - s) / N KL(x_s), Flow-GRPO's units", exact * p.length),
        "state": ("mean(dmu^2)", mean((at - to) ** 2)),
        "velocity": ("mean((v - v_ref)^2)", mean((v - reference) ** 2)),
    }
    own = kind().divergence
    for name in kinds if own == "per-noise" else [own]:
        said, expected = kinds[name]
        found = equation(kind(beta=0.3, divergence=name), silent, old, reference)(v)
        yield compared(f"divergence `{name}`: beta {said}, whatever a step weighs", "derived 10", found, 0.3 * expected)


# Steps


def _noise(name: str, strength: float, t: Tensor, s: Tensor) -> tuple[str, Tensor]:
    """c^2 + sigma^2 of a step, c the share of the predicted noise that stays: s^2, and for an SDE more."""
    length = t - s
    squares = {
        "flow-sde": strength**2 * t / (1 - torch.where(t == 1, s, t)),
        "dance-sde": torch.full_like(t, strength**2),
        "linear-sde": (strength * t) ** 2,
    }
    if name not in squares:
        return "s^2", s**2
    g = squares[name]  # squared
    return "s^2 + (g^2 (t - s)^2 / t) (1 + g^2 / 4t)", s**2 + g * length**2 / t * (1 + g / (4 * t))


def _steps(algorithm: Any) -> Iterator[Check]:
    """Of the law that the rollout draws with, on its grid."""
    draw = algorithm.rollout
    times = draw.levels
    law, silent, (t, s) = STEPS[draw.law](draw.noise), STEPS[draw.law](0.0), (times[:-1], times[1:])
    first = times[1].item()
    each = torch.tensor([law.coefficients(*ends, first) for ends in pairwise(times.tolist())], dtype=torch.float64)
    p, q, sigma = each.unbind(1)
    said, expected = _noise(draw.law, draw.noise, t, s)
    yield compared(f"c^2 + sigma^2 = {said}", "derived 11", (p - (1 - s)) ** 2 + sigma**2, expected)
    centre = (1 - t) * 0.7
    u = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2) * (centre - (1 - t) * 0.7) - 0.7  # of N(0.7, 0.5^2)
    yield compared("a step keeps the mean of the marginals", "derived 11", p * centre + q * u, (1 - s) * 0.7)
    x, v = real(2, len(t), seed=3)
    bare = torch.tensor([silent.coefficients(*ends, first) for ends in pairwise(times.tolist())], dtype=torch.float64)
    euler = (bare[:, 0] * x + bare[:, 1] * v + bare[:, 2]) - (x + (s - t) * v)
    yield compared("without noise a step is Euler's, to the bit", "derived 11", euler, torch.zeros_like(x), 0.0)
    bad = 0
    for iteration in range(0, 300, 10):
        table = draw.at(0, iteration).table
        _, ends, _, noise = table[~table[:, 0].isnan()].unbind(1)
        bad += int((ends <= 0).sum() + (noise <= 0).sum())
    yield number("random steps without noise, or to t = 0, in 300 iterations", "derived 11", bad, 0, 0)


def _drawn(draw: Any, iteration: int = 0, size: int | None = None) -> tuple[Drawn, float]:
    """`size` samples of one prompt in an iteration, and the evaluations of each."""
    tree, rows = draw.at(0, iteration), [0]
    size = size or tree.leaves

    def counted(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        rows[0] += len(x)
        return WORLD(x, t, condition)

    keys = tuple(("verify", 0, number) for number in range(size))
    found = tree(counted, Condition({"id": torch.zeros(size)}), Noise(SHAPE, keys))
    return found, rows[0] / size


def _costs(kind: Kind, source: str, sampled: float, trained: float) -> Iterator[Check]:
    found, cost = _drawn(kind().rollout)
    assert found.steps is not None
    yield number("evaluations per sample, of the rollout", source, cost, sampled, 1e-12)
    states = len(found.steps.x) / len(found.x0)
    yield number("evaluations per sample, with gradient", source, states, trained, 1e-12)


# Each paper's own


def ddpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, DDPO)
    yield from _costs(kind, DDPO, 50, 49)
    times = grid(50, 1.0, "linear")[1:-1]
    t, s = times[:-1], times[1:]
    (a, b), (a_s, b_s) = (_preserving(level) for level in (t, s))
    sigma = (b_s**2 / b**2 * (1 - a**2 / a_s**2)).sqrt()
    kept = (b_s**2 - sigma**2).clamp_min(0).sqrt()  # y_s = a_s x0 + kept eps + sigma z, y = (a + b) x
    expected = torch.stack([a_s + kept, kept * (1 - t) - a_s * t, sigma], 1) / (a_s + b_s)[:, None]
    law = STEPS["ddim"](1.0)
    found = torch.tensor([law.coefficients(*ends) for ends in pairwise(times.tolist())], dtype=torch.float64)
    said = "steps are those of DDIM on a variance-preserving schedule, states divided by a + b"
    yield compared(said, "derived 11", found, expected, 1e-9)


def _preserving(t: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of signal and noise of the same signal-to-noise ratio whose squares sum to 1."""
    length = ((1 - t) ** 2 + t**2).sqrt()
    return (1 - t) / length, t / length


def flow_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, GRPO)
    yield from _costs(kind, GRPO, 10, 9)
    for ratio, clip in (("sum", 0.1), ("cps", 1e-5), ("guard", 2e-6)):
        yield from _ratio(partial(kind, ratio=ratio, clip=clip), Subject.first(kind()))
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
    yield number("noise after the last trained step over what its level calls for", "derived 11", level, 26.9, 0.05)


def flow_grpo_fast(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, CPS)
    yield from _costs(kind, GRPO, 10, 3)
    starts = [kind().rollout.window.steps(10, 0, iteration) for iteration in range(60)]
    apart = sum(len(steps) != 3 or steps.start > 2 for steps in starts) + abs(len({s.start for s in starts}) - 3)
    yield number("windows that are not three of the first five steps, or places never drawn", GRPO, apart, 0, 0)
    early = partial(kind, ratio="gaussian", rollout=Branches(one=True, high=6, fanout=9, noise=0.8, cohorts="prompt"))
    subject = Subject.first(early())
    for check in _on_policy(early(), subject, GRPO):
        yield replace(check, law=check.law.replace("on policy", "on policy, branching"))


def dance_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, DANCE)
    yield from _costs(kind, DANCE, 16, 9)
    found, _ = _drawn(replace(kind().rollout, share=1.0), size=12)
    assert found.steps is not None
    starts = found.steps.x[found.steps.number == 0]
    yield number("starts of the samples of a prompt", DANCE, len(starts.unique(dim=0)), 1, 0)
    chosen, _ = _drawn(kind().rollout, size=12)
    assert chosen.steps is not None
    sets = chosen.steps.number.view(12, -1).unique(dim=0)
    yield number("samples of 12 that are trained on other steps than the rest", DANCE, len(sets), 12, 0)


def mix_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, MIX)
    yield from _costs(kind, MIX, 25, 4)
    window = kind().rollout.window
    found = [window.steps(25, 0, iteration).start for iteration in (0, 24, 25, 299)]
    law = "first step of the window in iterations 0, 24, 25, 299"
    yield compared(law, MIX, torch.tensor(found), torch.tensor([0, 0, 1, 11]), 0.0)
    yield from _all_steps(kind)


def _all_steps(kind: Kind) -> Iterator[Check]:
    """A window of all steps is Flow-GRPO, to the bit."""
    chain = Chain(6)
    mix = kind(rollout=replace(chain, window=Window(5, "random")), credit=ZScore("pooled"))
    flow = FlowGRPO(rollout=chain, beta=0.0)
    one, two = (Subject.of(each, 4, linear) for each in (flow, mix))
    apart = (one.rollout.x0 - two.rollout.x0).abs().max() + (one.points.z - two.points.z).abs().max()
    v = one.old + real(*one.old.shape) / 50
    apart = apart + (one.loss(v, one.old, one.old) - two.loss(v, two.old, two.old)).abs().max()
    law = "with a window of all steps: samples, noise and loss are Flow-GRPO's, to the bit"
    yield number(law, "derived 12", apart.item(), 0, 0)


def mix_grpo_flash(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, MIX)
    yield from _costs(kind, MIX, 11, 4)
    draw = kind().rollout
    ends = [draw.at(0, iteration).segments[-1].times for iteration in range(0, 600, 20)]
    off = sum(abs(times[-1]) + sum(t <= s for t, s in pairwise(times)) for times in ends)
    yield number("coarse grids that do not fall to 0, in 600 iterations", MIX, off, 0, 0)
    costs = [_drawn(draw, iteration)[1] for iteration in range(0, 300, 20)]
    law = "evaluations per sample, of 300 iterations"
    yield number(law, MIX, sum(costs) / len(costs), 15.6, 1e-9)
    frozen = replace(draw, window=replace(draw.window, order="frozen"), tail=0.2)
    yield number("the same of Flash*, tail 0.2", MIX, _drawn(frozen, 299)[1], 7, 0)
    yield from _all_steps(kind)


def tempflow_grpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, TEMP)
    yield from _costs(kind, TEMP, (36 + 1080) / 216, 9 / 54)
    p = Subject.first(kind()).points
    each = p.weight.sum(1)
    yield number("mean weight of a step", TEMP, each.mean().item(), 1, 1e-12)
    law = "weight over sigma: 1 / mean(sigma), the code's 2.25"
    yield compared(law, TEMP, each / p.sigma, torch.full_like(each, 2.2522), 5e-5)
    pull = (each * p.q / p.sigma).abs()[1:9] / p.length[1:9]
    yield compared("what a step pulls grows with its length alone", "derived 11", pull, pull[:1].expand_as(pull))
    a = p.advantage
    yield compared("advantages of the children of a state: mean", TEMP, a.mean(1), torch.zeros_like(each), 1e-12)
    other = FlowGRPO(rollout=Chain(10, 1.0, "linear"), beta=0.04)
    s = Subject.first(other)
    silent, v = replace(s.points, advantage=0 * s.points.advantage), s.old + real(*s.old.shape)
    found = equation(kind(beta=0.004), silent, s.old, s.old)(v)
    law = "beta 0.004 is Flow-GRPO's 0.04 where t - s = 0.1"
    yield compared(law, "derived 10", found, equation(other, silent, s.old, s.old)(v))


def g2rpo(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, G2)
    two = partial(kind, rollout=replace(kind().rollout, strides=(1, 2)))
    _, cost = _drawn(two().rollout)
    law = "evaluations per prompt of two grids: 8 + 12 (92 + 48 - 8), the first of both grids shared"
    yield number(law, G2, cost * 192, 8 + 12 * 132, 1e-9)
    found, _ = _drawn(kind().rollout)
    assert found.steps is not None
    yield number("forwards with gradient per prompt, for 96 children", G2, len(found.steps.x), 8, 0)
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

    yield compared("one forward for 12 children: the loss of 12", "derived 12", together(v), added(v))
    yield compared("and their gradient", "derived 12", slope(together, v), slope(added, v))
    done = s.rollout
    assert done.steps is not None
    views = done.advantage[done.steps.sample]
    yield compared("advantages of three grids are added up", G2, p.advantage, views.sum(2))
    again = kind(points=RandomSteps(views="restandardised"))
    a = Subject.of(again, 288, linear).points.advantage
    yield compared("restandardised: variance 1", "derived 12", a.var(1, correction=0), torch.ones(len(a)), 1e-3)


def grpo_guard(kind: Kind) -> Iterator[Check]:
    yield from shared(kind, GUARD)
    yield from _costs(kind, GRPO, 10, 9)
    s = Subject.first(kind())
    p = s.points
    yield compared("weight: 1 / (t - s)", GUARD, p.weight[:, 0] * p.length, torch.ones_like(p.length))
    pull = slope(equation(kind(), _unit(p), s.old, s.old), s.old).flatten(1)
    pull = pull.norm(dim=1)[1:9]
    yield compared("on the same noise all steps but the first pull alike", "derived 11", pull, pull[:1].expand_as(pull))


def _unit(points: Any) -> Any:
    """The same noise and advantage for all."""
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
}
