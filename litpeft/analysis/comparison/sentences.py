"""Format figures for sentences and hover texts, with units and intervals; unknown values are `n/a`."""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.analysis.comparison.number_format import format_interval, format_value, unit
from litpeft.analysis.comparison.results import Difference, Estimate, Figure, Group

UNKNOWN = "n/a"
NAMED = 6  # more groups than this are counted instead of named


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


def name_of(group: Group) -> str:
    """Return the name of a group for sentences."""
    return "full fine-tuning" if group.label == "full" else group.label


def names_of(groups: Sequence[Group]) -> str:
    """Return the names of a few groups, or the number of many."""
    return listed([name_of(group) for group in groups]) if len(groups) <= NAMED else f"{len(groups)} groups"


def opening(sentence: str) -> str:
    """Return a sentence with a capital letter, unless it starts with a label, such as `lora`."""
    first = sentence.split()[0]
    return sentence[:1].upper() + sentence[1:] if first in ("full", "in", "of", "on", "there") else sentence


def seed_counts(counts: Sequence[int]) -> str:
    """Return how many seeds there are: `5 seeds`, `2 to 5 seeds`."""
    low, high = min(counts), max(counts)
    return counted(low, "seed") if low == high else f"{low} to {high} seeds"


def within_text(figure: Figure, difference: Difference) -> str:
    """Return that a difference is within its margin: `within 1 point`; empty if there is none."""
    text = margin_text(figure, difference)
    return f"within {text}" if text else ""


def margin_text(figure: Figure, difference: Difference) -> str:
    """Return the margin of a difference: `1 point`; empty if there is none."""
    if difference.margin is None:
        return ""
    factor, shown = unit(figure.name)
    amount = f"{difference.margin * factor:.3g}"
    return _with_unit(amount, shown if shown not in ("%", "points") else "point" if amount == "1" else "points")


def _with_unit(number: str, shown: str) -> str:
    return f"{number} {shown}".rstrip()
