"""Format figures for sentences and hover texts, with units and intervals; unknown values are `n/a`."""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.analysis.comparison import Difference, Estimate
from litpeft.analysis.comparison.number_format import format_interval, format_value, unit

UNKNOWN = "n/a"


def value_text(name: str, value: float | None) -> str:
    """Format a value of the figure `name` with its unit."""
    return UNKNOWN if value is None else _with_unit(format_value(name, value), unit(name)[1])


def estimate_text(name: str, estimate: Estimate | None) -> str:
    """Format a mean with its interval: `85.9 % (84.7 to 87.1)`; only the mean if there is no interval."""
    if estimate is None:
        return UNKNOWN
    half = estimate.half_width
    if not half:
        return value_text(name, estimate.mean)
    ends = [format_value(name, end, half) for end in (estimate.low, estimate.high)]
    return f"{_with_unit(format_value(name, estimate.mean, half), unit(name)[1])} ({ends[0]} to {ends[1]})"


def difference_text(name: str, difference: Difference) -> str:
    """Format a difference with sign and unit; the unit of percentages is points."""
    shown = unit(name)[1]
    value = format_value(name, difference.mean, difference.half_width, signed=True)
    return _with_unit(value, "points" if shown == "%" else shown)


def interval_text(name: str, difference: Difference) -> str | None:
    """Format the interval of a difference; None if unknown or empty."""
    return format_interval(name, difference.low, difference.high) if difference.half_width else None


def plain_title(title: str) -> str:
    """Return the title of a figure without its unit."""
    return title.rpartition(", ")[0] or title


def listed(words: Sequence[str]) -> str:
    """Join words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 seed`, `3 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _with_unit(number: str, shown: str) -> str:
    return f"{number} {shown}".rstrip()
