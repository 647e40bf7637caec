"""Statistics of runs that differ in their seed: means, differences, curves, and how often one algorithm is better.

Scores of an algorithm are [S, N]: run s, image k. Image k has the same prompt and starts from the same noise in every
run, so differences between algorithms are paired. Seeds and prompts are both drawn from many, and every seed meets
every prompt. So both are resampled, independently: the pigeonhole bootstrap (Owen, 2007, The Annals of Applied
Statistics 1:386). Few seeds make such intervals too short; three are the fewest that show a spread at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import ArrayLike

from ..system.seeds import numpy_generator
from .statistics import BLOCK, RESAMPLES, Floats, drawn_counts, strata_of


def resampled(
    scores: Sequence[ArrayLike],
    prompts: ArrayLike,
    strata: ArrayLike | None = None,
    paired: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Bootstrap over seeds and prompts: means [R, A] of the scores of A algorithms, each [S, N].

    All algorithms get the same resamples of prompts; `paired` ones, which have the same seeds in the same order, also
    the same resamples of seeds. Of n seeds or prompts n - 1 are drawn; see `statistics.bootstrap`. A single seed is
    not resampled: the spread is then that over prompts alone.

    Args:
        prompts: N numbers; images with the same number have the same prompt.
        strata: N numbers, the same for all images of a prompt (None: one stratum).

    Raises:
        ValueError: there are fewer than two prompts, or `paired` algorithms differ in their number of seeds.
    """
    _, first, row = np.unique(np.asarray(prompts), return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError("an interval over prompts needs at least two different prompts, not one")
    values = [np.atleast_2d(np.asarray(own, np.float64)) for own in scores]
    if paired and len({len(own) for own in values}) > 1:
        raise ValueError(f"paired runs need the same seeds, not {', '.join(str(len(own)) for own in values)} of them")
    groups = strata_of(np.zeros(len(first), int) if strata is None else np.asarray(strata)[first])
    order = np.concatenate(groups)
    many = np.bincount(row, minlength=len(first))[order].astype(np.float64)
    totals = [np.stack([np.bincount(row, each, len(first)) for each in own])[:, order] for own in values]
    rng, blocks = numpy_generator("seeds", seed), []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        weight = np.concatenate([drawn_counts(rng, len(members), size) for members in groups], 1)
        drawn: dict[object, Floats] = {}
        means = []
        for number, own in enumerate(totals):
            key = len(own) if paired else number
            if key not in drawn:
                drawn[key] = drawn_counts(rng, len(own), size) if len(own) > 1 else np.ones((size, 1))
            sums = ((weight @ own.T) * drawn[key]).sum(1)
            means.append(sums / (len(own) * (weight @ many)))
        blocks.append(np.stack(means, 1))
    return np.concatenate(blocks)


def area(at: Sequence[float], scores: Sequence[float], end: float) -> float:
    """The mean height of a curve from its first point to `end`, by trapezoids; `at` increases."""
    known = [(x, y) for x, y in zip(at, scores, strict=True) if x < end]
    known.append((end, at_budget(at, scores, end)))
    width = known[-1][0] - known[0][0]
    if width == 0:
        return known[0][1]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(known)) / width


def at_budget(at: Sequence[float], scores: Sequence[float], budget: float) -> float:
    """The height of a curve at a budget, on the straight line between its neighbours.

    Raises:
        ValueError: the curve ends before it.
    """
    before, after, share = between(at, budget)
    return float((1 - share) * scores[before] + share * scores[after])


def between(at: Sequence[float], budget: float) -> tuple[int, int, float]:
    """The two points of a curve around a budget, and how far it is from the first to the second (0 to 1).

    Raises:
        ValueError: the curve ends before the budget, or begins after it.
    """
    if not at or not at[0] <= budget <= at[-1] * (1 + 1e-9):
        raise ValueError(f"a curve from {at[0] if at else '?'} to {at[-1] if at else '?'} says nothing of {budget}")
    after = next((k for k, x in enumerate(at) if x >= budget), len(at) - 1)
    if after == 0:
        return 0, 0, 0.0
    return after - 1, after, min(1.0, (budget - at[after - 1]) / (at[after] - at[after - 1]))


def reached(at: Sequence[float], scores: Sequence[float], target: float) -> float | None:
    """Where a curve first reaches a target, on the straight line between its points; None if it does not."""
    if scores and scores[0] >= target:
        return float(at[0])
    for (x, low), (x_next, high) in pairwise(zip(at, scores, strict=True)):
        if low < target <= high:
            return float(x + (x_next - x) * (target - low) / (high - low))
    return None


def improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """How often a run of one algorithm is better than one of another, over all pairs; equal ones count a half.

    Agarwal et al., 2021 (arXiv:2108.13264), section 4.3.
    """
    difference = np.subtract.outer(np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def improvements(
    scores: Sequence[ArrayLike],
    prompts: ArrayLike,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Bootstrap of `improvement` over seeds and prompts: [R, A, A], row a: how often a run of a beats one of b.

    Args and resampling are those of `resampled`. The seeds of two algorithms are resampled apart from each other, since
    any run of one is compared with any of the other.
    """
    _, first, row = np.unique(np.asarray(prompts), return_index=True, return_inverse=True)
    groups = strata_of(np.zeros(len(first), int) if strata is None else np.asarray(strata)[first])
    order = np.concatenate(groups)
    totals = [
        np.stack([np.bincount(row, each, len(first)) for each in np.atleast_2d(own)])[:, order]
        for own in (np.asarray(each, np.float64) for each in scores)
    ]
    rng, blocks = numpy_generator("improvements", seed), []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        weight = np.concatenate([drawn_counts(rng, len(members), size) for members in groups], 1)
        runs = [weight @ own.T for own in totals]  # [R, S], up to a factor that is the same for all
        drawn = [drawn_counts(rng, n, size) if (n := len(own)) > 1 else np.ones((size, 1)) for own in totals]
        found = np.full((size, len(runs), len(runs)), 0.5)
        for a, b in combinations(range(len(runs)), 2):
            gap = np.sign(np.round(runs[a][:, :, None] - runs[b][:, None, :], 9))
            share = (drawn[a][:, :, None] * drawn[b][:, None, :] * (gap + 1) / 2).sum((1, 2))
            found[:, a, b] = share / (drawn[a].sum(1) * drawn[b].sum(1))
            found[:, b, a] = 1 - found[:, a, b]
        blocks.append(found)
    return np.concatenate(blocks)


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of the middle half of n values; the two at the cut count in part (arXiv:2108.13264, section 4.3)."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    n = len(ordered)
    edges = np.arange(n + 1)
    kept = np.clip(np.minimum(edges[1:], 0.75 * n) - np.maximum(edges[:-1], 0.25 * n), 0, None)
    return float(kept @ ordered / kept.sum())
