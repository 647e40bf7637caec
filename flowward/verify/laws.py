"""Laws of each paper's equation: gradients on policy, equivalences, minimisers, identities.

Notation, per point x_t: u = eps - x0, e = u - v_old, d = v - v_old; means over the N elements of a sample. A law
creates the algorithm from its class with its own settings, so it checks the loss that is used in training. Only if no
setting allows it (e.g. DiffusionNFT without denominators) does it call the equation directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..algorithms import AdvantageFlow, FlowAWR, objectives
from ..algorithms.fdfo import log_ratio
from ..learning.credit import group_mean
from ..learning.terms import group_sum, matching
from ..process.flow import mean, over
from . import reverse, signed, trees
from .check import (
    AUTOGRAD,
    Check,
    Equation,
    Kind,
    N,
    Setting,
    compared,
    differences,
    number,
    pull,
    quadratic,
    real,
    rests,
    scaled,
    slope,
)
from .worlds import Linear

AF, AWR, NFT, AWM = "2605.26013", "2606.30376", "2509.16117", "2509.25050"
FDFO, DGPO, CRD, DPO = "2603.12893", "2510.08425", "2603.14128", "2311.12908"


def _nft(s: Setting, beta: float, clip: float = 1.0) -> Equation:
    """DiffusionNFT without denominators and reference."""
    p = s.points
    return lambda v: objectives.diffusion_nft(
        v, s.old, None, p.x_t, p.t, p.x0, p.advantage, beta, clip, 0.0, denominator=False
    )


def advantageflow(kind: Kind) -> Iterator[Check]:
    s, on = Setting.random(), Setting.random(on_policy=True)
    a, t = s.points.advantage, s.points.t
    found = torch.stack([on.slope(kind(gamma=g, denominator=True)) for g in (1.0, 1.1, 5.0, "1-A")])
    expected = pull(on, a * t / mean(on.e.abs())).expand_as(found)
    yield compared("on policy, any gamma: gradient -(2/N) A t e / mean|e|", AF, found, expected)

    bare = {"lam": 0.0, "denominator": False}
    found, expected = s.slope(kind(gamma=1.1, **bare)), quadratic(s, t**2, a + 1.1, a)
    yield compared("gamma 1.1: gradient of t^2 [(A + gamma) d^2 - 2 A d e]", AF, found, expected)
    found, expected = s.slope(kind(gamma="1-A", **bare)), quadratic(s, t**2, 1, a)
    yield compared("gamma 1-A: gradient of t^2 [d^2 - 2 A d e], so curvature 1", AF, found, expected)

    for gamma, divided in ((1.1, False), (1.1, True), (5.0, False)):
        best = over(a, s.v) * s.u + gamma * s.old + 0.4 * s.reference
        best = best / over(a + gamma + 0.4, best)
        name = f"gamma {gamma:g}{', with denominator' * divided}: minimum at (A u + gamma v_old + lam v_ref) / sum"
        yield rests(name, AF, s.of(kind(gamma=gamma, lam=0.4, denominator=divided)), best)
    yield rests("gamma 1-A: minimum at v_old + A e", AF, s.of(kind(**bare)), s.old + over(a, s.e) * s.e)
    yield differences(f"{AUTOGRAD}, without denominator", s.of(kind(denominator=False)), s.v)
    yield from _variance(kind)


def _variance(kind: Kind) -> Iterator[Check]:
    """Variance of the gradient over A = clip(N(0, 1), -1, 1) and an independent residual e = +-1, in one element.

    FM fits samples of the old policy with weight A + gamma instead of using v_old.
    """
    normal = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    a = torch.cat([normal.clamp(-1, 1)] * 2)
    e = torch.cat([torch.ones_like(normal), -torch.ones_like(normal)])[:, None]
    one, zero, gamma = torch.ones_like(a), torch.zeros_like(e), 1.1
    points = replace(
        Setting.random().points, x_t=e, t=one, x0=zero, eps=e, advantage=a, group=torch.arange(len(a)),
        exemplar=torch.zeros(len(a)).bool(),
    )  # fmt: skip
    s = Setting(points, zero, zero, zero)
    anchored, adaptive = kind(gamma=gamma, lam=0.0, denominator=False), kind(lam=0.0, denominator=False)

    def fitted(v: Tensor) -> Tensor:
        return objectives.advantageflow(v, None, None, e, one, zero, a + gamma)

    g, fm = s.slope(anchored), slope(fitted, zero)
    spread = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)  # Var(A)
    ratio = (fm.var() / g.var()).item()
    yield number(
        "Var(g_FM) / Var(g_AF) at d = 0: 1 + gamma^2 / Var(A)", "derived 6", ratio, 1 + gamma**2 / spread, 2e-3
    )
    away = replace(s, v=zero + 2)
    gap = (slope(fitted, away.v).mean() - away.slope(anchored).mean()).abs().item()
    yield number("E[g_FM] - E[g_AF] at d = 2", "derived 6", gap, 0, 1e-9)
    still = (away.slope(adaptive).var() / s.slope(adaptive).var()).item()
    yield number("gamma 1-A: Var(g) at d = 2 / Var(g) at d = 0", "derived 6", still, 1, 1e-9)
    grown = (away.slope(anchored).var() / s.slope(anchored).var()).item()
    yield number("gamma 1.1: Var(g) at d / Var(g) at d = 0 is 1 + d^2", "derived 6", grown, 5, 1e-9)


def flowawr(kind: Kind) -> Iterator[Check]:
    s, on = Setting.random(), Setting.random(on_policy=True)
    a, t = s.points.advantage, s.points.t
    forms = {
        "released": (a * t / mean(on.e.abs()), "A t e / mean|e|"),
        "velocity": (a, "A e"),
        "exact": (a * t**2, "A t^2 e"),
    }
    for form, (share, said) in forms.items():
        yield compared(f"on policy, {form}: gradient -(2/N) {said}", AWR, on.slope(kind(form=form)), pull(on, share))
    found = s.slope(kind(form="velocity", k_ref=0.0))
    yield compared("velocity: gradient of d^2 - 2 A d e", AWR, found, quadratic(s, 1, 1, a))
    found = s.slope(kind(form="exact", k_ref=0.0))
    yield compared("exact: gradient of t^2 [(1 + A) d^2 - 2 A d e]", "derived 2", found, quadratic(s, t**2, 1 + a, a))
    gap = s.points.x_t - over(t, s.v) * s.v - s.points.x0
    found = s.slope(kind(form="released", k_ref=0.0))
    yield compared(
        "released: gradient of velocity, times t^2 / mean|f - x0|",
        AWR,
        found,
        quadratic(s, t**2 / mean(gap.abs()), 1, a),
    )
    s = scaled(s, 0.9)  # the exact form is flat for A = -1
    a = s.points.advantage
    for form, share in (("velocity", a), ("released", a), ("exact", a / (1 + a))):
        said = "A / (1 + A)" if form == "exact" else "A"
        best = s.old + over(share, s.e) * s.e
        yield rests(f"{form}: minimum at v_old + {said} e", AWR, s.of(kind(form=form, k_ref=0.0)), best)
    for form in ("velocity", "exact"):
        yield differences(f"{AUTOGRAD}, {form}", s.of(kind(form=form)), s.v)


def diffusion_nft(kind: Kind) -> Iterator[Check]:
    s, five, on = Setting.random(), Setting.random(5.0), Setting.random(7.0, on_policy=True)
    a, t, clipped = s.points.advantage, s.points.t, on.points.advantage.clamp(-5, 5)
    found = torch.stack([on.slope(kind(beta=beta)) for beta in (0.1, 1.0, 3.0)])
    expected = pull(on, clipped * t / mean(on.e.abs())).expand_as(found)
    yield compared("on policy, any beta: gradient -(2/N) A t e / mean|e|, A clipped to +-5", NFT, found, expected)
    same = replace(scaled(five, 0.2), v=five.old, reference=five.old)
    flow = 5 * same.slope(AdvantageFlow(gamma="1-A", denominator=True))
    found = replace(five, v=five.old, reference=five.old).slope(kind())
    yield compared("on policy, as coded: gradient of 5 AdvantageFlow(A / 5) with denominator", "derived 2", found, flow)

    for beta in (0.1, 1.0, 2.0):
        found = slope(_nft(s, beta), s.v)
        yield compared(
            f"bare, beta {beta:g}: gradient of t^2 [beta d^2 - 2 A d e]",
            "derived 2",
            found,
            quadratic(s, t**2, beta, a),
        )
        awr = scaled(s, 1 / beta).slope(FlowAWR(form="velocity", k_ref=0.0))
        law = f"bare, beta {beta:g}: gradient of t^2 beta FlowAWR(A / beta)"
        yield compared(law, "derived 2", found, over(beta * t**2, awr) * awr)
    flow = s.slope(AdvantageFlow(gamma="1-A", lam=0.0, denominator=False))
    yield compared("bare, beta 1: gradient of AdvantageFlow(1-A)", AF, slope(_nft(s, 1.0), s.v), flow)
    for beta in (0.1, 1.0):
        best = s.old + over(a / beta, s.e) * s.e
        yield rests(f"bare, beta {beta:g}: minimum at v_old + (A / beta) e", "derived 2", _nft(s, beta), best)
    gap = [s.points.x_t - over(t, s.v) * (s.old + sign * s.d) - s.points.x0 for sign in (1, -1)]
    r, (ahead, behind) = (five.points.advantage / 10 + 0.5), [mean(g**2) / mean(g.abs()) for g in gap]
    coded = five.of(kind(k_ref=0.0))(five.v)
    yield compared(
        "as coded: loss 5 [r |f+ - x0|^2 / w+ + (1-r) |f- - x0|^2 / w-]", NFT, coded, 5 * (r * ahead + (1 - r) * behind)
    )
    yield from _own_denominators(kind)
    yield differences(f"{AUTOGRAD}, bare", _nft(s, 0.5), s.v)


def _own_denominators(kind: Kind) -> Iterator[Check]:
    """On the line v_old + x e / beta, each branch is divided by an error that changes in proportion to it."""
    s = Setting.random(5.0)
    unit = pull(s, s.points.t / mean(s.e.abs()))

    def along(*places: float) -> Tensor:
        return torch.stack([slope(s.of(kind(beta=0.5, k_ref=0.0)), s.old + x * s.e / 0.5) for x in places])

    found, expected = along(-0.9, -0.4, 0.3, 0.8), over(s.points.advantage, unit) * unit
    law = "as coded: between v_old and v_old +- e / beta the gradient is constant, proportional to A"
    yield compared(law, "derived 3", found, expected.expand_as(found))
    law = "as coded: beyond that it is the gradient of |A| = 5 backwards: minimum at v_old + sign(A) e / beta"
    yield compared(law, "derived 3", along(-1.5, 1.5), torch.stack([5 * unit, -5 * unit]))


def awm(kind: Kind) -> Iterator[Check]:
    s, on = Setting.random(5.0), Setting.random(7.0, on_policy=True)
    a, t, square = on.points.advantage.clamp(-5, 5) / 5, on.points.t, mean(on.e**2) + 1e-10
    table = {
        "huber": (a * t / square.sqrt() / 2, "(1/N) a t e / sqrt(mean e^2)"),
        "ghuber": (a * t / square**0.75, "(2/N) a t e / mean(e^2)^(3/4)"),
        "uniform": (a, "(2/N) a e"),
        "t": (a * t, "(2/N) a t e"),
        "t2": (a * t**2, "(2/N) a t^2 e"),
    }
    for weighting, (share, said) in table.items():
        found = on.slope(kind(weighting=weighting))
        yield compared(f"on policy, {weighting}: gradient -{said}, a = A / 5", AWM, found, pull(on, share))
    a = s.points.advantage / 5
    for k in (1.0, 2.0):
        expected = quadratic(s, 1, a + k, a)
        found = s.slope(kind(weighting="uniform", k_old=k, k_ref=0.0))
        yield compared(f"uniform, tether {k:g}: gradient of (a + k) d^2 - 2 a d e", "derived 2", found, expected)
    p = s.points
    flow = slope(
        lambda v: objectives.advantageflow(v, s.old, s.reference, p.x_t, p.t, p.x0, a, 1.3, 0.3, space="velocity"), s.v
    )
    found = s.slope(kind(weighting="uniform", k_old=1.3, k_ref=0.3))
    yield compared(
        "uniform, tether k: gradient of AdvantageFlow(gamma = k) in velocity space", "derived 2", found, flow
    )
    best = over(a, s.v) * s.u + 1.3 * s.old + 0.3 * s.reference
    law = "uniform: minimum at (a u + k_old v_old + k_ref v_ref) / sum"
    yield rests(law, "derived 2", s.of(kind(weighting="uniform", k_old=1.3, k_ref=0.3)), best / over(a + 1.6, best))
    yield differences(f"{AUTOGRAD}, behaviour `old`, clip inactive", s.of(kind(behaviour="old", clip=50.0)), s.v)
    value = on.of(kind(k_old=0.0, k_ref=0.0))(on.v)
    yield compared("on policy, the ratio is 1: loss -a", AWM, value, -on.points.advantage.clamp(-5, 5) / 5)


def fdfo(kind: Kind) -> Iterator[Check]:
    s, on = Setting.random(), Setting.random(on_policy=True)
    delta, a = s.points.delta, s.points.advantage
    assert delta is not None
    push = delta / over(mean(delta**2) + 1e-6, delta)
    found = on.slope(kind())
    yield compared("on policy: gradient +(2/N) A delta / mean(delta^2)", FDFO, found, 2 / N * over(a, push) * push)
    other = replace(on, points=replace(scaled(on, -1).points, delta=-delta))
    yield compared("on policy, both samples of a pair have the same gradient", "derived 7", other.slope(kind()), found)
    yield compared(
        "log rho = -|d|^2 - 2 d push = |push|^2 - |v - v_old + push|^2", "derived 7",
        log_ratio(s.v, s.old, delta), mean(push**2) - mean((s.d + push) ** 2),
    )  # fmt: skip
    rho = log_ratio(s.v, s.old, delta).exp()
    expected = -a * rho + a.abs() / (2 * 0.03) * (rho - 1) ** 2
    yield compared("loss -A rho + |A| / 2c (rho - 1)^2", FDFO, s.of(kind())(s.v), expected)
    for shift, law, sign in (
        (0.0, "minimum at rho = 1 + c sign(A)", 0),
        (-0.01, "below this rho, the loss decreases with rho", -1),
        (0.01, "above this rho, the loss increases with rho", 1),
    ):
        level = (1 + 0.03 * a.sign()).log() + shift
        step = -1 + (1 - level / mean(push**2)).sqrt()  # -(step^2 + 2 step) mean(push^2) = log rho
        rise = -mean(slope(s.of(kind()), s.old + over(step, push) * push) * push)  # derivative of the loss by the ratio
        yield compared(law, FDFO, rise if sign == 0 else rise.sign(), torch.full_like(rise, sign), 1e-9)
    yield differences(AUTOGRAD, s.of(kind()), s.v)
    yield from _linear_reward(kind)


def _linear_reward(kind: Kind) -> Iterator[Check]:
    """R = g . x in 32 dimensions, isotropic differences: the mean gradient is 2 / N times the estimate g / N of g."""
    count, n = 100_000, 32
    g, delta = Linear(real(n, seed=1)), real(count, n, seed=2) / 10
    zero, nothing = torch.zeros_like(delta), torch.zeros(count)
    points = replace(
        Setting.random().points, x_t=zero, t=nothing, x0=zero, eps=zero, advantage=g(delta), delta=delta,
        group=nothing, exemplar=nothing.bool(),
    )  # fmt: skip
    estimate = Setting(points, zero, zero, zero).slope(kind()).mean(0) / 2 * n
    cosine = torch.cosine_similarity(estimate, g.direction, dim=0).item()
    yield number("linear reward: cosine of the mean gradient with grad R", "derived 7", cosine, 1, 1e-3)
    size = (estimate.norm() / g.direction.norm()).item()
    yield number("linear reward: N |mean gradient| / 2 |grad R|", "derived 7", size, 1, 0.01)


def dgpo(kind: Kind) -> Iterator[Check]:
    s, on, beta = Setting.random(5.0), Setting.random(7.0, on_policy=True), 1.7
    a, p = s.points.advantage, s.points
    found = on.slope(kind())
    half = pull(on, on.points.advantage.clamp(-5, 5) / 2)
    yield compared("on policy: gradient -(1/N) A e, A clipped to +-5", DGPO, found, half)

    def preference(v: Tensor) -> Tensor:
        """-log sigmoid(-s) once per prompt: a quarter for each of its four samples."""
        gap = matching(v, p.x0, p.eps) - matching(s.reference, p.x0, p.eps)
        return softplus(group_sum(a * beta * gap / 4, p.group)) / 4

    near = replace(s, old=s.v)  # nothing is clipped
    found = near.slope(kind(beta=beta, k_ref=0.0))
    law = "gradient of -log sigmoid(-s), times K / beta, with s = sum A beta (m - m_ref) / K"
    yield compared(law, "derived 8", found, slope(preference, s.v) * 4 / beta)

    near = replace(near, points=replace(p, advantage=a - group_mean(a, p.group)))
    m = matching(s.reference, p.x0, p.eps)
    shift = torch.where(p.group == 0, 0.4, 2.0).double()
    moved = replace(near, reference=s.u + over(((m + shift) / m).sqrt(), s.u) * (s.reference - s.u))
    losses = [case.of(kind(beta=0.5, k_ref=0.0))(s.v) for case in (near, moved)]
    yield compared(
        "if the A of a prompt sum to 0, a shift of all its scores cancels", "derived 8", losses[1], losses[0]
    )
    m = matching(s.v, p.x0, p.eps)
    stopped = []
    for ratio, which in ((1.4, a > 0), (1.15, a > 99), (0.85, a > 99), (0.6, a <= 0)):
        far = replace(s, old=s.u + over(((m + math.log(ratio)) / m).clamp_min(0).sqrt(), s.u) * (s.v - s.u))
        still = far.slope(kind(clip=0.2, k_ref=0.0)).flatten(1).abs().amax(1) == 0
        stopped.append((still == which).double().mean())
    share = torch.stack(stopped).mean().item()
    yield number("no gradient if exp(m_old - m) is beyond the clip: share of points", DGPO, share, 1, 0)


def crd(kind: Kind) -> Iterator[Check]:
    s, on, beta = Setting.random(5.0), Setting.random(5.0, on_policy=True), 1.3
    a, p = s.points.advantage, s.points
    share = (a - group_mean(a, p.group)) / mean(on.e.abs())
    yield compared("on policy: gradient -(2/N) (A - <A>) e / mean|e|", CRD, on.slope(kind()), pull(on, share))

    def full(v: Tensor) -> Tensor:
        """The loss with a centre that depends on v."""
        implied = [mean((w - s.u) ** 2) / mean((w - s.u).abs()).detach() for w in (s.old, v)]
        gap = beta * (implied[0] - implied[1]) - a / 10
        return 5 / beta * (gap - group_sum(gap, p.group) / 4) ** 2

    found = s.slope(kind(beta=beta, k_ref=0.0))
    law = "a constant centre gives the same gradient as a centre that depends on v"
    yield compared(law, "derived 8", found, slope(full, s.v))
    value = s.of(kind(beta=beta, k_ref=0.0))(s.v)
    yield compared("loss (5 / beta) (beta (r - <r>) - (y - <y>))^2", CRD, value, full(s.v))
    old = mean((s.old - s.u) ** 2) / mean((s.old - s.u).abs())
    shift = torch.where(p.group == 0, 0.4, 2.0).double()
    moved = replace(s, old=s.u + over(1 + shift / old, s.u) * (s.old - s.u))
    law = "a shift of all implied rewards of a prompt cancels"
    yield compared(law, "derived 8", moved.slope(kind(k_ref=0.0)), s.slope(kind(k_ref=0.0)))


def dpo(kind: Kind) -> Iterator[Check]:
    s, on, beta = Setting.random(group=2), Setting.random(on_policy=True, group=2), 3.0
    p, sign = s.points, s.points.advantage.sign()
    yield compared("on policy: gradient -(beta/N) sign(A) e", DPO, on.slope(kind(beta=beta)), pull(on, beta / 2 * sign))
    gap = sign * (matching(s.v, p.x0, p.eps) - matching(s.old, p.x0, p.eps))
    z = beta / 2 * group_sum(gap, p.group)
    yield compared(
        "loss -log sigmoid(-(beta/2) [(m_w - m_w_old) - (m_l - m_l_old)])", DPO, s.of(kind(beta=beta))(s.v), softplus(z)
    )
    pushed = over(beta * torch.sigmoid(z) * sign, s.v) * 2 / N * (s.v - s.u)
    law = "gradient (2/N) beta sigmoid(z) sign(A) (v - u), since both rows have the loss of the pair"
    yield compared(law, "derived 8", s.slope(kind(beta=beta)), pushed)
    swapped = scaled(s, -1).of(kind(beta=beta))(s.v)
    law = "loss minus the loss of the opposite preference: z = (beta/2) (gap of the pair)"
    yield compared(law, "derived 8", s.of(kind(beta=beta))(s.v) - swapped, z)
    yield differences(AUTOGRAD, s.of(kind(beta=beta)), s.v)


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {
    "advantageflow": advantageflow,
    "flowawr": flowawr,
    "diffusion_nft": diffusion_nft,
    "awm": awm,
    "fdfo": fdfo,
    "dgpo": dgpo,
    "crd": crd,
    "dpo": dpo,
    **signed.LAWS,
    **reverse.LAWS,
    **trees.LAWS,
}
