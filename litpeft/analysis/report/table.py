"""The table: a row a group, a cell a figure with its interval, its difference from the baseline and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litpeft.analysis.comparison import Comparison, Difference, Figure, Group
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.number_format import form, form_estimate, form_p
from litpeft.analysis.report.sentences import UNKNOWN, counted, difference_interval, difference_told
from litpeft.runs.record import FIELDS

SIGNS = {"better": "▲", "worse": "▼", "within noise": "≈", "cannot tell": "?"}  # told by shape too, not by colour alone


@dataclass(frozen=True)
class Cell:
    """Attributes:
    value: mean and interval.
    verdict: against the baseline; None in its own row and where nothing is tested.
    sign: of the verdict.
    difference: with its sign and unit.
    details: the test, its p, the interval of the difference, seeds that would be needed.
    examples: the verdict over validation rows, in words.
    """

    value: str
    verdict: str | None = None
    sign: str = ""
    difference: str = ""
    details: str = ""
    examples: str = ""


@dataclass(frozen=True)
class Row:
    """Attributes:
    label: of the group.
    group: its number; None in rows that others have published.
    seeds: how many ended well, and how many did not (or go on).
    is_baseline: whether the others are held against it.
    cells: one for each figure.
    """

    label: str
    group: int | None
    seeds: str
    is_baseline: bool
    cells: list[Cell]


def rows(comparison: Comparison) -> list[Row]:
    """Ours in the order of the experiment, then what others have published."""
    own = [
        Row(
            group.label,
            number,
            _seeds(group),
            group.label == comparison.baseline,
            [_cell(group, figure) for figure in comparison.figures],
        )
        for number, group in enumerate(comparison.groups)
    ]
    others = (comparison.published or {}).get("rows") or ()
    return own + [_published(row, comparison.figures) for row in others]


def definition(figure: Figure) -> str:
    """What a column is, as the record defines it."""
    if figure.name.startswith("seconds_to_"):
        return "seconds of training until a validation first met the target; runs that never did are not in the mean"
    return FIELDS.get(figure.name, FIELDS["other_metrics"])


def _seeds(group: Group) -> str:
    return f"{len(group.runs)}" + (f" ({len(group.failed)} unfinished)" if group.failed else "")


def _cell(group: Group, figure: Figure) -> Cell:
    estimate, difference = group.estimates.get(figure.name), group.differences.get(figure.name)
    shown = UNKNOWN if estimate is None else form_estimate(figure.name, estimate)
    if estimate and estimate.count < len(group.runs):
        shown += f" ({estimate.count} of {len(group.runs)} runs)"
    if difference is None or figure.better is None:
        return Cell(shown)
    rows_told = group.over_examples.get(figure.name)
    return Cell(
        shown,
        difference.verdict,
        SIGNS[difference.verdict],
        difference_told(figure.name, difference),
        details(figure, difference),
        f"rows: {rows_told.verdict}, p {form_p(rows_told.p_holm)}" if rows_told else "",
    )


def details(figure: Figure, difference: Difference) -> str:
    """All that is known of a difference, for those who ask."""
    ends = difference_interval(figure.name, difference)
    words = [
        ends and f"95 % interval {ends}",
        difference.test and f"{difference.test}, {counted(difference.pairs, 'pair')}",
        difference.p is not None and f"p {form_p(difference.p)}, Holm-corrected {form_p(difference.p_holm)}",
        difference.verdict == "within noise"
        and difference.seeds_needed
        and f"about {difference.seeds_needed} seeds would show a difference of this size",
    ]
    return "; ".join(word for word in words if word)


def _published(row: Mapping[str, Any], figures: list[Figure]) -> Row:
    found = [value(dict(row), figure.name) for figure in figures]
    cells = [
        Cell(UNKNOWN if one is None else form(figure.name, one)) for figure, one in zip(figures, found, strict=True)
    ]
    return Row(str(row.get("label", UNKNOWN)), None, UNKNOWN, False, cells)
