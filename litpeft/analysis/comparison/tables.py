"""Tables and sentences that all text formats of a comparison show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from litpeft.analysis.comparison.caveats import shortlist
from litpeft.analysis.comparison.differences import PAIRED_T
from litpeft.analysis.comparison.number_format import (
    UNKNOWN,
    format_estimate,
    format_interval,
    format_p,
    format_value,
    number,
)
from litpeft.analysis.comparison.results import Comparison, Difference, Figure, Group

KINDS = ("quality", "benchmark", "memory", "speed", "size")


@dataclass(frozen=True)
class Table:
    """A table of unescaped text; the first column names the row."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def figures_table(comparison: Comparison, figures: Sequence[Figure] | None = None) -> Table:
    """Return the table of figures: one row per group and published result, one column per figure."""
    figures = comparison.figures if figures is None else figures
    rows = [
        [
            group.label,
            seeds_text(group),
            *(format_estimate(figure.name, group.estimates.get(figure.name)) for figure in figures),
        ]
        for group in comparison.groups
    ]
    for other in (comparison.published or {}).get("rows") or ():
        known = [(figure.name, number(other.get(figure.name))) for figure in figures]
        cells = [UNKNOWN if found is None else format_value(name, found) for name, found in known]
        rows.append([f"{other['label']} (published)", UNKNOWN, *cells])
    return Table(
        "mean over seeds ± half-width of the 95 % CI", ["group", "seeds", *(each.title for each in figures)], rows
    )


def differences_table(comparison: Comparison) -> Table | None:
    """Return the table of differences: one row per figure, group and test; None if there are no differences."""
    rows = [
        [
            _points(figure.title),
            group.label,
            format_value(figure.name, found.mean, found.half_width, signed=True),
            format_interval(figure.name, found.low, found.high),
            _tested_on(found),
            format_p(found.p_holm),
            found.verdict,
            UNKNOWN if found.test not in (None, PAIRED_T) else _seeds_needed(found),
        ]
        for figure, group, found in all_differences(comparison)
    ]
    headings = ["figure", "group", "difference", "95 % CI", "tested on", "p (Holm)", "verdict", "seeds needed"]
    title, column = f"difference from {comparison.baseline}", headings.index("tested on")
    if len({row[column] for row in rows}) == 1:  # the same in all rows: the title says it instead
        title += f" ({rows[0][column]})"
        headings, *rows = ([cell for i, cell in enumerate(row) if i != column] for row in (headings, *rows))
    return Table(title, headings, rows) if rows else None


def all_differences(comparison: Comparison) -> Iterator[tuple[Figure, Group, Difference]]:
    """Yield all differences by figure and group: tested over seeds, then over rows."""
    for figure in comparison.figures:
        for group in comparison.groups:
            by_seed, by_row = group.differences.get(figure.name), group.over_examples.get(figure.name)
            # one pair of seeds gives no test over seeds
            shown = [by_row] if by_row and by_seed and by_seed.test is None else [by_seed, by_row]
            yield from ((figure, group, found) for found in shown if found)


def alarms(comparison: Comparison) -> list[str]:
    """Return the sentences shown above the tables: confounded options, then warnings."""
    mixed = [
        f"The groups also differ in {key}, which is not an axis: "
        f"{', '.join(f'{item} ({shortlist(labels)})' for item, labels in _labels_by_value(values).items())}."
        for key, values in comparison.confounded.items()
    ]
    return [*mixed, *comparison.warnings]


def notes(comparison: Comparison) -> list[str]:
    """Return the notes below the tables: tests, correction, and limits of the results."""
    sentences = ["A value without ± has one seed, or is equal for all seeds."]
    found = list(all_differences(comparison))
    if tests := [difference.test for _, _, difference in found if difference.test]:
        sentences.append(
            f"Differences from {comparison.baseline}: {', '.join(dict.fromkeys(tests))}; two-sided, level 5 %. "
            "p values are Holm-corrected for the number of groups, separately for each figure and test; CIs are not."
        )
    if unclear := list(_not_significant(comparison)):
        sentences.append(f"Not significant: {'; '.join(unclear)}. This does not show that the groups are equal.")
        sentences.append(
            '"seeds needed": seeds to detect the observed difference with 80 % power after correction, if the observed '
            "difference and its standard deviation are the true ones."
        )
    if any(difference.test not in (None, PAIRED_T) for _, _, difference in found):
        sentences.append(
            "A test over examples compares these trained models on similar rows, not the training methods: another "
            "seed may reverse the result."
        )
    sentences += comparison.remarks
    if published := comparison.published:
        parts = [str(published[key]).rstrip(".") for key in ("source", "note") if published.get(key)]
        sentences.append(f"Published rows were measured by others: {'. '.join(parts) or 'no source is given'}.")
    return sentences


def _not_significant(comparison: Comparison) -> Iterator[str]:
    """Yield the groups without a significant difference over seeds, by figure."""
    for figure in comparison.figures:
        tested = [group for group in comparison.groups if figure.name in group.differences]
        labels = [group.label for group in tested if group.differences[figure.name].verdict == "not significant"]
        if labels:
            yield f"{figure.title.split(',')[0]}: {'all' if len(labels) == len(tested) > 1 else ', '.join(labels)}"


def seeds_text(group: Group) -> str:
    """Return the number of finished and unfinished runs of a group."""
    return f"{len(group.runs)} ({len(group.failed)} unfinished)" if group.failed else str(len(group.runs))


def _labels_by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    return {item: [label for label, value in values.items() if value == item] for item in values.values()}


def _points(title: str) -> str:
    """Return the title of a difference, where per cent become percentage points."""
    return title.removesuffix("%") + "points" if title.endswith(", %") else title


def _tested_on(found: Difference) -> str:
    seeds = f"{found.pairs} seed{'s' if found.pairs != 1 else ''}"
    return seeds if found.test in (None, PAIRED_T) else f"rows, {seeds}"


def _seeds_needed(found: Difference) -> str:
    if found.seeds_needed is not None:
        return str(found.seeds_needed)
    return "> 1,000" if found.test == PAIRED_T else UNKNOWN
