"""The clipped gradient of the reverse-process family; L4 and L5 are numbers of section 8 of the notes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from steps_off_policy import Case, D, close, ratios, real
from torch import Tensor

from flowward.algorithms.policy_gradient import Ratio, log_ratio, policy_gradient, ratio_scales

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


def test_l4_a_ratio_that_overflows_is_stopped_all_the_same() -> None:
    """e^800 is no number, yet a good step that far beyond the clip has no gradient; nor has one without advantage."""
    case = Case.random(off=0.0)
    case = replace(case, z=100 * case.z[:, :1], q=-torch.ones_like(case.q), sigma=torch.ones_like(case.sigma))
    far = case.old - case.z[:, 0] / 2  # the mean comes half the way to where the step went
    assert (log_ratio(far, case.old, case.z, case.q, case.sigma, "sum") > 800).all()
    for advantage, value in ((1.0, -1.1), (0.0, 0.0)):
        given = replace(case, advantage=torch.full((5, 1), advantage, dtype=torch.float64))
        assert given.loss(far, ratio="sum", clip=0.1).tolist() == pytest.approx([value] * 5)
        assert (given.slope(far, ratio="sum", clip=0.1) == 0).all()


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
