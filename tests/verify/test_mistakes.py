"""Each kind of mistake in an algorithm breaks the laws that name it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from spoilt_algorithms import broken, mine, spoilt
from tiny_runs import REWARDED, UNDIFFERENTIATED
from torch import Tensor

from flowward import ALGORITHMS
from flowward.algorithms import AWM, DGPO, FDFO, AdvantageFlow, policy_gradient
from flowward.algorithms.algorithm import differentiates
from flowward.verify import Report, check, verify

algorithms = pytest.mark.parametrize("name", UNDIFFERENTIATED)
rewarded = pytest.mark.parametrize("name", REWARDED)
DIFFERENTIATED = [name for name, kind in ALGORITHMS.items() if differentiates(kind)]


def spoilt_in_place(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> Report:
    """What is found where the algorithm of that name is spoilt."""
    monkeypatch.setitem(ALGORITHMS, name, spoilt(ALGORITHMS[name], change))
    return verify([name])


@rewarded
def test_a_wrong_sign_is_reported_as_such(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The whole loss turned round."""
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: -loss)
    (direction,) = broken(found, "sign of A (step down the loss)")
    assert (direction.measured, direction.remark) == (-1, "wrong sign: moves away from better samples")
    (covariance,) = broken(found, "cosine of the expected gradient")
    assert covariance.measured < -0.9
    assert covariance.remark.startswith("wrong sign")
    own = [each for each in found.failures if each.part == "equation" and each.law.startswith("on policy")]
    assert own
    assert all(each.remark == "wrong sign, -1 times" for each in own)


@pytest.mark.parametrize("name", ["advantageflow", "awm", "diffusion_nft", "flowawr", "ram"])
def test_a_maximum_is_no_minimum(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The negative loss has the same stationary points, and yet laws about minima break."""
    if name == "diffusion_nft":  # whose bare equation has no class
        right = check.rests("", "", lambda v: (v**2).mean(1), torch.zeros(2, 3).double())
        wrong = check.rests("", "", lambda v: -(v**2).mean(1), torch.zeros(2, 3).double())
        assert right.holds
        assert not wrong.holds
        return
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: -loss)
    laws = [each for each in found.checks if "over all samples" in each.law or "minimum at" in each.law]
    assert len(laws) >= 2
    assert not any(each.holds for each in laws)


@algorithms
def test_a_wrong_size_is_reported_as_such(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Twice the loss: the protocol does not mind, the equation does."""
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: 2 * loss)
    assert not any(each.part == "protocol" for each in found.failures)
    first = "on policy" if name in REWARDED else "gradient (2/N)"
    own = [each for each in found.failures if each.law.startswith(first)]
    assert own
    assert all(each.remark == "wrong size, 2 times" for each in own)


@pytest.mark.parametrize("name", DIFFERENTIATED)
@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda loss, *_: -loss, "a step down the loss raises the mean reward"),
        (lambda loss, *_: 2 * loss, ""),
        (lambda loss, *_: loss / loss.detach().abs().sum(), "alone and in a larger batch"),
        (
            lambda loss, models, points: loss + 0 * models.velocities["old"](points.x_t, points.t, None).sum(),
            "does not declare",
        ),
    ],
    ids=["sign", "size", "neighbours", "undeclared"],
)
def test_mistakes_where_a_reward_is_differentiated(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any], law: str
) -> None:
    """The protocol finds a wrong sign, a dependence and an evaluation too many; the equation finds a wrong size."""
    found = spoilt_in_place(monkeypatch, name, change)
    assert broken(found, law) and (law or not any(each.part == "protocol" for each in found.failures))


def also(name: str, *, known: bool) -> Callable[..., Tensor]:
    """Another evaluation, whether or not its result is known."""

    def change(loss: Tensor, models: Any, points: Any) -> Tensor:
        asked = models.at(name, points) if known else models.velocities[name](points.x_t, points.t, points.condition)
        return loss + 0 * asked.detach().flatten(1).sum(1)

    return change


MISTAKES: dict[str, tuple[Any, str, str]] = {
    "a scalar": (mine(lambda loss, *_: loss.mean()), "exceptions to: one loss per point", "shape []"),
    "nan at the end": (
        mine(lambda loss, m, points: loss / points.t),
        "not finite, t = 0",
        "NaN or infinite",
    ),
    "policy twice": (mine(also("policy", known=False)), "evaluations of the policy per point", "exactly one"),
    "known anchor": (mine(also("old", known=False)), "anchors with known velocities", "models.at"),
    "undeclared anchor": (
        mine(also("reference", known=True), lam=0.0),
        "beyond those declared: policy, old",
        "reference",
    ),
    "mean over the batch": (
        mine(lambda loss, *_: loss - loss.detach().mean()),
        "loss of a unit, alone",
        "",
    ),
    "detached": (mine(lambda loss, *_: loss.detach() + 0 * loss), "weights of the policy", "nothing is trained"),
    "pull to 0": (
        mine(lambda loss, m, points: loss + (m.at("policy", points) ** 2).flatten(1).mean(1)),
        "all rewards equal: largest gradient",
        "not 0",
    ),
    "raises": (mine(lambda *_: {}["key"]), "One loss per point", "KeyError: 'key'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_the_law_that_names_it(mistake: str) -> None:
    algorithm, words, remark = MISTAKES[mistake]
    found = verify([], {"mine": algorithm})
    (check,) = broken(found, words)
    assert remark in check.remark
    assert check.algorithm == "mine"


def turned(right: Any) -> Any:
    return lambda *given, **named: -right(*given, **named)


def scaled(alpha: float, gamma: float) -> Any:
    """Of the two numbers of every ratio."""

    def change(right: Any) -> Any:
        def scales(*given: Any) -> Any:
            a, g = right(*given)
            return alpha * a, gamma * g

        return scales

    return change


SHARED: dict[str, tuple[str, Any, tuple[str, ...]]] = {  # what is replaced, by what, and the laws that name it
    "the loss turned round": (
        "policy_gradient",
        turned,
        ("sign of A (step down the loss)", "on policy:", "log rho is"),
    ),
    "alpha turned round": (
        "ratio_scales",
        scaled(-1, 1),
        ("sign of A (step down the loss)", "on policy:", "log rho is"),
    ),
    "gamma turned round": ("ratio_scales", scaled(1, -1), ("log rho is", "-gamma mean(d^2), below 0")),
    "alpha halved": ("ratio_scales", scaled(0.5, 1), ("on policy:", "log rho is")),
    "the divergence halved": ("divergence_scale", lambda right: lambda *given: right(*given) / 2, ("divergence `",)),
}


@pytest.mark.parametrize("mistake", SHARED)
@pytest.mark.parametrize("name", ["flow_grpo", "tempflow_grpo"])
def test_a_mistake_in_the_shared_equation_is_reported(monkeypatch: pytest.MonkeyPatch, name: str, mistake: str) -> None:
    """Each law that names it breaks, in every algorithm that uses it; ratio 1 on policy is still ratio 1."""
    where, change, laws = SHARED[mistake]
    monkeypatch.setattr(policy_gradient, where, change(getattr(policy_gradient, where)))
    found = verify([name])
    for words in laws:
        assert broken(found, words), words
    protocol = [each.remark for each in found.failures if each.part == "protocol"]
    if "halved" in mistake:
        assert not protocol
    else:  # or exp(gamma mean(d^2)) overflows
        assert "wrong sign: moves away from better samples" in protocol or set(protocol) == {"NaN or infinite"}


def test_wrong_credit_is_told_from_a_wrong_loss() -> None:
    """The loss follows A as it should, so only what compares with rewards is broken."""
    wrong = AdvantageFlow()
    object.__setattr__(wrong, "credit", lambda rewards, group: -AdvantageFlow().credit(rewards, group))
    found = verify([], {"mine": wrong})
    assert len(found.failures) == 2
    assert broken(found, "credit: sign of A(best)")[0].remark == "wrong sign: credit rewards the worse samples"
    assert broken(found, "Cov(R, u | x_t)")[0].remark == "wrong sign: against the reward"


def test_differences_that_point_to_the_other_sample() -> None:
    """Turned round together, delta and the sign of the loss would cancel: delta is compared with rewards."""
    wrong = FDFO()

    class Swapped:
        def __init__(self, rollout: Any, key: Any):
            self.right = FDFO().points(rollout, key)
            self.units = self.right.units

        def __len__(self) -> int:
            return len(self.right)

        def take(self, numbers: Tensor) -> Any:
            points = self.right.take(numbers)
            return replace(points, delta=-points.delta)  # type: ignore[operator]

    object.__setattr__(wrong, "points", Swapped)
    (check,) = verify([], {"mine": wrong}).failures
    assert (check.measured, check.remark) == (-1, "wrong sign: advantages of another sample")


def test_copies_that_are_missing() -> None:
    class Forgetful(AWM):
        @property
        def copies(self) -> Any:
            return {}

    (check,) = verify([], {"mine": Forgetful()}).failures
    assert ("copies" in check.law, check.measured, check.remark) == (True, 1, "old")


def test_an_algorithm_that_takes_no_groups() -> None:
    wrong = DGPO()
    object.__setattr__(wrong, "points", lambda rollout, key: 1 / 0)
    (check,) = verify([], {"mine": wrong}).checks
    assert (check.holds, check.remark) == (False, "ZeroDivisionError: division by zero")


def test_comparisons() -> None:
    """A sign, a size, another direction, nothing, nan; errors are relative to the largest expected value."""
    expected = torch.tensor([3.0, -4.0])
    remarks = {
        "wrong sign, -1 times": -expected,
        "wrong size, 0.5 times": expected / 2,
        "wrong direction (cosine 0)": torch.tensor([4.0, 3.0]),
        "wrong sign, roughly": torch.tensor([-3.0, 4.1]),
        "all values are 0": torch.zeros(2),
        "not finite": torch.tensor([3.0, math.nan]),
    }
    for remark, found in remarks.items():
        each = check.compared("", "", found, expected)
        assert (each.holds, each.remark) == (False, remark)
    right = check.compared("", "", expected + torch.tensor([0.0, 0.004]), expected, 0.0011)
    assert right.holds
    assert (right.error, right.expected) == pytest.approx((0.001, math.sqrt(12.5)), rel=1e-4)
    zero = check.compared("", "", torch.tensor([0.0, -1e-3]), torch.zeros(2))
    assert (zero.holds, zero.measured, zero.remark) == (False, pytest.approx(1e-3), "not 0")
