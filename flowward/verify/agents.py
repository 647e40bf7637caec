"""Laws of AgentFlow (arXiv:2510.05592): what the trainer relies on, and the parts of its equation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..agent.algorithm import AgentFlow, k3, surrogate
from ..agent.points import Decisions, Trace, Turns
from .check import EXACT, Check, Kind, compared, differences, guarded, number, real
from .expectations import DERIVED, FLOOR, PAPER, first_turns, gradients, lengths, objectives, played
from .turns import Groups, Table, World

NAME = "agentflow"
PPO, DUAL, PROTOCOL = "1707.06347", "1912.09729", "protocol"
LENGTHS = (3, 1, 1, 1)
OUTCOMES = (1.0, 0.0, 1.0, 0.0)


def laws(kind: Kind = AgentFlow) -> Iterator[Check]:
    """All laws; `kind` is the class, which the laws create with their own settings."""
    for law_of in (*PROTOCOLS, *EQUATIONS):
        words = (law_of.__doc__ or "").split("\n")[0].rstrip(".")
        for check in guarded(law_of(kind), words, PROTOCOL):
            yield replace(check, part="protocol") if law_of in PROTOCOLS else check


# What the trainer relies on


@dataclass(frozen=True)
class Case:
    """Five groups of four episodes off policy, and their points in float64."""

    algorithm: Any
    groups: Groups
    turns: Turns
    logits: dict[str, Tensor]  # policy, old, reference

    @classmethod
    def of(cls, kind: Kind, step: float = 0.5, **settings: Any) -> Case:
        """The policy has moved from `old` by random logits of this size."""
        world, algorithm = World(), kind(**settings)
        members = tuple(tuple((3 * k + 5 * g + k * g) % 8 for k in range(4)) for g in range(5))
        groups = Groups(world, 4, members)
        old = world.logits
        logits = {
            "policy": old + step * real(3, 2, 2, seed=1),
            "old": old,
            "reference": old + real(3, 2, 2, seed=2) / 2,
        }
        return cls(algorithm, groups, groups.points(algorithm), logits)

    @cached_property
    def points(self) -> Decisions:
        return self.take(torch.arange(len(self.turns)))

    def take(self, numbers: Tensor, turns: Turns | None = None) -> Decisions:
        """With the recorded log-probabilities in float64."""
        points = (turns or self.turns).take(numbers)
        return points.knowing({"old": Table(self.logits).at("old", replace(points, known={}))})

    def loss(self, logits: Tensor, points: Decisions) -> Tensor:
        found: Tensor = self.algorithm.loss(Table(self.logits | {"policy": logits}), points)[0]
        return found

    def slope(self, *parts: Decisions) -> Tensor:
        """The gradient of the loss summed over these points, [3, 2, 2]."""
        logits = self.logits["policy"].clone().requires_grad_()
        total = torch.stack([self.loss(logits, points).sum() for points in parts]).sum()
        return torch.autograd.grad(total, logits)[0]


def shapes(kind: Kind) -> Iterator[Check]:
    """One loss per turn, and metrics of turns, without gradient."""
    case = Case.of(kind, beta=0.1)
    logits = case.logits["policy"].clone().requires_grad_()
    for fresh in (False, True):
        points = replace(case.points, fresh=fresh)
        loss, watched = case.algorithm.loss(Table(case.logits | {"policy": logits}), points)
        wrong = [name for name, each in watched.items() if each.requires_grad or each.shape != (len(points),)]
        wrong += [] if loss.shape == (len(points),) else [f"the loss has shape {list(loss.shape)}"]
        law = "exceptions to: one loss per turn; metrics per turn and without gradient"
        yield number(
            f"{law}, {'before' if fresh else 'after'} the first update", PROTOCOL, len(wrong), 0, 0, ", ".join(wrong)
        )


def only_the_planner(kind: Kind) -> Iterator[Check]:
    """Only the planner's tokens have a gradient, and only in the policy."""
    case = Case.of(kind, beta=0.1)
    points, said = case.points, [answer for way in played(case.groups) for answer in way.answers]
    rows = zip(points.answer.tolist(), (points.weight != 0).tolist(), said, strict=True)
    wrong = sum([token for token, on in zip(own, counts, strict=True) if on] != [*right] for own, counts, right in rows)
    law = "turns whose tokens with a weight are not the planner's own tokens"
    yield number(law, PROTOCOL, wrong, 0, 0, "prompts hold what others wrote")
    logits = {name: each.clone().requires_grad_() for name, each in case.logits.items()}
    recorded = points.known["old"].clone().requires_grad_()
    loss, _ = case.algorithm.loss(Table(logits), points.knowing({"old": recorded}))
    asked = [recorded, logits["old"], logits["reference"], logits["policy"]]
    *others, own = torch.autograd.grad(loss.sum(), asked, allow_unused=True)
    sizes = sum(_size(each) for each in others)
    yield number("gradient on recorded, old and reference log-probabilities", PROTOCOL, sizes, 0, 0, "is trained")
    law = "gradient on the policy is not 0 (1: yes)"
    yield number(law, PROTOCOL, float(_size(own) > 0), 1, 0, "nothing is trained")


def _size(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else gradient.abs().sum().item()


def nothing_to_learn(kind: Kind) -> Iterator[Check]:
    """If the outcomes of a question are equal, advantages and gradients are 0."""
    solved, lost = ([k for k, way in enumerate(World().ways) if way.reward == reward] for reward in (1, 0))
    for statistics in ("trajectory", "turn"):
        algorithm = kind(statistics=statistics, beta=0.0)
        groups = Groups(World(), 4, (solved, lost, solved[::-1]))
        largest = torch.stack([groups.points(algorithm).advantage.abs().max(), groups.gradient(algorithm).abs().max()])
        law = f"equal outcomes, statistics by {statistics}: largest advantage and gradient"
        yield compared(law, PROTOCOL, largest, torch.zeros(2), 0.0)


def batches(kind: Kind) -> Iterator[Check]:
    """Order of episodes, padding and microbatches do not matter."""
    case = Case.of(kind, beta=0.1)
    whole, points, groups = case.slope(case.points), case.points, case.groups
    parts = [case.take(own) for own in torch.arange(len(case.turns)).split(3)]
    yield compared(
        "gradient in microbatches of 3 turns, padded to their own widths", PROTOCOL, case.slope(*parts), whole
    )
    alone = torch.cat([case.loss(case.logits["policy"], part) for part in points.split(1)])
    yield compared("loss of a turn, alone and in a batch", PROTOCOL, alone, case.loss(case.logits["policy"], points))
    turned = Groups(groups.world, 4, tuple(tuple(reversed(own)) for own in reversed(groups.members)))
    other = turned.points(case.algorithm)
    found = case.slope(case.take(torch.arange(len(other)), other))
    yield compared("gradient with questions and episodes in reverse order", PROTOCOL, found, whole)
    units = case.turns.units()
    law = "turns that are in an optimiser step without the rest of their episode"
    apart = sum(len(case.turns.trace.episode[own].unique()) != 1 for own in units) + abs(len(units) - 20)
    yield number(law, PROTOCOL, apart, 0, 0, "units are not episodes")


def first_update(kind: Kind) -> Iterator[Check]:
    """Before the first update the ratio is exactly 1, whatever was recorded."""
    case = Case.of(kind, step=0.0, beta=0.0, low=1e-6, high=1e-6)
    points = replace(case.points.knowing({"old": case.points.known["old"] + 0.01}), fresh=True)
    loss, watched = case.algorithm.loss(Table(case.logits), points)
    yield compared("before the first update: loss -A sum w", PROTOCOL, loss, -points.advantage * points.weight.sum(1))
    law = "before the first update: log ratio and clipped tokens"
    off = torch.stack([watched[name] for name in ("log_ratio", "clipped_up", "clipped_down")])
    yield compared(law, PROTOCOL, off, torch.zeros_like(off), 0.0)
    known, slope = case.slope(replace(points, fresh=False, known=case.points.known)), case.slope(points)
    yield compared(
        "before the first update: the gradient with exact recorded log-probabilities", PROTOCOL, slope, known
    )
    apart = watched["first_ratio_max"].max().item()
    yield number("what was recorded 0.01 off is reported", PROTOCOL, apart, 0.01, EXACT)


# Parts of the equation


def trace_of(lengths: tuple[int, ...]) -> Trace:
    """Episodes of so many turns of one token each."""
    turns, none = sum(lengths), torch.zeros(sum(lengths), dtype=torch.long)
    episode = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Trace(none, none, torch.zeros(turns), none + 1, none + 1, episode, torch.ones(turns))


def example(kind: Kind) -> Iterator[Check]:
    """Outcomes 1, 0, 1, 0 of episodes with 3, 1, 1 and 1 turns."""
    trace, one = trace_of(LENGTHS), torch.zeros(4, dtype=torch.long)
    reward, every = torch.tensor(OUTCOMES, dtype=torch.float64)[:, None], torch.ones(4, dtype=torch.bool)
    right = torch.tensor([1.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    for statistics, mean, s in (("trajectory", 1 / 2, math.sqrt(1 / 3)), ("turn", 2 / 3, math.sqrt(4 / 15))):
        found = kind(statistics=statistics).advantages(trace, reward, one, every)
        up, down = (1 - mean) / s, -mean / s
        law = f"R = 1, 0, 1, 0 and T = 3, 1, 1, 1 by {statistics}: A = {up:.3f} and {down:.3f}, floor {FLOOR:g}"
        yield compared(law, PAPER, found, (right - mean) / (s + FLOOR))


def failures(kind: Kind) -> Iterator[Check]:
    """A failed episode leaves its group as if it had not been there."""
    trace, gone = trace_of((3, 1, 0, 1)), torch.tensor([True, True, False, True])
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    for statistics in ("trajectory", "turn"):
        algorithm = kind(statistics=statistics)
        found = algorithm.advantages(trace, reward, torch.zeros(4, dtype=torch.long), gone)
        three = torch.ones(3, dtype=torch.bool)
        rest = algorithm.advantages(trace_of((3, 1, 1)), reward[gone], torch.zeros(3, dtype=torch.long), three)
        law = f"a group with a failed episode, statistics by {statistics}: advantages as without it"
        yield compared(law, PAPER, found, rest, 0.0)


def totals(kind: Kind) -> Iterator[Check]:
    """Weights of tokens add up to what the sum of losses is divided by."""
    case = Case.of(kind)
    ways, every = played(case.groups), torch.arange(len(case.turns))
    tokens = torch.tensor([sum(map(len, way.answers)) for way in ways]).double()
    for weights in ("paper", "episode", "token"):
        turns = case.groups.points(kind(weights=weights))
        points, one = turns.take(every), torch.zeros(20, dtype=torch.float64)
        of_turns = points.weight.sum(1)
        sums = one.index_add(0, turns.trace.episode, of_turns)
        expected = tokens if weights == "token" else torch.ones(20)
        yield compared(f"{weights} weights: sum over the tokens of an episode", PAPER, sums, expected)
        law = f"{weights} weights: the divisor is the sum of all weights"
        yield number(law, PAPER, turns.total(every), sums.sum().item(), EXACT)
        flat = torch.tensor(
            [w * len(way.answers[t]) for way in ways for t, w in way.weights(weights).items()], dtype=torch.float64
        )
        yield compared(f"{weights} weights: sum over the tokens of a turn", PAPER, of_turns, flat)


def clips(kind: Kind) -> Iterator[Check]:
    """The clip stops the gradient, and acts under an enlarged step."""
    low, high, case = 0.2, 0.3, Case.of(kind, beta=0.0, low=0.2, high=0.3)
    points, there = case.points, case.points.answer >= 0
    ratios = torch.tensor([0.5, 0.75, 0.85, 1.0, 1.15, 1.25, 1.35, 2.0], dtype=torch.float64)
    rho, old = ratios[torch.arange(there.numel()).view(there.shape) * 3 % 8], points.known["old"]
    log_p = (old + rho.log()).requires_grad_()
    loss, watched = case.algorithm.loss(_Fixed(log_p), points)
    found, a = torch.autograd.grad(loss.sum(), log_p)[0], points.advantage[:, None]
    stopped = ((a > 0) & (rho > 1 + high) | (a < 0) & (rho < 1 - low)) & there
    slope = (-a * rho * points.weight).where(~stopped, 0.0)
    yield compared("gradient -A rho w on log pi, 0 beyond the clip", PPO, found, slope)
    seen = (watched["clipped_up"] + watched["clipped_down"]) * there.sum(1)
    yield number("clipped tokens that are reported", PPO, seen.sum().item(), stopped.sum().item(), EXACT)
    large, small = (_clipped(Case.of(kind, step=step)) for step in (2.0, 0.01))
    yield number(
        "tokens are clipped after a large step, not after a small one (1: yes)", PPO, float(large > small == 0), 1, 0
    )
    near = Case.of(kind, step=0.2, beta=0.1)
    law = "autograd = central differences, with the KL term"
    yield differences(law, lambda v: near.loss(v, near.points), near.logits["policy"])


def _clipped(case: Case) -> float:
    _, watched = case.algorithm.loss(Table(case.logits), case.points)
    return sum(watched[name].sum().item() for name in ("clipped_up", "clipped_down"))


def dual_clip(kind: Kind) -> Iterator[Check]:
    """The dual clip bounds the loss of negative advantages, and nothing else."""
    ratio = torch.tensor([0.1, 0.9, 1.2, 2.9, 3.1, 50.0], dtype=torch.float64)
    one = ratio.log().expand(2, 6)
    a = torch.tensor([2.0, -2.0], dtype=torch.float64)
    for dual, bound in ((None, 100.0), (3.0, 6.0)):
        loss = surrogate(one, torch.zeros_like(one), a, 0.2, 0.3, dual)
        expected = torch.stack([-2 * ratio.clamp(max=1.3), (2 * ratio.clamp(min=0.8)).clamp(max=bound)])
        yield compared(f"loss at ratios from 0.1 to 50, dual clip {dual or 'off'}", DUAL, loss, expected)
    bounded = Case.of(kind, step=3.0, beta=0.0, dual=1.5)
    loss = bounded.loss(bounded.logits["policy"], bounded.points)
    most = 1.5 * bounded.points.advantage.abs() * bounded.points.weight.sum(1)
    yield number("loss of a turn beyond dual |A| sum w", DUAL, (loss - most).clamp_min(0).max().item(), 0, EXACT)


def divergence(kind: Kind) -> Iterator[Check]:
    """k3 is never negative, and right on average."""
    logits, ref = real(50, 6, seed=3).requires_grad_(), real(50, 6, seed=4).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    p, each = log_p.detach().exp(), k3(log_p, ref)
    yield number("smallest k3 at 300 tokens is at least 0 (1: yes)", DERIVED, float(each.min() >= 0), 1, 0)
    backward, forward = (p * (log_p - ref)).sum(1), (ref.exp() * (ref - log_p)).sum()
    yield compared("mean of k3 over tokens of pi: KL(pi, reference)", DERIVED, (p * each).sum(1), backward)
    found, expected = (
        torch.autograd.grad(total, logits, retain_graph=True)[0] for total in ((p * each).sum(), forward)
    )
    law = "mean of the gradient of k3, tokens held fixed: that of KL(reference, pi)"
    yield compared(law, DERIVED, found, expected)

    world, algorithm = World(), kind(weights="token", beta=1.0)
    tables = {"policy": world.logits, "reference": world.logits + real(3, 2, 2, seed=2) / 2}
    single = Groups(world, 1, tuple((way,) for way in range(8)))
    turns = replace(single.points(algorithm), advantage=torch.zeros(14, dtype=torch.float64))
    loss, _ = algorithm.loss(Table(tables), replace(turns.take(torch.arange(14)), fresh=True))
    mean = single.probability[turns.trace.episode] @ loss
    pi, start = (torch.stack([world.probability(way, table) for way in world.ways]) for table in tables.values())
    right = (pi @ (pi / start).log()).item()
    yield number("expected KL term, token weights: KL of whole episodes", DERIVED, mean.item(), right, EXACT)


@dataclass(frozen=True)
class _Fixed:
    """Log-probabilities that are given."""

    log_p: Tensor

    def at(self, name: str, points: Decisions) -> Tensor:
        return self.log_p if name == "policy" else points.known[name]


PROTOCOLS = (shapes, only_the_planner, nothing_to_learn, batches, first_update)
EQUATIONS = (example, gradients, first_turns, objectives, lengths, totals, failures, clips, dual_clip, divergence)
