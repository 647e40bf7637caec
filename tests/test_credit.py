"""Rewards to advantages, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowward.credit import CentredRMS, center, chain, clip, group_mean, group_std, scale_by_rms


def batch(*groups: list[float]) -> tuple[Tensor, Tensor]:
    """Rewards [B] float32 and the group of each, one list per group."""
    rewards = torch.tensor([reward for group in groups for reward in group])
    return rewards, torch.tensor([number for number, group in enumerate(groups) for _ in group])


def test_group_mean_and_std() -> None:
    values, group = batch([1.0, 3.0], [5.0, 5.0, 8.0])
    assert group_mean(values.double(), group).tolist() == pytest.approx([2, 2, 6, 6, 6])
    assert group_std(values.double(), group).tolist() == pytest.approx([1, 1, *[2**0.5] * 3])


def test_scale_does_not_grow_with_differences_between_prompts() -> None:
    """[[0, 1], [10, 11]]: centred +-0.5, their RMS 0.5, so +-1; the raw standard deviation would be 5.025."""
    rewards, group = batch([0.0, 1.0], [10.0, 11.0])
    values = rewards.double()
    assert values.std(correction=0).item() == pytest.approx(5.025, abs=5e-4)
    centred = center(values, group)
    assert centred.tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert centred.square().mean().sqrt().item() == 0.5
    assert CentredRMS()(rewards, group).tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_one_scale_for_the_whole_batch_then_the_clip() -> None:
    """Centred [-3, 3], [-1, 1], RMS sqrt(5): the wide group is clipped, the narrow one keeps 1 / sqrt(5)."""
    rewards, group = batch([0.0, 6.0], [4.0, 6.0])
    narrow = 1 / 5**0.5
    assert CentredRMS()(rewards, group).tolist() == pytest.approx([-1, 1, -narrow, narrow])
    assert CentredRMS(clip=5.0)(rewards, group).tolist() == pytest.approx([-3 * narrow, 3 * narrow, -narrow, narrow])


def test_groups_of_different_sizes() -> None:
    """[0, 0, 3] has mean 1 and [2, 4] mean 3; the squares 1, 1, 4, 1, 1 have mean 1.6."""
    rewards, group = batch([0.0, 0.0, 3.0], [2.0, 4.0])
    z = 1.6**0.5
    assert CentredRMS(clip=9.0)(rewards, group).tolist() == pytest.approx([-1 / z, -1 / z, 2 / z, -1 / z, 1 / z])


def test_a_group_without_variance_gives_zero() -> None:
    """It keeps its place in the batch's scale: centred squares 0, 0, 1, 1 have mean 1/2."""
    rewards, group = batch([7.0, 7.0], [1.0, 3.0])
    assert CentredRMS(clip=5.0)(rewards, group).tolist() == pytest.approx([0, 0, -(2**0.5), 2**0.5])
    assert CentredRMS()(rewards, group)[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6, 1e6 + 0.1, 1e30])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(value: float, size: int) -> None:
    """Whatever their size: the mean of seven equal numbers is not always that number in floating point."""
    rewards, group = batch([value] * size, [value] * (size + 4))
    assert (CentredRMS()(rewards, group) == 0).all()
    assert (CentredRMS()(rewards.double() + 0.1, group) == 0).all()


def test_a_batch_without_signal_gives_zero() -> None:
    """Every group all right or all wrong: the groups differ, but nothing within one."""
    rewards, group = batch([0.0] * 3, [1.0] * 3, [1e6] * 3)
    assert (CentredRMS()(rewards, group) == 0).all()


def test_a_spread_below_the_floor_is_not_blown_up() -> None:
    rewards, group = batch([0.0, 2e-12])
    assert CentredRMS(floor=1e-8)(rewards.double(), group).tolist() == pytest.approx([-1e-4, 1e-4])


def test_groups_of_one_give_zero() -> None:
    """A single sample has nothing to be compared with."""
    assert (CentredRMS()(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 5, 6])) == 0).all()


def test_order_does_not_matter() -> None:
    """Shuffled, and with the groups interleaved, each sample keeps its advantage."""
    rng = torch.Generator().manual_seed(0)
    rewards, group = torch.randn(60, generator=rng), torch.arange(60) // 5
    expected = CentredRMS()(rewards, group)
    orders = [torch.randperm(60, generator=rng), torch.arange(60).view(12, 5).T.flatten(), torch.arange(60).flip(0)]
    for order in orders:
        torch.testing.assert_close(CentredRMS()(rewards[order], group[order]), expected[order], rtol=0, atol=1e-14)


def test_groups_are_any_integers() -> None:
    rewards, group = batch([0.0, 1.0, 5.0], [10.0, 11.0], [2.0, 2.5])
    names = torch.tensor([-7, 10**12, 3])
    torch.testing.assert_close(CentredRMS()(rewards, names[group]), CentredRMS()(rewards, group), rtol=0, atol=0)


def test_scale_and_shift_of_the_rewards_do_not_matter() -> None:
    """A shift may differ from prompt to prompt; a negative scale turns the advantages over."""
    rewards, group = batch([0.0, 1.0, 5.0], [10.0, 11.0, 11.0])
    expected = CentredRMS()(rewards, group)
    shift = torch.tensor([3.0, -50.0])[group]
    torch.testing.assert_close(CentredRMS()(rewards * 8 + shift, group), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(CentredRMS()(-rewards, group), -expected, rtol=0, atol=1e-12)


def test_advantages_are_centred_where_nothing_is_clipped() -> None:
    rewards, group = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    assert group_mean(CentredRMS(clip=99.0)(rewards, group), group).abs().max() < 1e-14
    assert CentredRMS(clip=99.0)(rewards, group).square().mean().item() == pytest.approx(1)


def test_advantages_stay_within_the_clip_and_are_float64() -> None:
    rewards, group = torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.arange(500) // 10
    advantages = CentredRMS(clip=0.7)(rewards, group)
    assert advantages.dtype == torch.float64
    assert advantages.max() == 0.7
    assert advantages.min() == -0.7 == CentredRMS(clip=0.7).least


def test_chain_goes_from_left_to_right() -> None:
    rewards, group = batch([0.0, 6.0], [4.0, 6.0])
    recipe: Callable[[Tensor, Tensor], Tensor] = chain(center, scale_by_rms(), clip(1.0))
    assert torch.equal(recipe(rewards, group), CentredRMS()(rewards, group))
    assert chain(clip(1.0), center)(rewards, group).tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert chain(center, clip(1.0))(rewards, group).tolist() == [-1.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize(("bound", "floor"), [(0.0, 1e-8), (-1.0, 1e-8), (1.0, 0.0), (1.0, -1e-8)])
def test_clip_and_floor_must_be_positive(bound: float, floor: float) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        CentredRMS(bound, floor)
