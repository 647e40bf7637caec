"""The equation of the reverse-process family; L1 to L7 and A3 are the numbers of section 8 of the notes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from walks import drawn, everything, family, rollout, velocity

from flowward import ALGORITHMS
from flowward.algorithms import (
    DDPO,
    G2RPO,
    DanceGRPO,
    FlowGRPO,
    FlowGRPOFast,
    GRPOGuard,
    MixGRPO,
    TempFlowGRPO,
)
from flowward.algorithms.policy_gradient import (
    CLIPS,
    Divergence,
    PolicyGradient,
    Ratio,
    divergence_scale,
    log_ratio,
    policy_gradient,
    ratio_scales,
)
from flowward.credit import ZScore
from flowward.flow import over
from flowward.laws import LAWS, FlowSDE
from flowward.models.policy import Condition, Models
from flowward.moves import RandomSteps
from flowward.plans import Branches, Chain
from flowward.rollout import Rollout
from flowward.streams import Noise
from flowward.windows import Window

RATIOS: tuple[Ratio, ...] = get_args(Ratio)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
ratios = pytest.mark.parametrize("ratio", RATIOS)
D = 6


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """Five states of shape [2, 3] with three steps each, a little off policy."""

    x: Tensor
    v: Tensor
    old: Tensor
    reference: Tensor
    z: Tensor
    advantage: Tensor
    p: Tensor
    q: Tensor
    sigma: Tensor
    length: Tensor

    @classmethod
    def random(cls, law: Any = FlowSDE(0.7), off: float = 1e-3) -> Case:  # noqa: B008
        x, old, away, reference = real(4, 5, 2, 3)
        pairs = [(1.0, 0.9), (0.9, 0.8), (0.6, 0.45), (0.4, 0.3), (0.3, 0.1)]
        p, q, sigma = torch.tensor([law.coefficients(t, s, 0.9) for t, s in pairs], dtype=torch.float64).unbind(1)
        length = torch.tensor([t - s for t, s in pairs], dtype=torch.float64)
        z, advantage = real(5, 3, 2, 3, seed=1), real(5, 3, seed=2)
        return cls(x, old + off * away, old, reference, z, advantage, p, q, sigma, length)

    @property
    def x_s(self) -> Tensor:
        """[B, C, ...], as the old policy drew it."""
        centre = over(self.p, self.x) * self.x + over(self.q, self.x) * self.old
        return centre[:, None] + over(self.sigma, self.z) * self.z

    def density(self, v: Tensor) -> Tensor:
        """Sum over elements of the log density of x_s, [B, C]."""
        centre = over(self.p, self.x) * self.x + over(self.q, v) * v
        sigma = over(self.sigma, self.z)
        return Normal(centre[:, None], sigma).log_prob(self.x_s).flatten(2).sum(2)

    def loss(self, v: Tensor | None = None, **more: Any) -> Tensor:
        v = self.v if v is None else v
        tensors = {"z": self.z, "advantage": self.advantage, "v_ref": None, **more}
        return policy_gradient(v, self.old, q=self.q, sigma=self.sigma, length=self.length, **tensors)

    def slope(self, v: Tensor | None = None, **more: Any) -> Tensor:
        v = (self.v if v is None else v).clone().requires_grad_()
        return torch.autograd.grad(self.loss(v, **more).sum(), v)[0]


close = torch.testing.assert_close


# L1 and L2: ratios


@pytest.mark.parametrize("law", [FlowSDE(0.7), *(kind(0.5) for kind in LAWS.values())])
@pytest.mark.parametrize("off", [1e-3, 1.0])
def test_l1_ratios_are_those_of_densities(law: Any, off: float) -> None:
    """`sum` is torch's, `gaussian` its mean, `cps` 2 sigma^2 times that (a normaliser cancels)."""
    case = Case.random(law, off)
    expected = case.density(case.v) - case.density(case.old)
    found = {ratio: log_ratio(case.v, case.old, case.z, case.q, case.sigma, ratio) for ratio in RATIOS}
    close(found["sum"], expected, atol=1e-10, rtol=1e-8)
    close(found["gaussian"], expected / D, atol=1e-10, rtol=1e-8)
    close(found["cps"], expected / D * 2 * case.sigma[:, None] ** 2, atol=1e-10, rtol=1e-8)


@ratios
def test_l2_log_rho_is_alpha_mean_zd_minus_gamma_mean_dd(ratio: Ratio) -> None:
    """From the residuals r = x_s - P x - Q v of the paper's own expressions."""
    case = Case.random(off=0.3)
    centre = over(case.p, case.x) * case.x + over(case.q, case.v) * case.v
    drew = over(case.p, case.x) * case.x + over(case.q, case.old) * case.old
    r, r_old = case.x_s - centre[:, None], case.x_s - drew[:, None]
    squares = (r_old.flatten(2) ** 2 - r.flatten(2) ** 2).mean(2)
    shift = (case.z * (centre - drew)[:, None]).flatten(2).mean(2)
    variance = 2 * case.sigma[:, None] ** 2
    expected = {
        "gaussian": squares / variance,
        "sum": D * squares / variance,
        "cps": squares,
        "guard": shift,
    }
    found = log_ratio(case.v, case.old, case.z, case.q, case.sigma, ratio)
    close(found, expected[ratio], atol=1e-11, rtol=1e-9)
    alpha, gamma = ratio_scales(ratio, case.q, case.sigma, D)
    d = (case.v - case.old)[:, None]
    along = (case.z * d).flatten(2).mean(2)
    close(found, alpha[:, None] * along - gamma[:, None] * (d**2).flatten(2).mean(2), atol=1e-12, rtol=1e-10)


def test_l2_guard_is_the_biased_ratio_put_right() -> None:
    """As published: log rho + mean(dmu^2) / 2 sigma^2, times sigma."""
    case = Case.random(off=0.3)
    plain = log_ratio(case.v, case.old, case.z, case.q, case.sigma, "gaussian")
    moved = (over(case.q, case.v) * (case.v - case.old)).flatten(1).square().mean(1)
    expected = case.sigma[:, None] * (plain + (moved / (2 * case.sigma**2))[:, None])
    close(log_ratio(case.v, case.old, case.z, case.q, case.sigma, "guard"), expected, atol=1e-12, rtol=1e-10)


@ratios
def test_l2_expectations_over_the_noise(ratio: Ratio) -> None:
    """0 for guard, and -gamma mean(d^2) below 0 for the others: by antithetic noise, exactly."""
    case = Case.random(off=0.3)
    both = torch.cat([case.z, -case.z], 1)
    found = log_ratio(case.v, case.old, both, case.q, case.sigma, ratio).mean(1)
    _, gamma = ratio_scales(ratio, case.q, case.sigma, D)
    close(found, -gamma * (case.v - case.old).square().flatten(1).mean(1), atol=1e-13, rtol=1e-10)
    assert (found.abs() < 1e-15).all() if ratio == "guard" else (found < 0).all()


@ratios
def test_l2_a_step_without_noise_has_no_ratio(ratio: Ratio) -> None:
    case = Case.random()
    silent = case.sigma.clone()
    silent[3] = 0
    with pytest.raises(ValueError, match="a step without noise has no density, so no ratio"):
        replace(case, sigma=silent).loss(ratio=ratio)


# L3: exactly 1 at the same parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@ratios
def test_l3_log_ratio_is_exactly_zero_at_the_same_parameters(ratio: Ratio, dtype: torch.dtype) -> None:
    """Whatever the velocities were rounded to."""
    case = Case.random()
    found = log_ratio(case.old.to(dtype), case.old.to(dtype).clone(), case.z.to(dtype), case.q, case.sigma, ratio)
    assert found.dtype == torch.float64
    assert (found == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@family
def test_l3_before_the_first_update_every_ratio_is_one(name: str, dtype: torch.dtype) -> None:
    """By the recorded velocities of a network in half precision as well, in batches of another size; so the loss is
    -w A, and nothing is clipped."""
    algorithm = ALGORITHMS[name]()
    algorithm = replace(algorithm, beta=0.0, rollout=replace(algorithm.rollout, guidance=1.0))

    def rounded(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return velocity(x.to(dtype), t.to(dtype), Condition({"id": condition.tensors["id"].to(dtype)})).float()

    size = max(4, algorithm.rollout.leaves)
    found = drawn(algorithm.rollout.at(0, 0), size=size, field=rounded)
    group = torch.arange(2).repeat_interleave(size)
    done = Rollout.of([found], Condition({"id": torch.arange(2.0)}), group, algorithm.rollout.levels)
    reward = real(len(group)).float()
    batch = everything(algorithm, replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort)))
    bounded = batch.advantage.clamp(-5, 5)
    for fresh in (True, False):
        for part in replace(batch, fresh=fresh).split(3):
            _, watched = algorithm.loss(Models(rounded, rounded, rounded), part)
            assert (watched["log_ratio"] == 0).all()
        loss, watched = algorithm.loss(Models(rounded, rounded, rounded), replace(batch, fresh=fresh))
        close(loss, -(batch.weight * bounded).sum(1), atol=1e-12, rtol=1e-12)
        assert watched["clipped_up"].sum() == watched["clipped_down"].sum() == 0
        assert ("first_ratio_max" in watched) == fresh
        assert not fresh or watched["first_ratio_max"].max() == 0


def test_l3_on_the_first_pass_the_new_value_stands_for_the_old() -> None:
    """Where sampling and training differ in the last bits, the ratio is still 1, and the difference is reported."""
    algorithm = FlowGRPO(beta=0.0)
    batch = everything(algorithm, rollout(algorithm, size=4))
    off = replace(batch, known={"old": batch.known["old"] * 1.001})
    models = Models(velocity, velocity, velocity)
    fresh, watched = algorithm.loss(models, replace(off, fresh=True))
    assert torch.equal(fresh, algorithm.loss(models, replace(batch, fresh=True))[0])
    assert watched["first_ratio_max"].max() > 1e-5
    assert watched["log_ratio"].abs().max() == watched["clipped_up"].max() == watched["clipped_down"].max() == 0
    assert not torch.equal(algorithm.loss(models, off)[0], fresh)


# L4: gradient and clip


@ratios
def test_l4_gradient_on_policy(ratio: Ratio) -> None:
    """-A alpha z / D, whichever the clip."""
    case = Case.random(off=0.0)
    alpha, _ = ratio_scales(ratio, case.q, case.sigma, D)
    expected = -(case.advantage / 3 * alpha[:, None])[..., None, None] * case.z / D
    for clip in (1e-8, 0.5):
        close(case.slope(ratio=ratio, clip=clip), expected.sum(1), atol=1e-13, rtol=1e-10)


@ratios
def test_l4_gradient_is_that_of_finite_differences(ratio: Ratio) -> None:
    """On each side of the clip, away from its corner."""
    case = Case.random(off=0.1)
    way = real(*case.v.shape, seed=5)
    for clip in (1e-6, 10.0):
        ahead, behind = (case.loss(case.v + s * way, ratio=ratio, clip=clip).sum() for s in (1e-6, -1e-6))
        found = (case.slope(ratio=ratio, clip=clip) * way).sum()
        assert found.item() == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-5, abs=1e-9)


@ratios
@pytest.mark.parametrize(("sign", "side", "stopped"), [(1, 1, True), (1, -1, False), (-1, 1, False), (-1, -1, True)])
def test_l4_the_clip_stops_what_has_gone_far_enough(ratio: Ratio, sign: int, side: int, stopped: bool) -> None:
    """A good step that has become likelier, a bad one that has become less likely; never the way back."""
    case = Case.random(off=0.0)
    case = replace(case, z=case.z[:, :1], advantage=torch.full((5, 1), float(sign), dtype=torch.float64))
    away = -side * case.z[:, 0]  # Q < 0: against the noise, the mean moves along it

    def there(size: float) -> Tensor:
        return log_ratio(case.old + size * away, case.old, case.z, case.q, case.sigma, ratio)

    size = 1e-3
    clip = 0.5 * there(size).abs().min().item()
    assert (there(size).sign() == side).all()
    slope = case.slope(case.old + size * away, ratio=ratio, clip=clip).flatten(1).abs().amax(1)
    assert ((slope == 0) == stopped).all()
    wide = 2 * there(size).abs().max().item()
    assert (case.slope(case.old + size * away, ratio=ratio, clip=wide).flatten(1).abs().amax(1) > 0).all()
    value = case.loss(case.old + size * away, ratio=ratio, clip=clip)
    bound = 1 + clip if side > 0 else 1 - clip
    expected = torch.full_like(value, bound) if stopped else there(size)[:, 0].exp()
    close(value, -sign * expected)


def test_l4_advantages_are_bounded() -> None:
    case = Case.random()
    large = replace(case, advantage=100 * case.advantage.sign())
    close(large.loss(), replace(case, advantage=5 * case.advantage.sign()).loss())
    close(large.loss(advantage_clip=2.0), replace(case, advantage=2 * case.advantage.sign()).loss())


def test_l4_steps_are_weighed_and_added_up() -> None:
    """Even weights are the mean over the steps of a state; a weight of 0 is as if a step were not there."""
    case = Case.random()
    each = [replace(case, z=case.z[:, k : k + 1], advantage=case.advantage[:, k : k + 1]).loss() for k in range(3)]
    close(case.loss(), sum(each) / 3)
    weight = torch.tensor([[2.0, 0.0, 0.5]], dtype=torch.float64).expand(5, 3)
    close(case.loss(weight=weight), 2 * each[0] + 0.5 * each[2])


# L5: small clips


@pytest.mark.parametrize("clip", [2e-6, 1e-5, 1e-4])
@ratios
def test_l5_a_small_clip_is_kept_in_float32(ratio: Ratio, clip: float) -> None:
    """Ratios within a few parts in 10^6 of 1: as many are stopped as in float64, where float32 has 17 steps to 2e-6."""
    count = 4000
    old, away = real(2, count, 8)
    z, advantage, one = real(count, 1, 8, seed=1), real(count, 1, seed=2), torch.ones(count, dtype=torch.float64)
    size = {"gaussian": 1.0, "sum": 1 / 8, "cps": 1 / (2 * 0.4**2), "guard": 1 / 0.4}[ratio] * 10 * clip
    given = (old + size * away).float(), old.float(), z.float()

    def stopped(dtype: torch.dtype) -> Tensor:
        v, v_old, noise = (tensor.to(dtype) for tensor in given)
        v.requires_grad_()
        loss = policy_gradient(v, v_old, None, noise, advantage, -0.12 * one, 0.4 * one, 0.1 * one, ratio, clip)
        return torch.autograd.grad(loss.sum(), v)[0].abs().amax(1) == 0

    exact, found = stopped(torch.float64), stopped(torch.float32)
    assert 0.1 < exact.double().mean() < 0.9
    assert (found != exact).double().mean() < 1e-3


def test_l5_the_bound_is_one_plus_epsilon() -> None:
    """In float64, from float32 inputs."""
    case = Case.random(off=0.0)
    case = replace(case, z=case.z[:, :1], advantage=torch.ones(5, 1, dtype=torch.float64))
    v, old, z = ((case.old - case.z[:, 0]).float(), case.old.float(), case.z.float())
    loss = policy_gradient(v, old, None, z, case.advantage, case.q, case.sigma, case.length, "guard", 2e-6)
    assert loss.dtype == torch.float64
    assert loss.tolist() == pytest.approx([-(1 + 2e-6)] * 5, abs=1e-15)


# L6: divergences


def test_l6_divergences_by_name() -> None:
    """`exact` is torch's, per element; `per-noise` that times t - s, `state` without 1 / 2 sigma^2, `velocity` bare."""
    case = Case.random(off=0.5)
    base = over(case.p, case.x) * case.x
    mine, theirs = (base + over(case.q, v) * v for v in (case.v, case.reference))
    sigma = over(case.sigma, mine)
    exact = kl_divergence(Normal(mine, sigma), Normal(theirs, sigma)).flatten(1).mean(1)
    square = (case.v - case.reference).square().flatten(1).mean(1)
    expected = {
        "exact": exact,
        "per-noise": exact * case.length,
        "state": (mine - theirs).square().flatten(1).mean(1),
        "velocity": square,
    }
    for kind in DIVERGENCES:
        close(divergence_scale(kind, case.q, case.sigma, case.length) * square, expected[kind])
        silent = replace(case, advantage=0 * case.advantage)
        found = silent.loss(v_ref=case.reference, beta=0.3, divergence=kind)
        close(found, 0.3 * expected[kind], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_l6_a_divergence_pulls_to_the_reference(kind: Divergence) -> None:
    """Downhill is towards it; at it, nothing."""
    case = Case.random(off=0.5)
    silent = replace(case, advantage=0 * case.advantage)
    pull = -silent.slope(v_ref=case.reference, beta=0.3, divergence=kind)
    cosine = torch.cosine_similarity(pull.flatten(1), (case.reference - case.v).flatten(1))
    assert (cosine > 1 - 1e-9).all()
    assert (silent.slope(case.reference, v_ref=case.reference, beta=0.3, divergence=kind) == 0).all()


def test_l6_the_weight_of_a_step_is_not_that_of_its_divergence() -> None:
    """Once per state, whatever the steps weigh and however many there are: beta means the same everywhere."""
    case = Case.random(off=0.5)
    with_it, without = (
        case.loss(v_ref=ref, beta=0.3, weight=torch.full((5, 3), 7.0, dtype=torch.float64))
        for ref in (case.reference, None)
    )
    close(with_it - without, case.loss(v_ref=case.reference, beta=0.3) - case.loss())


def test_l6_flow_grpo_and_tempflow_mean_different_betas() -> None:
    """0.04 in Flow-GRPO's units is 0.04 (t - s) in TempFlow's: about 0.004 with ten steps."""
    flow = FlowGRPO(rollout=Chain(10, 1.0, "linear"))
    exact = replace(flow, beta=0.004, divergence="exact")
    done = rollout(flow, size=4)
    batch = replace(everything(flow, done), advantage=torch.zeros(72, 1, dtype=torch.float64))
    models = Models(lambda x, t, c: 1.1 * velocity(x, t, c), velocity, velocity)
    close(flow.loss(models, batch)[0], exact.loss(models, batch)[0])


# L7: REINFORCE

THETA, CHAIN = 0.6, Chain(4, 1.0, "linear", noise=0.7)


def one_step_kernels() -> list[tuple[float, float, float]]:
    times = CHAIN.times
    return [FlowSDE(0.7).coefficients(t, s, times[1]) for t, s in pairwise(times[:4])]


def expected_reward(theta: Tensor, noisy: tuple[int, ...] = (0, 1, 2), thetas: Tensor | None = None) -> Tensor:
    """E[-(x0 - 1)^2] of v = theta x from N(0, 1), in closed form; `thetas`: one for each step."""
    each = theta.expand(4) if thetas is None else thetas
    mean, var = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for number, (p, q, sigma) in enumerate(one_step_kernels()):
        slope = (
            p + q * each[number]
            if number in noisy
            else 1 + (CHAIN.times[number + 1] - CHAIN.times[number]) * each[number]
        )
        mean, var = slope * mean, slope**2 * var + (sigma**2 if number in noisy else 0.0)
    slope = 1 - CHAIN.times[3] * each[3]
    mean, var = slope * mean, slope**2 * var
    return -((mean - 1) ** 2) - var


def analytic(step: int, noisy: tuple[int, ...] = (0, 1, 2)) -> float:
    """The derivative of E[R] with respect to theta in one step alone."""
    thetas = torch.full((4,), THETA, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(expected_reward(thetas[0], noisy, thetas), thetas)[0][step].item()


def one_dimensional(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return THETA * x


@cache
def estimates(draw: Any, roots: int) -> tuple[Tensor, Tensor]:
    """Gradients of sum ratios with raw rewards as advantages, one for each state, and the number of its step."""
    tree = draw.at(0, 0)
    names = tuple(("noise", 0, 0, 0, number) for number in range(roots * tree.leaves))
    found = tree(one_dimensional, Condition({"id": torch.zeros(len(names))}), Noise((1,), names))
    group = torch.zeros(len(names), dtype=torch.long)
    done = Rollout.of([found], Condition({"id": torch.zeros(1)}), group, draw.levels)
    reward = -((found.x0[:, 0].double() - 1) ** 2)
    done = replace(done, reward=reward.float(), advantage=reward - reward.mean())
    algorithm = PolicyGradient(rollout=draw, ratio="sum", clip=0.1, advantage_clip=1e9)
    points = everything(algorithm, done)
    weight = torch.full((len(points), 1), THETA, requires_grad=True)
    loss, _ = algorithm.loss(Models(lambda x, t, c: weight * x, one_dimensional, one_dimensional), points)
    return -torch.autograd.grad(loss.sum(), weight)[0][:, 0].double(), points.step


@pytest.mark.parametrize("step", [0, 1, 2])
def test_l7_reinforce_is_the_gradient_of_the_expected_reward(step: int) -> None:
    """v = theta x, R = -(x0 - 1)^2: over 20,000 rollouts with all steps random, within four standard errors."""
    found, number = estimates(CHAIN, 20_000)
    mine = found[number == step]
    error = (mine.std() / math.sqrt(len(mine))).item()
    assert error < 0.05
    assert mine.mean().item() == pytest.approx(analytic(step), abs=4 * error)
    assert abs(analytic(step)) > 8 * error


@pytest.mark.parametrize("step", [0, 1, 2])
def test_l7_a_branch_estimates_the_same_with_less_noise(step: int) -> None:
    """At its own step; the rest of the way follows the ODE, so the expectation is that of one random step."""
    draw = Branches(4, 1.0, "linear", low=step, high=step + 1, fanout=16)
    found, number = estimates(draw, 1250)
    assert (number == step).all()
    error = (found.std() / math.sqrt(len(found))).item()
    assert found.mean().item() == pytest.approx(analytic(step, (step,)), abs=4 * error)
    window = replace(CHAIN, window=Window(1, "frozen", low=step, high=step + 1))
    chain, _ = estimates(window, 20_000)
    apart = math.hypot(error, (chain.std() / math.sqrt(len(chain))).item())
    assert found.mean().item() == pytest.approx(chain.mean().item(), abs=4 * apart)


# P5: one forward for all children of a state


def test_p5_one_forward_per_state_is_as_good_as_many() -> None:
    """G2RPO's 12 children of a state, together or each with a forward of its own: the same loss and gradient."""
    algorithm = G2RPO(beta=0.1)
    batch = everything(algorithm, rollout(algorithm))
    weight = torch.tensor(0.52, requires_grad=True)
    calls: list[int] = []

    def policy(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        calls.append(len(x))
        return weight * x + velocity(x, t, condition) - 0.5 * x

    models = Models(policy, velocity, velocity)
    together = algorithm.loss(models, batch)[0].sum()
    gradient = torch.autograd.grad(together, weight)[0]
    assert calls == [16]
    apart = [
        replace(
            batch, z=batch.z[:, k : k + 1], advantage=batch.advantage[:, k : k + 1], weight=batch.weight[:, k : k + 1]
        )
        for k in range(12)
    ]
    total = torch.stack([replace(algorithm, beta=0.1 / 12).loss(models, part)[0].sum() for part in apart]).sum()
    close(total, together, atol=1e-9, rtol=1e-9)
    close(torch.autograd.grad(total, weight)[0], gradient, atol=1e-5, rtol=1e-5)


# A3: what teaches nothing


@family
def test_a3_steps_without_advantage_keep_their_place(name: str) -> None:
    """They add nothing, and the normaliser is that of all: the same as leaving them out and dividing as before."""
    algorithm = replace(ALGORITHMS[name](), beta=0.0)
    done = rollout(algorithm, prompts=3, size=max(4, algorithm.rollout.leaves))
    reward = torch.where(done.group == 1, 0.7, done.reward)  # one prompt teaches nothing
    done = replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))
    assert (done.advantage[done.group == 1] == 0).all()
    points = algorithm.points(done, ("",))
    models = Models(lambda x, t, c: 1.001 * velocity(x, t, c), velocity, velocity)
    whole = points.take(torch.arange(len(points)))
    loss, _ = algorithm.loss(models, whole)
    masked = (whole.advantage == 0).all(1)
    assert masked.sum() >= len(points) / 3
    assert (loss[masked] == 0).all()
    kept = algorithm.loss(models, points.take((~masked).nonzero().flatten()))[0]
    close(kept.sum() / len(points), loss.mean(), atol=1e-15, rtol=1e-12)


# Settings


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GRPOGuard(clip=1e-4), "a clip of 0.0001 belongs to another ratio than 'guard'"),
        (
            lambda: FlowGRPO(clip=0.2),
            "a clip of 0.2 belongs to another ratio than 'gaussian', .* between 1e-07 and 0.01",
        ),
        (lambda: FlowGRPO(ratio="sum"), "a clip of 0.0001 belongs to another ratio than 'sum'"),
        (lambda: FlowGRPOFast(ratio="guard", clip=1e-3), "belongs to another ratio than 'guard'"),
        (lambda: FlowGRPO(clip=0.0), "clip must be a positive number"),
        (lambda: FlowGRPO(clip=-1e-4), "clip must be a positive number"),
        (lambda: FlowGRPO(advantage_clip=0.0), "advantage_clip must be a positive number"),
        (lambda: FlowGRPO(beta=-0.1), "beta must not be negative"),
        (lambda: FlowGRPO(beta=math.nan), "beta must not be negative"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@family
def test_the_papers_clips_are_within_bounds(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    low, high = CLIPS[algorithm.ratio]
    assert 5 * low < algorithm.clip < high / 5


@pytest.mark.parametrize("weight", ["even", "noise", "per-time"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("draw", [Chain(5), Chain(5, law="cps", window=Window(2)), Branches(5, fanout=3)])
def test_any_combination_is_an_algorithm(weight: Any, ratio: Ratio, draw: Any) -> None:
    """Law, tree, ratio, weight and divergence go together."""
    for divergence, clip in zip(DIVERGENCES, 2 * CLIPS[ratio], strict=True):
        algorithm = PolicyGradient(
            draw, ZScore("group"), RandomSteps(weight), ratio, clip, beta=0.1, divergence=divergence
        )
        batch = everything(algorithm, rollout(algorithm, size=4 * draw.leaves))
        loss, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
        assert loss.isfinite().all()
        assert all(value.isfinite().all() for value in watched.values())


# What is watched


def test_watched_numbers_are_of_all_steps_and_of_each() -> None:
    """Averages of the parts are the whole's; numbers of a step concern its own states."""
    algorithm = FlowGRPO()
    batch = everything(algorithm, rollout(algorithm, size=4))
    _, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
    for name in ("log_ratio", "clipped_up", "clipped_down", "pull", "divergence"):
        assert watched[name].shape == (72,)
        parts = torch.cat([watched[f"{name}@{number}"] for number in range(9)])
        assert parts.sum().item() == pytest.approx(watched[name].sum().item())
        assert [len(watched[f"{name}@{number}"]) for number in range(9)] == [8] * 9
    assert not any(value.requires_grad for value in watched.values())


def test_the_shares_that_are_clipped_are_told_by_sign() -> None:
    algorithm = MixGRPO(rollout=Chain(6, window=Window(2)), clip=1e-7)
    batch = everything(algorithm, rollout(algorithm, size=6))
    _, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
    ratio, a = watched["log_ratio"], batch.advantage[:, 0]
    assert torch.equal(watched["clipped_up"] > 0, (ratio > 1e-7) & (a > 0))
    assert torch.equal(watched["clipped_down"] > 0, (ratio < -1e-7) & (a < 0))
    assert 0.1 < (watched["clipped_up"] + watched["clipped_down"]).mean() < 0.9


def test_pull_is_the_length_of_the_gradient_on_v() -> None:
    """On policy; it says which step is learnt from, and falls where noise is large (section 3 of the notes)."""
    algorithm = replace(FlowGRPO(), beta=0.0)
    batch = replace(everything(algorithm, rollout(algorithm, size=12)), fresh=True)
    v = velocity(batch.x_t, batch.t, batch.condition).requires_grad_()
    loss, watched = algorithm.loss(Models(lambda *_: v, velocity, velocity), batch)
    gradient = torch.autograd.grad(loss.sum(), v)[0]
    close(watched["pull"].float(), gradient.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-7)


PROFILES: dict[Any, list[float]] = {  # of one step's gradient over their mean, on SD3.5's grid (notes, section 3)
    FlowGRPO: [0.13, 0.18, 0.30, 0.43, 0.60, 0.85, 1.23, 1.89, 3.40],
    TempFlowGRPO: [0.29, 0.43, 0.51, 0.62, 0.76, 0.96, 1.26, 1.71, 2.46],
    GRPOGuard: [0.82, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02],
}


@pytest.mark.parametrize("kind", PROFILES)
def test_how_much_each_step_pulls(kind: Any) -> None:
    """Flow-GRPO's grows with 1 / sigma, TempFlow's with the length of a step, Guard's is the same everywhere."""
    algorithm = kind(beta=0.0)
    batch = replace(everything(algorithm, rollout(algorithm, size=max(4, algorithm.rollout.leaves))), fresh=True)
    batch = replace(batch, z=torch.ones_like(batch.z), advantage=torch.ones_like(batch.advantage))
    v = velocity(batch.x_t, batch.t, batch.condition).requires_grad_()
    loss, _ = algorithm.loss(Models(lambda *_: v, velocity, velocity), batch)
    each = torch.autograd.grad(loss.sum(), v)[0].flatten(1).norm(dim=1)
    profile = torch.stack([each[batch.step == number].mean() for number in range(9)])
    assert (profile / profile.mean()).tolist() == pytest.approx(PROFILES[kind], abs=0.01)


def test_the_reference_costs_nothing_without_weight() -> None:
    for algorithm in (FlowGRPO(beta=0.0), DDPO(), DanceGRPO(), G2RPO()):
        assert algorithm.anchors == {}
        assert algorithm.copies == {}
    assert FlowGRPO().anchors == {"reference": 4.5}
    assert TempFlowGRPO().anchors == {"reference": 4.5}
