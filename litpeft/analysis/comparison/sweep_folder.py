"""What a sweep says of itself in its folder: `sweep.yaml` with trials, axes, the question, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.figures import direction
from litpeft.errors import UserError
from litpeft.runs.record_schema import SWEEP, misfit
from litpeft.runs.safe_read import read_yaml_file

FILE = "sweep.yaml"


@dataclass(frozen=True)
class Trial:
    """One choice on each axis; its runs lie in NAME/seedN below the sweep's folder."""

    name: str
    label: str
    axes: Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """An experiment as it was planned.

    Attributes:
        folder: of the sweep.
        title: name of the experiment.
        question: that it answers.
        axes: names of what varies, in order.
        baseline: label of the group that others are held against; None is the first.
        metric: the quality that it is about.
        targets: (metric, value) pairs; how long it took to meet them is shown.
        published: what others have measured.
        varies: config keys in which trials were meant to differ.
        trials: in order.
        seeds: each trial's.
    """

    folder: Path
    title: str
    question: str | None
    axes: Sequence[str]
    baseline: str | None
    metric: str | None
    targets: Sequence[tuple[str, float]]
    published: Mapping[str, Any] | None
    varies: Sequence[str]
    trials: Sequence[Trial]
    seeds: Sequence[int]


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep in a folder; None if it is none.

    Raises:
        UserError: `sweep.yaml` cannot be read, or lacks something.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_yaml_file(path)
    if told := misfit(content or {}, SWEEP):
        raise UserError(f"{path} is no description of a sweep: {told}.")
    try:
        sweep = _sweep(folder, content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no description of a sweep: {error!r}.") from error
    for name, _ in sweep.targets:
        if direction(name) is None:
            raise UserError(f"{path}: target {name}: whether more or less of it is better is not known.")
    return sweep


def _sweep(folder: Path, content: Mapping[str, Any]) -> Sweep:
    trials = [
        Trial(
            str(trial["name"]),
            str(trial["label"]),
            {str(axis): str(item) for axis, item in (trial.get("axes") or {}).items()},
        )
        for trial in content["trials"]
    ]
    baseline, metric = content.get("baseline"), content.get("metric")
    return Sweep(
        folder=folder,
        title=str(content["experiment"]),
        question=content.get("question"),
        axes=[str(axis) for axis in content.get("axes") or ()],
        baseline=None if baseline is None else str(baseline),
        metric=None if metric is None else str(metric),
        targets=[(str(name), float(goal)) for name, goal in (content.get("target") or {}).items()],
        published=_published(content.get("published")),
        varies=[str(key) for key in content.get("varies") or ()],
        trials=trials,
        seeds=[int(seed) for seed in content.get("seeds") or ()],
    )


def _published(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Figures as numbers: YAML 1.1 takes `2.8e9` for a word."""
    if not told:
        return None
    rows = [
        {key: _number(item) for key, item in row.items()} | {"label": str(row["label"])} for row in told["rows"] or ()
    ]
    return {"source": told.get("source"), "note": told.get("note"), "rows": rows}


def _number(item: Any) -> Any:
    try:
        return float(item) if isinstance(item, str) else item
    except ValueError:
        return item
