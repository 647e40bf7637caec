"""Plans of trees: what cannot be is refused (P6 of section 8 of the notes), and what is told before a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from walks import FAMILY, everything, family, loss, rollout

from flowward import ALGORITHMS
from flowward.algorithms import FlowGRPO, FlowGRPOFast
from flowward.algorithms.policy_gradient import ratio_scales
from flowward.learning.moves import RandomSteps
from flowward.process.laws import LAWS, FlowSDE
from flowward.process.plans import Branches, Chain, excess_noise
from flowward.process.rollout import Pairs, Sampler
from flowward.process.trees import Cohorts, Segment, Tree
from flowward.process.windows import Window

# P6: what is trained on


@family
def test_p6_no_step_without_noise_and_never_the_last(name: str) -> None:
    """In every iteration of a long run."""
    algorithm = ALGORITHMS[name]()
    for iteration in (*range(0, 700, 10), 10**6):
        tree = algorithm.rollout.at(0, iteration)
        t, s, _, sigma = tree.table[~tree.table[:, 0].isnan()].unbind(1)
        assert (sigma > 0).all()
        assert (s > 0).all()
        assert (t > s).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Chain(noise=0.0), "the step from 1 to 0.9601 has no noise, so no density to train on"),
        (lambda: Chain(law="ddim", noise=0.0), "has no noise"),
        (lambda: Branches(noise=0.0), "has no noise"),
        (lambda: Chain(window=Window(high=10)), "window reaches step 9, but with 10 steps the last .* is number 8"),
        (lambda: Chain(window=Window(4, low=7)), "a window of 4 steps does not fit into steps 7 to 8"),
        (lambda: Chain(3, window=Window(4)), "a window of 4 steps does not fit"),
        (lambda: Branches(high=10), "branches with length 1 can start at steps 0 to 8 of 10, not at 0 to 9"),
        (lambda: Branches(low=9), "can start at steps 0 to 8 of 10, not at 9 to 8"),
        (lambda: Branches(high=9, length=2), "branches with length 2 can start at steps 0 to 7 of 10"),
        (lambda: Branches(low=-1), "not at -1 to 8"),
        (lambda: Branches(fanout=1), "needs fanout >= 2 and length >= 1, not fanout = 1 and length = 1"),
        (lambda: Branches(length=0), "needs fanout >= 2 and length >= 1, not fanout = 6 and length = 0"),
        (lambda: Branches(strides=()), "strides must be at least 1"),
        (lambda: Branches(strides=(1, 0)), "strides must be at least 1"),
        (lambda: Chain(share=0.0), r"share, of the random steps to train on, must lie in \(0, 1\], not 0.0"),
        (lambda: Chain(share=1.1), r"share, of the random steps to train on, must lie in \(0, 1\], not 1.1"),
        (lambda: Chain(tail=0.0), r"tail, the share of steps after the window, must lie in \(0, 1\], not 0.0"),
        (lambda: Chain(tail=1.5), r"tail, the share of steps after the window, must lie in \(0, 1\], not 1.5"),
        (lambda: Chain(0), "a sampler needs 1 to 1000 steps, not 0"),
        (lambda: Branches(0), "a sampler needs 1 to 1000 steps, not 0"),
        (lambda: Chain(1), "a window of 1 step does not fit"),
        (lambda: Chain(law="ddim", noise=1.5), "the noise of DDIM must lie in"),
        (lambda: Chain(grid="model", law="ddim", noise=1.5), "the noise of DDIM must lie in"),
        (lambda: Chain(law="ddpm"), "unknown noise schedule of random steps 'ddpm'; did you mean 'ddim'"),  # type: ignore[arg-type]
        (lambda: Branches(law="sde"), "unknown noise schedule of random steps 'sde'"),  # type: ignore[arg-type]
        (lambda: Branches(cohorts="roots"), "unknown kind of cohort 'roots'; did you mean 'root'"),  # type: ignore[arg-type]
        (lambda: Chain(guidance=math.nan), "guidance must be a finite number, not nan"),
        (lambda: Branches(guidance=math.inf), "guidance must be a finite number, not inf"),
        (lambda: Chain(shift=math.inf), "shift of a time grid must lie between 0.001 and 1000, not inf"),
        (lambda: Tree((Segment(-1, (1.0, 0.5), law=FlowSDE(0.7), leaf=True), Segment(0, (0.4, 0.0)))), "starts at 0.4"),
        (lambda: Tree((Segment(0, (1.0, 0.0)),)), "segment 0 comes before its parent, 0"),
        (
            lambda: Tree((Segment(-1, (1.0, 0.0), fanout=2),)),
            "segment 0 follows the ODE, so its 2 children are equal",
        ),
    ],
)
def test_p6_what_cannot_be_is_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


# What else there is to a plan


def test_excess_noise_of_every_step() -> None:
    """Flow-GRPO's last trained step on SD3's grid leaves 27 times too much; CPS and DDIM as much as they should."""
    found = dict(excess_noise(FlowGRPO().rollout))
    assert list(found) == list(range(9))
    assert found[8] == pytest.approx(26.9, abs=0.05)
    assert max(found[number] for number in range(7)) < 1.1
    for law in ("ddim", "cps"):
        assert [level for _, level in excess_noise(Chain(law=law, noise=0.8))] == pytest.approx([1.0] * 9)


def test_excess_noise_is_told_before_a_run() -> None:
    """Of every step that may be random, in some iteration; with a warning above 1.2."""
    noise, warning = FlowGRPO().rollout.remarks()
    start = "noise after each random step, relative to the correct level (1 is exact): 0: 1.04, 1: 1.06, 2: 1.03, "
    assert noise.startswith(start)
    assert noise.endswith(", 6: 1.07, 7: 1.23, 8: 26.9")
    assert warning.startswith("steps 7, 8 leave too much noise for later steps to remove")
    assert warning.endswith("--algorithm.rollout.law ddim, cps or precise with --algorithm.ratio cps")
    early = Chain(window=Window(2, "random", high=5))
    assert early.remarks() == [start + "3: 1.02, 4: 1.03"]
    assert [number for number, _ in excess_noise(Branches(one=True, low=1, high=4, length=2))] == [1, 2, 3, 4]
    assert "step 8 leaves" in Branches(low=8).remarks()[1]
    assert Sampler().remarks() == Pairs().remarks() == []


@pytest.mark.parametrize(("law", "share"), [("ddim", 94), ("cps", 92)])
def test_a_step_that_drowns_the_others_is_told_before_a_run(law: Any, share: int) -> None:
    """Laws that keep the level add next to no noise where it is next to 0 (section 3 of the notes: 8.28 of 9)."""
    _, warning = Chain(law=law, noise=0.5 if law == "ddim" else 0.8).remarks()
    assert warning.startswith(f"step 8 has so little noise that it makes up {share}% of the gradient")
    early = Chain(law=law, window=Window(2, "random", high=5))
    family = [ALGORITHMS[name]() for name in FAMILY]  # the warning is about the ratio of densities
    for quiet in (early, *(each.rollout for each in family if each.ratio == "gaussian")):
        assert not any("so little noise" in line for line in quiet.remarks())


def test_what_the_warnings_advise_helps() -> None:
    """Of the pulls |alpha| w of the steps, none has more than a third."""
    chain = Chain(law="cps", noise=0.8)
    t, s, q, sigma = chain.at(0, 0).table.unbind(1)
    noise = RandomSteps("noise")(rollout(FlowGRPO(rollout=chain)), ("",)).weight
    for ratio, weight in (
        ("cps", torch.ones(9)),
        ("guard", 1 / (t - s)),
        ("guard", torch.ones(9)),
        ("gaussian", noise),
    ):
        pull = ratio_scales(ratio, q, sigma, 6)[0].abs() * weight  # type: ignore[arg-type]
        assert (pull / pull.sum()).max() < 1 / 3


@pytest.mark.parametrize("law", LAWS)
def test_every_law_goes_into_every_tree(law: Any) -> None:
    """Guard on a window with CPS, branches with DDIM, thinned ways with a constant g."""
    draws = (
        Chain(6, law=law, noise=0.5, window=Window(2, "random"), tail=0.5),
        Branches(6, law=law, noise=0.5, fanout=2, length=2, strides=(1, 2), cohorts="branch"),
    )
    for draw in draws:
        algorithm = FlowGRPOFast(
            rollout=draw, ratio="guard", clip=1e-6, beta=0.1, points=RandomSteps("per-time", "restandardised")
        )
        done = rollout(algorithm, size=4 * draw.leaves, iteration=5)
        assert loss(algorithm, everything(algorithm, done)).isfinite().all()
    assert get_args(Cohorts) == ("prompt", "branch", "root")


def test_one_place_is_drawn_for_every_iteration() -> None:
    """Evenly, and the same whatever was drawn before."""
    draw = FlowGRPOFast(
        rollout=Branches(one=True, high=6, fanout=9, noise=0.8, cohorts="prompt"), ratio="gaussian"
    ).rollout
    assert isinstance(draw, Branches)
    found = [draw.places(0, iteration)[0] for iteration in range(1200)]
    counts = torch.tensor(found).bincount(minlength=6)
    assert len(counts) == 6
    assert (counts - 200).abs().max() < 5 * math.sqrt(200)
    assert [draw.places(0, iteration)[0] for iteration in reversed(range(50))] == found[:50][::-1]
    assert [draw.places(1, iteration)[0] for iteration in range(50)] != found[:50]
