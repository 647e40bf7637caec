"""Confidence intervals over noise and over prompts, and significance tests between models.

Images of one prompt are correlated, so they are not independent evidence about other prompts. For intervals over
prompts, the number of prompts counts, not the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..system.seeds import numpy_generator

Z95 = 1.959964
LEVEL = 0.05  # significance level of every test; intervals have confidence 1 - LEVEL
RESAMPLES = 10_000
BLOCK = 1000  # resamples per batch, to limit memory

Floats = NDArray[np.float64]


def interval(
    scores: Tensor, verdicts: bool = False, bounds: tuple[float, float] | None = None
) -> dict[str, float | int | None]:
    """Mean and 95 % interval of scores [n]: Wilson's for pass/fail scores (0/1), the normal one otherwise.

    The kind of reward decides (`verdicts`), since graded scores may happen to be all 0 or 1. A single graded score has
    no interval, so `low` and `high` are None. Scores with `bounds` have an interval that ends there.
    """
    n, mean = len(scores), scores.double().mean().item()
    if verdicts and ((scores == 0) | (scores == 1)).all():
        middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
        half = min(half, middle, 1 - middle)  # rounding could leave [0, 1] by 1e-17
    elif n > 1:
        middle, half = mean, Z95 * scores.double().std().item() / math.sqrt(n)
    else:
        return {"mean": mean, "low": None, "high": None, "n": n}
    low, high = middle - half, middle + half
    if bounds and bounds[0] <= mean <= bounds[1]:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return {"mean": mean, "low": low, "high": high, "n": n}


def bootstrap(
    scores: ArrayLike,
    prompts: ArrayLike,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Bootstrap over prompts: means [R, K] of scores [N, K] (or [N]), with the same resamples for all K scores.

    A resampled prompt brings all its images. Prompts are resampled within their stratum, since an evaluation fixes the
    number of images per category. Of n prompts, n - 1 are resampled with the weight n / (n - 1). This makes the
    variance unbiased instead of too small by (n - 1) / n (Rao and Wu, 1988, Journal of the American Statistical
    Association 83:231). A stratum with a single prompt shows no spread, so it joins another stratum.

    Args:
        scores: one row per image.
        prompts: N numbers; images with the same number have the same prompt.
        strata: N numbers, the same for all images of a prompt; None: one stratum.

    Raises:
        ValueError: there are fewer than two prompts.
    """
    _, first, row = np.unique(np.asarray(prompts), return_index=True, return_inverse=True)
    values = np.asarray(scores, np.float64).reshape(len(row), -1)
    if len(first) < 2:
        raise ValueError("an interval over prompts needs at least two different prompts, not one")
    totals = np.zeros((len(first), values.shape[1] + 1))  # of each prompt; the last column counts its images
    np.add.at(totals, row, np.column_stack([values, np.ones(len(values))]))
    groups = strata_of(np.zeros(len(first), int) if strata is None else np.asarray(strata)[first])
    totals, rng = totals[np.concatenate(groups)], numpy_generator("bootstrap", seed)
    blocks = []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        counts = np.concatenate([drawn_counts(rng, len(members), size) for members in groups], 1)
        blocks.append(counts @ totals)
    means = np.concatenate(blocks)
    return np.asarray(means[:, :-1] / means[:, -1:])


def strata_of(strata: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The prompts of each stratum; each stratum has at least two."""
    members = [np.flatnonzero(strata == own) for own in np.unique(strata)]
    groups = [each for each in members if len(each) > 1]
    if single := [each for each in members if len(each) == 1]:
        alone = np.concatenate(single)
        groups = [*groups, alone] if len(alone) > 1 else [*groups[:-1], np.concatenate([groups[-1], alone])]
    return groups


def drawn_counts(rng: np.random.Generator, n: int, size: int) -> Floats:
    """The weight of each of n prompts in `size` resamples, [size, n]; every row sums to n."""
    drawn = rng.integers(0, n, (size, n - 1)) + n * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64) * (n / (n - 1))


def bounds(means: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of resampled means [R]."""
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def p_value(means: Floats, prompts: int) -> float:
    """Two-sided p-value of the hypothesis that a mean difference is 0, from its resampled values [R].

    It inverts the percentile interval and counts the measured value as one more resample. With n prompts it is never
    below 2^(1 - n), the smallest p-value of n coin tosses: five prompts cannot reach p < 0.05.
    """
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    p = 2 * (1 + min(below, above)) / (1 + len(means))
    return min(1.0, max(p, 2.0 ** (1 - prompts)))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test (1947, Psychometrika 12:153): p for the pairs that changed from 0 to 1 and from 1 to 0.

    If both models are equally good, each changed pair is like a toss of a fair coin.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for a family of tests (Holm, 1979, Scandinavian Journal of Statistics 6:65)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = largest
    return adjusted
