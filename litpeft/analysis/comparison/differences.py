"""Each group against the baseline: the difference by seed in each figure, its test, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from litpeft.analysis.comparison.figures import TARGET, resolution, value
from litpeft.analysis.comparison.results import Difference, Estimate, Figure, Group, Run, Verdict
from litpeft.analysis.stats import LEVEL, Test, holm, mean_interval, paired_t, pairs_needed

PAIRED_T = "paired t over seeds"


class Tested(NamedTuple):
    """A test by its name, and of how many seeds."""

    name: str
    test: Test
    seeds: int


def estimate(group: Group, figures: Sequence[Figure]) -> dict[str, Estimate]:
    """By figure name, the mean over the seeds that know it; a figure that none knows is absent."""
    found = {}
    for figure in figures:
        values = [known for run in group.runs if (known := value(run.record, figure.name)) is not None]
        if values:
            step = max(resolution(run, figure.name) for run in group.runs)
            found[figure.name] = Estimate(*mean_interval(values, step), len(values))
    return found


def against(groups: Sequence[Group], baseline: Group, figures: Sequence[Figure]) -> None:
    """Fill in each group's differences to the baseline, over the seeds that both have; never unpaired.

    Sizes are not tested: they have no noise, and which way is better is for the reader to say.
    """
    for figure in figures:
        if figure.better is None:
            continue
        tests = {}
        for group in groups:
            values = [] if group is baseline else _values(group, baseline, figure)
            if len(values) == 1 or (
                values and _some_never([group, baseline], figure)
            ):  # a difference, and no test of it
                mean = sum(own - other for own, other in values) / len(values)
                untested = Difference(mean, None, None, len(values), None, None, None, "cannot tell", None)
                group.differences[figure.name] = untested
            elif values:
                step = max(resolution(run, figure.name) for run in [*group.runs, *baseline.runs])
                tests[group.label] = Tested(PAIRED_T, paired_t(*zip(*values, strict=True), step), len(values))
        judged = judge(tests, figure)
        for group in groups:
            if group.label in judged:
                group.differences[figure.name] = judged[group.label]


def judge(tests: Mapping[str, Tested], figure: Figure) -> dict[str, Difference]:
    """One family, the groups that were tested in this figure: p after Holm, and verdicts by it.

    The seeds needed are those that would pass the first and hardest step of Holm's, 5 % over the number of groups.
    """
    corrected = holm([tested.test.p for tested in tests.values()])
    found = {}
    for (label, (name, test, seeds)), p in zip(tests.items(), corrected, strict=True):
        needed = pairs_needed(test.mean, test.sd, LEVEL / len(tests))
        verdict = _verdict(test.mean, p, figure)
        found[label] = Difference(test.mean, test.low, test.high, seeds, test.p, p, name, verdict, needed)
    return found


def pairs(group: Group, baseline: Group) -> list[tuple[Run, Run]]:
    """(run, run of the baseline) of the seeds that both have."""
    others = {run.seed: run for run in baseline.runs}
    return [(run, others[run.seed]) for run in group.runs if run.seed in others]


def _values(group: Group, baseline: Group, figure: Figure) -> list[tuple[float, float]]:
    """(value, value of the baseline) by seed, where both know the figure."""
    by_seed = pairs(group, baseline)
    values = [(value(run.record, figure.name), value(other.record, figure.name)) for run, other in by_seed]
    return [(a, b) for a, b in values if a is not None and b is not None]


def _some_never(groups: Sequence[Group], figure: Figure) -> bool:
    """Whether the figure is the time to a target that some runs never met: the others alone would speak too well."""
    known = [value(run.record, figure.name) is not None for group in groups for run in group.runs]
    return TARGET.fullmatch(figure.name) is not None and not all(known)


def _verdict(mean: float, p: float, figure: Figure) -> Verdict:
    if p >= LEVEL:
        return "within noise"
    return "better" if (mean > 0) == (figure.better == "higher") else "worse"
