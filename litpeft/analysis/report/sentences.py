"""Figures in sentences and hovers: with their units, and with their intervals written out. What is not known is n/a."""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.analysis.comparison import Difference, Estimate
from litpeft.analysis.comparison.number_format import form, form_interval, unit

UNKNOWN = "n/a"


def told(name: str, value: float | None) -> str:
    """A single value of the record's field `name`."""
    return UNKNOWN if value is None else _with_unit(form(name, value), unit(name)[1])


def estimate_told(name: str, estimate: Estimate | None) -> str:
    """`85.9 % (84.7 to 87.1)`; without an interval, the mean alone."""
    if estimate is None:
        return UNKNOWN
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return told(name, estimate.mean)
    half = (estimate.high - estimate.low) / 2
    ends = [form(name, end, half) for end in (estimate.low, estimate.high)]
    return f"{_with_unit(form(name, estimate.mean, half), unit(name)[1])} ({ends[0]} to {ends[1]})"


def difference_told(name: str, difference: Difference) -> str:
    """With its sign; a difference of percentages is in points."""
    shown = unit(name)[1]
    half = None if difference.low is None or difference.high is None else (difference.high - difference.low) / 2
    return _with_unit(form(name, difference.mean, half or None, signed=True), "points" if shown == "%" else shown)


def difference_interval(name: str, difference: Difference) -> str | None:
    """Both ends of the interval of a difference."""
    known = difference.low is not None and difference.high is not None
    return form_interval(name, difference.low, difference.high) if known and difference.low != difference.high else None


def plain_title(title: str) -> str:
    """Of a figure, without the unit."""
    return title.rpartition(", ")[0] or title


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _with_unit(number: str, shown: str) -> str:
    return f"{number} {shown}".rstrip()
