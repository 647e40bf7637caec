"""The convention, the time grids, the Euler sampler and the laws of training times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowward.process.flow import GridKind, TimeGrid, clean, grid, interpolate, mean, noise, over, shifted
from flowward.process.noise import Noise
from flowward.process.policy import Condition
from flowward.process.rollout import Sampler
from flowward.process.times import Times
from flowward.system.streams import generator

NOBODY = Condition({"id": torch.zeros(1)})
MEAN, SCALE = 0.7, 0.4  # of the data in the closed-form flow


def gaussian(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, SCALE^2) per coordinate; the flow takes x_1 to MEAN + SCALE x_1."""
    t = over(t, x)
    variance = (1 - t) ** 2 * SCALE**2 + t**2
    return (t - (1 - t) * SCALE**2) / variance * (x - (1 - t) * MEAN) - MEAN


def draws() -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps [5, 2, 3] and t [5], with both ends of time among them."""
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 2, 3, generator=rng, dtype=torch.float64)
    return x0, eps, torch.tensor([0.0, 0.2, 0.55, 0.9, 1.0], dtype=torch.float64)


def test_ends_of_time() -> None:
    """t = 0 is data and t = 1 is noise."""
    x0, eps, t = draws()
    x_t = interpolate(x0, eps, t)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[-1], eps[-1])


def test_velocity_is_the_derivative_of_the_path() -> None:
    """d x_t / dt = eps - x0, so one Euler step along u from any t lands on data at 0 and on noise at 1."""
    x0, eps, t = draws()
    x_t, u = interpolate(x0, eps, t), eps - x0
    torch.testing.assert_close((interpolate(x0, eps, t + 1e-3) - x_t) / 1e-3, u, rtol=0, atol=1e-11)
    torch.testing.assert_close(clean(x_t, t, u), x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(noise(x_t, t, u), eps, rtol=0, atol=1e-14)


def test_clean_and_noise_are_the_point_again() -> None:
    """For any velocity, right or wrong, interpolating between its clean sample and its noise gives x_t back."""
    x_t, v, t = draws()
    torch.testing.assert_close(interpolate(clean(x_t, t, v), noise(x_t, t, v), t), x_t, rtol=0, atol=1e-14)


def test_mean_and_over_keep_the_batch() -> None:
    """`mean` runs over every dimension but the first; `over` broadcasts along the first and follows the dtype."""
    x = torch.arange(12.0).view(2, 2, 3)
    assert mean(x).tolist() == [2.5, 8.5]
    assert torch.equal(over(torch.tensor([1.0, 10.0], dtype=torch.float64), x) * x, torch.stack([x[0], 10 * x[1]]))
    assert over(torch.ones(2, dtype=torch.float64), x).dtype == torch.float32


def test_forward_01_regressing_u_on_the_point_gives_the_gaussian_velocity() -> None:
    """Least squares of u on x_t by quadrature has the slope of the closed form, 1.4273 at t = 0.55."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    z0, z1 = (a.flatten() for a in torch.meshgrid(nodes, nodes, indexing="ij"))
    p = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    x0, eps, t = MEAN + SCALE * z0, z1, torch.full_like(z0, 0.55)
    x_t, u = interpolate(x0, eps, t), eps - x0
    slope = (p * u * (x_t - p @ x_t)).sum() / (p * (x_t - p @ x_t) ** 2).sum()
    assert slope.item() == pytest.approx(1.4273, abs=5e-5)
    exact = gaussian(torch.tensor([1.0, 0.0], dtype=torch.float64), t[:2], NOBODY)
    assert slope.item() == pytest.approx((exact[0] - exact[1]).item(), abs=1e-12)
    assert (p @ u - slope * (p @ x_t)).item() == pytest.approx(exact[1].item(), abs=1e-12)


def test_22_sd3_grid_of_ten_steps() -> None:
    """The levels that Stable Diffusion 3's scheduler uses at shift 3."""
    levels = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0]
    assert grid(10).tolist() == pytest.approx(levels, abs=1e-4)


def test_22_sd3_grid_of_fourteen_steps() -> None:
    thousandths = [1000, 973.1, 943, 909.4, 871.5, 828.3, 778.7, 721.3, 653.9, 573.8, 476.9, 357.4, 206.2, 8.9, 0]
    assert grid(14).tolist() == pytest.approx([level / 1000 for level in thousandths], abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_sd3_grid_ends_at_the_same_level_whatever_the_steps(steps: int) -> None:
    """0.001 shifted twice, 0.0089, is left before 0; except for one step, which has only 1 and 0."""
    last = shifted(shifted(torch.tensor(0.001, dtype=torch.float64), 3.0), 3.0).item()
    assert last == pytest.approx(0.0089, abs=5e-5)
    assert grid(steps)[-2].item() == pytest.approx(1.0 if steps == 1 else last, abs=1e-15)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [10, 14])
def test_sd3_grid_agrees_with_diffusers(steps: int, shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(grid(steps, shift), scheduler.sigmas.double(), rtol=0, atol=1e-6)


def test_linear_grid() -> None:
    """Equal steps at shift 1; shifted in place otherwise, with the ends where they were."""
    assert grid(4, 1.0, "linear").tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grid(4, 3.0, "linear").tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0], abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "sd3"])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 14])
def test_a_grid_falls_from_one_to_zero(steps: int, shift: float, kind: GridKind) -> None:
    levels = grid(steps, shift, kind)
    assert levels.dtype == torch.float64
    assert levels.shape == (steps + 1,)
    assert levels[0] == 1
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_a_shift_above_one_moves_times_towards_noise() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert (shifted(t, 3.0)[1:-1] > t[1:-1]).all()
    torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3), t)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 3.0, "sd3"), "1 to 1000 steps, not 0"),
        ((-2, 1.0, "linear"), "1 to 1000 steps, not -2"),
        ((4, 0.0, "linear"), "shift"),
        ((4, -1.0, "sd3"), "shift"),
        ((4, 3.0, "cosine"), "cosine"),
    ],
)
def test_a_grid_refuses_what_it_cannot_do(arguments: tuple[int, float, Any], says: str) -> None:
    """At the grid, and as soon as a sampler is described."""
    with pytest.raises(ValueError, match=says):
        grid(*arguments)
    with pytest.raises(ValueError, match=says):
        Sampler(*arguments)


def test_sampler_takes_one_euler_step_per_interval() -> None:
    """A velocity of 1 carries every sample down by exactly 1, in `steps` calls at the grid's times."""
    seen: list[float] = []

    def one(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert t.shape == (3,)
        seen.append(t[0].item())
        return torch.ones_like(x)

    noise = Noise((2,), tuple(("start", k) for k in range(3)))
    end = Sampler(8, 3.0, "sd3")(one, NOBODY, noise).x0
    torch.testing.assert_close(end, noise.start() - 1)
    assert seen == pytest.approx(grid(8, 3.0, "sd3")[:-1].tolist())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_error_halves_when_steps_double(shift: float) -> None:
    """On the closed-form Gaussian flow, whose end is MEAN + SCALE x_1."""
    noise = Noise((1,), tuple(("start", k) for k in range(9)))
    start = noise.start()
    ends = [Sampler(steps, shift)(gaussian, NOBODY, noise).x0 for steps in (40, 80, 160)]
    errors = [(end - MEAN - SCALE * start).abs().max().item() for end in ends]
    assert errors[0] < 0.06 * start.abs().max()
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


def test_sampler_builds_no_graph_and_works_in_float32() -> None:
    theta = torch.ones(1, requires_grad=True)
    noise = Noise((2,), (("start", 0), ("start", 1)))
    end = Sampler(3)(lambda x, t, condition: (theta * x).bfloat16(), NOBODY, noise).x0
    assert end.dtype == torch.float32
    assert not end.requires_grad


def test_uniform_times() -> None:
    """All of [low, high] and nothing else, the same for the same generator."""
    t = Times(low=0.2, high=0.6)(20_000, torch.empty(0), torch.Generator().manual_seed(0))
    assert t.shape == (20_000,)
    assert t.dtype == torch.float32
    assert t.min() >= 0.2
    assert t.max() <= 0.6
    assert t.mean().item() == pytest.approx(0.4, abs=0.003)
    assert t.std().item() == pytest.approx(0.4 / 12**0.5, rel=0.02)
    assert torch.equal(t, Times(low=0.2, high=0.6)(20_000, torch.empty(0), torch.Generator().manual_seed(0)))
    moved = Times(low=0.2, high=0.6, shift=3.0)(20_000, torch.empty(0), torch.Generator().manual_seed(0))
    assert torch.equal(moved, shifted(t, 3.0))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.9, 0.1), (float("nan"), 1.0)])
def test_times_refuse_what_is_not_an_interval(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        Times(low=low, high=high)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_times_refuse_a_shift_that_is_none(shift: float) -> None:
    with pytest.raises(ValueError, match="the shift of times must lie between"):
        Times(shift=shift)


@pytest.mark.parametrize(("first", "last"), [(-1, None), (3, 3), (3, 2)])
def test_times_refuse_levels_that_are_none(first: int, last: int | None) -> None:
    with pytest.raises(ValueError, match="0 <= first < last"):
        Times("levels", first=first, last=last)


def test_no_more_distinct_times_than_the_grid_has_levels() -> None:
    """All of the range may be asked for, and not one more; other laws never run out."""
    Times("levels").refuse(10, 10)
    Times("levels", first=2, last=9).refuse(7, 10)
    for times, count in ((Times("levels"), 11), (Times("levels", first=2, last=9), 8)):
        with pytest.raises(ValueError, match=f"^{count} distinct times per image cannot be drawn"):
            times.refuse(count, 10)
    Times("uniform").refuse(11, 10)
    Times("bins").refuse(11, 10)


@pytest.mark.parametrize("law", ["levels", "bins"])
def test_levels_beyond_the_grid_are_refused(law: Any) -> None:
    with pytest.raises(ValueError, match="cannot use steps 0 to 10 of a sampler with 10 steps; lower"):
        Times(law, last=11).refuse(1, 10)


def test_more_bins_than_levels_take_every_level_equally_often() -> None:
    """12 times of 4 levels are 3 of each; 10 of 4 are 2 or 3 of each, 2.5 on average."""
    levels = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1])
    times = Times("bins", first=1, last=5)
    assert times(12, levels, generator("a")).tolist() == pytest.approx([0.7] * 3 + [0.5] * 3 + [0.3] * 3 + [0.1] * 3)
    drawn = torch.stack([(times(10, levels, generator("a", n)) == levels[1]).sum() for n in range(2000)]).float()
    assert set(drawn.tolist()) == {2.0, 3.0}
    assert drawn.mean().item() == pytest.approx(2.5, abs=5 * 0.5 / 2000**0.5)


def test_times_of_a_grid_of_ones_own() -> None:
    """A list of times stands for itself; `model` waits for a model, and takes its times for its number of steps."""
    assert TimeGrid(2, own=(1.0, 0.3, 0.0)).times == (1.0, 0.3, 0.0)
    waiting = TimeGrid(4, grid="model")
    assert not waiting.known
    bound = waiting.bound(lambda steps: tuple(grid(steps, 5.0, "linear").tolist()))
    assert bound.times == tuple(grid(4, 5.0, "linear").tolist())
    assert bound.bound(lambda steps: ()) is bound
    assert bound.levels.tolist() == list(bound.times[:-1])
    fixed = TimeGrid(4)
    assert fixed.bound(lambda steps: ()) is fixed


@pytest.mark.parametrize("own", [(1.0, 0.0), (0.9, 0.5, 0.0), (1.0, 0.5, 0.1), (1.0, 1.0, 0.0)])
def test_times_that_are_no_grid_are_refused(own: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 steps need 3 times that decrease from 1 to 0, not"):
        TimeGrid(2, own=own)


def test_a_grid_that_waits_for_a_model_has_no_times() -> None:
    with pytest.raises(ValueError, match="reads its times from a model"):
        _ = TimeGrid(grid="model").times


def test_the_grid_of_a_model_takes_no_other_shift() -> None:
    with pytest.raises(ValueError, match="brings its own shift"):
        TimeGrid(grid="model", shift=2.0)
