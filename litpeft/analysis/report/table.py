"""Table of the report: one row per group; cells have the mean, the difference from the baseline and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litpeft.analysis.comparison import Comparison, Difference, Figure, Group
from litpeft.analysis.comparison.answer import verdict_text
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.number_format import format_estimate, format_p, format_value
from litpeft.analysis.comparison.sentences import UNKNOWN, counted, difference_text, interval_text
from litpeft.analysis.comparison.tables import seeds_text, verdict_word
from litpeft.runs.record import FIELDS

FIT = 6  # figures that fit on a screen
# symbols of verdicts, so that they do not depend on colour
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "=", "not enough seeds": "?", "not enough rows": "?"}


@dataclass(frozen=True)
class Cell:
    """A cell with the mean of a figure, and the difference from the baseline as text; no verdict without a test."""

    value: str
    verdict: str | None = None
    sign: str = ""
    difference: str = ""
    details: str = ""
    examples: str = ""  # verdict of the test over rows


@dataclass(frozen=True)
class Row:
    """A row with one cell per figure; `group` is the number of the group, or None in a published row."""

    label: str
    group: int | None
    seeds: str
    is_baseline: bool
    cells: list[Cell]


def rows(comparison: Comparison) -> list[Row]:
    """Return the rows of the groups, followed by published rows."""
    measured = [
        Row(
            group.label,
            number,
            seeds_text(group),
            group.label == comparison.baseline,
            [_cell(group, figure) for figure in comparison.figures],
        )
        for number, group in enumerate(comparison.groups)
    ]
    published = (comparison.published or {}).get("rows") or ()
    return measured + [_published(row, comparison.figures) for row in published]


def main_columns(figures: Sequence[Figure]) -> set[int]:
    """Return the places of the figures that the table shows at first: of quality, memory, time and size."""
    if len(figures) <= FIT:
        return set(range(len(figures)))
    most = {"quality": 2, "benchmark": 2, "memory": 1, "speed": 1, "size": 1}
    preferred = sorted(range(len(figures)), key=lambda place: (figures[place].name != "train_seconds", place))
    chosen = {place for place, figure in enumerate(figures) if figure.name.startswith("seconds_to_")}  # was asked for
    for kind, count in most.items():
        chosen |= set([place for place in preferred if figures[place].kind == kind][:count])
    return chosen


def definition(figure: Figure) -> str:
    """Return the definition of a figure."""
    if figure.name.startswith("seconds_to_"):
        return (
            "seconds of training until a validation first reached the target; runs that never reached it are left out"
        )
    if figure.name.startswith("score_"):
        return "mean of the main metrics of the task on its validation rows, times 100"
    other = "benchmarks" if figure.kind == "benchmark" else "other_metrics"
    return FIELDS.get(figure.name, FIELDS[other])


def _cell(group: Group, figure: Figure) -> Cell:
    estimate, difference = group.estimates.get(figure.name), group.differences.get(figure.name)
    shown = UNKNOWN if estimate is None else format_estimate(figure.name, estimate)
    if estimate and estimate.count < len(group.runs):
        shown += f" ({estimate.count} of {len(group.runs)} runs)"
    if difference is None or figure.better is None:
        return Cell(shown)
    over_rows = group.over_examples.get(figure.name)
    return Cell(
        shown,
        verdict_word(difference),
        SIGNS[difference.verdict],
        difference_text(figure.name, difference),
        details(figure, difference),
        f"over rows: {verdict_word(over_rows)}, p {format_p(over_rows.p_holm)}" if over_rows else "",
    )


def details(figure: Figure, difference: Difference) -> str:
    """Return the test, p value, interval and seeds needed of a difference."""
    ends = interval_text(figure.name, difference)
    parts = [
        ends and f"95 % CI {ends}",
        difference.test and f"{difference.test}, {counted(difference.pairs, 'pair')}",
        difference.p is not None and f"p {format_p(difference.p)}, Holm-corrected {format_p(difference.p_holm)}",
        verdict_text(figure, difference),
    ]
    return "; ".join(part for part in parts if part)


def _published(row: Mapping[str, Any], figures: list[Figure]) -> Row:
    found = [value(dict(row), figure.name) for figure in figures]
    cells = [
        Cell(UNKNOWN if known is None else format_value(figure.name, known))
        for figure, known in zip(figures, found, strict=True)
    ]
    return Row(str(row.get("label", UNKNOWN)), None, UNKNOWN, False, cells)
