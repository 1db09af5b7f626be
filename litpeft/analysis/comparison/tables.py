"""What every format of text shows: the tables, and the sentences around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from litpeft.analysis.comparison.differences import PAIRED_T
from litpeft.analysis.comparison.number_format import UNKNOWN, form, form_estimate, form_interval, form_p, number
from litpeft.analysis.comparison.results import Comparison, Difference, Figure, Group

KINDS = ("quality", "benchmark", "memory", "speed", "size")


@dataclass(frozen=True)
class Table:
    """Cells as text, not yet escaped; the first column names the row."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def figures_table(comparison: Comparison, figures: Sequence[Figure] | None = None) -> Table:
    """A row a group, and one for each that was published; a column a figure."""
    figures = comparison.figures if figures is None else figures
    rows = [
        [
            group.label,
            _count(group),
            *(form_estimate(figure.name, group.estimates.get(figure.name)) for figure in figures),
        ]
        for group in comparison.groups
    ]
    for told in (comparison.published or {}).get("rows") or ():
        known = [(figure.name, number(told.get(figure.name))) for figure in figures]
        cells = [UNKNOWN if found is None else form(name, found) for name, found in known]
        rows.append([f"{told['label']} (published)", UNKNOWN, *cells])
    return Table("mean over seeds ± half of its 95 % interval", ["", "seeds", *(each.title for each in figures)], rows)


def differences_table(comparison: Comparison) -> Table | None:
    """A row a figure, group and test; None where nothing could be held against anything."""
    rows = [
        [
            _points(figure.title),
            group.label,
            form(figure.name, found.mean, _half(found), signed=True),
            form_interval(figure.name, found.low, found.high),
            _over(found),
            form_p(found.p_holm),
            found.verdict,
            UNKNOWN if found.test not in (None, PAIRED_T) else _needed(found),
        ]
        for figure, group, found in all_differences(comparison)
    ]
    headings = ["figure", "", "difference", "95 % interval", "over", "p (Holm)", "verdict", "needed"]
    title, over = f"less {comparison.baseline}", headings.index("over")
    if len({row[over] for row in rows}) == 1:  # said once, the table stays narrow
        title += f", over {rows[0][over]}"
        headings, *rows = ([cell for place, cell in enumerate(row) if place != over] for row in (headings, *rows))
    return Table(title, headings, rows) if rows else None


def all_differences(comparison: Comparison) -> Iterator[tuple[Figure, Group, Difference]]:
    """Figure by figure, group by group: over seeds, and over examples where there are such."""
    for figure in comparison.figures:
        for group in comparison.groups:
            by_seed, by_row = group.differences.get(figure.name), group.over_examples.get(figure.name)
            # of one pair of seeds nothing is known but what the rows say
            shown = [by_row] if by_row and by_seed and by_seed.test is None else [by_seed, by_row]
            yield from ((figure, group, found) for found in shown if found)


def alarms(comparison: Comparison) -> list[str]:
    """What is shown loudly above the tables: confounded options first, then the warnings."""
    mixed = [
        f"The groups differ in {key} as well, which is none of the axes: "
        f"{', '.join(f'{item} ({_labels(values, item)})' for item in dict.fromkeys(values.values()))}."
        for key, values in comparison.confounded.items()
    ]
    return [*mixed, *comparison.warnings]


def notes(comparison: Comparison) -> list[str]:
    """What was tested, how it was corrected, and what may not be read out of it."""
    said = ["No ± stands where there is one seed, or where all seeds agree to the last digit."]
    found = list(all_differences(comparison))
    if tests := [difference.test for _, _, difference in found if difference.test]:
        said.append(
            f"Differences are to {comparison.baseline}: {', '.join(dict.fromkeys(tests))}; two-sided, 5 %. p is "
            "corrected after Holm over all groups that one test holds against it in one figure, not over figures; "
            "intervals are not corrected."
        )
    if noise := list(_within_noise(comparison)):
        said.append(f"Within noise: {'; '.join(noise)}. That is not equal: no difference has been shown.")
        said.append(
            '"needed" is how many seeds would show the observed difference after correction in four of five tries, '
            "if it and its spread were the true ones."
        )
    if any(difference.test not in (None, PAIRED_T) for _, _, difference in found):
        said.append(
            "A test over examples speaks of these trained models on other rows like these, not of the methods that "
            "trained them: another seed may turn it round."
        )
    if told := comparison.published:
        parts = [str(told[key]).rstrip(".") for key in ("source", "note") if told.get(key)]
        said.append(f"Published rows were measured by others: {'. '.join(parts) or 'no source is given'}.")
    return said


def _within_noise(comparison: Comparison) -> Iterator[str]:
    """By figure, the groups of which no test over seeds has shown a difference."""
    for figure in comparison.figures:
        told = [group for group in comparison.groups if figure.name in group.differences]
        noise = [group.label for group in told if group.differences[figure.name].verdict == "within noise"]
        if noise:
            everyone = len(noise) == len(told) > 1
            yield f"{figure.title.split(',')[0]}: {'all' if everyone else ', '.join(noise)}"


def _count(group: Group) -> str:
    return f"{len(group.runs)}, {len(group.failed)} unfinished" if group.failed else str(len(group.runs))


def _points(title: str) -> str:
    """A difference of shares is one of percentage points."""
    return title.removesuffix("%") + "points" if title.endswith(", %") else title


def _half(found: Difference) -> float | None:
    return None if found.low is None or found.high is None else (found.high - found.low) / 2


def _over(found: Difference) -> str:
    seeds = f"{found.pairs} seed{'s' if found.pairs != 1 else ''}"
    return seeds if found.test in (None, PAIRED_T) else f"rows of {seeds}"


def _needed(found: Difference) -> str:
    if found.seeds_needed is not None:
        return str(found.seeds_needed)
    return "> 1,000" if found.test == PAIRED_T else UNKNOWN


def _labels(values: dict[str, str], item: str) -> str:
    labels = [label for label, value in values.items() if value == item]
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
