"""Numbers for readers: units, and as many digits as the interval warrants."""

from __future__ import annotations

import math
import re
from typing import Any

from litpeft.analysis.comparison.results import Estimate

UNKNOWN = "—"
MINUS = "\N{MINUS SIGN}"
UNITS = (  # names -> factor, unit. Raw bytes and shares stay in CSV and JSON
    (re.compile(r".*_bytes"), 1 / 2**20, "MiB"),
    (
        re.compile(r".*(accuracy|_f1|_acc|_acc_norm|_ece|held_out_accuracy_.*)(_before|_change)?|flops_utilisation"),
        100.0,
        "%",
    ),
    (re.compile(r".*_joules"), 1.0, "J"),
    (re.compile(r".*_seconds(_p\d+)?"), 1.0, "s"),
)


def number(found: Any) -> float | None:
    """A finite number as it is; all else is not known."""
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return found if is_number and math.isfinite(found) else None


def unit(name: str) -> tuple[float, str]:
    """(factor, unit) in which a figure is shown; the unit is empty for plain numbers."""
    if name.startswith("seconds_to_"):
        return 1.0, "s"
    return next(((factor, shown) for form, factor, shown in UNITS if form.fullmatch(name)), (1.0, ""))


def form(name: str, mean: float, half: float | None = None, signed: bool = False) -> str:
    """A figure in its unit, rounded where its interval's half has its second digit; without one, four digits.

    Counts (parameters, steps) are shown whole: they have no noise.
    """
    factor, _ = unit(name)
    mean, half = mean * factor, None if half is None else half * factor
    places = _places(name, mean, half)
    rounded = round(mean, places)
    return f"{rounded:{'+' if signed else ''},.{max(places, 0)}f}".replace("-", MINUS)


def form_half(name: str, mean: float, half: float) -> str:
    """The half of an interval with the places of its mean."""
    factor, _ = unit(name)
    places = _places(name, mean * factor, half * factor)
    return f"{round(half * factor, places):,.{max(places, 0)}f}"


def form_estimate(name: str, estimate: Estimate | None) -> str:
    """Mean and half of the interval: `85.9 ± 1.2`; the mean alone where there is no interval or no noise."""
    if estimate is None:
        return UNKNOWN
    if estimate.low is None or estimate.high == estimate.low:
        return form(name, estimate.mean)
    half = (estimate.high - estimate.low) / 2
    return f"{form(name, estimate.mean, half)} ± {form_half(name, estimate.mean, half)}"


def form_interval(name: str, low: float | None, high: float | None) -> str:
    """Both ends, with the digits that the width warrants."""
    if low is None or high is None:
        return UNKNOWN
    half = (high - low) / 2
    return f"{form(name, low, half, signed=True)} to {form(name, high, half, signed=True)}"


def form_p(p: float | None) -> str:
    """A p value: three places, and never a 0 that it is not."""
    if p is None:
        return UNKNOWN
    return "0" if p == 0 else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _places(name: str, mean: float, half: float | None) -> int:
    """Decimal places; below 0 it is tens, hundreds, ..."""
    if half:
        return min(6, 1 - math.floor(math.log10(half)))
    if name.endswith(("_params", "steps")) or not mean:
        return 0
    return min(6, max(0, 3 - math.floor(math.log10(abs(mean)))))
