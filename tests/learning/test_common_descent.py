"""Objectives that stay apart, their common descent direction, and the weights of groups."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from flowward.learning.mixing import chebyshev, descent
from flowward.learning.mixtures import lattice, mixtures
from flowward.learning.objectives import common_descent

SAME = torch.zeros(4, dtype=torch.long)


def gram_of(gradients: Tensor) -> Tensor:
    return gradients @ gradients.T


def test_t57_common_descent_of_two_gradients() -> None:
    """T57: alpha .5385 for (1, 0) and (-.5, 1); the products with both gradients are .3077."""
    gradients = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
    alpha = common_descent(gram_of(gradients))
    assert alpha[0].item() == pytest.approx(7 / 13)
    step = alpha @ gradients
    torch.testing.assert_close(gradients @ step, torch.full((2,), 4 / 13, dtype=torch.float64))


@pytest.mark.parametrize("many", [2, 3, 5, 8])
def test_t57_no_loss_rises_along_the_common_descent(many: int) -> None:
    """T57: <g, g_k> >= |g|^2, with equality where alpha is above 0; these are the conditions of the shortest point."""
    for seed in range(5):
        gradients = torch.randn(many, 6, generator=torch.Generator().manual_seed(seed)).double() + 0.3
        alpha = common_descent(gram_of(gradients))
        step = alpha @ gradients
        products, length = gradients @ step, step @ step
        assert (alpha >= 0).all() and alpha.sum().item() == pytest.approx(1)
        assert (products >= length - 1e-9).all()
        torch.testing.assert_close(products[alpha > 1e-9], length.expand(int((alpha > 1e-9).sum())), atol=1e-8, rtol=0)


def test_the_closed_form_of_two_is_that_of_all_supports() -> None:
    """A third gradient that is a copy of the second changes nothing but how its weight is shared."""
    for seed in range(10):
        gradients = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).double()
        two = common_descent(gram_of(gradients))
        three = common_descent(gram_of(gradients[[0, 1, 1]]))
        torch.testing.assert_close(torch.stack([three[0], three[1] + three[2]]), two, atol=1e-8, rtol=0)


def test_gradients_that_are_zero_equal_or_too_many() -> None:
    none = torch.zeros(3, 2)
    none[0] = torch.tensor([3.0, 4.0])
    assert common_descent(gram_of(none)).tolist() == [1, 0, 0]
    assert common_descent(torch.zeros(2, 2)).tolist() == [0, 0]
    assert common_descent(torch.ones(2, 2)).tolist() == [0.5, 0.5]
    opposite = torch.tensor([[1.0], [-1.0], [0.5]])
    alpha = common_descent(gram_of(opposite))
    assert (alpha.float() @ opposite).abs() < 1e-9  # nothing lowers all
    assert common_descent(torch.full((2, 2), torch.nan)).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="at most 8 rewards, not 9"):
        common_descent(torch.eye(9))


def test_chebyshev_reaches_a_front_that_sums_do_not() -> None:
    """(0, 3), (1, 1), (3, 0): the middle point is not dominated, and below the line between the others."""
    points = torch.tensor([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    credit = lambda values, _: values  # noqa: E731
    best = {int(chebyshev(credit, points, torch.tensor([w, 1 - w]), SAME).argmax()) for w in torch.linspace(0, 1, 21)}
    sums = {int((points @ torch.tensor([w, 1 - w])).argmax()) for w in torch.linspace(0, 1, 21)}
    assert (best, sums) == ({0, 1, 2}, {0, 2})
    middle = chebyshev(credit, points, torch.ones(2), SAME)
    spread = points.std(0, correction=0)[0].item()
    assert middle[1].item() == pytest.approx(-(2 + 0.05 * 4) / spread)  # by hand
    torch.testing.assert_close(chebyshev(credit, 5 * points + 7, torch.ones(2), SAME), middle)
    assert int(chebyshev(credit, points, torch.tensor([0.0, -1.0]), SAME).argmax()) == 2  # turned round, and alone


def test_descent_keeps_the_credit_of_each_reward() -> None:
    points = torch.tensor([[0.0, 3.0, 1.0], [1.0, 1.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    credit = lambda values, _: values - values.mean()  # noqa: E731
    found = descent(credit, points, torch.tensor([2.0, -0.1, 0.0]), SAME)
    assert torch.equal(found, torch.stack([points[:, 0] - 1, 1 - points[:, 1]], 1).double())


def test_mixtures_of_groups() -> None:
    """Half of the groups at corners, in turns; the others fill the simplex evenly; each is a function of its number."""
    found = mixtures(3, 5, 24, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(24))
    corners = (found == 1).any(1)
    assert corners.sum() == 12 and (found[corners].sum(0) == 4).all()
    assert torch.equal(mixtures(3, 5, 7, 3), found[:7])
    assert not torch.equal(mixtures(3, 6, 24, 3), found) and not torch.equal(mixtures(4, 5, 24, 3), found)
    many = torch.cat([mixtures(0, iteration, 40, 2) for iteration in range(50)])
    inside = many[(many != 1).all(1), 0]  # Dirichlet(1) of two is uniform: mean 1/2, variance 1/12
    assert inside.mean().item() == pytest.approx(0.5, abs=0.03)
    assert inside.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_a_lattice_has_all_mixtures_of_equal_steps() -> None:
    assert lattice(2, 5) == [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    whole = {each for each in product([0, 0.25, 0.5, 0.75, 1], repeat=3) if sum(each) == 1}
    assert len(lattice(3, 5)) == 15 and set(lattice(3, 5)) == whole
    with pytest.raises(ValueError, match="at least 2 points"):
        lattice(2, 1)
