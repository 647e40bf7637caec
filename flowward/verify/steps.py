"""Laws of random steps that all reverse-process algorithms share: gradient, ratio, divergence, noise schedule, cost.

The algorithm's own rollout, credit and points produce the training points (generic.Subject), so its noise schedule,
tree and weights are those of training. Notation, per step with noise z: d = v - v_old; means over the N elements of a
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ..process.flow import mean, over
from ..process.laws import LAWS as STEPS
from ..process.noise import Noise
from ..process.policy import Condition
from ..process.rollout import Drawn
from .check import Check, Kind, compared, differences, equation, number, real, slope
from .generic import SHAPE, WORLD, Subject

N = 8  # elements of a sample

# log rho of each ratio, in words and as a function of the residual r = x_s - mean, the shift m = Q d of the mean, and
# sigma. The residual is sigma z under the old policy, and sigma z - Q d under the new one.
Density = Callable[[Tensor, Tensor, Tensor], Tensor]


def _density(drawn: Tensor, shift: Tensor, sigma: Tensor) -> Tensor:
    """log p_new - log p_old, summed over elements, [B]."""
    law = Normal(torch.zeros_like(drawn), over(sigma, drawn))
    return (law.log_prob(drawn - shift) - law.log_prob(drawn)).flatten(1).sum(1)


RATIOS: dict[str, tuple[str, Density]] = {
    "gaussian": ("1/N of the log density ratio of x_s", lambda r, m, s: _density(r, m, s) / N),
    "sum": ("the log density ratio of x_s", _density),
    "cps": ("2 sigma^2 / N of the log density ratio of x_s", lambda r, m, s: 2 * s**2 * _density(r, m, s) / N),
    "guard": (
        "sigma (L + mean(dmu^2) / 2 sigma^2), L being 1/N of the log density ratio of x_s",
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
    """Laws for every noise schedule, tree, ratio and weight, at the algorithm's own points."""
    algorithm = kind()
    subject = Subject.first(algorithm)
    yield from on_policy(algorithm, subject, source)
    yield from ratio_laws(kind, subject)
    yield from _divergence(kind, subject)
    few, old = subject.points[:24], subject.old[:24]  # none of these lies at the edge of the clip
    loss = equation(algorithm, few, old, old + real(*old.shape, seed=1) / 10)
    yield differences("autograd = central differences", loss, old + real(*old.shape) / 50)
    yield from schedule_laws(algorithm)


def on_policy(algorithm: Any, subject: Subject, source: str) -> Iterator[Check]:
    """The gradient on policy."""
    p, (said, alpha) = subject.points, ALPHA[algorithm.ratio]
    share = p.weight * p.advantage.clamp(-5, 5) * alpha(p.q, p.sigma)[:, None]
    expected = -(share[..., None, None] * p.z).sum(1) / N
    law = f"on policy: gradient -(1/N) w A alpha z, alpha = {said}, |A| <= 5"
    yield compared(law, source, subject.slope(), expected)
    first = replace(p, fresh=True, known={"old": subject.old + 1})
    found = slope(equation(algorithm, first, subject.old, subject.old), subject.old)
    law = "on policy, before the first update: the same gradient, whatever velocity was recorded"
    yield compared(law, source, found, expected)


def _alone(points: Any, advantage: float) -> Any:
    """One step of each state, with this advantage and the weight 1."""
    one = torch.ones_like(points.weight[:, :1])
    return replace(points, z=points.z[:, :1], advantage=advantage * one, weight=one)


def _log_rho(algorithm: Any, points: Any, old: Tensor, v: Tensor) -> Tensor:
    """log rho recovered from the loss, [B]: with A = -1 the loss is rho above 1, with A = 1 it is -rho below 1."""
    up, down = (equation(algorithm, _alone(points, a), old, old)(v) for a in (-1.0, 1.0))
    return torch.where(up > 1, up, -down).log()


def ratio_laws(kind: Kind, subject: Subject) -> Iterator[Check]:
    """The ratio of new and old policy, and its clip."""
    bare, p, old = kind(beta=0.0), subject.points, subject.old
    said, density = RATIOS[bare.ratio]
    v = old + real(*old.shape) / 10
    drawn, shift = over(p.sigma, old) * p.z[:, 0], over(p.q, old) * (v - old)
    found = _log_rho(bare, p, old, v)
    yield compared(f"log rho is {said}", "derived 9", found, density(drawn, shift, p.sigma), 1e-9)
    mirrored = _log_rho(bare, replace(p, z=-p.z), old, v)
    if bare.ratio == "guard":
        bias, law = torch.zeros_like(found), "0, so the clip treats both sides equally"
    else:
        bias, law = density(0 * drawn, shift, p.sigma), "-gamma mean(d^2), below 0"
    law = f"{bare.ratio}: log rho, averaged over z and -z, is {law}"
    yield compared(law, "derived 9", (found + mirrored) / 2, bias, 1e-9)
    same = _log_rho(bare, p, old, old.clone())
    law = f"{bare.ratio}: log rho at the same velocity is exactly 0"
    yield compared(law, "derived 9", same, torch.zeros_like(same), 0.0)
    half = equation(bare, _alone(_narrow(p), 1.0), old.bfloat16(), old)(old.bfloat16())
    law = f"{bare.ratio}: rho - 1 at the same velocity in bfloat16 is exactly 0"
    yield compared(law, "derived 9", -half - 1, 0 * half, 0.0)
    limit, source = ("clip", "1707.06347") if bare.trust is None else ("trust", "2606.11025")
    law = f"{bare.ratio}: no gradient beyond the {limit} (above for A > 0, below for A < 0): share of points"
    yield number(law, source, _clipped(bare, p, old), 1, 0)


def _narrow(points: Any) -> Any:
    """The points as recorded by a network in half precision."""
    return replace(points, z=points.z.bfloat16(), known={name: v.bfloat16() for name, v in points.known.items()})


def _clipped(algorithm: Any, points: Any, old: Tensor) -> float:
    """Share of states that are stopped correctly at ratio 1 +- 3 clip, or three times as far as the trust, for both
    signs of A.
    """
    alpha = ALPHA[algorithm.ratio][1](points.q, points.sigma)
    z, right = points.z[:, 0], []
    size = 3 * (algorithm.clip or 0) / (alpha * mean(z**2))
    if algorithm.trust is not None:
        algorithm = replace(algorithm, trust=0.01)
        size = (6 * 0.01 / (N * mean(z**2))).sqrt() * points.sigma / points.q
    for a in (1.0, -1.0):
        for side in (1.0, -1.0):
            v = old + over(side * size, z) * z
            still = slope(equation(algorithm, _alone(points, a), old, old), v).flatten(1).abs().amax(1) == 0
            right.append((still == (a == side)).double().mean())
    return torch.stack(right).mean().item()


def _divergence(kind: Kind, subject: Subject) -> Iterator[Check]:
    """Divergence of x_s between policy and reference, computed from the loss with all advantages 0."""
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
        law = f"divergence `{name}`: beta times {said}, for any step weight"
        yield compared(law, "derived 10", found, 0.3 * expected)


# Steps


def _noise(name: str, strength: float, t: Tensor, s: Tensor) -> tuple[str, Tensor]:
    """c^2 + sigma^2 of a step, with c the coefficient of the predicted noise: s^2, and more for an SDE."""
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


def schedule_laws(algorithm: Any) -> Iterator[Check]:
    """Laws of the rollout's noise schedule on its time grid."""
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
    yield compared("without noise, a step equals Euler's bit for bit", "derived 11", euler, torch.zeros_like(x), 0.0)
    bad = 0
    for iteration in range(0, 300, 10):
        table = draw.at(0, iteration).table
        _, ends, _, noise = table[~table[:, 0].isnan()].unbind(1)
        bad += int((ends <= 0).sum() + (noise <= 0).sum())
    yield number("random steps without noise, or to t = 0, in 300 iterations", "derived 11", bad, 0, 0)


def samples(draw: Any, iteration: int = 0, size: int | None = None) -> tuple[Drawn, float]:
    """Draw `size` samples of one prompt in an iteration, and count network evaluations per sample."""
    tree, rows = draw.at(0, iteration), [0]
    size = size or tree.leaves

    def counted(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        rows[0] += len(x)
        return WORLD(x, t, condition)

    keys = tuple(("verify", 0, number) for number in range(size))
    found = tree(counted, Condition({"id": torch.zeros(size)}), Noise(SHAPE, keys))
    return found, rows[0] / size


def cost_laws(kind: Kind, source: str, sampled: float, trained: float) -> Iterator[Check]:
    """Network evaluations per sample, in the rollout and in training."""
    found, cost = samples(kind().rollout)
    assert found.steps is not None
    yield number("network evaluations per sample in the rollout", source, cost, sampled, 1e-12)
    states = len(found.steps.x) / len(found.x0)
    yield number("network evaluations per sample with gradient", source, states, trained, 1e-12)
