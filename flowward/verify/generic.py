"""Laws that follow from the protocol alone, so that they hold for any algorithm, a user's own included.

Points are made by the algorithm's own rollout, credit and points, from a Gaussian world whose velocity is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..models.policy import Condition, Models
from ..oracle import Discrete, Gaussian, as_velocity, covariance_with_velocity
from ..points import Points
from ..rollout import Rollout
from ..streams import Noise
from ..trainer import Algorithm
from .check import EXACT, Check, compared, equation, guarded, number, real, slope

PROMPTS, SHAPE = 5, (2, 4)
WORLD = as_velocity(Gaussian(torch.zeros(8), 0.25 * torch.eye(8)))
SOURCE = "protocol"


@dataclass(frozen=True)
class Subject:
    """An algorithm, a rollout in groups with its points in float64, and the old velocity at them."""

    algorithm: Algorithm
    rollout: Rollout
    points: Points
    unit: int
    old: Tensor

    @classmethod
    def of(cls, algorithm: Algorithm, group_size: int, reward: Callable[[Rollout], Tensor]) -> Subject:
        """Raises ValueError where the algorithm does not take groups of this size."""
        group = torch.arange(PROMPTS).repeat_interleave(group_size)
        condition = Condition({"id": torch.arange(float(PROMPTS))})
        noise = Noise(SHAPE, tuple(("verify", g, k % group_size) for k, g in enumerate(group.tolist())))
        drawn = algorithm.rollout(WORLD, condition[group], noise)
        done = Rollout.of([drawn], condition, group, algorithm.rollout.levels)
        scores = reward(done)
        done = replace(done, reward=scores, advantage=algorithm.credit(scores, group))
        made = algorithm.points(done, ("verify points", 0))
        points = _wide(made.take(torch.arange(len(made))))
        old = points.known.get("old", WORLD(points.x_t, points.t, points.condition))
        return cls(algorithm, done, points, made.unit, old)

    def loss(self, v: Tensor, old: Tensor, reference: Tensor, points: Points | None = None) -> Tensor:
        points = points or self.points
        return equation(self.algorithm, _with_old(points, old), old, reference)(v)

    def slope(self, points: Points | None = None) -> Tensor:
        """On policy, where policy, old and reference agree."""
        return slope(lambda v: self.loss(v, self.old, self.old, points), self.old)


def _wide(points: Points) -> Points:
    """In float64."""
    names = ("x_t", "t", "x0", "eps", "advantage")
    known = {name: v.double() for name, v in points.known.items()}
    delta = None if points.delta is None else points.delta.double()
    return replace(points, **{name: getattr(points, name).double() for name in names}, known=known, delta=delta)


def _with_old(points: Points, old: Tensor) -> Points:
    """A recorded velocity of the old policy is the one that a case wants."""
    return points.knowing({"old": old}) if "old" in points.known else points


def linear(rollout: Rollout) -> Tensor:
    """R = the sum of a sample's elements."""
    return rollout.x0.flatten(1).sum(1)


def laws(algorithm: Algorithm) -> Iterator[Check]:
    """All of them. Groups are of four samples, or of two where the algorithm takes no others (it compares pairs)."""
    try:
        subject = Subject.of(algorithm, 4, linear)
    except Exception:  # a user's class may fail in any way; if it was not the size, it fails again
        try:
            subject = Subject.of(algorithm, 2, linear)
        except Exception as error:
            law, said = "rollout, credit and points go together", f"{type(error).__name__}: {error}"
            yield Check(law, SOURCE, math.nan, math.nan, math.inf, 0.0, said)
            return
    for law_of in LAWS:
        yield from guarded(law_of(subject), (law_of.__doc__ or "").split("\n")[0].rstrip("."), SOURCE)


def shapes(subject: Subject) -> Iterator[Check]:
    """One loss per point, and watched numbers per point that carry no gradient."""
    v, old = subject.old.clone().requires_grad_(), subject.old
    points = _with_old(subject.points, old)
    loss, watched = subject.algorithm.loss(Models(lambda *_: v, lambda *_: old, lambda *_: old), points)
    wrong = [name for name, values in watched.items() if values.shape != points.t.shape or values.requires_grad]
    wrong += [] if loss.shape == points.t.shape else [f"the loss has shape {list(loss.shape)}"]
    law = "exceptions to: one loss per point, watched numbers too, and those without gradient"
    yield number(law, SOURCE, len(wrong), 0, 0, ", ".join(wrong))


def finite(subject: Subject) -> Iterator[Check]:
    """Loss and gradient are finite."""
    points = subject.points
    ends = {
        "t in (0, 1)": points,
        "t = 0": replace(points, t=torch.zeros_like(points.t), x_t=points.x0),
        "t = 1": replace(points, t=torch.ones_like(points.t), x_t=points.eps),
    }
    for where, at in ends.items():
        u, old, off = at.eps - at.x0, subject.old, subject.old + real(*subject.old.shape) / 100
        same = replace(at, x0=at.x0[:1].expand_as(at.x0), delta=None if at.delta is None else torch.zeros_like(at.x0))
        cases = [
            (at, off, old), (at, old, old), (at, u, u), (same, off, old),
            (replace(at, advantage=torch.zeros_like(at.t)), off, old),
        ]  # fmt: skip
        bad = 0
        for case, v, anchor in cases:
            v = v.clone().requires_grad_()
            loss = subject.loss(v, anchor, anchor, case)
            bad += int((~loss.isfinite()).sum() + (~torch.autograd.grad(loss.sum(), v)[0].isfinite()).sum())
        law = f"values of loss and gradient that are not finite, {where}"
        yield number(law, SOURCE, bad, 0, 0, "nan or infinite")


def evaluations(subject: Subject) -> Iterator[Check]:
    """Each velocity is asked for once per point, and only if it is declared."""
    algorithm, points = subject.algorithm, subject.points
    declared = set(algorithm.anchors)
    calls: list[tuple[str, int, bool]] = []

    def counted(name: str, v: Tensor) -> Callable[..., Tensor]:
        def velocity(x: Tensor, *_: object) -> Tensor:
            calls.append((name, len(x), torch.is_grad_enabled()))
            return v[: len(x)]

        return velocity

    v = subject.old.clone().requires_grad_()
    models = Models(counted("policy", v), counted("old", subject.old), counted("reference", subject.old))
    algorithm.loss(models, points)
    policy = [(rows, graded) for name, rows, graded in calls if name == "policy"]
    graded = sum(rows for rows, graded in policy if graded) / len(points)
    yield number("evaluations of the policy per point, with gradient", SOURCE, graded, 1, 0, "work that is not needed")
    more = sum(rows for rows, graded in policy if not graded)
    undeclared = more + sum(rows for name, rows, _ in calls if name not in {"policy", *declared})
    others = sorted({name for name, _, _ in calls} - {"policy", *declared})
    law = f"evaluations per point beyond those declared: policy{''.join(f', {name}' for name in sorted(declared))}"
    yield number(law, SOURCE, undeclared / len(points), 0, 0, f"asks for {', '.join(others) or 'the policy, twice'}")
    calls.clear()
    algorithm.loss(models, points.knowing(dict.fromkeys(declared, subject.old)))
    again = sum(rows for name, rows, _ in calls if name != "policy") / len(points)
    yield number(
        "evaluations per point of anchors that are known already", SOURCE, again, 0, 0, "use models.at(name, points)"
    )


def kept(subject: Subject) -> Iterator[Check]:
    """Every copy that the rollout or the loss uses is kept."""
    algorithm = subject.algorithm
    used = {algorithm.behaviour, *algorithm.anchors} - {"policy", "reference"}
    missing = sorted(used - set(algorithm.copies)) + sorted(set(algorithm.anchors) - {"old", "reference"})
    law = "copies that rollout or loss use and `copies` lacks"
    yield number(law, SOURCE, len(missing), 0, 0, ", ".join(missing))


def credit(subject: Subject) -> Iterator[Check]:
    """The best sample of a prompt has a larger advantage than the worst."""
    done = subject.rollout
    right = []
    for members in done.by_group():
        reward, advantage = done.reward[members], done.advantage[members]
        right.append((advantage[reward.argmax()] - advantage[reward.argmin()]).sign().item())
    remark = "wrong sign: credit rewards the worse samples" if max(right) < 0 else "not all prompts"
    law = "credit: sign of A(best) - A(worst) of a prompt"
    yield number(law, SOURCE, sum(right) / len(right), 1, 0, remark)


def ownership(subject: Subject) -> Iterator[Check]:
    """A point has the advantage of its own sample, and a difference that goes from the other sample to its own."""
    points, done, right = subject.points, subject.rollout, []
    value = (points.x0 if points.delta is None else points.delta).flatten(1).sum(1)  # R, or half a difference of R

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        return (a - a.mean()) @ (b - b.mean()).double()

    for prompt in range(PROMPTS):
        mine, drawn = points.condition.tensors["id"] == prompt, done.group == prompt
        given = covariance(done.advantage[drawn], done.reward[drawn])  # a wrong credit is no concern of this law
        right.append((given * covariance(points.advantage[mine], value[mine])).sign().item())
    what = "sample" if points.delta is None else "delta"
    remark = "wrong sign: another sample's" if max(right) < 0 else "not all prompts"
    law = f"sign of Cov(A, reward of the {what}) at points times that of samples"
    yield number(law, SOURCE, sum(right) / len(right), 1, 0, remark)


def nothing_to_learn(subject: Subject) -> Iterator[Check]:
    """Without a difference in reward there is no advantage and no gradient."""
    size = int(subject.rollout.group.bincount()[0])
    for what, values in (
        ("all rewards equal", torch.full((PROMPTS,), 0.1)),
        ("prompts solved or hopeless", torch.tensor([1.0, 0.0, 1.0, 0.0, 0.3])),
    ):
        same = Subject.of(subject.algorithm, size, lambda done, values=values: values[done.group])  # type: ignore[misc]
        zero = torch.zeros_like(same.rollout.advantage)
        yield compared(f"{what}: largest advantage", SOURCE, same.rollout.advantage, zero, 0.0)
        yield compared(f"{what}: largest gradient on policy", SOURCE, same.slope(), torch.zeros_like(same.old), 1e-12)


def direction(subject: Subject) -> Iterator[Check]:
    """A step down the loss moves each point's clean prediction to the sample if A > 0, away from it if A < 0."""
    points = subject.points
    if points.delta is None:
        way, what = points.eps - points.x0 - subject.old, "u - v_old"
    else:
        way, what = -points.delta, "-delta"
    towards = (-subject.slope() * way).flatten(1).sum(1)
    moving = points.advantage.abs() > 1e-6
    signs = (towards.sign() * points.advantage.sign())[moving]
    remark = "wrong sign: moves away from better samples" if (signs < 0).all() else f"at {(signs < 1).sum()} points"
    law = f"on policy, sign of A (step down the loss) . ({what})"
    yield number(law, SOURCE, signs.mean().item(), 1, 0, remark)


def covariance(subject: Subject) -> Iterator[Check]:
    """On policy the gradient, averaged over all samples behind a noisy point, points along -Cov(R, u | x_t).

    Atoms of a discrete world in all pairs, weighed by their exact posterior. Rewards of 0 and 1 make every centred
    credit of a pair proportional to the difference of its rewards, so what follows holds for any of them; atoms that
    are equally far from each other do the same for losses that divide by a pair's distance.
    """
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    atoms = reduce(torch.kron, [signs] * 4) / 4  # [16, 16], close enough for all to be behind a noisy point
    world, won = Discrete(atoms, 1 + torch.arange(16) % 3), (torch.arange(16) % 5 < 2).double()
    t = torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    noisy = real(5, 16, seed=2)
    pairs = torch.combinations(torch.arange(16))
    weight = world.posterior(noisy, t).weights[:, pairs].prod(2).repeat_interleave(2)  # of every row
    sample, at = pairs.flatten().repeat(5), torch.arange(5).repeat_interleave(2 * len(pairs))
    group = torch.arange(len(sample)) // 2
    x_t, x0 = noisy[at], world.atoms[sample]
    eps = (x_t - (1 - t[at])[:, None] * x0) / t[at][:, None]
    old = world.velocity(noisy, t)[at]
    points = Points(
        x_t=x_t, t=t[at], x0=x0, eps=eps, advantage=subject.algorithm.credit(won[sample].float(), group).double(),
        condition=Condition({"id": torch.zeros(len(group))}), group=group, exemplar=torch.zeros(len(group)).bool(),
        delta=None if subject.points.delta is None else (x0 - x0.view(-1, 2, 16).flip(1).flatten(0, 1)) / 2,
        known={"old": old} if "old" in subject.points.known else {},
    )  # fmt: skip
    gradient = slope(equation(subject.algorithm, points, old, old), old) * weight[:, None]
    found = torch.zeros_like(noisy).index_add_(0, at, gradient)
    expected = -covariance_with_velocity(world, lambda x: won, noisy, t)
    cosine = torch.cosine_similarity(found, expected).min().item()
    law = "on policy, cosine of the expected gradient with -Cov(R, u | x_t), least of 5"
    remark = "wrong sign: against the reward" if cosine < 0 else "another direction"
    yield number(law, "derived 1", cosine, 1, 0.02, remark)


def neighbours(subject: Subject) -> Iterator[Check]:
    """The loss of a unit is the same alone and among others."""
    points, old = subject.points, subject.old
    v, reference = old + real(*old.shape) / 10, old + real(*old.shape, seed=1) / 10
    together = subject.loss(v, old, reference)
    rows = torch.cat([torch.arange(subject.unit) + number * subject.unit for number in (2, 0)])
    apart = subject.loss(v[rows], old[rows], reference[rows], points[rows])
    yield compared("loss of a unit, alone and among others", SOURCE, apart, together[rows], EXACT)


def reach(subject: Subject) -> Iterator[Check]:
    """The gradient reaches the weights of the policy, and those of no anchor."""
    weights = {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in ("policy", "old", "reference")}

    def under(name: str) -> Callable[..., Tensor]:
        def velocity(x: Tensor, *_: object) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and name == "policy"):  # as models.policy.Policy does
                return weights[name] * subject.old

        return velocity

    loss, _ = subject.algorithm.loss(Models(under("policy"), under("old"), under("reference")), subject.points)
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss.sum(), list(weights.values()), allow_unused=True)
    policy, *anchors = (0.0 if gradient is None else gradient.abs().item() for gradient in gradients)
    yield number("gradient on the weights of anchors", SOURCE, sum(anchors), 0, 0, "an anchor is trained")
    yield number(
        "gradient on the weights of the policy is there", SOURCE, float(policy > 0), 1, 0, "nothing is trained"
    )


LAWS = (
    shapes,
    finite,
    evaluations,
    kept,
    credit,
    ownership,
    nothing_to_learn,
    direction,
    covariance,
    neighbours,
    reach,
)
