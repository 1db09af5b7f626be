"""Read `sweep.yaml`, the description of a sweep in its folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.figures import direction
from litpeft.analysis.comparison.results import Run, Tried, Tuned
from litpeft.errors import UserError
from litpeft.runs.record_schema import SWEEP, schema_error
from litpeft.runs.safe_read import read_yaml_file
from litpeft.runs.strategy_names import shown_label, shown_name

FILE = "sweep.yaml"
TUNING = "tuning"  # folder of the tuning runs in the folder of a sweep


@dataclass(frozen=True)
class Trial:
    """One combination of axis values; its runs are in NAME/seedN below the folder of the sweep.

    `tuned` says how the trial chose its values of `tune`; None without `tune`, and before the choice.
    """

    name: str
    label: str
    axes: Mapping[str, str]
    tuned: Tuned | None = None


@dataclass(frozen=True)
class Sweep:
    """Description of a sweep.

    Attributes:
        folder: folder of the sweep.
        title: name of the experiment.
        question: research question of the experiment.
        axes: names of the axes.
        baseline: label of the baseline trial; None: the first.
        metric: main metric.
        targets: (metric, value) pairs; the comparison shows the seconds of training until the metric reached value.
        published: results published by others.
        average_over: the axis that says the task, to average scores over tasks; None without an average.
        varies: config keys in which the trials differ.
        trials: all trials.
        seeds: seeds of every trial.
    """

    folder: Path
    title: str
    question: str | None
    axes: Sequence[str]
    baseline: str | None
    metric: str | None
    targets: Sequence[tuple[str, float]]
    published: Mapping[str, Any] | None
    average_over: str | None
    varies: Sequence[str]
    trials: Sequence[Trial]
    seeds: Sequence[int]

    def trial_of(self, run_folder: Path) -> Trial | None:
        """Return the trial that a run folder belongs to, or None."""
        above = os.fspath(run_folder).rpartition(os.sep)[0]
        if above not in self.by_folder:
            name = Path(os.path.relpath(run_folder.parent, self.folder)).as_posix()
            self.by_folder[above] = self.by_name.get(name)
        return self.by_folder[above]

    @cached_property
    def by_name(self) -> dict[str, Trial]:
        """The trials by their names; of equal names, the first."""
        return {trial.name: trial for trial in reversed(self.trials)}

    @cached_property
    def by_folder(self) -> dict[str, Trial | None]:
        """The trials of the folders that `trial_of` was asked for."""
        return {}


def read_sweep(folder: Path) -> Sweep | None:
    """Return the sweep in a folder; None if the folder has no `sweep.yaml`.

    Raises:
        UserError: `sweep.yaml` cannot be read or is invalid.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_yaml_file(path)
    if error := schema_error(content or {}, SWEEP):
        raise UserError(f"{path} is not a valid sweep description: {error}.")
    try:
        sweep = _sweep(folder, content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a valid sweep description: {error!r}.") from error
    for name, _ in sweep.targets:
        if direction(name) is None and not name.startswith(("val_", "test_")):  # their directions are in the records
            raise UserError(f"{path}: target {name}: it is unknown whether higher or lower {name} is better.")
    return sweep


def with_shown_names(sweep: Sweep, runs: Sequence[Run]) -> Sweep:
    """Return the sweep with `full` instead of `none` on the axis that holds the adapters.

    That axis is `none` exactly for runs with adapter `none`; a `none` on another axis (a schedule) is not replaced.
    """
    if not any("none" in trial.axes.values() for trial in sweep.trials):
        return sweep
    pairs = [(trial.axes, run.record["adapter"]) for run in runs if (trial := sweep.trial_of(run.folder))]
    for axis in sweep.axes:
        full = [trial.label for trial in sweep.trials if trial.axes.get(axis) == "none"]
        if full and all((axes.get(axis) == "none") == (adapter == "none") for axes, adapter in pairs if adapter):
            trials = [
                replace(trial, label=shown_label(trial.label), axes={**trial.axes, axis: "full"})
                if trial.label in full
                else trial
                for trial in sweep.trials
            ]
            baseline = shown_label(sweep.baseline) if sweep.baseline in full else sweep.baseline
            return replace(sweep, trials=trials, baseline=baseline)
    return sweep


def _sweep(folder: Path, content: Mapping[str, Any]) -> Sweep:
    trials = [
        Trial(
            str(trial["name"]),
            str(trial["label"]),
            {str(axis): str(item) for axis, item in (trial.get("axes") or {}).items()},
            _tuned(trial["tuned"]) if trial.get("tuned") else None,
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
        average_over=None if content.get("average_over") is None else str(content["average_over"]),
        varies=[str(key) for key in content.get("varies") or ()],
        trials=trials,
        seeds=[int(seed) for seed in content.get("seeds") or ()],
    )


def _tuned(content: Mapping[str, Any]) -> Tuned:
    chosen = content.get("chosen")
    return Tuned(
        metric=None if content.get("metric") is None else str(content["metric"]),
        seeds=[int(seed) for seed in content.get("seeds") or ()],
        tried=[
            Tried({str(option): item for option, item in each["values"].items()}, each.get("mean"), each.get("runs", 0))
            for each in content.get("tried") or ()
        ],
        chosen=None if chosen is None else {str(option): item for option, item in chosen.items()},
        edges={str(option): str(edge) for option, edge in (content.get("edges") or {}).items()},
    )


def _published(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the published results with numbers converted: YAML 1.1 reads `2.8e9` as text."""
    if not content:
        return None
    rows = [
        {key: _number(item) for key, item in row.items()} | {"label": shown_name(str(row["label"]))}
        for row in content["rows"] or ()
    ]
    return {"source": content.get("source"), "note": content.get("note"), "rows": rows}


def _number(item: Any) -> Any:
    """Return a text that is a number as one, NaN and infinity as None, and anything else unchanged."""
    try:
        found = float(item) if isinstance(item, str) else item
    except ValueError:
        return item
    return None if isinstance(found, float) and not math.isfinite(found) else found
