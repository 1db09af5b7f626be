"""Data classes of a comparison: runs, groups, figures, means with intervals, and differences with verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from litpeft.analysis.comparison.options import Options, options_of
from litpeft.runs.indexed_record import column

Verdict = Literal["better", "worse", "equivalent", "not enough seeds", "not enough rows"]


@dataclass(frozen=True)
class Figure:
    """A column of a comparison.

    Attributes:
        name: name of a record field, of a benchmark score, or `seconds_to_TARGET`, computed from the validations.
        title: column title, with unit.
        better: better direction; None if there is none, then the figure is not tested.
        kind: category of the figure.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] | None
    kind: Literal["quality", "benchmark", "memory", "speed", "size"]


@dataclass
class Run:
    """One finished or unfinished run.

    Attributes:
        folder: the run folder.
        record: the run record.
        axes: {axis: value as shown}.
        parts: the runs that it stands for, if it is the mean of several tasks; else empty.
    """

    folder: Path
    record: Mapping[str, Any]
    axes: dict[str, str]
    parts: tuple[Run, ...] = ()

    @property
    def seed(self) -> int | None:
        return self.record["seed"]

    @property
    def options(self) -> Options:
        """Configuration of the run: {dotted key: value}."""
        found = self.__dict__.get("_options")  # a cached_property takes a lock, which is slow for many runs
        if found is None:
            found = self.__dict__["_options"] = options_of(self.record)
        return found


def distinct_by(runs: Iterable[Run], *fields: str) -> list[Run]:
    """Return the first run with each object in these fields of its record; records of an index share equal objects."""
    runs, first = list(runs), dict[Any, Run]()
    records = [run.record for run in runs]
    ids = [map(id, column(records, name)) for name in fields]
    for run, key in zip(runs, zip(*ids, strict=True), strict=True):
        first.setdefault(key, run)
    return list(first.values())


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % CI from `low` to `high`, which are None if unknown."""

    mean: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_symmetric(self) -> bool:
        """Whether the mean is in the middle, so that the interval can be shown as mean ± half-width."""
        half = self.half_width
        return half is None or abs(self.mean - self.low - half) <= 1e-6 * half


@dataclass(frozen=True)
class Estimate(Interval):
    """Mean of a figure over `count` seeds, with its 95 % CI (Student's t)."""

    count: int


@dataclass(frozen=True)
class Difference(Interval):
    """Mean paired difference of a group from the baseline in one figure.

    Attributes:
        pairs: number of common seeds.
        p: p value of the test; None without a test.
        p_holm: p value corrected for all groups tested in this figure (Holm 1979).
        test: "paired t over seeds", "paired bootstrap over examples", "McNemar over examples", or None.
        verdict: `better` or `worse` if `p_holm` < 0.05; `equivalent` if the difference is shown to be smaller than the
            margin; else what there is not enough of.
        seeds_needed: seeds needed to detect a difference of this size with 80 % power; None if unknown.
        seeds_for_margin: seeds needed to decide with 80 % power whether the difference matters; None if unknown.
        margin: smallest difference that matters, in raw units; None if unknown.
        is_small: whether the difference is shown to be smaller than the margin (two one-sided tests, Holm-corrected).
        is_not_worse: whether the group is shown to be worse by less than the margin (one of these tests).
    """

    pairs: int
    p: float | None
    p_holm: float | None
    test: str | None
    verdict: Verdict
    seeds_needed: int | None
    seeds_for_margin: int | None = None
    margin: float | None = None
    is_small: bool = False
    is_not_worse: bool = False

    @property
    def seeds_to_decide(self) -> int | None:
        """Seeds for a verdict: to show the observed difference, or that it is small; None if unknown."""
        return min((each for each in (self.seeds_needed, self.seeds_for_margin) if each is not None), default=None)

    @property
    def is_significant(self) -> bool:
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class Tried:
    """One combination of values of `tune`, and its result over the tuning runs.

    Attributes:
        values: {option: value}.
        mean: mean of the metric over the tuning seeds; None if a run has no result.
        runs: number of tuning runs with a result; None if a search left the combination out.
    """

    values: Mapping[str, Any]
    mean: float | None
    runs: int | None


@dataclass(frozen=True)
class Tuned:
    """How a trial chose its values of `tune`.

    Attributes:
        metric: validation metric of the choice; None if no tuning run has a result or none was needed.
        seeds: seeds of the tuning runs.
        tried: all combinations of values.
        chosen: {option: value}; None if no combination has a result.
        edges: {option: "lowest" or "highest"} of the chosen numbers that are the lowest or highest of the values tried.
    """

    metric: str | None
    seeds: Sequence[int]
    tried: Sequence[Tried]
    chosen: Mapping[str, Any] | None
    edges: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `tuned` in `sweep.yaml`."""
        return {
            "metric": self.metric,
            "seeds": list(self.seeds),
            "tried": [{"values": dict(each.values), "mean": each.mean, "runs": each.runs} for each in self.tried],
            "chosen": None if self.chosen is None else dict(self.chosen),
            "edges": dict(self.edges),
        }


@dataclass
class Group:
    """Runs that differ only in the seed.

    Attributes:
        label: name of the group, made of its axis values.
        axes: {axis: value as shown}.
        runs: finished runs, by seed.
        failed: unfinished runs (out of memory, failed, interrupted), which are reported but not averaged.
        estimates: means by figure name; figures that no run has are missing.
        differences: differences from the baseline by figure name, tested over seeds; empty for the baseline.
        over_examples: differences from the baseline by figure name, tested over validation rows or benchmark items.
        known: values of the runs by figure name, kept by `values_in`.
    """

    label: str
    axes: dict[str, str]
    runs: list[Run]
    failed: list[Run] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    over_examples: dict[str, Difference] = field(default_factory=dict)
    known: dict[str, list[float | None]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def seeds(self) -> list[int | None]:
        """The seeds of the runs, which must not change any more."""
        return column([run.record for run in self.runs], "seed")

    @cached_property
    def different(self) -> list[Run]:
        """Runs of which each differs from the others in what it was evaluated on; the runs must not change any more."""
        return distinct_by(self.runs, "resolutions", "benchmarks", "checkpoint", "data_summary")


@dataclass
class Comparison:
    """Everything that a table or a report shows.

    Attributes:
        title: name of the experiment.
        question: research question of the experiment, if given.
        axes: names of the axes.
        figures: columns; the first is the main metric.
        groups: rows, in the order of the experiment.
        baseline: label of the baseline group; None if there is only one group.
        published: results published by others: `source`, `note`, `rows` of {"label": ..., figure name: raw value}.
        warnings: caveats, one sentence each.
        confounded: {config key, not an axis, in which groups differ: {group label: value}}.
        remarks: sentences about what the figures are, shown below the tables.
        prefer: cost that the recommendation minimises.
        tuned: how groups chose their values of `tune`, by label.
        relative: show costs as ratios to the baseline.
    """

    title: str
    question: str | None
    axes: list[str]
    figures: list[Figure]
    groups: list[Group]
    baseline: str | None
    published: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    confounded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    prefer: Literal["memory", "time"] = "memory"
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    relative: bool = False

    @property
    def baseline_group(self) -> Group | None:
        """The group that others are compared with; None if there is only one group."""
        return next((group for group in self.groups if group.label == self.baseline), None)
