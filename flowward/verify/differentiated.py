"""Laws of losses that differentiate a reward: their protocol, and numbers T42 to T45 of our notes.

The world is Gaussian, so its velocity is linear in x, and the derivative of a sample by anything is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms.adjoint_matching import adjoint_matching, lean_adjoint
from ..algorithms.algorithm import Algorithm
from ..algorithms.ascent import ascent, unrolled
from ..algorithms.draft import DRaFT
from ..algorithms.srpo import recovered
from ..process.flow import mean, over
from ..process.noise import Noise
from ..process.policy import PLAIN, Condition, Models, Velocity, Wording
from ..process.rollout import Rollout
from ..process.trails import Trail
from .check import AUTOGRAD, EXACT, Check, Kind, compared, guarded, number, real
from .worlds import Gaussian, Linear, Quadratic, as_velocity, kl_tilt

DRAFT, REFL, SRPO_PAPER, ADJOINT = "2309.17400", "2304.05977", "2509.06942", "2409.08861"
SHAPE, IMAGES = (2, 4), 6
SOURCE = "protocol"
WORLD = as_velocity(Gaussian(real(8, seed=5) / 4, 0.25 * torch.eye(8)))
TOWARDS, BOWL = real(8, seed=6), real(8, seed=7).exp()


def reward(x0: Tensor) -> Tensor:
    """R(x) = k . x - x' B x / 2, [B]."""
    x = x0.flatten(1).double()
    return x @ TOWARDS - (BOWL * x**2).sum(1) / 2


def slope(x0: Tensor, condition: Condition, wording: Wording) -> tuple[Tensor, Tensor]:
    """The reward and its derivative."""
    return reward(x0), (TOWARDS - BOWL * x0.flatten(1).double()).view_as(x0)


def product(velocity: Velocity) -> Callable[..., tuple[Tensor, Tensor]]:
    """Its vector-Jacobian product, by autograd."""

    def found(x: Tensor, t: Tensor, condition: Condition, vector: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t, condition)
            return v.detach(), torch.autograd.grad(v, x, vector.to(v))[0]

    return found


def drawn(algorithm: Algorithm, velocity: Velocity = WORLD) -> Rollout:
    """Six samples of the algorithm's own rollout, in two groups, in float64."""
    group = torch.arange(2).repeat_interleave(IMAGES // 2)
    condition = Condition({"id": torch.arange(2.0)})
    noise = Noise(SHAPE, tuple(("verify", g, k % 3) for k, g in enumerate(group.tolist())))
    found = algorithm.rollout.at(0, 0)(lambda x, t, c: velocity(x.double(), t.double(), c), condition[group], noise)
    made = Rollout.of([found], condition, group, algorithm.rollout.levels)
    scores = reward(made.x0).float()
    return replace(made, reward=scores, advantage=algorithm.credit(scores, made.cohort))


def points_of(algorithm: Algorithm, done: Rollout) -> Any:
    """All its points, with times in float64."""
    made = algorithm.points(done, ("verify points", 0))
    points: Any = made.take(torch.arange(len(made)))
    return replace(points, t=points.t.double())


def shifted(by: Tensor, velocity: Velocity = WORLD) -> Velocity:
    """The velocity plus a constant [...], of which the loss is a function."""
    return lambda x, t, condition: velocity(x.double(), t.double(), condition) + by


def models(policy: Velocity, reference: Velocity = WORLD) -> Models:
    """The functions that a loss may call, in this world."""
    multiply = product(lambda x, t, c: reference(x.double(), t.double(), c))
    return Models(policy, reference, reference).differentiating(slope, multiply)


def gradient(algorithm: Any, points: Any, velocity: Velocity = WORLD) -> Tensor:
    """The derivative of the summed loss by a constant that is added to the policy's velocity, [...]."""
    by = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    loss, _ = algorithm.loss(models(shifted(by, velocity)), points)
    found: Tensor = torch.autograd.grad(loss.sum(), by)[0]
    return found


def laws(algorithm: Algorithm) -> Iterator[Check]:
    """The protocol of an algorithm that differentiates the reward, also of a user's own."""
    yield from guarded(_protocol(algorithm), "rollout, points and loss work together", SOURCE)


def _protocol(algorithm: Any) -> Iterator[Check]:
    done = drawn(algorithm)
    points, by = points_of(algorithm, done), torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    calls: list[str] = []

    def asked(name: str, velocity: Velocity) -> Velocity:
        def counting(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            calls.append(name)
            return velocity(x, t, condition)

        return counting

    plain = models(asked("policy", shifted(by)))
    anchored = Models(plain.velocities["policy"], asked("old", WORLD), asked("reference", WORLD))
    loss, watched = algorithm.loss(anchored.differentiating(plain.slope, plain.product), points)
    wrong = [name for name, values in watched.items() if values.requires_grad]
    wrong += [name for name, values in watched.items() if values.ndim != 1 or len(values) > len(points)]
    wrong += [] if loss.shape == points.t.shape else [f"the loss has shape {list(loss.shape)}"]
    law = "exceptions to: one loss per point; metrics per point and without gradient"
    yield number(law, SOURCE, len(wrong), 0, 0, ", ".join(wrong))
    undeclared = len({*calls} - {"policy", *algorithm.anchors})
    yield number("velocities that the loss asks for but does not declare", SOURCE, undeclared, 0, 0, "see `anchors`")
    found: Tensor = torch.autograd.grad(loss.sum(), by)[0]
    bad = int((~loss.isfinite()).sum() + (~found.isfinite()).sum())
    yield number("values of loss and gradient that are not finite", SOURCE, bad, 0, 0, "NaN or infinite")
    yield from _alone(algorithm, done, loss.detach())
    with torch.no_grad():
        ahead = -1e-4 * found / found.norm()
        better = [reward(unrolled(shifted(sign * ahead), *_chain(done))).mean() for sign in (1, -1)]
    law = "a step down the loss raises the mean reward of samples (1: yes)"
    yield number(law, SOURCE, float(better[0] > better[1]), 1, 0, "against the reward")
    same = algorithm.credit(done.reward, done.cohort)
    yield compared("every sample counts alike: its advantage is 1", SOURCE, same, torch.ones_like(same), 0.0)


def _alone(algorithm: Any, done: Rollout, together: Tensor) -> Iterator[Check]:
    """The loss of an image does not depend on the others in the call."""
    made = algorithm.points(done, ("verify points", 0))
    units = made.units()
    rows = torch.cat([units[number] for number in (2, 0)])
    taken = made.take(rows)
    apart, _ = algorithm.loss(models(shifted(torch.zeros(SHAPE))), replace(taken, t=taken.t.double()))
    yield compared("loss of an image, alone and in a larger batch", SOURCE, apart, together[rows], EXACT)


def _chain(done: Rollout) -> tuple[Tensor, Tensor, Condition]:
    """Noise, the times of ten steps and a condition."""
    way = torch.linspace(1, 0, 11, dtype=torch.float64).expand(64, -1)
    return real(64, *SHAPE, seed=8), way, done.condition[torch.zeros(64, dtype=torch.long)]


def draft(kind: Kind) -> Iterator[Check]:
    for kept, said in ((1, "K = 1"), (3, "K = 3"), (10, "T44: K = S")):
        algorithm = kind(rollout=Trail(kept=kept))
        points = points_of(algorithm, drawn(algorithm))
        ways = real(8, *SHAPE, seed=9)

        def mean_of(by: Tensor, points: Any = points) -> Tensor:
            return -reward(unrolled(shifted(by), points.x_t, points.way, points.condition)).sum()

        expected = torch.stack([(mean_of(1e-5 * way) - mean_of(-1e-5 * way)) / 2e-5 for way in ways])
        found = torch.stack([(gradient(algorithm, points) * way).sum() for way in ways])
        law = f"{said}: derivative of -R of samples by a shift of v in the last K steps = finite differences"
        yield compared(law, DRAFT, found, expected, 1e-6)
    algorithm = kind()
    done = drawn(algorithm)
    ends = unrolled(WORLD, points_of(algorithm, done).x_t, points_of(algorithm, done).way, done.condition[done.group])
    yield compared("the steps that are run again end at the recorded sample", DRAFT, ends, done.x0, 1e-6)
    yield from _surrogate()


def _surrogate() -> Iterator[Check]:
    """The loss that all of these share."""
    x = real(6, *SHAPE, seed=10).requires_grad_()
    score, down = slope(x.detach(), Condition({}), PLAIN)
    (found,) = torch.autograd.grad(ascent(x, score, down).sum(), x)
    yield compared("gradient -dR/dx0, whatever x0 is a function of", AUTOGRAD, found, -down)
    yield compared("the value of the loss is -R", SOURCE, ascent(x, score, down).detach(), -score)
    middle = score.median().item() + 1e-9
    loss = ascent(x, score, down, middle)
    (found,) = torch.autograd.grad(loss.sum(), x)
    yield compared("with a ceiling c: max(c - R, 0)", REFL, loss.detach(), (middle - score).clamp_min(0))
    share = (found.flatten(1).norm(dim=1) == 0).double()
    yield compared("with a ceiling: no gradient above it", REFL, share, (score >= middle).double())


def refl(kind: Kind) -> Iterator[Check]:
    last = kind(rollout=Trail(kept=1))
    done = drawn(last)
    mine, draft_1 = (points_of(each, done) for each in (last, DRaFT()))
    yield compared(
        "T45: at the last step, the gradient of DRaFT-1", REFL, gradient(last, mine), gradient(DRaFT(), draft_1)
    )
    algorithm = kind(rollout=Trail(kept=4))
    points = points_of(algorithm, drawn(algorithm))
    clean = points.x_t - over(points.t, points.x_t) * WORLD(points.x_t, points.t, points.condition)
    loss, _ = algorithm.loss(models(shifted(torch.zeros(SHAPE))), points)
    yield compared("loss -R of the clean prediction at a late step", REFL, loss, -reward(clean), 1e-6)
    _, down = slope(clean, points.condition, PLAIN)
    expected = (over(points.t, down) * down).sum(0)
    yield compared("gradient on v: t dR/df", REFL, gradient(algorithm, points), expected, 1e-6)
    late = float((points.t <= 0.4 + 1e-6).all())
    yield number("times are those of the last recorded steps (1: yes)", REFL, late, 1, 0)


def srpo(kind: Kind) -> Iterator[Check]:
    algorithm = kind()
    done = drawn(algorithm)
    points = points_of(algorithm, done)
    t, until, eps = points.t, points.until.double(), points.eps.double()
    x0 = points.x0.double()
    x_t = (1 - over(t, x0)) * x0 + over(t, x0) * eps
    v = real(*x0.shape, seed=11)
    share = over((until - t) / (1 - until), x0)
    found = recovered(x_t, t, until, v, eps)
    yield compared(
        "T43: x0rec = x0 + (t' - t) / (1 - t') (v - u)", SRPO_PAPER, found, x0 + share * (v - (eps - x0)), 1e-12
    )
    found = recovered(x_t, t, until, eps - x0, eps)
    yield compared("T43: v = u recovers the sample", SRPO_PAPER, found, x0, 1e-12)
    points = replace(points, x_t=x_t, x0=x0, eps=eps, until=until)
    moved = recovered(x_t, t, until, WORLD(x_t, t, points.condition), eps)
    _, down = slope(moved, points.condition, PLAIN)
    expected = (over((until - t).abs() / (1 - until), down) * down).sum(0)
    law = "gradient on v: |t' - t| / (1 - t') dR/dx0rec, for steps down and up alike"
    yield compared(law, SRPO_PAPER, gradient(algorithm, points), expected)
    up = torch.tensor([False, True])
    weights = kind(contrast_down=0.1, contrast_up=0.3).wording(up)
    expected = torch.tensor([[1.1, 1.3], [-1.0, -1.0]])
    law = "contrast: (1 + k) r(good words) - r(bad words), with the k of its direction"
    yield compared(law, SRPO_PAPER, torch.stack([*weights.values()]), expected, 1e-6)


def adjoint(kind: Kind) -> Iterator[Check]:
    yield from _published_numbers()
    yield from _fixed_point()
    algorithm = kind(temperature=0.5)
    points = points_of(algorithm, drawn(algorithm))
    by = real(*SHAPE, seed=12)
    loss, _ = algorithm.loss(models(shifted(by)), points)
    b = _carried(points, 0.5)
    expected = 2 * (1 - points.t) / points.t * mean((by - over(points.t, b) * b) ** 2)
    law = "loss 2 (1 - t) / t |v - v_ref - t b|^2, b carried along each trajectory"
    yield compared(law, ADJOINT, loss, expected, 1e-6)
    few = kind(temperature=0.5, points=replace(algorithm.points, trained=4))
    some = points_of(few, drawn(few))
    part, _ = few.loss(models(shifted(by)), some)
    law = "trained on some states: their losses are the same, the others' 0"
    yield compared(law, ADJOINT, part, torch.where(some.chosen, loss, 0.0))


def _carried(points: Any, temperature: float) -> Tensor:
    """b at every state [B, ...], by the product of the exact Jacobian of the Gaussian world."""
    b, rows = torch.zeros_like(points.x0), len(points) // IMAGES
    for image in range(IMAGES):
        own = slice(image * rows, (image + 1) * rows)
        times, x0 = [*points.t[own].tolist(), 0.0], points.x0[own][:1]
        carried = -slope(x0, points.condition, PLAIN)[1] / temperature
        for state in reversed(range(rows)):
            t = times[state]
            jacobian = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
            carried = carried * (1 - 2 * (t - times[state + 1]) * jacobian)
            b[image * rows + state] = carried[0]
    return b


def _carried_to(b: Tensor, t: float, variance: float) -> Tensor:
    """b [B, 1] at time t, from its value at the sample of a Gaussian of this variance, by many small steps.

    Three step lengths, whose errors of first and second order cancel. States do not matter: the Jacobian is the same
    everywhere.
    """

    def by(steps: int) -> Tensor:
        times = torch.linspace(t, 0, steps + 1, dtype=torch.float64).tolist()

        def multiply(state: int, vector: Tensor) -> tuple[Tensor, Tensor]:
            s = times[state]
            return vector, (s - (1 - s) * variance) / ((1 - s) ** 2 * variance + s**2) * vector

        return lean_adjoint(b, times, multiply)[0][0]

    return (by(200) - 6 * by(400) + 8 * by(800)) / 3


def _published_numbers() -> Iterator[Check]:
    """T42: N(.3, .64), R = x, tau = .8."""
    world = Gaussian(torch.tensor([0.3]), torch.tensor([[0.64]]))
    tilted = kl_tilt(world, Linear(torch.tensor([1.0])), 0.8)
    start = torch.full((1, 1), -1 / 0.8, dtype=torch.float64)
    found = 0.1 * _carried_to(start, 0.9, 0.64)
    law = "T42: Gaussian, linear reward: lean adjoint a at t = 0.9"
    yield compared(law, ADJOINT, found, torch.tensor([[-0.097991]], dtype=torch.float64), 1e-5)
    x = torch.ones(1, 1, dtype=torch.float64)
    gap = tilted.velocity(x, 0.9) - world.velocity(x, 0.9)
    yield compared("T42: t / (1 - t) a is v* - v_ref of the KL tilt", ADJOINT, 9 * found, gap, 1e-5)


def _fixed_point() -> Iterator[Check]:
    """Under samples of the exact tilt, the mean of t b at a state is the velocity's change: the loss rests there."""
    world = Gaussian(torch.zeros(1), torch.eye(1))
    bowl = Quadratic(torch.eye(1), torch.zeros(1))
    tilted = kl_tilt(world, bowl, 1.0)
    found, expected, rest = [], [], []
    for t, x in ((0.9, 1.0), (0.5, -0.4), (0.2, 1.3)):
        place = torch.tensor([[x]], dtype=torch.float64)
        x0 = tilted.given(place, t).sample  # E[x0 | x_t]; b is linear in x0
        b = _carried_to(x0, t, 1.0)
        gap = tilted.velocity(place, t) - world.velocity(place, t)
        found.append(t * b)
        expected.append(gap)
        v = (world.velocity(place, t) + gap).requires_grad_()
        loss = adjoint_matching(v, world.velocity(place, t), b, torch.tensor([t], dtype=torch.float64))
        rest.append(torch.autograd.grad(loss.sum(), v)[0])
    law = "Gaussian, R = -x^2/2: under the exact KL tilt, E[t b | x_t] is v* - v_ref"
    yield compared(law, ADJOINT, torch.cat(found), torch.cat(expected), 1e-5)
    yield number("and the gradient of the loss is 0 there", ADJOINT, max(each.abs().item() for each in rest), 0, 1e-5)


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {
    "draft": draft,
    "refl": refl,
    "srpo": srpo,
    "adjoint_matching": adjoint,
}
