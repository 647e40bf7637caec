"""RAM, RVM, V-GRPO and AdvantageFlow without its old policy: numbers by hand, shared draws, and what is refused.

The numbers T5 to T15 are those of the working notes (new_methods.md). Other laws of theirs: flowward/verify/signed.py.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp
from typing import Any

import pytest
import torch
from losses import close, evaluate, gradient, gradient_at, real, samples, velocity
from tiny_runs import bright, few_steps
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms import RAM, RVM, VGRPO, AdvantageFlow
from flowward.algorithms.objectives import advantageflow, flowawr, ram, rvm, vgrpo
from flowward.algorithms.vgrpo import log_ratio
from flowward.learning.points import Renoise, RenoiseShared
from flowward.process.flow import clean, mean, over
from flowward.process.policy import Condition
from flowward.process.rollout import Drawn, Rollout
from flowward.process.times import Times
from flowward.training.batches import counted
from flowward.training.run import Run
from flowward.training.trainer import Trainer
from flowward.verify import verify

# Numbers worked out by hand


def by_hand() -> dict[str, Tensor]:
    """Two points of two elements: v - u = (1, -1), (1, 2); v - v_ref = (0, 1), (1, 1); v_old - u = (-1, 0), (1, 1)."""
    table = {
        "v": [[0, 1], [2, -1]],
        "v_old": [[-2, 2], [2, -2]],
        "v_ref": [[0, 0], [1, -2]],
        "x0": [[1, 0], [0, 2]],
        "eps": [[0, 2], [1, -1]],
        "x_t": [[0.5, 1], [0.25, 1.25]],
        "t": [0.5, 0.25],
        "advantage": [2.0, -4.0],
    }
    return {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in table.items()}


def test_rvm_by_hand() -> None:
    """push = A/2 (v - u) + 2 (v - v_ref) = (1, 1), (0, -2); its mean square is 1 and 2."""
    s = by_hand()
    close(evaluate(rvm, s, gain=0.5, beta=2.0), torch.tensor([0.5, 1.0]).double())
    close(gradient(rvm, s, gain=0.5, beta=2.0), torch.tensor([[0.5, 0.5], [0.0, -1.0]]).double())
    close(gradient(rvm, s, gain=1.0, beta=0.0), torch.tensor([[1.0, -1.0], [-2.0, -4.0]]).double())


def test_ram_by_hand() -> None:
    """m = 2, push = A (v - u) + (v - v_ref) / 2 = (2, -1.5), (-3.5, -7.5); with v_old: (-2, 0.5), (-3.5, -3.5)."""
    s = by_hand()
    close(evaluate(ram, s, m=2.0), torch.tensor([6.25, 68.5]).double() / 4)
    close(evaluate(ram, s, m=2.0, residual="old"), torch.tensor([4.25, 24.5]).double() / 4)
    close(gradient(ram, s, m=2.0, residual="old"), torch.tensor([[-1.0, 0.25], [-1.75, -1.75]]).double())


def test_vgrpo_by_hand() -> None:
    """f - x0 = -t (v - u): mean squares 1/4, 5/32, mean sizes 1/2, 3/8; of v_old 1/8, 1/16 and 1/4, 1/4.

    Errors 1/2, 5/12, before 1/2, 1/4: log rho is -(0 + 1/6) / 2 as one image. Divided by the old sizes they are 1, 5/8,
    and log rho is -(1/2 + 3/8) / 2.
    """
    s = by_hand() | {"image": torch.tensor([5, 5]), "advantage": torch.tensor([-2.0, -2.0]).double()}
    for scale, expected in (("own", -1 / 12), ("old", -7 / 16)):
        found = evaluate(log_ratio, s, scale=scale)
        close(found, torch.full((2,), expected, dtype=torch.float64))
        close(evaluate(vgrpo, s, scale=scale, clip=0.5), 2 * found.exp())
        clipped = 2 * max(exp(expected), 0.99)
        close(evaluate(vgrpo, s, scale=scale, clip=0.01), torch.full((2,), clipped, dtype=torch.float64))
    alone = evaluate(log_ratio, s | {"image": torch.tensor([0, 1])})
    close(alone, torch.tensor([0.0, -1 / 6], dtype=torch.float64))


def test_a_signed_square_has_a_value_that_can_be_read() -> None:
    """The gradient is that of the plain square, whose value is below 0; the value is half the push's, squared."""
    s = samples()
    for setting in ({"gamma": 0.0}, {"gamma": 0.3, "space": "velocity"}, {"gamma": 0.1, "denominator": True}):
        plain, signed = (gradient(advantageflow, s, lam=0.2, signed=each, **setting) for each in (False, True))
        close(signed, plain)
        assert (evaluate(advantageflow, s, lam=0.2, **setting) < 0).any()
        assert (evaluate(advantageflow, s, lam=0.2, signed=True, **setting) >= 0).all()
    assert (evaluate(rvm, s, beta=0.0) >= 0).all() and (evaluate(ram, s) >= 0).all()


# T5 on random points, without the laws of `flowward verify`


@pytest.mark.parametrize("beta", [0.01, 1.0, 4.0])
def test_5_one_gradient_under_three_names(beta: float) -> None:
    s = samples()
    one = gradient(rvm, s, gain=1.0, beta=beta)
    close(one, gradient(advantageflow, s, gamma=0.0, lam=beta, space="velocity") / 2)
    close(one, gradient(ram, s, m=1 / beta))
    released = 2 / beta * gradient(ram, s, m=1 / beta, residual="old")
    awr = gradient(flowawr, s, form="velocity", advantage=s["advantage"] / beta, v_ref=None)
    close(released, awr + 2 / 6 * (s["v_old"] - s["v_ref"]), atol=1e-9)
    close(gradient(rvm, s, gain=1.0, beta=beta), over(s["advantage"], one) * (s["v"] - velocity(s)) / 6
          + beta / 6 * (s["v"] - s["v_ref"]))  # fmt: skip


def test_14_the_value_moves_half_as_far_as_the_gradient_says() -> None:
    """Far from the old policy too: with errors a third smaller, own log rho is the sum of m2 / 3 m1, not of 5/9."""
    s = samples()
    s["v_old"] = velocity(s) + real(6, 2, 3, seed=3)
    s["v"] = velocity(s) + 2 / 3 * (s["v_old"] - velocity(s))
    before = clean(s["x_t"], s["t"], s["v_old"]) - s["x0"]
    unit = mean(before**2) / mean(before.abs())
    image = torch.arange(6)
    close(evaluate(log_ratio, s, image=image), unit / 3)
    close(evaluate(log_ratio, s, image=image, scale="old"), unit * 5 / 9)
    slope = gradient_at(s["v_old"], lambda v: evaluate(log_ratio, {**s, "v": v}, image=image))
    close((slope * (s["v"] - s["v_old"])).flatten(1).sum(1), 2 * unit / 3)


# Shared draws


def rollout(images: int = 4) -> Rollout:
    group = torch.tensor([0, 1] * (images // 2))
    drawn = Drawn(real(images, 2, 3).float())
    done = Rollout.of([drawn], Condition({"id": torch.arange(2.0)}), group, torch.linspace(1, 0.1, 10))
    return replace(done, advantage=torch.arange(images).double())


def test_15_the_images_of_a_prompt_share_their_draws() -> None:
    """Two images of one prompt: equal times and noises; another prompt: others; the j-th time lies in the j-th part."""
    made = RenoiseShared(5, Times("bins"))(rollout(), ("points", 0))
    points = made.take(torch.arange(len(made)))
    t, eps = points.t.view(4, 5), points.eps.view(4, 5, 2, 3)
    for one, other in ((0, 2), (1, 3)):
        assert torch.equal(t[one], t[other]) and torch.equal(eps[one], eps[other])
    assert (eps[0] != eps[1]).all() and not torch.equal(t[0], t[1])
    assert len(eps[0].unique()) == 5 * 6
    levels = torch.linspace(1, 0.1, 10)
    for j in range(5):
        assert set(t[:, j].tolist()) <= set(levels[2 * j : 2 * j + 2].tolist())
    assert torch.equal(points.group.view(4, 5), torch.arange(4)[:, None].expand(4, 5))
    assert made.indivisible == made.unit == 5 and not made.compares
    assert torch.equal(made.prompts(), torch.tensor([0, 1, 0, 1]))
    last = made.take(torch.arange(15, 20))
    assert torch.equal(last.eps, eps[3]) and torch.equal(last.advantage, torch.full((5,), 3.0))


def test_whole_images_go_into_a_microbatch_but_prompts_need_not(tiny: str) -> None:
    """The images of a prompt are not compared: remembered rewards are allowed, and processes share single images."""
    run = Run(images_per_update=16, group_size=4, microbatch=2, reward_buffer=4)
    algorithm = few_steps("vgrpo")
    found = counted(algorithm, algorithm.rollout, run)
    assert (found.per_update, found.indivisible, found.compares) == (32, 2, False)
    with pytest.raises(ValueError, match=r"2 training points are averaged, so --microbatch must be a multiple of 2"):
        counted(algorithm, algorithm.rollout, replace(run, microbatch=1))
    one = Trainer(algorithm, models.load(tiny, None, "float32"), bright, prompts.of("m", ("a circle", "a ring")), run)
    assert one.unit == 1
    assert one.step().metrics["log_ratio"] == 0


def test_12_the_ratio_leaves_1_in_the_second_update(tiny: str) -> None:
    """T12: in the first it is exactly 1. Later the clip stops images, and more of them if it is narrow."""
    stopped = []
    for clip in (1e-3, 1e-1):
        run = Run(
            images_per_update=8, updates_per_iteration=4, group_size=4, microbatch=8, learning_rate=1e-3, warmup=0
        )
        algorithm = few_steps("vgrpo", clip=clip)
        one = Trainer(algorithm, models.load(tiny, None, "float32"), bright, prompts.of("m", ("a circle",)), run)
        metrics = one.step().metrics
        assert metrics["log_ratio"] != 0
        stopped.append(metrics["clipped_up"] + metrics["clipped_down"])
    assert stopped[0] > stopped[1]


# Settings


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: AdvantageFlow(gamma=0.0), r"no minimum: at A = -1 .* \(signed permits such a loss\)"),
        (lambda: AdvantageFlow(space="v"), "unknown space 'v'"),  # type: ignore[arg-type]
        (
            lambda: VGRPO(clip=1e-4),
            "clip 0.0001 does not fit the ratio 'matching'; its clips lie between 0.001 and 0.1",
        ),
        (lambda: VGRPO(clip=0.2), "clip 0.2 does not fit the ratio 'matching'"),
        (lambda: VGRPO(soft_clip=0.0), "soft_clip must be a positive number"),
        (lambda: VGRPO(beta=-1.0), "beta must not be negative"),
        (lambda: RVM(gain=0.0), "gain must be a positive number"),
        (lambda: RVM(beta=-0.1), "beta must not be negative"),
        (lambda: RAM(m=0.0), "m must be a positive number"),
        (lambda: RenoiseShared(0), "draws must be between 1 and 10,000, not 0"),
        (lambda: evaluate(ram, by_hand(), v_old=None, residual="old"), "needs the velocity of the old policy"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(ask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask()


def test_gamma_0_has_no_old_policy_unless_it_draws() -> None:
    """And the health rule about curvature has nothing to say where a negative one was asked for."""
    signed = AdvantageFlow(gamma=0.0, lam=0.1, signed=True, behaviour="policy")
    assert (signed.held_to, signed.copies) == (("reference",), {})
    assert set(replace(signed, behaviour="old").copies) == {"old"}
    assert AdvantageFlow(gamma=0.0, lam=2.0).held_to == ("reference",)  # convex, so nothing to permit
    assert AdvantageFlow().held_to == ("old", "reference")


def test_the_residual_of_ram_decides_who_draws() -> None:
    assert (RAM().behaviour, RAM().copies) == ("policy", {})
    released = RAM(residual="old")
    assert (released.behaviour, set(released.copies), released.held_to) == ("old", {"old"}, ("old", "reference"))
    assert isinstance(released.points, Renoise) and released.points.times.law == "power"


@pytest.mark.parametrize(
    "algorithm",
    [
        AdvantageFlow(gamma=0.0, signed=True),
        AdvantageFlow(gamma=0.0, lam=0.0, signed=True, space="velocity", denominator=False, behaviour="policy"),
        AdvantageFlow(space="velocity"),
        RAM(residual="old", m=3.0),
        RVM(beta=0.1),
        VGRPO(scale="old", beta=0.3, soft_clip=3.0, clip=0.1),
    ],
    ids=lambda each: type(each).__name__,
)
def test_variants_keep_the_laws_of_every_algorithm(algorithm: Any) -> None:
    """Evaluations that are declared and no others, finite numbers at both ends of time, signs: as `flowward verify`."""
    found = verify([], {"mine": algorithm})
    assert [(each.law, each.remark) for each in found.failures] == []
    assert len(found.checks) == 20
