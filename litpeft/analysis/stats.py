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
ONE_SIDED = LEVEL / 2  # level of each of two one-sided tests, so that a 95 % CI inside the margin shows equivalence
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
        p_low: one-sided p value of a true difference of at most -margin; None without a margin.
        p_high: one-sided p value of a true difference of at least +margin.
    """

    __test__ = False  # not a pytest class

    mean: float
    low: float
    high: float
    p: float
    sd: float | None
    pairs: int
    p_low: float | None = None
    p_high: float | None = None


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
    half = t_quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return mean, mean - half, mean + half


def paired_t(
    values: Sequence[float], baseline: Sequence[float], resolution: float = 0.0, margin: float | None = None
) -> Test:
    """Run a two-sided paired t test: t = mean / (s / sqrt(n)) with n - 1 degrees of freedom.

    With a margin, also two one-sided tests against -margin and +margin (Schuirmann 1987).

    Equal differences give p = 0, or p = 1 if they are all 0, which is correct for figures without noise (bytes). An
    accuracy is a multiple of 1 / rows, so two differences can be equal by chance; `resolution` sets a minimum of s.

    Args:
        values: one value per pair, in any unit.
        baseline: values of the baseline for the same pairs, in the same order.
        resolution: step between possible values; s^2 is at least step^2 / 6, the rounding noise of a difference
            (Sheppard).
        margin: smallest difference that matters, in the unit of the values.

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
    half = t_quantile(count - 1) * error
    ends = mean - half, mean + half
    p = _t_p(mean, error, count - 1)
    shifts = () if margin is None else (mean + margin, margin - mean)
    return Test(mean, *ends, p, math.sqrt(variance), count, *(_t_above(shift, error, count - 1) for shift in shifts))


def mcnemar(right: Sequence[int], baseline: Sequence[int], margin: float | None = None) -> Test:
    """Run the exact McNemar test of two classifiers on the same rows (McNemar 1947): a two-sided binomial test.

    Of the b + c rows that only one classifier has right, b ~ Binomial(b + c, 1/2) if both are equally good. The CI is
    the score interval of the difference (b - c) / n (Tango 1998), which is not empty if no row differs; an end is moved
    to 0 where the exact test does not reject, so that the CI excludes 0 iff p < 0.05.

    Args:
        right: 1 for each correct row, else 0.
        baseline: the same for the baseline, in the same order.
        margin: smallest difference of accuracies that matters, for two one-sided score tests.

    Raises:
        ValueError: the lengths differ, or there are no rows.
    """
    import numpy as np
    from scipy.special import bdtr, ndtr, ndtri

    first, second = np.asarray(right, dtype=bool), np.asarray(baseline, dtype=bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"McNemar's test needs the same rows twice, got {first.shape} and {second.shape}")
    gained, lost, rows = int((first & ~second).sum()), int((second & ~first).sum()), first.size
    p = min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0
    quantile = float(ndtri(1 - LEVEL / 2))
    low, high = -_score_end(lost, gained, rows, quantile), _score_end(gained, lost, rows, quantile)
    if p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    outcomes = () if margin is None else ((lost, gained), (gained, lost))
    tails = (float(ndtr(_score(b, c, rows, margin))) for b, c in outcomes)
    return Test((gained - lost) / rows, low, high, p, None, rows, *tails)


def paired_bootstrap(
    values: Any, baseline: Any, draws: int = DRAWS, seed: int = 0, margin: float | None = None
) -> Test:
    """Run a percentile bootstrap over rows of the mean difference (Efron & Tibshirani 1993, chapters 13 and 15).

    With several seeds, the mean over seeds of each row is resampled, so the result is about these trained models on
    similar rows. p is twice the smaller share of resamples on one side of 0, with each count increased by one (Davison
    & Hinkley 1997, 4.2.3), so at least 2 / (draws + 1). For values of 0 and 1 (right or wrong rows), half a row is
    added to each of the four outcomes of a pair (Agresti & Min 2005): rows that all agree are then no proof that all
    further rows agree.

    Args:
        values: (rows,) or (seeds, rows), in any unit.
        baseline: values of the baseline, same shape and order.
        draws: number of resamples.
        seed: random seed of the resampling.
        margin: smallest difference that matters, for two one-sided tests.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    import numpy as np

    first, second = np.atleast_2d(np.asarray(values, dtype=float)), np.atleast_2d(np.asarray(baseline, dtype=float))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"a paired bootstrap needs the same rows twice, got {first.shape} and {second.shape}")
    generator = np.random.default_rng(seed)
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        by_row, counts = np.unique([*(first - second).mean(axis=0), -1, 0, 1], return_counts=True)
        counts = counts - 0.5 * np.isin(by_row, (-1, 1))  # half a row for -1 and for 1, a row for 0
        means = _resampled_counts(by_row, counts, draws, generator)  # (draws,)
    else:
        means = _resampled_means((first - second).mean(axis=0), draws, generator)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    # sums in another order differ by rounding; means equal to 0 count on both sides
    tolerance = 1e-12 * float(np.abs(first - second).max())
    sides = int((means <= tolerance).sum()), int((means >= -tolerance).sum())
    p = min(1.0, 2 * (min(sides) + 1) / (draws + 1))
    beyond = () if margin is None else (means <= -margin, means >= margin)
    tails = ((int(outside.sum()) + 1) / (draws + 1) for outside in beyond)
    mean = float((first - second).mean())
    return Test(mean, min(float(low), mean), max(float(high), mean), p, None, first.shape[1], *tails)


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


def _variance(values: Sequence[float], mean: float) -> float:
    if min(values) == max(values):  # the mean of equal values may be off by rounding
        return 0.0
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@functools.cache
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Return the quantile of Student's t that a two-sided test of this level compares with."""
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
        return _resampled_counts(values, counts, draws, generator)
    step = max(1, CHUNK // rows)
    parts = (min(step, draws - start) for start in range(0, draws, step))
    return np.concatenate([differences[generator.integers(0, rows, (part, rows))].mean(axis=1) for part in parts])


def _resampled_counts(values: Any, counts: Any, draws: int, generator: Any) -> Any:
    """Return the means of resampled rows, (draws,), from the different values and how often each was seen."""
    rows = round(counts.sum())
    return generator.multinomial(rows, counts / rows, size=draws) @ values / rows


def _t_above(distance: float, error: float, degrees: int) -> float:
    """Return the one-sided p value of a distance that is expected to be 0 or less."""
    from scipy.special import stdtr

    if not error:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(degrees, -distance / error))


def _score(gained: int, lost: int, rows: int, difference: float) -> float:
    """Return the z of Tango's score test that the true difference (gained - lost) / rows is `difference`."""
    linear = (2 * rows - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)  # of lost rows, if it is true
    error = math.sqrt(rows * (2 * share + difference * (1 - difference)))
    distance = gained - lost - rows * difference
    if not error:  # a difference of 1, which needs all rows to be gained, or of 0 where no row differs
        return -math.inf if distance < 0 else 0.0
    return distance / error


def _score_end(gained: int, lost: int, rows: int, quantile: float) -> float:
    """Return the upper end of the score interval: the difference at which z falls to -quantile, at most 1."""
    low, high = (gained - lost) / rows, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(gained, lost, rows, middle) > -quantile else (low, middle)
    return high
