"""How many seeds decide: the pairs that a paired t test needs. Does not import torch or scipy.stats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from litpeft.analysis.stats import LEVEL, ONE_SIDED, t_quantile

POWER = 0.8  # probability that the seeds needed give a decision
MOST_PAIRS = 1000  # limit of the search

_known: dict[Any, dict[int, tuple[float, float]]] = {}  # (power, level) -> pairs -> effects, see `_is_enough`


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
    return _fewest(_power, abs(mean) / sd, level)


def pairs_to_decide(margin: float, sd: float | None, level: float = ONE_SIDED) -> int | None:
    """Return the fewest pairs that show equivalence within the margin with 80 % power, if there is no true difference.

    As many pairs detect a true difference as large as the margin with more than 80 % power, so they decide whether a
    difference matters. Each of the two one-sided tests may fail, so the power is at least 1 - 2 P(T < t(n - 1; 1 -
    level)), T noncentral t with n - 1 degrees and noncentrality sqrt(n) margin / sd (Phillips 1990).

    Args:
        margin: smallest difference that matters, in any unit.
        sd: standard deviation of the differences, in the same unit.
        level: level of each one-sided test.

    Returns:
        Number of pairs, at least 2; None if more than 1,000 are needed or the sd is unknown.
    """
    if sd is None or not margin > 0:
        return None
    return _fewest(_power_of_two, margin / sd, level) if sd else 2


def _fewest(power: Callable[[float, int, float], float], effect: float, level: float) -> int | None:
    """Return the fewest pairs with enough power, which grows with the pairs; None if 1,000 are too few."""
    if not _is_enough(power, effect, MOST_PAIRS, level):
        return None
    low, high = 1, MOST_PAIRS  # too few and enough pairs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_enough(power, effect, middle, level) else (middle, high)
    return high


def _is_enough(power: Callable[[float, int, float], float], effect: float, pairs: int, level: float) -> bool:
    """Return whether so many pairs have enough power; it grows with the effect, so known effects decide for others."""
    known = _known.setdefault((power, level), {})
    low, high = known.get(pairs, (0.0, math.inf))  # largest effect that was too small, and smallest that was enough
    if not low < effect < high:
        return effect >= high
    enough = power(effect, pairs, level) >= POWER
    known[pairs] = (low, effect) if enough else (effect, high)
    return enough


def _power(effect: float, pairs: int, level: float) -> float:
    from scipy.special import nctdtr

    critical, shift = t_quantile(pairs - 1, level), effect * math.sqrt(pairs)
    tails = (float(nctdtr(pairs - 1, shift, end)) for end in (-critical, critical))
    below, up_to = (
        0.0 if math.isnan(tail) else tail for tail in tails
    )  # scipy returns NaN for shifts above 38, where the tail is about 0
    return below + 1 - up_to


def _power_of_two(effect: float, pairs: int, level: float) -> float:
    """Return a lower limit of the probability that both of two one-sided tests detect an effect."""
    return 1 - 2 * _missed(effect, pairs, level)


def _missed(effect: float, pairs: int, level: float) -> float:
    """Return the probability that a one-sided test misses a true effect."""
    from scipy.special import nctdtr

    missed = float(nctdtr(pairs - 1, effect * math.sqrt(pairs), t_quantile(pairs - 1, 2 * level)))
    return 0.0 if math.isnan(missed) else missed  # NaN for shifts above 38, where it is about 0
