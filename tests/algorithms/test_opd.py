"""On-policy distillation: numbers by hand, its states, and what a step makes of them.

The numbers T22 to T27 are those of the working notes (new_methods.md). Most of them: flowward/verify/distillation.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from gaussian_flow import MEAN, gaussian
from losses import close, gradient_at, real
from tiny_runs import TEXTS, bright, equal, plain, small, snapshot, taught
from torch import Tensor, nn

from flowward import models, prompts
from flowward.algorithms import OPD
from flowward.algorithms.objectives import opd
from flowward.learning.credit import Even
from flowward.learning.states import State, States, step_weight, time_weight
from flowward.models.weights import Full
from flowward.process.flow import interpolate
from flowward.process.noise import Noise
from flowward.process.policy import Condition, Policy, row_by_row
from flowward.process.rollout import Rollout, Sampler
from flowward.process.times import Times
from flowward.process.trajectory import Trajectory
from flowward.prompts import PromptSet
from flowward.training.run import Run
from flowward.training.teachers import Teachers
from flowward.training.trainer import Trainer
from flowward.verify import verify


def f64(numbers: list[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_opd_by_hand() -> None:
    """v - v_T = (1, -1), (1, 2), mean squares 1, 2.5; v - v_ref = (0, 1), (1, 1): 0.5, 1. Weights 2 and 0.5."""
    v = f64([[0.0, 1.0], [2.0, -1.0]])
    v_teacher, v_ref = v - f64([[1.0, -1.0], [1.0, 2.0]]), v - f64([[0.0, 1.0], [1.0, 1.0]])
    weight = f64([2.0, 0.5])
    close(opd(v, v_teacher, None, weight), f64([2.0, 1.25]))
    close(opd(v, v_teacher, v_ref, weight, 0.4), f64([2.4, 1.45]))
    slope = gradient_at(v, lambda each: opd(each, v_teacher, v_ref, weight, 0.4))
    close(slope, f64([[2.0, -1.2], [0.7, 1.2]]))


def test_weights_by_hand() -> None:
    """Of the ODE (t - s)^2 / 2; of a random step Q^2 / (2 sigma^2); of samples that are noised again (1 - t) / t."""
    ode = Trajectory(own=(1.0, 0.5, 0.2, 0.0), steps=3).table
    close(step_weight(ode), f64([0.125, 0.045, 0.02]))
    table = f64([[0.5, 0.3, -0.4, 0.1], [0.3, 0.1, -0.2, 0.5]])
    close(step_weight(table), f64([8.0, 0.08]))
    close(time_weight(torch.tensor([0.5, 0.1, 0.05, 0.0, 1.0])), torch.tensor([1.0, 9.0, 19.0, 20.0, 0.0]), atol=1e-5)


def test_t22_to_t27_hold_as_laws() -> None:
    report = verify(["opd"])
    assert not report.failures and len(report.checks) >= 26
    said = " ".join(check.law for check in report.checks)
    for part in ("minimum at v_T", "mixture of both", "kappa(a) KL", "as advantage", "over KL(p || q)", "in turn"):
        assert part in said


# States of the student


def linear(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return 0.5 * x + (t + condition.tensors["id"])[:, None]


def drawn(how: Any, groups: int = 3, size: int = 2) -> Rollout:
    group = torch.arange(groups).repeat_interleave(size)
    condition = Condition({"id": torch.arange(float(groups))})
    noise = Noise((4,), tuple(("s", g, k % size) for k, g in enumerate(group.tolist())))
    done = Rollout.of([how.at(0, 0)(linear, condition[group], noise)], condition, group, how.levels)
    return replace(done, advantage=torch.ones(len(group), dtype=torch.float64))


def test_without_noise_samples_are_those_of_euler_and_states_lie_on_their_way() -> None:
    how, euler = Trajectory(5, 3.0, "sd3"), Sampler(5, 3.0, "sd3")
    done = drawn(how)
    assert torch.equal(done.x0, drawn(euler).x0)
    points = States(per_image=5)(done, ("points", 0))
    states = points.take(torch.arange(len(points)))
    each = states.x_t.view(6, 5, 4)
    v = linear(states.x_t, states.t, states.condition).view(6, 5, 4)
    times = torch.tensor(how.times)
    after = each + times.diff().view(1, 5, 1) * v
    torch.testing.assert_close(after, torch.cat([each[:, 1:], done.x0[:, None]], 1), rtol=0, atol=1e-5)
    assert states.condition.tensors["id"].view(6, 5)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    squares = times.diff() ** 2
    close(states.weight.view(6, 5)[0], squares / squares.mean(), atol=1e-5)


def test_with_noise_all_steps_but_the_last_are_random() -> None:
    """T24 weighs them by their own noise, and the last one has none: its state is not kept."""
    how = Trajectory(6, noise=0.7)
    assert how.table.shape == (5, 4) and (how.table[:, 3] > 0).all()
    points = States(per_image=5)(drawn(how), ("points", 0))
    states = points.take(torch.arange(len(points)))
    assert states.t.view(6, 5)[0].tolist() == pytest.approx(list(how.times[:5]))
    _, _, q, sigma = how.table.unbind(1)
    expected = q**2 / sigma**2
    close(states.weight.view(6, 5)[0].double(), expected / expected.mean(), atol=1e-5)
    with pytest.raises(ValueError, match="per_image asks for 6 states of each image, but the rollout keeps 5"):
        States(per_image=6)(drawn(how), ("points", 0))
    with pytest.raises(ValueError, match="needs at least 2 steps"):
        Trajectory(1, noise=0.7)


class Fast:
    """Noise of 20,000 samples of one number, drawn at once."""

    def start(self, siblings: int | None = 1) -> Tensor:
        return self.step(-1)

    def step(self, number: int) -> Tensor:
        return torch.randn(20_000, 1, generator=torch.Generator().manual_seed(number + 1))


@pytest.mark.parametrize("noise", [0.0, 0.7, sqrt(2)])
def test_t24_a_chain_of_random_steps_ends_at_the_samples_of_the_flow(noise: float) -> None:
    """Of the exact flow of a Gaussian: with many steps noise changes neither mean nor deviation."""
    field = gaussian(0.5)
    how = Trajectory(400, noise=noise)
    done = how(lambda x, t, c: field(x, t[0].item()), Condition({"id": torch.zeros(20_000)}), Fast()).x0  # type: ignore[arg-type]
    assert done.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert done.std().item() == pytest.approx(0.5, abs=0.02)


def test_states_are_drawn_without_repetition_and_depend_on_their_number_alone() -> None:
    done = drawn(Trajectory(8), groups=20)
    points = States(per_image=3)(done, ("points", 5))
    states = points.take(torch.arange(len(points)))
    assert len(points) == 120 and points.unit == 3 and points.indivisible == 1
    assert all(len(set(row.tolist())) == 3 for row in states.t.view(40, 3))
    assert len({tuple(row) for row in states.t.view(40, 3).tolist()}) > 20  # not the same of all samples
    assert torch.equal(points.take(torch.tensor([50, 7])).x_t, states.x_t[[50, 7]])
    assert states.t.unique(return_counts=True)[1].min() > 4  # each step is drawn


def test_renoised_states_are_finished_samples_at_other_times() -> None:
    done = drawn(Sampler(3))
    points = States("renoised", 4)(done, ("points", 0))
    states = points.take(torch.arange(len(points)))
    assert isinstance(states, State) and len(states) == 24
    assert states.t.min() >= 0.05
    close(states.weight, time_weight(states.t), atol=1e-6)
    eps = (states.x_t - (1 - states.t)[:, None] * done.x0.repeat_interleave(4, 0)) / states.t[:, None]
    assert eps.std().item() == pytest.approx(1, abs=0.2)
    with pytest.raises(ValueError, match="trains on visited states"):
        States()(done, ("points", 0))
    with pytest.raises(ValueError, match="unknown kind of states 'visted'; did you mean 'visited'"):
        States("visted")  # type: ignore[arg-type]


# Teachers by row


class Numbered(Policy):
    """Its velocity is the number in the name of the weights; it writes down who was asked, and for how many rows."""

    def __init__(self, collective: bool = False):
        self.asked: list[tuple[str, int]] = []
        self.weights = self  # type: ignore[assignment]
        self.collective, self.held = collective, ""

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        self.held = name
        yield
        self.held = ""

    def encode(self, texts: Any) -> Condition:
        return Condition({"id": torch.zeros(len(texts))})

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        assert self.held == weights
        self.asked.append((weights, len(x)))
        own = 0.1 if not condition.tensors["id"].any() else 1.0  # a tenth without a prompt
        return torch.full_like(x, own * int(weights[-1]))

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def encode_images(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize("collective", [False, True])
def test_each_row_asks_its_own_teacher_once(collective: bool) -> None:
    """Whoever has no row is asked all the same, for one, where each pass needs all processes."""
    policy = Numbered(collective)
    velocity = row_by_row(policy, "teacher", ["t1", "t2", "t3"], [1.0, 1.0, 1.0])
    condition = Condition({"id": torch.ones(5), "teacher": torch.tensor([1, 0, 1, 1, 0])})
    found = velocity(torch.zeros(5, 2), torch.ones(5), condition)
    assert found.tolist() == [[2, 2], [1, 1], [2, 2], [2, 2], [1, 1]]
    assert policy.asked == [("t1", 2), ("t2", 3)] + [("t3", 1)] * collective


def test_each_teacher_has_its_own_guidance() -> None:
    """v_0 + g (v - v_0) with v_0 a tenth of v; blank rows keep the number of their teacher."""
    policy = Numbered()
    velocity = row_by_row(policy, "teacher", ["t1", "t2"], [1.0, 3.0])
    condition = Condition({"id": torch.ones(2), "teacher": torch.tensor([0, 1])})

    def asked(x: Tensor, t: Tensor, c: Condition, weights: str = "policy") -> Tensor:
        assert c.tensors.keys() == {"id", "teacher"}
        return torch.where(c.tensors["id"] > 0, 1.0, 0.1)[:, None] * int(weights[-1]) * torch.ones_like(x)

    policy.velocity = asked  # type: ignore[method-assign]
    found = velocity(torch.zeros(2, 1), torch.ones(2), condition)
    assert found.flatten().tolist() == pytest.approx([1.0, 0.2 + 3 * (2 - 0.2)])


# In the trainer


def trainer(tiny: str, how: OPD | None = None, rank: int | None = None, **changes: Any) -> Trainer:
    how = how or OPD(rollout=Trajectory(3), points=States(per_image=2))
    policy, texts = models.load(tiny, rank, "float32"), prompts.of("mine", TEXTS)
    teachers = taught(how, policy, texts)
    return Trainer(how, policy, changes.pop("reward", bright), texts, small(**changes), teachers=teachers)


class Affine(Policy):
    """v = W x + b of the prompt, in two dimensions; a prompt is a letter."""

    name, identity = "affine", {"family": "affine"}
    latent_shape, image_size = (2,), (1, 1)
    precision = "float32"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weights = Full(nn.ParameterDict({"w": torch.eye(2), "b": torch.zeros(4, 2)}))

    def encode(self, texts: Any) -> Condition:
        return Condition({"id": torch.tensor(["abcd".index(text) for text in texts])})

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        gradients = torch.is_grad_enabled() and weights == "policy"
        with torch.set_grad_enabled(gradients), self.weights.network(weights) as network:
            found: Tensor = x @ network.w + network.b[condition.tensors["id"]]
        return found

    def decode(self, x0: Tensor) -> Tensor:
        return x0.mean(1).view(-1, 1, 1, 1).expand(-1, 3, -1, -1)

    def encode_images(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)


WAYS = [
    {},
    {"rollout": Trajectory(4, noise=0.7), "points": States(per_image=3)},
    {"points": States("renoised")},
]


@pytest.mark.parametrize("way", WAYS, ids=["ode", "sde", "renoised"])
def test_t22_students_come_to_the_teacher_of_each_domain(way: dict[str, Any]) -> None:
    """Two teachers with one W; each knows its own two prompts, and answers nonsense for the others."""
    policy, texts = Affine(), PromptSet("letters", tuple("abcd"), ("one", "one", "two", "two"))
    right = real(4, 2).float()
    for name, known in (("one", slice(0, 2)), ("two", slice(2, 4))):
        b = torch.full((4, 2), 100.0)
        b[known] = right[known]
        policy.weights.hold(f"teacher {name}", {"w": torch.tensor([[1.0, 0.3], [0.0, 0.7]]), "b": b})
    teachers = Teachers({"one": "one", "two": "two"})
    run = Run(images_per_update=16, group_size=2, microbatch=10**6, learning_rate=0.1, schedule="cosine", warmup=0,
              iterations=90)  # fmt: skip
    how = OPD(**way)
    one = Trainer(how, policy, bright, texts, run, teachers=teachers)
    for _ in range(run.iterations):
        metrics = one.step().metrics
    found = snapshot(policy)
    assert metrics["teacher_distance"] < 0.01
    torch.testing.assert_close(found["b"], right, rtol=0, atol=0.15)
    torch.testing.assert_close(found["w"], torch.tensor([[1.0, 0.3], [0.0, 0.7]]), rtol=0, atol=0.15)


@pytest.mark.parametrize("rank", [None, 2])
def test_teachers_stay_what_they_are(tiny: str, rank: int | None) -> None:
    one = trainer(tiny, rank=rank)
    frozen = {name: snapshot(one.policy, f"teacher {name}") for name in one.teachers.named.values()}
    before = snapshot(one.policy)
    for _ in range(2):
        one.step()
    assert not equal(before, snapshot(one.policy))
    for name, values in frozen.items():
        assert equal(values, snapshot(one.policy, f"teacher {name}"))
    assert set(one.state_dict()["weights"]) == {"policy", "ema"}  # checkpoints do not store them


def test_rewards_are_only_watched(tiny: str) -> None:
    """Whatever they are, also where all are equal, the weights become the same."""
    found = []
    for reward in (bright, lambda images, *_: -bright(images, ()), lambda images, *_: torch.full((len(images),), 0.3)):
        one = trainer(tiny, reward=reward)
        lines = [one.step().metrics for _ in range(2)]
        assert all(line["gradient_norm"] > 0 for line in lines)
        found.append(snapshot(one.policy))
    assert equal(found[0], found[1]) and equal(found[0], found[2])
    assert Even()(torch.tensor([1.0, 5.0]), torch.tensor([0, 0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("option", [{"mix": "gdpo"}, {"reward_buffer": 4}, {"curriculum": 1}])
def test_what_is_for_rewards_is_refused(tiny: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"compares no rewards .* leave out --mix, --palette"):
        trainer(tiny, **option)


def test_t27_a_step_does_not_depend_on_the_order_of_teachers(tiny: str) -> None:
    """Nor on how its points are cut: gradients of all domains add up before the step."""
    found = []
    for order, size in ((1, 8), (-1, 8), (1, 2)):
        one = plain(trainer(tiny, microbatch=size))
        named = list(one.teachers.named.items())[::order]
        one = plain(Trainer(one.algorithm, one.policy, bright, one.prompts, one.run, teachers=Teachers(dict(named))))
        one.step()
        found.append(snapshot(one.policy))
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(value, other[key], rtol=0, atol=1e-6)


def test_the_teacher_of_a_row_is_that_of_its_prompt(tiny: str) -> None:
    one = trainer(tiny)
    asked = ("two rings", "a circle", "two rings")
    condition = one.encode(asked)
    number = {category: k for k, category in enumerate(one.teachers.named)}
    of = dict(zip(one.prompts.texts, one.prompts.categories, strict=True))
    assert condition.tensors["teacher"].tolist() == [number[of[text]] for text in asked]
    x, t = real(3, *one.policy.latent_shape).float(), torch.full((3,), 0.5)
    found = one.models.velocities["teacher"](x, t, condition)
    for row, text in enumerate(asked):
        name = f"teacher {one.teachers.named[of[text]]}"
        own = one.policy.velocity(x[row : row + 1], t[:1], condition[torch.tensor([row])], name)
        torch.testing.assert_close(found[row], own[0], rtol=0, atol=1e-5)


def test_all_domains_come_equally_often(tiny: str) -> None:
    one = trainer(tiny, images_per_update=4 * 20)
    rollout, _ = one.sample([one.prompts[i] for i in one.order.choose(0, 20).indices], 0)
    assert set(rollout.condition.tensors["teacher"].bincount().tolist()) <= {4, 5}


def test_i1_the_mean_over_renoised_states_is_a_divergence() -> None:
    """T26 as the trainer takes it: D w (v_p - v_q)^2 at re-noised samples of p, between two Gaussians of one number."""
    (m_p, m_q), s = (0.7, 0.9), 0.5
    x0 = m_p + s * real(20_000, 1, seed=1)
    t = Times("stratified", low=0.0)(20_000, torch.ones(1), torch.Generator().manual_seed(0)).double()
    x = interpolate(x0, real(20_000, 1, seed=2), t)
    spread = ((1 - t) ** 2 * s**2 + t**2)[:, None]

    def velocity(m: float) -> Tensor:
        clean = m + (1 - t)[:, None] * s**2 / spread * (x - (1 - t)[:, None] * m)
        return (x - clean) / t[:, None]

    total = opd(velocity(m_p), velocity(m_q), None, (1 - t) / t).mean().item()
    assert total == pytest.approx((m_p - m_q) ** 2 / (2 * s**2), rel=0.01)
