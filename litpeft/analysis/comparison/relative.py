"""Costs relative to the baseline, paired by seed: the baseline is 1."""

from __future__ import annotations

import math

from litpeft.analysis.comparison.differences import paired_values
from litpeft.analysis.comparison.results import Comparison, Estimate, Figure, Group
from litpeft.analysis.stats import mean_interval

COSTS = "memory", "speed", "size"  # kinds of figures that have a ratio


def ratio(group: Group, baseline: Group, figure: Figure) -> Estimate | None:
    """Return the ratio of a figure to that of the baseline: the geometric mean over the common seeds, with its 95 % CI.

    The interval is Student's t of the logarithms, because ratios of positive figures are skewed. None if no common seed
    has positive values of both.
    """
    values = paired_values(group, baseline, figure)
    logs = [math.log(ours / other) for ours, other in values if ours > 0 < other]
    if not logs:
        return None
    mean, low, high = mean_interval(logs)
    ends = (None, None) if low is None or high is None else (_power(low), _power(high))
    return Estimate(math.exp(mean), *ends, len(logs))


def ratios(comparison: Comparison, figure: Figure) -> dict[int, Estimate]:
    """Return the ratios of all groups that have one, by number of the group; the baseline's is 1."""
    base = comparison.baseline_group
    if base is None or figure.kind not in COSTS:
        return {}
    found = {number: ratio(group, base, figure) for number, group in enumerate(comparison.groups)}
    return {number: each for number, each in found.items() if each is not None}


def ratio_text(found: Estimate | None) -> str:
    """Format a ratio in per cent: `62 %`, or `62 % (58 to 66)`; a wide interval is rounded as its mean is."""
    if found is None:
        return "—"
    text = f"{100 * found.mean:.3g} %"
    if found.low is None or found.high is None or found.high - found.low < 0.001 * found.mean:
        return text
    return f"{text} ({100 * found.low:.3g} to {100 * found.high:.3g})"


def _power(exponent: float) -> float:
    return math.exp(min(exponent, 700.0))  # two seeds that differ much have an interval without end
