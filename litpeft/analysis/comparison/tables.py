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
from litpeft.analysis.comparison.relative import ratio_text, ratios
from litpeft.analysis.comparison.results import Comparison, Difference, Estimate, Figure, Group
from litpeft.analysis.comparison.sentences import margin_text, plain_title

SEEDS = "to show it", "to decide"  # headings of the seeds that would be needed
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
    relative = {each.name: found for each in figures if comparison.relative and (found := ratios(comparison, each))}
    columns = [_column(comparison, figure, relative.get(figure.name)) for figure in figures]
    rows = [
        [group.label, seeds_text(group), *(column[place] for column in columns)]
        for place, group in enumerate(comparison.groups)
    ]
    for other in (comparison.published or {}).get("rows") or ():
        # a published figure has no ratio to this baseline
        known = [(each.name, None if each.name in relative else number(other.get(each.name))) for each in figures]
        cells = [UNKNOWN if found is None else format_value(name, found) for name, found in known]
        rows.append([f"{other['label']} (published)", UNKNOWN, *cells])
    title = "mean over seeds ± half-width of the 95 % CI"
    if comparison.relative:
        title += f"; costs in per cent of {comparison.baseline}, geometric means with 95 % CI"
    headings = [f"{plain_title(each.title)}, %" if each.name in relative else each.title for each in figures]
    return Table(title, ["group", "seeds", *headings], rows)


def _column(comparison: Comparison, figure: Figure, relative: Mapping[int, Estimate] | None) -> list[str]:
    """Return the cells of a figure: means, or ratios to the baseline by number of the group."""
    if relative:
        return [ratio_text(relative.get(place)) for place in range(len(comparison.groups))]
    return [format_estimate(figure.name, group.estimates.get(figure.name)) for group in comparison.groups]


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
            verdict_word(found),
            _seeds(found, found.seeds_needed),
            _seeds(found, found.seeds_for_margin if found.margin else None),
        ]
        for figure, group, found in all_differences(comparison)
    ]
    headings = ["figure", "group", "difference", "95 % CI", "tested on", "p (Holm)", "verdict", *SEEDS]
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
    sentences = ["A value without ± has one seed, or is equal for all seeds to four digits."]
    found = list(all_differences(comparison))
    if tests := [difference.test for _, _, difference in found if difference.test]:
        sentences.append(
            f"Differences from {comparison.baseline}: {', '.join(dict.fromkeys(tests))}; two-sided, level 5 %. "
            "p values are Holm-corrected for the number of groups, separately for each figure and test; CIs are not."
        )
        sentences.append(
            "Better, worse: p < 0.05. Equivalent: shown to differ by less than the margin (two one-sided tests at "
            f"2.5 % each, Holm-corrected). Margins: {', '.join(_margins(comparison))}."
        )
    if any(difference.verdict == "not enough seeds" for _, _, difference in found):
        sentences.append(
            f'Not enough seeds is no sign of equality. "{SEEDS[0]}": seeds that show a difference of the observed '
            f'size; "{SEEDS[1]}": seeds that decide whether a difference exceeds the margin; both with 80 % power '
            "after correction, if the observed standard deviation is the true one."
        )
    if any(difference.p == 0 for _, _, difference in found):
        sentences.append("Exact: all seeds differ by the same amount, so there is no noise to test against.")
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


def _margins(comparison: Comparison) -> Iterator[str]:
    """Yield the margin of each tested figure."""
    for figure in comparison.figures:
        known = [group.differences[figure.name] for group in comparison.groups if figure.name in group.differences]
        if text := next((margin_text(figure, found) for found in known if found.margin), ""):
            yield f"{plain_title(figure.title)} {text}"


def verdict_word(found: Difference) -> str:
    """Return the verdict of a table cell; a significant difference may still be smaller than the margin."""
    return f"{found.verdict} (small)" if found.is_significant and found.is_small else found.verdict


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


def _seeds(found: Difference, needed: int | None) -> str:
    """Return a number of seeds, which says something only where the verdict is open and over seeds."""
    if found.verdict != "not enough seeds" or found.test != PAIRED_T:
        return UNKNOWN
    return "> 1,000" if needed is None else str(needed)
