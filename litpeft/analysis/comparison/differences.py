"""Compute differences of groups from the baseline, paired by seed, with tests and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from litpeft.analysis.comparison.figures import TARGET, coarsest, values_in
from litpeft.analysis.comparison.margins import Margin, margin_of, possible, possible_difference, within
from litpeft.analysis.comparison.results import Difference, Estimate, Figure, Group, Run, Verdict
from litpeft.analysis.power import pairs_needed, pairs_to_decide
from litpeft.analysis.stats import LEVEL, ONE_SIDED, Test, holm, mean_interval, paired_t

PAIRED_T = "paired t over seeds"


class Tested(NamedTuple):
    """Name of a test, its result, and the number of seeds."""

    name: str
    test: Test
    seeds: int


def estimate(group: Group, figures: Sequence[Figure]) -> dict[str, Estimate]:
    """Return the mean over seeds by figure name; figures that no run has are left out."""
    found = {}
    for figure in figures:
        values = [known for known in values_in(group, figure.name) if known is not None]
        if values:
            step = coarsest([group], figure.name)
            mean, *ends = mean_interval(values, step)
            found[figure.name] = Estimate(mean, *within(ends, possible(figure)), len(values))
    return found


def add_differences(
    groups: Sequence[Group], baseline: Group, figures: Sequence[Figure], margins: Mapping[str, Margin]
) -> None:
    """Set the differences of each group from the baseline, paired over the common seeds.

    Sizes are not tested: they have no noise and no better direction. The estimates of the baseline must be set.
    """
    by_label = {group.label: group for group in groups}
    for figure in figures:
        if figure.better is None:
            continue
        tests = {}
        margin = margin_from(baseline, figure, margins)
        for group in groups:
            values = [] if group is baseline else paired_values(group, baseline, figure)
            if len(values) == 1 or (values and _target_missed([group, baseline], figure)):
                mean = sum(ours - other for ours, other in values) / len(values)
                untested = Difference(
                    *(mean, None, None, len(values), None, None, None, "not enough seeds", None), margin=margin
                )
                group.differences[figure.name] = untested
            elif values:
                step = coarsest([group, baseline], figure.name)
                tests[group.label] = Tested(PAIRED_T, paired_t(*zip(*values, strict=True), step, margin), len(values))
        for label, difference in corrected_differences(tests, figure, margin).items():
            by_label[label].differences[figure.name] = difference


def margin_from(baseline: Group, figure: Figure, margins: Mapping[str, Margin]) -> float | None:
    """Return the smallest difference from the baseline that matters; None if the baseline does not have the figure."""
    known = baseline.estimates.get(figure.name)
    return margin_of(figure, known.mean, margins) if known else None


def corrected_differences(tests: Mapping[str, Tested], figure: Figure, margin: float | None) -> dict[str, Difference]:
    """Return the differences in one figure with Holm-corrected p values and verdicts, by group label.

    The seeds needed are computed for the strictest level of Holm's method: the level divided by the number of groups.
    """
    corrected = holm([tested.test.p for tested in tests.values()])
    small, not_worse = ([False] * len(tests) for _ in range(2))
    if margin is not None:
        tails = [(tested.test.p_low, tested.test.p_high) for tested in tests.values()]
        worst = 0 if figure.better == "higher" else 1  # the tail in which a group is worse by the margin
        small = [p < ONE_SIDED for p in holm([max(pair) for pair in tails])]
        not_worse = [p < ONE_SIDED for p in holm([pair[worst] for pair in tails])]
    found: dict[str, Difference] = {}
    for (label, (name, test, seeds)), p, is_small, is_not_worse in zip(
        tests.items(), corrected, small, not_worse, strict=True
    ):
        low, high = within((test.low, test.high), possible_difference(figure))
        undecided: Verdict = "not enough seeds" if name == PAIRED_T else "not enough rows"
        found[label] = Difference(
            *(test.mean, low, high, seeds, test.p, p, name),
            verdict=_significant(test.mean, p, figure) or ("equivalent" if is_small else undecided),
            seeds_needed=pairs_needed(test.mean, test.sd, LEVEL / len(tests)),
            seeds_for_margin=pairs_to_decide(margin or 0, test.sd, ONE_SIDED / len(tests)),
            margin=margin,
            is_small=is_small,
            is_not_worse=is_not_worse,
        )
    return found


def pairs(group: Group, baseline: Group) -> list[tuple[Run, Run]]:
    """Return (run, baseline run) pairs of the common seeds."""
    others = {run.seed: run for run in baseline.runs}
    return [(run, others[run.seed]) for run in group.runs if run.seed in others]


def paired_values(group: Group, baseline: Group, figure: Figure) -> list[tuple[float, float]]:
    """Return (value, baseline value) pairs of the common seeds, if both runs have the figure."""
    others = dict(zip(baseline.seeds, values_in(baseline, figure.name), strict=True))
    found = zip(group.seeds, values_in(group, figure.name), strict=True)
    return [(a, b) for seed, a in found if a is not None and (b := others.get(seed)) is not None]


def _target_missed(groups: Sequence[Group], figure: Figure) -> bool:
    """Return whether the figure is the time to a target that some runs never reached, which would bias a test."""
    return TARGET.fullmatch(figure.name) is not None and any(None in values_in(group, figure.name) for group in groups)


def _significant(mean: float, p: float, figure: Figure) -> Verdict | None:
    if p >= LEVEL:
        return None
    return "better" if (mean > 0) == (figure.better == "higher") else "worse"
