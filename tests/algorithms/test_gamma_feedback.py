"""Feedback of `gamma: auto`: what changes the factor and lambda, what leaves them alone, and which faults are told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flowward.algorithms import AdvantageFlow
from flowward.algorithms.auto_gamma import MOST, PATIENCE, SLOW, AutoGamma, Rule, standard_errors


def rule(**changes: Any) -> Rule:
    found = AdvantageFlow(gamma="auto", auto=AutoGamma(**changes)).adaptive
    assert found is not None
    return found


WELL = {
    "_along": 1.0,
    "_bend": 1.0,
    "_way": 1.0,
    "_size": 256.0,
    "old_nats": 5.0,
    "residual": 1.0,
    "reference_nats": 5.0,
}


def after(many: int, start: dict[str, Any] | None = None, **changes: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """The state after so many iterations with these figures, and the warnings of each."""
    own = {"budget": changes.pop("budget")} if "budget" in changes else {}
    state, told = {**rule(**own).start(), **(start or {})}, []
    for _ in range(many):
        state, _, said = rule(**own).learned(state, lambda: {**WELL, **changes})
        told.append(said)
    return state, told


@pytest.mark.parametrize(
    "changes",
    [
        {"_along": -0.4},  # past the minimum
        {"_size": 4e6},  # rounding of bf16 could be all of it
        {"old_nats": 0.5},  # neither far nor near
        {"_along": 0.0, "_bend": 0.0, "_way": 0.0},  # the policy is `old`
    ],
)
def test_what_leaves_the_factor_alone(changes: dict[str, float]) -> None:
    assert after(4)[0]["factor"] == 1.5**4 and after(4, **changes)[0]["factor"] == 1.0


def test_standard_errors_by_hand() -> None:
    """The mean over its standard error; moving averages over ten are worth 19 equal weights."""
    values = [0.0, 1.0, 2.0, 1.0]
    square = sum(value**2 for value in values) / 4  # 1.5; the variance is .5, the unbiased one 2/3
    assert standard_errors(4, 1.0, square) == pytest.approx(1 / math.sqrt(2 / 3 / 4))
    assert standard_errors(3, 1.0, square) == 0.0
    assert standard_errors(500, 1.0, square) == pytest.approx(1 / math.sqrt(0.5 / 18))
    draw, share, found = torch.Generator().manual_seed(0), 0.1, [0.0] * 4000
    for _ in range(100):  # how far moving averages scatter
        noise = torch.randn(len(found), generator=draw)
        found = [old + share * (new - old) for old, new in zip(found, noise.tolist(), strict=True)]
    assert torch.tensor(found).var().item() == pytest.approx(1 / 19, rel=0.1)


def test_steps_that_new_samples_confirm_may_be_longer() -> None:
    """Past the minimum the factor stays, unless the slope along d is surely above 0; doubt leads back to 1."""
    state, told = rule().start(), []
    for slope in (0.2, 0.25, 0.15, 0.2, 0.22, 0.18):
        figures = {**WELL, "_along": slope, "old_nats": 14.0}
        state, _, said = rule().learned(state, lambda figures=figures: figures)
        told += said
    assert state["factor"] == pytest.approx(1 / 1.2**3)  # from the fourth on
    assert len(told) == 1  # the warning came before it was sure
    for slope in (-0.4, -0.3, -0.5):
        figures = {**WELL, "_along": slope, "old_nats": 14.0}
        state = rule().learned(state, lambda figures=figures: figures)[0]
    assert state["factor"] == 1.0


def test_lost_calibration_leaves_the_factor_alone() -> None:
    """Velocities whose error has grown by half give no KL; and a run without nats (guidance) has no feedback."""
    assert after(1, {"residual": 0.7})[0]["factor"] == 1.5 and after(1, {"residual": 0.6})[0]["factor"] == 1.0
    one, state = rule(), rule().start()
    found, told, _ = one.learned(state, lambda: {key: value for key, value in WELL.items() if "nats" not in key})
    assert found["factor"] == 1.0 and told["line_search"] == 1.0


def test_faults_that_gamma_cannot_mend_are_reported_once() -> None:
    _, told = after(PATIENCE + 2, _along=0.3)
    assert [bool(each) for each in told] == [number == PATIENCE - 1 for number in range(PATIENCE + 2)]
    assert told[PATIENCE - 1][0].startswith("the policy went past the minimum of its loss in 3 iterations in a row")
    _, told = after(SLOW + 1, _along=21.0, old_nats=0.5)
    assert sum(map(len, told)) == 1 and told[SLOW - 1][0].startswith("gamma has had almost no effect in 20 iterations")
    _, told = after(1, {"factor": MOST})
    assert told == [[
        "gamma is 8 times what the advantages ask for, its most, and the policy is still 5 nats from its old copy: "
        "lower the learning rate, or the decay of the old copy"
    ]]  # fmt: skip


def test_a_budget_of_nats_from_the_reference() -> None:
    """lam rises by e^.2 at most, never falls below its start or above 10; without a budget it stays."""
    assert after(5)[0]["lam"] == 1e-3
    assert after(5, budget=1.0)[0]["lam"] == pytest.approx(1e-3 * math.exp(1.0))
    assert after(5, budget=50.0)[0]["lam"] == 1e-3
    state, told = after(1, {"lam": 10.0}, budget=1.0)
    assert state["lam"] == 10.0 and told[0][0].startswith("the policy is 5 nats from the reference model, and lam is")
    assert after(1, {"lam": 10.0}, budget=50.0)[0]["lam"] < 10.0
    assert rule(budget=1.0).learned(rule().start(), lambda: WELL)[1]["lam"] == 1e-3


def test_a_state_of_an_older_version_is_completed() -> None:
    """Names that it lacks begin anew, and others are ignored."""
    state = {"factor": 3.0, "mood": 1.0}
    assert rule().learned(state, lambda: WELL)[0] == {**rule().learned(rule().start(), lambda: WELL)[0], "factor": 4.5}
