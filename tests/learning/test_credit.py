"""Rewards to advantages, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward.learning.credit import (
    BestAndWorst,
    CentredRMS,
    Softmax,
    ZScore,
    center,
    chain,
    clip,
    group_mean,
    group_std,
    members,
    scale_by_rms,
)


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
    assert advantages.min() == -0.7 == CentredRMS(clip=0.7).lowest


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


# Z-scores; A1 is the number of section 8 of the notes on the reverse process


def test_a1_of_each_group() -> None:
    """(1, 3) has the deviation 1 over n and sqrt 2 over n - 1; (5, 5, 8) has sqrt 2 and sqrt 3."""
    rewards, group = batch([1.0, 3.0], [5.0, 5.0, 8.0])
    two, three = 2**0.5, 3**0.5
    by_n = ZScore("group", 1e-12)(rewards, group)
    assert by_n.tolist() == pytest.approx([-1, 1, -1 / two, -1 / two, two])
    less_one = ZScore("group", 1e-12, 1)(rewards, group)
    assert less_one.tolist() == pytest.approx([-1 / two, 1 / two, -1 / three, -1 / three, 2 / three])


def test_a1_of_the_whole_batch() -> None:
    """(0, 2, 6, 8): centred -1, 1, -1, 1; the deviation of all is sqrt 10 over n, sqrt (40 / 3) over n - 1."""
    rewards, group = batch([0.0, 2.0], [6.0, 8.0])
    for ddof, std in ((0, 10**0.5), (1, (40 / 3) ** 0.5)):
        found = ZScore("pooled", 1e-12, ddof)(rewards, group)
        assert found.tolist() == pytest.approx([-1 / std, 1 / std, -1 / std, 1 / std])


@pytest.mark.parametrize("floor", [1e-8, 1e-6, 1e-4, 0.5])
@pytest.mark.parametrize("ddof", [0, 1])
def test_a1_the_floor_is_added_to_the_deviation(floor: float, ddof: int) -> None:
    """A near-zero spread of a group of 12 is blown up by a floor of 1e-8, and held down by 1e-4."""
    rewards, group = torch.tensor([0.5] * 11 + [0.5 + 1e-6], dtype=torch.float64), torch.zeros(12)
    std = 1e-6 * (11 / 12**2 if ddof == 0 else 1 / 12) ** 0.5
    expected = [-1e-6 / 12 / (std + floor)] * 11 + [11e-6 / 12 / (std + floor)]
    assert ZScore("group", floor, ddof)(rewards, group).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spread", ["group", "pooled"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6 + 0.1])
def test_a1_a_group_without_variance_gives_exactly_zero(spread: Any, ddof: int, value: float) -> None:
    """Whatever the others are: it keeps its place, and adds nothing."""
    rewards, group = batch([value] * 7, [1.0, 3.0, 4.0])
    found = ZScore(spread, 1e-8, ddof)(rewards, group)
    assert (found[:7] == 0).all()
    assert (found[7:] != 0).all()


@pytest.mark.parametrize("spread", ["group", "pooled"])
def test_a1_order_and_shards_do_not_matter(spread: Any) -> None:
    """Shuffled samples keep their advantages, and so do those of groups that are whole, wherever they are computed."""
    rng = torch.Generator().manual_seed(0)
    rewards, group = torch.randn(60, generator=rng), torch.arange(60) // 5
    z = ZScore(spread, 1e-4, 1)
    expected, order = z(rewards, group), torch.randperm(60, generator=rng)
    torch.testing.assert_close(z(rewards[order], group[order]), expected[order], rtol=0, atol=1e-13)
    if spread == "group":
        shards = [z(rewards[part], group[part]) for part in torch.arange(60).split(15)]
        assert torch.equal(torch.cat(shards), expected)


def test_a1_one_sample_over_n_minus_one_is_no_division_by_zero() -> None:
    assert ZScore("group", 1e-8, 1)(torch.tensor([1.0, 2.0]), torch.tensor([0, 1])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"ddof": 2}, "ddof must be 0 or 1, not 2"),
        ({"floor": 0.0}, "floor must be"),
        ({"spread": "groups"}, "unknown spread of rewards 'groups'; did you mean 'group'"),
    ],
)
def test_a1_bad_settings_are_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ZScore(**setting)


@pytest.mark.parametrize("name", ["temperature", "score_clip", "clip", "floor"])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_the_numbers_of_a_softmax_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a positive number"):
        Softmax(**{name: value})


def test_best_and_worst_are_those_of_their_own_group() -> None:
    """Three groups whose rewards interleave: a group with a lower best than another's worst has a best all the same."""
    rewards, group = torch.tensor([5.0, 0.0, 9.0, 1.0, 7.0, 0.5, 8.0, 2.0, 6.0]), torch.tensor([7, 3, 9] * 3)
    assert BestAndWorst()(rewards, group).tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 0.0, 0.0]


def test_members_are_the_rows_of_each_group_in_order() -> None:
    index = torch.randint(0, 7, (50,), generator=torch.Generator().manual_seed(0))
    index[index == 3] = 2  # a group without rows
    found = members(index, 8)
    assert [rows.tolist() for rows in found] == [(index == k).nonzero().flatten().tolist() for k in range(8)]
    assert not len(found[3]) and not len(found[7])
