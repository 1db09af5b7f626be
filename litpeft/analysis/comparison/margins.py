"""How large a difference must be to matter, and which values a figure can have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from litpeft.analysis.comparison.benchmarks import CHANGE
from litpeft.analysis.comparison.number_format import unit
from litpeft.analysis.comparison.results import Figure
from litpeft.errors import UserError, did_you_mean

POINTS = 0.01  # default margin of scores between 0 and 1, such as an accuracy: one percentage point
QUALITY, COST = 0.01, 0.05  # default margins of other qualities and of costs: shares of the mean of the baseline
CORRELATION = re.compile(r"matthews|pearson|spearman|mcc|cohen_?kappa|^score_")  # a score of a task may be one


@dataclass(frozen=True)
class Margin:
    """A margin as requested: a share of the mean of the baseline, or an amount in the unit that is shown."""

    amount: float
    is_share: bool


def read_margin(text: str) -> tuple[str, Margin]:
    """Read `val_accuracy=0.5` (points) or `val_loss=2%` (of the mean of the baseline).

    Raises:
        ValueError: the text has another form, or the margin is not positive.
    """
    name, _, amount = text.partition("=")
    margin = Margin(float(amount.strip().rstrip("%")), amount.strip().endswith("%"))
    if not name.strip() or not 0 < margin.amount < float("inf"):
        raise ValueError(text)
    return name.strip(), margin


def check_margins(requested: Mapping[str, Margin], figures: Iterable[Figure]) -> None:
    """Check that the margins name figures of the comparison that are tested.

    Raises:
        UserError: a figure is not among them.
    """
    names = [figure.name for figure in figures if figure.better]
    for name in requested:
        if name not in names:
            guess = did_you_mean(name, names)
            raise UserError(f"--margin {name}: no such figure{guess}; there are {', '.join(names)}.")


def margin_of(figure: Figure, baseline: float, requested: Mapping[str, Margin]) -> float | None:
    """Return the smallest difference that matters, in raw units; None if the mean of the baseline is 0.

    Args:
        figure: the figure.
        baseline: mean of the baseline, in raw units.
        requested: margins by name of the figure; others have a default.
    """
    if wanted := requested.get(figure.name):
        return wanted.amount / 100 * abs(baseline) or None if wanted.is_share else wanted.amount / unit(figure.name)[0]
    if figure.kind in ("quality", "benchmark"):
        is_score = figure.better == "higher" and -1 <= baseline <= 1
        return POINTS if is_score else QUALITY * abs(baseline) or None
    return COST * abs(baseline) or None


def possible(figure: Figure) -> tuple[float | None, float | None]:
    """Return the lowest and highest possible value of a figure; None where there is no limit."""
    is_score = figure.kind in ("quality", "benchmark")
    if figure.name.endswith(CHANGE):  # by training, so of either sign
        return (-1.0, 1.0) if unit(figure.name)[1] == "%" else (None, None)
    if CORRELATION.search(figure.name):
        return -1.0, 1.0
    if is_score and unit(figure.name)[1] == "%":
        return 0.0, 1.0
    return (0.0, None) if not is_score or "loss" in figure.name else (None, None)


def within(ends: Sequence[float | None], limits: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Cut an interval at the limits; a true value beyond them cannot be, so the interval covers as often as before."""
    low, high = ends
    low = low if low is None or limits[0] is None else max(low, limits[0])
    return low, high if high is None or limits[1] is None else min(high, limits[1])


def possible_difference(figure: Figure) -> tuple[float | None, float | None]:
    """Return the limits of a difference of two values of a figure."""
    low, high = possible(figure)
    return (None, None) if low is None or high is None else (low - high, high - low)
