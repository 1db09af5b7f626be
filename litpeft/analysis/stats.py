"""Intervals and paired tests for a handful of seeds and for thousands of rows. Needs no torch and not scipy.stats.

Differences are always of pairs: the same seed (the same batches, the same first values of the head) or the same
validation row under both strategies. `scipy.special` has the distributions; `scipy.stats` takes a second to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.05  # of tests; intervals are the other 95 %
POWER = 0.8  # how likely a difference of the observed size is to be shown by `pairs_needed` pairs
MOST_PAIRS = 1000  # more seeds than anyone will run
DRAWS = 10_000  # of the bootstrap: the smallest p it can tell is 2 / 10,001
CHUNK = 4_000_000  # random indices held at once: 32 MB


@dataclass(frozen=True)
class Test:
    """What a test found.

    Attributes:
        mean: of the differences, in the unit of the figure.
        low: end of its 95 % interval, in the same unit.
        high: the other end.
        p: probability of a mean at least as far from 0 if there were no difference.
        sd: of the differences, n - 1 in its denominator, floored as the test's docstring says; None where it has none.
        pairs: how many differences.
    """

    __test__ = False  # no test case of pytest's

    mean: float
    low: float
    high: float
    p: float
    sd: float | None
    pairs: int


def mean_interval(values: Sequence[float], resolution: float = 0.0) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % interval, mean +- t(n - 1; 0.975) s / sqrt(n) (Student 1908), in the unit of the values.

    Args:
        values: independent draws, of about normal distribution. The ends are None for fewer than two.
        resolution: step in which values come (1 / rows for an accuracy); s^2 is at least its noise, step^2 / 12.

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
    """Student's t test of the mean of paired differences, two-sided: t = mean / (s / sqrt(n)), n - 1 degrees.

    Differences that are all equal give p = 0, or 1 where they are all 0: right for figures without noise (bytes). An
    accuracy comes in steps of 1 / rows, so two differences are equal by chance; there `resolution` keeps s honest.

    Args:
        values: figure by pair, in any unit.
        baseline: of the same pairs, in the same order.
        resolution: step in which both come; s^2 is at least the rounding noise of a difference, step^2 / 6 (Sheppard).

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
    """Exact McNemar test of two classifiers on the same rows (McNemar 1947; two-sided binomial on the rows in dispute).

    Of the b + c rows that one alone has right, b ~ Binomial(b + c, 1/2) if both are equally good. The interval is that
    of Clopper and Pearson for b's share of them, turned into a difference of accuracies: it excludes 0 just where
    p < 0.05.

    Args:
        right: 1 where a row is right, else 0.
        baseline: the same rows of the baseline.

    Raises:
        ValueError: the lengths differ, or there are no rows.
    """
    import numpy as np
    from scipy.special import bdtr, betaincinv

    first, second = np.asarray(right, dtype=bool), np.asarray(baseline, dtype=bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"McNemar's test needs the same rows twice, got {first.shape} and {second.shape}")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    disputed, rows = gained + lost, first.size
    if not disputed:
        return Test(0.0, 0.0, 0.0, 1.0, None, rows)
    p = min(1.0, 2 * float(bdtr(min(gained, lost), disputed, 0.5)))
    low = float(betaincinv(gained, lost + 1, LEVEL / 2)) if gained else 0.0
    high = float(betaincinv(gained + 1, lost, 1 - LEVEL / 2)) if lost else 1.0
    scale = disputed / rows
    return Test((gained - lost) / rows, (2 * low - 1) * scale, (2 * high - 1) * scale, p, None, rows)


def paired_bootstrap(values: Any, baseline: Any, draws: int = DRAWS, seed: int = 0) -> Test:
    """Percentile bootstrap over rows of the mean difference (Efron & Tibshirani 1993, chapters 13 and 15).

    With several seeds the statistic is the mean over them, and all seeds see the same resampled rows: so it is the
    bootstrap of each row's mean over seeds, and speaks of these trained models on other rows like these. p is twice the
    smaller share of draws on one side of 0, each count raised by one (Davison & Hinkley 1997, 4.2.3): never below
    2 / (draws + 1).

    Args:
        values: (rows,) or (seeds, rows), in any unit.
        baseline: of the same shape, seeds and rows in the same order.
        draws: how many resamples.
        seed: of the resampling: the same input gives the same result.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    import numpy as np

    first, second = np.atleast_2d(np.asarray(values, dtype=float)), np.atleast_2d(np.asarray(baseline, dtype=float))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"a paired bootstrap needs the same rows twice, got {first.shape} and {second.shape}")
    means = _resampled_means((first - second).mean(axis=0), draws, np.random.default_rng(seed))  # (draws,)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    # sums of the same terms in another order miss 0 by an ulp; what is 0 counts on both sides
    tolerance = 1e-12 * float(np.abs(first - second).max())
    sides = int((means <= tolerance).sum()), int((means >= -tolerance).sum())
    p = min(1.0, 2 * (min(sides) + 1) / (draws + 1))
    return Test(float((first - second).mean()), float(low), float(high), p, None, first.shape[1])


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected so that the chance of any false finding among them stays below the level (Holm 1979).

    In ascending order, the k-th of m is multiplied by m - k + 1, and none is smaller than one before it.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[index] * (len(ps) - place)))
        adjusted[index] = largest
    return adjusted


def pairs_needed(mean: float, sd: float | None, level: float = LEVEL) -> int | None:
    """Fewest pairs with which a paired t test (two-sided) shows a difference of this size in four of five tries.

    The power with n pairs is P(|T| > t(n - 1; 1 - level / 2)), T noncentral t with n - 1 degrees and noncentrality
    sqrt(n) mean / sd (Cohen 1988, chapter 2). The observed mean and sd stand for the true ones: with few pairs a rough
    guide.

    Args:
        mean: of the differences, in any unit.
        sd: of the differences, in the same unit.
        level: of the test; a part of 5 % where it is one of several.

    Returns:
        At least 2; None where more than 1,000 would be needed or the sd is not known.
    """
    if sd is None or not math.isfinite(mean) or not mean:
        return None
    if not sd:
        return 2
    effect = abs(mean) / sd
    if _power(effect, MOST_PAIRS, level) < POWER:
        return None
    low, high = 1, MOST_PAIRS  # power grows with n: too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, level) >= POWER else (middle, high)
    return high


def _power(effect: float, pairs: int, level: float) -> float:
    from scipy.special import nctdtr

    critical, shift = _t_quantile(pairs - 1, level), effect * math.sqrt(pairs)
    tails = (float(nctdtr(pairs - 1, shift, end)) for end in (-critical, critical))
    below, up_to = (0.0 if math.isnan(tail) else tail for tail in tails)  # scipy's nan: with shifts above 38, about 0
    return below + 1 - up_to


def _variance(values: Sequence[float], mean: float) -> float:
    if min(values) == max(values):  # of three times 0.4 the mean is an ulp off
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
    """Means of resampled rows, (draws,). Rows with equal differences are drawn together: right and wrong have few."""
    import numpy as np

    rows = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= 64:
        return generator.multinomial(rows, counts / rows, size=draws) @ values / rows
    step = max(1, CHUNK // rows)
    parts = (min(step, draws - start) for start in range(0, draws, step))
    return np.concatenate([differences[generator.integers(0, rows, (part, rows))].mean(axis=1) for part in parts])
