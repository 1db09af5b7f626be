"""Format numbers with units, and with the digits that their confidence interval supports."""

from __future__ import annotations

import math
import re
from typing import Any

from litpeft.analysis.comparison.results import Estimate

UNKNOWN = "—"
MINUS = "\N{MINUS SIGN}"
MOST_PLACES, SMALL = 6, 1e-5  # decimal places, and the least value of which they show two digits
UNITS = (  # (pattern of names, factor, unit); CSV and JSON keep raw bytes and shares
    (re.compile(r"score_.*"), 100.0, "points"),
    (re.compile(r".*_bytes"), 1 / 2**20, "MiB"),
    (
        re.compile(
            r".*(accuracy|_f1|_acc|_acc_norm|_ece|_exact_match|held_out_(accuracy|f1)_.*)(_before|_change)?"
            r"|flops_utilisation"
        ),
        100.0,
        "%",
    ),
    (re.compile(r".*_joules"), 1.0, "J"),
    (re.compile(r".*_seconds(_p\d+)?"), 1.0, "s"),
)


def number(found: Any) -> float | None:
    """Return a finite number unchanged, and None for anything else."""
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return found if is_number and math.isfinite(found) else None


def unit(name: str) -> tuple[float, str]:
    """Return (factor, unit) in which a figure is shown; the unit is empty for plain numbers."""
    if name.startswith("seconds_to_"):
        return 1.0, "s"
    return next(((factor, shown) for pattern, factor, shown in UNITS if pattern.fullmatch(name)), (1.0, ""))


def format_value(name: str, mean: float, half: float | None = None, signed: bool = False) -> str:
    """Format a value in its unit, rounded to the second digit of the half-width of its interval, else to four digits.

    Counts (parameters, steps) are not rounded. Values that six decimal places do not show are written as `3.1e-08`.
    """
    factor, _ = unit(name)
    mean, half = mean * factor, None if half is None else half * factor
    places, sign = _places(name, mean, half), "+" if signed else ""
    if places > MOST_PLACES and 0 < abs(mean) < SMALL:
        text = f"{mean:{sign}.{max(0, places + math.floor(math.log10(abs(mean))))}e}"
        return text.replace("-", MINUS, 1) if mean < 0 else text
    places = min(places, MOST_PLACES)
    return f"{round(mean, places):{sign},.{max(places, 0)}f}".replace("-", MINUS)


def format_estimate(name: str, estimate: Estimate | None) -> str:
    """Format mean and half-width of the interval: `85.9 ± 1.2`.

    Only the mean if the interval is unknown, empty, or so narrow that four digits of the mean do not show it. An
    interval that was cut at the limit of possible values is shown by its ends: `98.2 (91.5 to 100.0)`.
    """
    if estimate is None:
        return UNKNOWN
    half, (factor, _) = estimate.half_width, unit(name)
    if not half or (estimate.mean and not round(half * factor, _places(name, estimate.mean * factor, None))):
        return format_value(name, estimate.mean)
    if not estimate.is_symmetric:
        mean, low, high = (format_value(name, each, half) for each in (estimate.mean, estimate.low, estimate.high))
        return f"{mean} ({low} to {high})"
    return f"{format_value(name, estimate.mean, half)} ± {format_value(name, half, half)}"


def format_interval(name: str, low: float | None, high: float | None) -> str:
    """Format both ends of an interval."""
    if low is None or high is None:
        return UNKNOWN
    half = (high - low) / 2
    return f"{format_value(name, low, half, signed=True)} to {format_value(name, high, half, signed=True)}"


def format_p(p: float | None) -> str:
    """Format a p value with three decimal places; small values as `< 0.001`, 0 (no noise at all) as `exact`."""
    if p is None:
        return UNKNOWN
    return "exact" if p == 0 else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _places(name: str, mean: float, half: float | None) -> int:
    """Return the number of decimal places; negative numbers round to tens, hundreds, ..."""
    if half:
        return 1 - math.floor(math.log10(half))
    if name.endswith(("_params", "steps")) or not mean:
        return 0
    return max(0, 3 - math.floor(math.log10(abs(mean))))
