"""The laws of the protocol. They hold for every algorithm, including a user's own.

The algorithm's own rollout, credit and points produce the training points, in a Gaussian world with known velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms.algorithm import Algorithm
from ..process.noise import Noise
from ..process.policy import Condition, Models, Velocity
from ..process.rollout import Rollout
from . import kinds
from .check import EXACT, Check, compared, equation, guarded, number, real, slope
from .worlds import Gaussian, as_velocity

PROMPTS, SHAPE = 5, (2, 4)
WORLD = as_velocity(Gaussian(torch.zeros(8), 0.25 * torch.eye(8)))
SOURCE = "protocol"


@dataclass(frozen=True)
class Subject:
    """An algorithm, a rollout in groups, its training points in float64, and the old velocity there."""

    algorithm: Algorithm
    rollout: Rollout
    points: Any  # a Batch
    units: tuple[Tensor, ...]  # numbers of the points that are shuffled as one
    old: Tensor

    @classmethod
    def first(cls, algorithm: Algorithm, velocity: Velocity = WORLD) -> Subject:
        """With groups of at least four samples, or of two if that fails; groups contain whole roots.

        If one root gives nothing to compare, groups have two.
        """
        leaves = algorithm.rollout.leaves
        try:
            found = cls.of(algorithm, -(-4 // leaves) * leaves, linear, velocity)
            alone = leaves > 1 and not found.points.advantage.any()
            return cls.of(algorithm, 2 * leaves, linear, velocity) if alone else found
        except Exception:  # a user's class may raise anything; if the group size was not the reason, it fails again
            return cls.of(algorithm, -(-2 // leaves) * leaves, linear, velocity)

    @classmethod
    def of(
        cls, algorithm: Algorithm, group_size: int, reward: Callable[[Rollout], Tensor], velocity: Velocity = WORLD
    ) -> Subject:
        """With groups of this size, drawn with this velocity; raises ValueError if the algorithm does not take them."""
        group = torch.arange(PROMPTS).repeat_interleave(group_size)
        condition = Condition({"id": torch.arange(float(PROMPTS))})
        noise = Noise(SHAPE, tuple(("verify", g, k % group_size) for k, g in enumerate(group.tolist())))
        drawn = algorithm.rollout.at(0, 0)(velocity, condition[group], noise)
        done = Rollout.of([drawn], condition, group, algorithm.rollout.levels)
        scores = reward(done)
        done = replace(done, reward=scores, advantage=algorithm.credit(scores, done.cohort))
        made = algorithm.points(done, ("verify points", 0))
        points = _wide(made.take(torch.arange(len(made))))
        old = points.known.get("old", WORLD(points.x_t, points.t, points.condition))
        return cls(algorithm, done, points, tuple(made.units()), old)

    def loss(self, v: Tensor, old: Tensor, reference: Tensor, points: Any = None) -> Tensor:
        """The loss of each point with these velocities of policy, old policy and reference."""
        points = self.points if points is None else points
        return equation(self.algorithm, _with_old(points, old), old, reference)(v)

    def slope(self, points: Any = None) -> Tensor:
        """The gradient on policy, with equal velocities of policy, old policy and reference."""
        return slope(lambda v: self.loss(v, self.old, self.old, points), self.old)


def _wide(points: Any) -> Any:
    """Convert all floating-point tensors to float64."""
    values = {each.name: getattr(points, each.name) for each in fields(points)}
    numbers: dict[str, Any] = {
        name: v.double() for name, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()
    }
    return replace(points, **numbers, known={name: v.double() for name, v in points.known.items()})


def _with_old(points: Any, old: Tensor) -> Any:
    """Replace a recorded velocity of the old policy, if there is one."""
    return points.knowing({"old": old}) if "old" in points.known else points


def linear(rollout: Rollout) -> Tensor:
    """The reward R = sum of a sample's elements."""
    return rollout.x0.flatten(1).sum(1)


def laws(algorithm: Algorithm) -> Iterator[Check]:
    """Check all laws of the protocol."""
    try:
        subject = Subject.first(algorithm)
    except Exception as error:  # a user's class may raise anything
        law, said = "rollout, credit and points work together", f"{type(error).__name__}: {error}"
        yield Check(law, SOURCE, math.nan, math.nan, math.inf, 0.0, said)
        return
    for law_of in LAWS:
        yield from guarded(law_of(subject), (law_of.__doc__ or "").split("\n")[0].rstrip("."), SOURCE)


def shapes(subject: Subject) -> Iterator[Check]:
    """One loss per point, and metrics of all or some points, without gradient."""
    v, old = subject.old.clone().requires_grad_(), subject.old
    points = _with_old(subject.points, old)
    loss, watched = subject.algorithm.loss(Models(lambda *_: v, lambda *_: old, lambda *_: old), points)
    wrong = [name for name, values in watched.items() if values.requires_grad]
    wrong += [name for name, values in watched.items() if values.ndim != 1 or len(values) > len(points)]
    wrong += [] if loss.shape == points.t.shape else [f"the loss has shape {list(loss.shape)}"]
    law = "exceptions to: one loss per point; metrics per point and without gradient"
    yield number(law, SOURCE, len(wrong), 0, 0, ", ".join(wrong))


def finite(subject: Subject) -> Iterator[Check]:
    """Loss and gradient are finite."""
    for where, at in kinds.ends(subject.points).items():
        bad = 0
        for case, v, anchor in kinds.cases(at, subject.old):
            v = v.clone().requires_grad_()
            loss = subject.loss(v, anchor, anchor, case)
            bad += int((~loss.isfinite()).sum() + (~torch.autograd.grad(loss.sum(), v)[0].isfinite()).sum())
        law = f"values of loss and gradient that are not finite, {where}"
        yield number(law, SOURCE, bad, 0, 0, "NaN or infinite")


def evaluations(subject: Subject) -> Iterator[Check]:
    """Each velocity is evaluated once per point, and only if it is declared."""
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
    law, remark = "evaluations of the policy per point, with gradient", "exactly one evaluation is needed"
    yield number(law, SOURCE, graded, 1, 0, remark)
    more = sum(rows for rows, graded in policy if not graded)
    undeclared = more + sum(rows for name, rows, _ in calls if name not in {"policy", *declared})
    others = sorted({name for name, _, _ in calls} - {"policy", *declared})
    law = f"evaluations per point beyond those declared: policy{''.join(f', {name}' for name in sorted(declared))}"
    yield number(law, SOURCE, undeclared / len(points), 0, 0, f"evaluates {', '.join(others) or 'the policy twice'}")
    calls.clear()
    algorithm.loss(models, points.knowing(dict.fromkeys(declared, subject.old)))
    again = sum(rows for name, rows, _ in calls if name != "policy") / len(points)
    law = "evaluations per point of anchors with known velocities"
    yield number(law, SOURCE, again, 0, 0, "use models.at(name, points)")


def kept(subject: Subject) -> Iterator[Check]:
    """Every policy copy that the rollout or the loss uses is declared in `copies`."""
    algorithm = subject.algorithm
    used = {algorithm.behaviour, *algorithm.anchors} - {"policy", "reference"}
    missing = sorted(used - set(algorithm.copies)) + sorted(set(algorithm.anchors) - {"old", "reference"})
    law = "copies that rollout or loss use but `copies` does not declare"
    yield number(law, SOURCE, len(missing), 0, 0, ", ".join(missing))


def credit(subject: Subject) -> Iterator[Check]:
    """Among compared samples, the best has a larger advantage than the worst."""
    done = subject.rollout
    right = []
    for cohort in done.cohort.unique():
        reward, advantage = done.reward[done.cohort == cohort], done.advantage[done.cohort == cohort]
        right.append((advantage[reward.argmax()] - advantage[reward.argmin()]).sign().item())
    remark = "wrong sign: credit rewards the worse samples" if max(right) < 0 else "not for all prompts"
    law = "credit: sign of A(best) - A(worst) of a prompt"
    yield number(law, SOURCE, sum(right) / len(right), 1, 0, remark)


def ownership(subject: Subject) -> Iterator[Check]:
    """A point has the advantage of its own sample; `delta` points from the other sample of the pair to its own."""
    right, what = kinds.owned(subject.points, subject.rollout)
    remark = "wrong sign: advantages of another sample" if max(right) < 0 else "not for all prompts"
    law = f"sign of Cov(A, reward of the {what}) at points, times its sign over samples"
    yield number(law, SOURCE, sum(right) / len(right), 1, 0, remark)


def nothing_to_learn(subject: Subject) -> Iterator[Check]:
    """If rewards are equal, advantages and gradients are 0."""
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
    """A step down the loss moves the clean prediction towards the sample if A > 0, and away from it if A < 0."""
    way, what = kinds.towards(subject.points, subject.old)
    signs = (-subject.slope() * way).flatten(1).sum(1).sign()[way.flatten(1).abs().amax(1) > 1e-6]
    remark = "wrong sign: moves away from better samples" if (signs < 0).all() else f"at {(signs < 1).sum()} points"
    law = f"on policy, sign of A (step down the loss) . ({what})"
    yield number(law, SOURCE, signs.mean().item(), 1, 0, remark)


def covariance(subject: Subject) -> Iterator[Check]:
    """On policy, the gradient averaged over the posterior at a state is parallel to the gradient of E[R]."""
    all_of_it = kinds.population(subject.points, subject.algorithm)
    gradient = slope(equation(subject.algorithm, all_of_it.points, all_of_it.old, all_of_it.old), all_of_it.old)
    found = torch.zeros_like(all_of_it.along).index_add_(0, all_of_it.at, gradient * all_of_it.weight[:, None])
    cosine = torch.cosine_similarity(found, all_of_it.along).min().item()
    law = f"on policy, cosine of the expected gradient with {all_of_it.name}, smallest of 5"
    remark = "wrong sign: against the reward" if cosine < 0 else "wrong direction"
    yield number(law, "derived 1", cosine, 1, 0.02, remark)


def neighbours(subject: Subject) -> Iterator[Check]:
    """The loss of a unit does not depend on the rest of the batch."""
    points, old = subject.points, subject.old
    v, reference = old + real(*old.shape) / 10, old + real(*old.shape, seed=1) / 10
    together = subject.loss(v, old, reference)
    rows = torch.cat([subject.units[number] for number in (2, 0)])
    apart = subject.loss(v[rows], old[rows], reference[rows], points[rows])
    yield compared("loss of a unit, alone and in a larger batch", SOURCE, apart, together[rows], EXACT)


def reach(subject: Subject) -> Iterator[Check]:
    """The gradient reaches the weights of the policy, but not those of the anchors."""
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
    law = "gradient on the weights of the policy is not 0 (1: yes)"
    yield number(law, SOURCE, float(policy > 0), 1, 0, "nothing is trained")


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
