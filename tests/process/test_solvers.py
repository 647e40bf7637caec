"""Solvers on Gaussian data, where velocity and flow have closed forms."""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf, log, nan, sqrt

import pytest
import torch
from gaussian_flow import MEAN, flow, gaussian
from scipy.integrate import quad
from torch import Tensor

from flowward.process.flow import clean, grid
from flowward.process.flow import noise as noise_of
from flowward.process.laws import ODE
from flowward.process.solvers import SA, SOLVERS, Noise, Solver, dpm2, euler

START = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
DETERMINISTIC: dict[str, Solver] = {"euler": euler, "dpm2": dpm2, "sa": SA(tau=0.0)}


def silent(step: int) -> Tensor:
    raise AssertionError("a deterministic solver asks for no noise")


def log_snr(t: float) -> float:
    return log((1 - t) / t)


def even(steps: int, first: float, last: float) -> list[float]:
    """1, then levels from `first` to `last` that are equally far apart in lambda, then 0."""
    return [1.0, *torch.linspace(log_snr(first), log_snr(last), steps).double().neg().sigmoid().tolist(), 0.0]


def draws(batch: int, seed: int = 0) -> Noise:
    """Noise of one coordinate, keyed by the step."""
    return lambda step: torch.randn(batch, 1, generator=torch.Generator().manual_seed(1000 * seed + step)).double()


def moments(solver: Solver, scale: float, times: list[float]) -> tuple[float, float, float]:
    """Mean and std at t = 0 from N(0, 1) at t = 1, and the part of the std that is due to x_1; free of sampling error.

    On Gaussian data a solver is affine in x_1 and each step's noise: it is asked for its response to each, a row each.
    """
    unit = torch.eye(len(times) + 1, dtype=torch.float64)[:, :, None]  # the last row responds to nothing: the mean
    end = solver(gaussian(scale), unit[0], times, lambda step: unit[step + 1]).flatten()
    responses = end[:-1] - end[-1]
    return end[-1].item(), responses.norm().item(), abs(responses[0].item())


# What all solvers share


def test_the_table_of_solvers() -> None:
    expected: dict[str, Solver] = {"euler": euler, "dpm2": dpm2, "sa": SA(tau=0.4, low=0.3, high=0.9)}
    assert expected == SOLVERS


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 14])
@pytest.mark.parametrize("name", SOLVERS)
def test_one_evaluation_per_step(name: str, steps: int) -> None:
    """At the times of the list, as numbers; finite although lambda is infinite at t = 1 and s = 0."""
    seen: list[float] = []

    def field(x: Tensor, t: float) -> Tensor:
        assert type(t) is float
        assert x.isfinite().all()
        seen.append(t)
        return gaussian(0.4)(x, t)

    times = grid(steps).tolist()
    end = SOLVERS[name](field, START, times, draws(9))
    visited = SA().levels(times) if name == "sa" else times
    assert seen == visited[:-1]
    assert end.shape == START.shape
    assert end.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_is_widened(name: str, dtype: torch.dtype) -> None:
    """The state is float32 even where velocity and noise come in half precision, and float64 if the input is."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def field(x: Tensor, t: float) -> Tensor:
        assert x.dtype == wide
        return gaussian(0.4)(x, t).to(dtype)

    end = SOLVERS[name](field, START.to(dtype), grid(6).tolist(), lambda step: draws(9)(step).to(dtype))
    assert end.dtype == wide


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_is_as_good_as_float64(name: str) -> None:
    """To rounding, for coefficients are float64 in both; it stays float32 if velocity and noise are float64."""
    times = grid(40).tolist()
    single = SOLVERS[name](lambda x, t: gaussian(0.4)(x, t).double(), START.float(), times, draws(9))
    double = SOLVERS[name](gaussian(0.4), START.float().double(), times, draws(9))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_edited(name: str) -> None:
    """Neither the start, the times, the noise nor what the field returned; a graph is kept all the way."""
    start, times = START.clone().requires_grad_(), grid(6).tolist()
    noises = [draws(9)(step) for step in range(6)]
    returned: list[tuple[Tensor, Tensor]] = []

    def field(x: Tensor, t: float) -> Tensor:
        v = gaussian(0.4)(x, t)
        returned.append((v, v.detach().clone()))
        return v

    end = SOLVERS[name](field, start, times, lambda step: noises[step])
    (gradient,) = torch.autograd.grad(end.sum(), start)
    assert torch.equal(start, START)
    assert times == grid(6).tolist()
    assert all(torch.equal(noise, draws(9)(step)) for step, noise in enumerate(noises))
    assert all(torch.equal(v, copy) for v, copy in returned)
    assert (gradient > 0).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_do_not_depend_on_their_batch(name: str) -> None:
    """Rows in another order, or without their neighbours, end where they did."""
    times, z = grid(8).tolist(), draws(9)
    end = SOLVERS[name](gaussian(0.4), START, times, z)
    rows = torch.tensor([4, 0, 7])
    some = SOLVERS[name](gaussian(0.4), START[rows], times, lambda step: z(step)[rows])
    assert torch.equal(some, end[rows])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_solvers_ask_for_no_noise(name: str) -> None:
    ends = [DETERMINISTIC[name](gaussian(0.4), START, grid(8).tolist(), silent) for _ in range(2)]
    assert torch.equal(*ends)


# Test 2 of the notes


def error(solver: Solver, scale: float, times: list[float]) -> float:
    """The worst distance from the end of the exact flow."""
    return (solver(gaussian(scale), START, times, silent) - flow(START, 1, 0, scale)).abs().max().item()


def test_forward_02_orders_on_the_grid_of_sd3() -> None:
    """From 80 to 160 steps Euler's error halves and 2M's falls 4.5 times; with 20 steps 2M is the worse of the two."""
    few, many, more = (grid(steps).tolist() for steps in (20, 80, 160))
    assert error(euler, 0.4, many) / error(euler, 0.4, more) == pytest.approx(1.98, abs=0.02)
    assert error(dpm2, 0.4, many) / error(dpm2, 0.4, more) == pytest.approx(4.48, abs=0.02)
    assert error(dpm2, 0.4, few) > 1.5 * error(euler, 0.4, few)
    assert error(dpm2, 0.4, more) < 0.4 * error(euler, 0.4, more)


@pytest.mark.parametrize("scale", [0.4, 1.5])
def test_forward_02_orders_between_fixed_ends(scale: float) -> None:
    """With the first and last jump kept, halving the steps in lambda halves and quarters what happens between them."""
    x = flow(START + (0.99 - 1) * gaussian(scale)(START, 1.0), 0.99, 0.01, scale)
    exact = x - 0.01 * gaussian(scale)(x, 0.01)

    def missed(solver: Solver, steps: int) -> float:
        return (solver(gaussian(scale), START, even(steps, 0.99, 0.01), silent) - exact).abs().max().item()

    assert missed(euler, 160) / missed(euler, 320) == pytest.approx(2, abs=0.05)
    assert missed(dpm2, 160) / missed(dpm2, 320) == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_forward_02_first_and_last_steps_of_2m_are_euler(steps: int) -> None:
    """And so is the second, because lambda is -inf at t = 1."""
    times = grid(steps, 3.0, "linear").tolist()
    ends = [solver(gaussian(0.4), START, times, silent) for solver in (dpm2, euler)]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-15)


def test_2m_is_the_published_update() -> None:
    """The formula of the notes, term by term, on data predictions that wander freely; close to t = 1 as well."""
    times = [1.0, 0.998, 0.99, 0.7, 0.4, 0.3, 0.02, 0.0]
    table = torch.randn(7, generator=torch.Generator().manual_seed(0)).double()
    x, states = START, []

    def field(x: Tensor, t: float) -> Tensor:
        states.append(x)
        return (x - table[times.index(t)]) / t

    end = dpm2(field, START, times, silent)
    torch.testing.assert_close(end, table[6].expand(9, 1), rtol=0, atol=1e-15)  # nothing is left of the noise
    for i, (a, b) in enumerate(pairwise(times[:-1])):
        m0, m1, h, r0 = table[i], table[max(i - 1, 0)], inf, inf
        if i > 0:
            h = log_snr(b) - log_snr(a)
        if i > 1:
            r0 = (log_snr(a) - log_snr(times[i - 1])) / h
        x = b / a * x - (1 - b) * (exp(-h) - 1) * (m0 + (m0 - m1) / (2 * r0))
        torch.testing.assert_close(states[i + 1], x, rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("steps", [4, 10, 20])
def test_2m_agrees_with_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(steps)
    scheduler.sigmas, times = grid(steps), grid(steps).tolist()
    x = START
    for t, timestep in zip(times, scheduler.timesteps, strict=False):
        x = scheduler.step(gaussian(0.4)(x, t), timestep, x).prev_sample
    torch.testing.assert_close(dpm2(gaussian(0.4), START, times, silent), x, rtol=0, atol=1e-6)


def test_forward_02_ddim_is_euler() -> None:
    """Deterministic DDIM, (1 - s) x0_hat + s eps_hat, is the Euler step, which is the law `ODE`."""
    x, v = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, s in [(1.0, 0.96), (0.7, 0.2), (0.3, 0.29), (0.0089, 0.0)]:
        at = torch.full((64,), t, dtype=torch.float64)
        p, q, sigma = ODE().coefficients(t, s)
        ddim = (1 - s) * clean(x, at, v) + s * noise_of(x, at, v)
        torch.testing.assert_close(ddim, p * x + q * v, rtol=0, atol=1e-15)
        assert torch.equal(euler(lambda y, time: v, x, [t, s], silent), p * x + q * v)
        assert sigma == 0


# SA-Solver


def test_sa_visits_other_levels() -> None:
    """0.999 for 1, half the level before for the last one above 0; the state at t = 1 is not rescaled."""
    assert SA().levels([1.0, 0.0]) == [0.999, 0.0]
    assert SA().levels([1.0, 0.4, 0.0]) == [0.999, 0.5, 0.0]
    assert SA().levels([1.0, 0.8, 0.3, 0.0]) == [0.999, 0.8, 0.4, 0.0]
    fourteen = SA().levels(grid(14).tolist())
    assert fourteen[1:-2] == grid(14).tolist()[1:-2]
    assert fourteen[-2] == pytest.approx(0.2062 / 2, abs=5e-5)
    once = SA()(gaussian(0.4), START, [1.0, 0.0], silent)
    torch.testing.assert_close(once, START - 0.999 * gaussian(0.4)(START, 0.999), rtol=0, atol=0)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 1.5])
def test_sa_is_exact_for_predictions_linear_in_lambda(tau: float) -> None:
    """Every state but the first predictor's, which knows one point only, against the integral done by quadrature."""
    times = grid(6).tolist()
    levels, z, states = SA().levels(times), draws(9), []

    def m(lam: float) -> float:
        return 0.3 - 0.8 * lam

    def field(x: Tensor, t: float) -> Tensor:
        states.append(x)
        return (x - m(log_snr(t))) / t

    SA(tau, 0.0, 1.0)(field, START, times, z)
    x, k = START, 1 + tau**2
    for i, (t, s) in enumerate(pairwise(levels[:-1])):
        a, b = log_snr(t), log_snr(s)
        integral = quad(lambda lam: exp(-(tau**2) * (b - lam) + lam) * k * m(lam), a, b, epsabs=1e-13)[0]  # noqa: B023
        h = b - a
        x = s / t * exp(-(tau**2) * h) * x + s * integral + s * sqrt(1 - exp(-2 * tau**2 * h)) * z(i)
        if i > 0:
            torch.testing.assert_close(states[i + 1], x, rtol=0, atol=1e-11)
    assert len(states) == 6


def test_sa_predicts_the_first_level_from_one_point() -> None:
    """The first step has no step before it: its prediction takes the data prediction at 0.999 as constant."""
    states: list[Tensor] = []

    def field(x: Tensor, t: float) -> Tensor:
        states.append(x)
        return gaussian(0.4)(x, t)

    SA(0.0)(field, START, [1.0, 0.8, 0.4, 0.0], silent)
    step = START + (0.8 - 0.999) * gaussian(0.4)(START, 0.999)  # first order is Euler here too
    torch.testing.assert_close(states[1], step, rtol=0, atol=2e-15)


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_sa_without_noise_is_of_second_order(scale: float) -> None:
    """Many steps, because the error happens to change sign near 100; on SD3's grid at 14 it is far below 2M's."""
    exact = flow(START, 0.999, 0, scale)

    def missed(steps: int) -> float:
        times = [1.0, *even(steps, 0.999, 1e-4)[2:]]
        return (SA(0.0)(gaussian(scale), START, times, silent) - exact).abs().max().item()

    assert missed(640) / missed(1280) == pytest.approx(4, abs=0.4)
    assert missed(1280) < 1e-4 * scale
    assert error(SA(0.0), scale, grid(14).tolist()) < 0.3 * error(dpm2, scale, grid(14).tolist())


@pytest.mark.parametrize("scale", [0.4, 1.0])
@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_sa_keeps_the_gaussian(scale: float, tau: float) -> None:
    """Mean and std of the data, without sampling error, whatever the noise; more of it leaves less of the start.

    It falls faster than in proportion to the steps, down to what starting N(0, 1) at 0.999 costs, 0.0005.
    """
    mean, std, kept = moments(SA(tau), scale, grid(160, 1.0, "linear").tolist())
    assert mean == pytest.approx(MEAN, abs=6e-4)
    assert std == pytest.approx(scale, rel=8e-4)
    assert kept < (0.9 if tau == 0.4 else 0.5) * scale
    off = [abs(moments(SA(tau), scale, grid(n, 1.0, "linear").tolist())[1] - std) for n in (20, 40, 80)]
    assert off[0] > 3 * off[1] > 9 * off[2]


def test_sa_keeps_the_gaussian_by_sampling() -> None:
    """The same by drawing: 40,000 samples, at five standard errors."""
    count = 40_000
    start = torch.randn(count, 1, generator=torch.Generator().manual_seed(99))
    end = SA(1.0)(gaussian(0.4), start, grid(80, 1.0, "linear").tolist(), draws(count))
    assert end.mean().item() == pytest.approx(MEAN, abs=5 * 0.4 / sqrt(count))
    assert end.std().item() == pytest.approx(0.4, abs=5 * 0.4 / sqrt(2 * count) + 1e-3)


def test_sa_draws_once_per_step_that_ends_inside_its_interval() -> None:
    """By the index of the step, once, so that predictor and corrector share the noise; the level it ends at decides."""
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(9, 1)

    times = [1.0, 0.95, 0.9, 0.6, 0.3, 0.2, 0.1, 0.0]
    SA(0.4, 0.3, 0.9)(gaussian(0.4), START, times, noise)
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("arguments", [(-0.1,), (nan,), (inf,), (0.4, 0.9, 0.3), (0.4, -0.1, 0.9), (0.4, 0.3, 1.1)])
def test_sa_refuses_what_it_cannot_do(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="SA-Solver"):
        SA(*arguments)


def test_sa_refuses_a_second_time_above_its_first() -> None:
    with pytest.raises(ValueError, match=r"0\.999"):
        SA()(gaussian(0.4), START, [1.0, 0.9995, 0.5, 0.0], silent)
