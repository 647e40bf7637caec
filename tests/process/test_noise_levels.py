"""How much noise the steps of a schedule leave: spread of samples, single points, excess (K3 and K4 of the notes)."""

from __future__ import annotations

from itertools import pairwise
from math import cos, inf, pi, sqrt

import pytest
from gaussian_flow import MEAN
from noise_schedules import CHURNED, LEVELS, NOISY, PRESERVING, SCALE, SILENT, equal_levels, moved, sampled

from flowward.process.flow import grid
from flowward.process.laws import CPS, DDIM, ODE, DanceSDE, FlowSDE, Law, LinearSDE, excess

# K3: what becomes of N(0.7, 0.5^2)

STEPS = (10, 50, 200, 1000)
TABLE: list[tuple[Law, tuple[float, float, float, float]]] = [
    (ODE(), (0.4308, 0.4854, 0.4963, 0.4993)),
    (FlowSDE(0.3), (0.4442, 0.4892, 0.4979, 0.5001)),
    (FlowSDE(0.7), (0.4795, 0.4985, 0.5010, 0.5009)),
    (FlowSDE(1.2), (0.4987, 0.4994, 0.4998, 0.5000)),
    (DanceSDE(0.3), (0.4416, 0.4876, 0.4969, 0.4994)),
    (DanceSDE(1.0), (0.5007, 0.4995, 0.4998, 0.5000)),
    (LinearSDE(1.0), (0.4531, 0.4895, 0.4973, 0.4995)),
    (DDIM(1.0), (0.3865, 0.4693, 0.4916, 0.4982)),
    (CPS(0.5), (0.4002, 0.4461, 0.4566, 0.4603)),
    (CPS(0.8), (0.3518, 0.3889, 0.3988, 0.4027)),
]


@pytest.mark.parametrize(("law", "stds"), TABLE)
def test_k3_spread_of_the_samples(law: Law, stds: tuple[float, ...]) -> None:
    """The notes' table, and LinearSDE, which it leaves out; the mean is exact."""
    for steps, expected in zip(STEPS, stds, strict=True):
        mean, std = sampled(law, steps)
        assert mean == pytest.approx(MEAN, abs=1e-12)
        assert std == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("law", [law for law in NOISY if not isinstance(law, CPS)])
def test_k3_many_steps_keep_the_data(law: Law) -> None:
    """In 1000 steps, to better than 0.002, which is at least 4 times better than in 50 unless it was good already."""
    off = [abs(sampled(law, steps)[1] - SCALE) for steps in (50, 1000)]
    assert off[1] < 0.002
    assert off[1] < max(off[0] / 4, 0.001)


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.8, 1.0])
def test_k3_cps_narrows_the_data_however_many_steps(eta: float) -> None:
    """To SCALE cos(eta pi / 4), from below."""
    limit = SCALE * cos(eta * pi / 4)
    short = [limit - sampled(CPS(eta), steps)[1] for steps in STEPS]
    assert short[0] > 2 * short[1] > 4 * short[2] > 8 * short[3] > 0
    assert short[3] < 0.002


# K4: a single point


@pytest.mark.parametrize("law", [*PRESERVING, *CHURNED, ODE()])
@pytest.mark.parametrize("levels", [LEVELS, grid(10).tolist(), equal_levels(100)])
def test_k4_laws_that_keep_the_level_give_a_point_the_right_noise(law: Law, levels: list[float]) -> None:
    """N((1 - s) x0, s^2) after every step, where v is exact."""
    mean, var = 0.0, 1.0
    for t, s in pairwise(levels):
        mean, var = moved(law, t, s, mean, var, 0.0, levels[1])
        assert mean == pytest.approx((1 - s) * MEAN, abs=1e-12)
        assert var == pytest.approx(s**2, abs=1e-12)


@pytest.mark.parametrize("law", [law for law in NOISY if law not in PRESERVING])
def test_k4_euler_maruyama_leaves_too_much_noise_on_a_point(law: Law) -> None:
    """By g^2 (t - s)^2 / t (1 + g^2 / 4t) in a step from N((1 - t) x0, t^2); `excess` says the same as a factor."""
    for t, s in pairwise(LEVELS):
        g2 = law.coefficients(t, s, LEVELS[1])[2] ** 2 / (t - s)
        mean, var = moved(law, t, s, (1 - t) * MEAN, t**2, 0.0, LEVELS[1])
        assert mean == pytest.approx((1 - s) * MEAN, abs=1e-12)
        assert var == pytest.approx(s**2 + g2 * (t - s) ** 2 / t * (1 + g2 / (4 * t)), abs=1e-12)
        if s > 0:
            assert excess(law, t, s, LEVELS[1]) == pytest.approx(sqrt(var) / s, rel=1e-12)


@pytest.mark.parametrize(
    ("law", "steps", "std"),
    [
        (FlowSDE(0.7), 10, 0.0828),
        (FlowSDE(0.7), 50, 0.0156),
        (DanceSDE(0.3), 10, 0.110),
        (DanceSDE(0.3), 50, 0.105),
        (DanceSDE(0.3), 100, 0.163),
        (DanceSDE(0.3), 1000, 63.8),
    ],
)
def test_k4_what_euler_maruyama_makes_of_a_point(law: Law, steps: int, std: float) -> None:
    """More steps help FlowSDE, but a constant g is stiff near t = 0."""
    assert sampled(law, steps, 0.0)[1] == pytest.approx(std, rel=6e-3)


# Excess noise

SD3 = grid(10, 3.0, "sd3").tolist()


def test_excess_of_flow_sde_on_the_grid_of_sd3() -> None:
    """27 times the noise of its level in the step to 0.0089, and some at 0, where there should be none."""
    factors = [excess(FlowSDE(0.7), t, s, SD3[1]) for t, s in pairwise(SD3)]
    assert factors[:8] == pytest.approx([1.04, 1.06, 1.03, 1.02, 1.03, 1.04, 1.07, 1.23], abs=5e-3)
    assert factors[8] == pytest.approx(26.9, abs=0.05)
    assert factors[9] == inf


def test_flow_sde_on_the_grid_of_sd3() -> None:
    """The notes' table: fresh noise, what remains of the predicted noise (their .675 is .674), and the weight of v."""
    steps = [(1 - s, *FlowSDE(0.7).coefficients(t, s, SD3[1])) for t, s in pairwise(SD3)]
    sigmas = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225]
    kept = [0.715, 0.626, 0.700, 0.674, 0.610, 0.514, 0.380, 0.193, -0.082, -0.002]
    weight = [0.057, 0.078, 0.129, 0.188, 0.264, 0.371, 0.536, 0.825, 1.49, 1.77]
    assert [sigma for *_, sigma in steps[:9]] == pytest.approx(sigmas, abs=5e-4)
    assert steps[9][3] == pytest.approx(0.0063, abs=5e-5)
    assert [p - signal for signal, p, _, _ in steps] == pytest.approx(kept, abs=5e-4)
    assert [-q / sigma for _, _, q, sigma in steps[:8]] == pytest.approx(weight[:8], abs=5e-4)
    assert [-q / sigma for _, _, q, sigma in steps[8:]] == pytest.approx(weight[8:], abs=5e-3)


@pytest.mark.parametrize("law", [*PRESERVING, *CHURNED, *SILENT])
def test_other_laws_have_no_excess(law: Law) -> None:
    for levels in (SD3, LEVELS):
        assert [excess(law, t, s, levels[1]) for t, s in pairwise(levels)] == pytest.approx(
            [1.0] * (len(levels) - 1), abs=1e-12
        )
