"""Confidence intervals and paired tests over seeds and over rows. Does not import torch or scipy.stats.

A pair is the same seed (same batches, same initial head) or the same validation row under two strategies.
`scipy.special` has the distributions; `scipy.stats` takes a second to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.05  # significance level; intervals are 95 % CIs
POWER = 0.8  # power of a test with `pairs_needed` pairs
MOST_PAIRS = 1000  # limit of the search in `pairs_needed`
DRAWS = 10_000  # bootstrap resamples; the smallest possible p is 2 / 10,001
CHUNK = 4_000_000  # random indices in memory at once: 32 MB


@dataclass(frozen=True)
class Test:
    """Result of a test.

    Attributes:
        mean: mean difference, in the unit of the values.
        low: lower end of the 95 % CI of the mean difference.
        high: upper end of the 95 % CI.
        p: two-sided p value.
        sd: standard deviation of the differences (denominator n - 1), at least the limit set by `resolution`; None for
            tests over rows.
        pairs: number of differences.
    """

    __test__ = False  # not a pytest class

    mean: float
    low: float
    high: float
    p: float
    sd: float | None
    pairs: int


def mean_interval(values: Sequence[float], resolution: float = 0.0) -> tuple[float, float | None, float | None]:
    """Return the mean and its 95 % CI, mean +- t(n - 1; 0.975) s / sqrt(n) (Student 1908).

    Args:
        values: independent, approximately normal values; the ends are None for fewer than two.
        resolution: step between possible values (1 / rows for an accuracy); s^2 is at least step^2 / 12, its rounding
            noise.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    variance = max(_variance(values, mean), resolution**2 / 12)
    half = _t_quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return mean, mean - half, mean + half


def paired_t(values: Sequence[float], baseline: Sequence[float], resolution: float = 0.0) -> Test:
    """Run a two-sided paired t test: t = mean / (s / sqrt(n)) with n - 1 degrees of freedom.

    Equal differences give p = 0, or p = 1 if they are all 0, which is correct for figures without noise (bytes). An
    accuracy is a multiple of 1 / rows, so two differences can be equal by chance; `resolution` sets a minimum of s.

    Args:
        values: one value per pair, in any unit.
        baseline: values of the baseline for the same pairs, in the same order.
        resolution: step between possible values; s^2 is at least step^2 / 6, the rounding noise of a difference
            (Sheppard).

    Raises:
        ValueError: the lengths differ, or there are fewer than two pairs.
    """
    if len(values) != len(baseline) or len(values) < 2:
        raise ValueError(f"a paired test needs two pairs or more, got {len(values)} and {len(baseline)} values")
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = max(_variance(differences, mean), resolution**2 / 6)
    error = math.sqrt(variance / count)
    half = _t_quantile(count - 1) * error
    return Test(mean, mean - half, mean + half, _t_p(mean, error, count - 1), math.sqrt(variance), count)


def mcnemar(right: Sequence[int], baseline: Sequence[int]) -> Test:
    """Run the exact McNemar test of two classifiers on the same rows (McNemar 1947): a two-sided binomial test.

    Of the b + c rows that only one classifier has right, b ~ Binomial(b + c, 1/2) if both are equally good. The CI is
    the Clopper-Pearson interval of b / (b + c), converted to a difference of accuracies; it excludes 0 iff p < 0.05.

    Args:
        right: 1 for each correct row, else 0.
        baseline: the same for the baseline, in the same order.

    Raises:
        ValueError: the lengths differ, or there are no rows.
    """
    import numpy as np
    from scipy.special import bdtr, betaincinv

    first, second = np.asarray(right, dtype=bool), np.asarray(baseline, dtype=bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"McNemar's test needs the same rows twice, got {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    disputed, rows = only_first + only_second, first.size
    if not disputed:
        return Test(0.0, 0.0, 0.0, 1.0, None, rows)
    p = min(1.0, 2 * float(bdtr(min(only_first, only_second), disputed, 0.5)))
    low = float(betaincinv(only_first, only_second + 1, LEVEL / 2)) if only_first else 0.0
    high = float(betaincinv(only_first + 1, only_second, 1 - LEVEL / 2)) if only_second else 1.0
    scale = disputed / rows
    return Test((only_first - only_second) / rows, (2 * low - 1) * scale, (2 * high - 1) * scale, p, None, rows)


def paired_bootstrap(values: Any, baseline: Any, draws: int = DRAWS, seed: int = 0) -> Test:
    """Run a percentile bootstrap over rows of the mean difference (Efron & Tibshirani 1993, chapters 13 and 15).

    With several seeds, the mean over seeds of each row is resampled, so the result is about these trained models on
    similar rows. p is twice the smaller share of resamples on one side of 0, with each count increased by one (Davison
    & Hinkley 1997, 4.2.3), so at least 2 / (draws + 1).

    Args:
        values: (rows,) or (seeds, rows), in any unit.
        baseline: values of the baseline, same shape and order.
        draws: number of resamples.
        seed: random seed of the resampling.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    import numpy as np

    first, second = np.atleast_2d(np.asarray(values, dtype=float)), np.atleast_2d(np.asarray(baseline, dtype=float))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"a paired bootstrap needs the same rows twice, got {first.shape} and {second.shape}")
    means = _resampled_means((first - second).mean(axis=0), draws, np.random.default_rng(seed))  # (draws,)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    # sums in another order differ by rounding; means equal to 0 count on both sides
    tolerance = 1e-12 * float(np.abs(first - second).max())
    sides = int((means <= tolerance).sum()), int((means >= -tolerance).sum())
    p = min(1.0, 2 * (min(sides) + 1) / (draws + 1))
    return Test(float((first - second).mean()), float(low), float(high), p, None, first.shape[1])


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected to control the probability of any false positive among them (Holm 1979).

    In ascending order, the k-th of m p values is multiplied by m - k + 1, and is at least the one before it.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[index] * (len(ps) - place)))
        adjusted[index] = largest
    return adjusted


def pairs_needed(mean: float, sd: float | None, level: float = LEVEL) -> int | None:
    """Return the fewest pairs for which a two-sided paired t test detects a difference of this size with 80 % power.

    The power with n pairs is P(|T| > t(n - 1; 1 - level / 2)), T noncentral t with n - 1 degrees and noncentrality
    sqrt(n) mean / sd (Cohen 1988, chapter 2). The observed mean and sd are taken as the true ones, which is a rough
    guide with few pairs.

    Args:
        mean: mean difference, in any unit.
        sd: standard deviation of the differences, in the same unit.
        level: significance level of the test; smaller than 5 % after correction for several tests.

    Returns:
        Number of pairs, at least 2; None if more than 1,000 are needed or the sd is unknown.
    """
    if sd is None or not math.isfinite(mean) or not mean:
        return None
    if not sd:
        return 2
    effect = abs(mean) / sd
    if _power(effect, MOST_PAIRS, level) < POWER:
        return None
    low, high = 1, MOST_PAIRS  # too few and enough pairs: power grows with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, level) >= POWER else (middle, high)
    return high


def _power(effect: float, pairs: int, level: float) -> float:
    from scipy.special import nctdtr

    critical, shift = _t_quantile(pairs - 1, level), effect * math.sqrt(pairs)
    tails = (float(nctdtr(pairs - 1, shift, end)) for end in (-critical, critical))
    below, up_to = (
        0.0 if math.isnan(tail) else tail for tail in tails
    )  # scipy returns NaN for shifts above 38, where the tail is about 0
    return below + 1 - up_to


def _variance(values: Sequence[float], mean: float) -> float:
    if min(values) == max(values):  # the mean of equal values may be off by rounding
        return 0.0
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@functools.cache
def _t_quantile(degrees: int, level: float = LEVEL) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - level / 2))


def _t_p(mean: float, error: float, degrees: int) -> float:
    from scipy.special import stdtr

    if not error:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(degrees, -abs(mean) / error))


def _resampled_means(differences: Any, draws: int, generator: Any) -> Any:
    """Return the means of resampled rows, (draws,); rows with equal differences are drawn together, which is faster."""
    import numpy as np

    rows = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= 64:
        return generator.multinomial(rows, counts / rows, size=draws) @ values / rows
    step = max(1, CHUNK // rows)
    parts = (min(step, draws - start) for start in range(0, draws, step))
    return np.concatenate([differences[generator.integers(0, rows, (part, rows))].mean(axis=1) for part in parts])
