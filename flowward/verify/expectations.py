"""The expected gradient of AgentFlow (arXiv:2510.05592), over all groups of a small world.

**The expected gradient.** R in {0, 1} is the outcome of an episode, J = E[R], T its number of trained turns, w_t the
weight of each token of turn t. Episodes of a group are independent, so the advantage of one, given its own outcome,
averages to c (R - J), with one number c:

    without divisor   E[R_i - mean R | R_i] = (1 - 1/G) (R_i - J), so c = 1 - 1/G.
    with divisor      a = E[A_i | R_i = 1], b = E[A_i | R_i = 0]. Advantages of a group sum to 0, so J a + (1 - J) b =
                      0, which gives a = c (1 - J) and b = -c J. And J a = E[A_i R_i] = E[sum_i A_i R_i] / G
                      = (1 - 1/G) E[s^2 / (s + floor)], with s the standard deviation of the group (ddof 1). So
                      c = (1 - 1/G) E[s^2 / (s + floor)] / (J (1 - J)).

On policy the gradient of an episode's loss is -A_i sum_t w_t d log pi(a_t | s_t). Minus its expectation is

    c sum_t d_t E[(R - J) w_t]          d_t: through the action of turn t alone, J held constant

which is the paper's claim that training on the outcome is a sum of one-turn updates. The weights decide what it is the
gradient of:

- `token`, w = 1: c dJ exactly, since E[d log pi] = 0. It is divided by the expected number of tokens of an episode.
- `episode`, w = 1 / n for n tokens: c d E[(R - J) / n]. This is not the success rate: short episodes count more.
- `paper`, w_t = 1 / (T |a_t|): the sum above. If all turns have m tokens, it is c d E[(R - J) / T] / m, so an episode
  of T turns counts 1 / T. Otherwise it is the gradient of no single objective.
- The first turn only: c d_1 E[(R - J) / |a_1|], and with `token` c d_1 J. Later decisions are not trained.

**Statistics by turn** (the released code) count an episode T times in mean and standard deviation, so its own outcome
is T_i / sum T of the baseline instead of 1 / G. If outcome and length are independent, then without divisor
E[A_i | R_i, all T] = (R_i - J) (1 - T_i / sum T): for the same outcome, a long episode learns less. With the divisor,
episodes of one length are even preferred to others that succeed as often. Statistics by trajectory have neither bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..agent.points import Chosen, Turns
from ..learning.credit import ZScore, center
from .check import EXACT, Check, Kind, compared, number
from .turns import Groups, Way, World

DERIVED = "derived 13"
PAPER = "2510.05592"
FLOOR = 1e-4  # of ZScore


def factor(size: int, success: float, divisor: bool, floor: float = FLOOR) -> float:
    """c of the docstring above, for groups of `size` episodes."""
    if not divisor:
        return 1 - 1 / size
    spread = 0.0
    for wins in range(size + 1):
        p = math.comb(size, wins) * success**wins * (1 - success) ** (size - wins)
        s = math.sqrt(wins * (size - wins) / (size * (size - 1)))
        spread += p * s**2 / (s + floor)
    return (1 - 1 / size) * spread / (success * (1 - success))


def credit(divisor: bool) -> Any:
    return ZScore("group", FLOOR, 1) if divisor else center


def gradients(kind: Kind) -> Iterator[Check]:
    """The expected gradient over all groups."""
    world = World()
    ways, rate = world.ways, world.success
    tokens = world.expected({way: sum(map(len, way.answers)) for way in ways})
    above = {way: way.reward - rate for way in ways}

    def paper(chosen: Chosen, c: float) -> Tensor:
        h = {way: {turn: above[way] * w for turn, w in way.weights("paper", chosen).items()} for way in ways}
        return c * world.slope_by_turn(h)

    for divisor, size in ((False, 3), (True, 3), (True, 4)):  # with the divisor, c depends on J from 4 episodes on
        c, how, groups = factor(size, rate, divisor), {"credit": credit(divisor), "beta": 0.0}, world.groups(size)
        law = f"expected gradient, {size} episodes, {'with' if divisor else 'without'} divisor, c = {c:.3f}"
        found = groups.gradient(kind(weights="token", **how))
        expected = c * world.slope({way: way.reward for way in ways}) / tokens
        yield compared(f"{law}, token weights: c dJ / E[tokens]", DERIVED, found, expected)
        law = f"{law}, paper weights"
        yield compared(
            f"{law}: c sum_t d_t E[(R - J) / (T |a_t|)]", DERIVED, groups.gradient(kind(**how)), paper("all", c)
        )
        if size == 4:
            return
        found = groups.gradient(kind(turns="first", **how))
        yield compared(f"{law}, first turn only: c d_1 E[(R - J) / |a_1|]", DERIVED, found, paper("first", c))
        found = groups.gradient(kind(turns="last", **how))
        yield compared(f"{law}, last turn only: c d_T E[(R - J) / |a_T|]", DERIVED, found, paper("last", c))
        found = groups.gradient(kind(weights="episode", **how))
        expected = c * world.slope({way: above[way] * way.weights("episode")[0] for way in ways})
        yield compared(f"{law.replace('paper', 'episode')}: c d E[(R - J) / n]", DERIVED, found, expected)


def first_turns(kind: Kind) -> Iterator[Check]:
    """With token weights, training first turns only follows the success rate through them."""
    world = World()
    found = world.groups(3).gradient(kind(turns="first", weights="token", credit=center, beta=0.0))
    share = world.slope_by_turn({way: {0: way.reward} for way in world.ways})
    tokens = world.expected({way: len(way.answers[0]) for way in world.ways})
    law = "expected gradient, token weights, first turn only: c d_1 J / E[|a_1|]"
    yield compared(law, DERIVED, found, 2 / 3 * share / tokens)


def objectives(kind: Kind) -> Iterator[Check]:
    """How far each weighting's gradient is from that of the success rate."""
    world = World()
    rate = world.slope({way: way.reward for way in world.ways})
    for weights in ("token", "episode", "paper"):
        found = cosine(world.groups(3).gradient(kind(weights=weights, beta=0.0)), rate)
        h = {way: {t: (way.reward - world.success) * w for t, w in way.weights(weights).items()} for way in world.ways}
        law = f"cosine of the expected gradient with that of the success rate, {weights} weights"
        yield number(law, DERIVED, found, cosine(world.slope_by_turn(h), rate), EXACT)


def by_turn(groups: Groups, divisor: bool) -> Tensor:
    """Advantages of all episodes with statistics by turn, [groups, size], from their definition."""
    r, t = groups.reward, groups.length
    turns = t.sum(1, keepdim=True)
    baseline = (t * r).sum(1, keepdim=True) / turns
    s = ((t * (r - baseline) ** 2).sum(1, keepdim=True) / (turns - 1)).sqrt()
    equal = (r == r[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, (r - baseline) / (s + FLOOR if divisor else 1.0))


def averaged(groups: Groups, advantage: Tensor, which: Callable[[Way], bool]) -> float:
    """The mean advantage of such episodes, over all groups."""
    own = torch.tensor([float(which(way)) for way in groups.world.ways], dtype=torch.float64)[groups.index]
    p = groups.probability[:, None] * own
    return ((p * advantage).sum() / p.sum()).item()


def of_episodes(points: Turns, groups: Groups) -> Tensor:
    """The advantage of each episode, [groups, size], that the algorithm gave to its turns."""
    _, index = points.trace.episode.unique(return_inverse=True)
    found = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    return found.index_put((index,), points.advantage).view(-1, groups.size)


def lengths(kind: Kind) -> Iterator[Check]:
    """Statistics by turn are biased by the length of episodes; statistics by trajectory are not."""
    world = World.even()
    four = world.groups(4)

    def short(way: Way) -> bool:
        return way.reward == 1 and len(way.actions) == 1

    def long(way: Way) -> bool:
        return way.reward == 1 and len(way.actions) == 2

    def ratio(advantage: Tensor) -> float:
        return averaged(four, advantage, short) / averaged(four, advantage, long)

    def push(advantage: Tensor) -> float:
        one, two = (averaged(four, advantage, lambda way, n=n: len(way.actions) == n) for n in (1, 2))  # type: ignore[misc]
        return one - two

    for statistics in ("trajectory", "turn"):
        for divisor in (False, True):
            algorithm = kind(credit=credit(divisor), statistics=statistics, beta=0.0)
            found, right = of_episodes(four.points(algorithm), four), by_turn(four, divisor)
            by = f"{'with' if divisor else 'without'} divisor, statistics by {statistics}"
            law = f"mean advantage of a success in 1 turn / in 2 turns, {by}"
            yield number(law, DERIVED, ratio(found), 1 if statistics == "trajectory" else ratio(right), EXACT)
            law = f"mean advantage of 1 turn minus 2 turns, which succeed equally often, {by}"
            yield number(law, DERIVED, push(found), push(right) if statistics == "turn" and divisor else 0, EXACT)
    biased = [abs(ratio(by_turn(four, False)) - 1), abs(push(by_turn(four, True)))]
    seen = float(min(biased) > 0.01)
    yield number("statistics by turn have a bias above 0.01 (1: yes)", DERIVED, seen, 1, 0)
    share = 1 / (1 - by_share(four))
    law = "by turn, a success in 1 turn / in 2 turns, without divisor: E[1 - T_i / sum T] in 1 turn / in 2"
    yield number(law, DERIVED, ratio(by_turn(four, False)), share, EXACT)


def by_share(groups: Groups) -> float:
    """1 - E[1 - T_i / sum T | T_i = 2] / E[1 - T_i / sum T | T_i = 1]."""
    rest = 1 - groups.length / groups.length.sum(1, keepdim=True)
    one, two = (averaged(groups, rest, lambda way, n=n: len(way.actions) == n) for n in (1, 2))  # type: ignore[misc]
    return 1 - two / one


def played(groups: Groups) -> list[Way]:
    """The episodes of all groups, in order."""
    return [groups.world.ways[number] for members in groups.members for number in members]


def cosine(found: Tensor, expected: Tensor) -> float:
    return torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0).item()
