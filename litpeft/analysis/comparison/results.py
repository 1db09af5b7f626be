"""What a comparison is: runs in groups that differ in named axes, figures with intervals, differences with verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from litpeft.analysis.comparison.flat_config import flat_config

Verdict = Literal["better", "worse", "within noise", "cannot tell"]


@dataclass(frozen=True)
class Figure:
    """A column: one number of a record.

    Attributes:
        name: of the record's field; or `seconds_to_TARGET`, which is worked out from its validations.
        title: for readers, with the unit that `form` shows.
        better: which way is better; None where neither is, and nothing is tested.
        kind: what it is about.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] | None
    kind: Literal["quality", "benchmark", "memory", "speed", "size"]


@dataclass
class Run:
    """One finished or unfinished run.

    Attributes:
        folder: of the run.
        record: as read.
        axes: the value of each axis, as shown.
    """

    folder: Path
    record: dict[str, Any]
    axes: dict[str, str]

    @property
    def seed(self) -> int | None:
        return self.record["seed"]

    @cached_property
    def options(self) -> dict[str, Any]:
        """Its configuration: dotted key -> value."""
        return flat_config(self.record)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of `count` values.
        low: end of the 95 % interval of the mean (Student's t); None with fewer than two values.
        high: the other end.
        count: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A group less the baseline, in one figure.

    Attributes:
        mean: of the differences, by seed where seeds pair.
        low: end of its 95 % interval; None where it is not known.
        high: the other end.
        pairs: how many seeds both have.
        p: of the test named in `test`; None where there was none.
        p_holm: corrected for all groups that are tested in this figure (Holm 1979).
        test: "paired t over seeds", "paired bootstrap over examples", "McNemar over examples", or None.
        verdict: by `p_holm` below 0.05 and the figure's direction.
        seeds_needed: how many seeds would show a difference of this size in four of five tries; None where unknown.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    p: float | None
    p_holm: float | None
    test: str | None
    verdict: Verdict
    seeds_needed: int | None


@dataclass
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: the values of the axes, as one name.
        axes: the value of each axis, as shown.
        runs: those that ended well, by seed.
        failed: the others (out of memory, failed, interrupted): told, never averaged.
        estimates: by figure name; a figure that no run has is absent.
        differences: against the baseline, by figure name; empty in the baseline itself.
        over_examples: the same, tested over validation rows, where both kept them.
    """

    label: str
    axes: dict[str, str]
    runs: list[Run]
    failed: list[Run] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    over_examples: dict[str, Difference] = field(default_factory=dict)


@dataclass
class Comparison:
    """All that a table or a report shows.

    Attributes:
        title: name of the experiment.
        question: that it answers, where it was written down.
        axes: names of what varies, in order.
        figures: columns, the first of them the quality that the experiment is about.
        groups: rows, in the order of the experiment.
        baseline: label of the group that the others are held against; None with one group alone.
        published: what others have measured: `source`, `note`, `rows` of {label, record's names: raw values}.
        warnings: what makes the comparison weaker than it looks, one sentence each.
        confounded: config keys in which groups differ besides the axes -> values by group label.
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
