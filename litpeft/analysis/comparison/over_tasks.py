"""Average the scores of runs over tasks, such as those of GLUE: each task weighs the same, and seeds stay paired."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from litpeft.analysis.comparison.caveats import shortlist
from litpeft.analysis.comparison.figures import AVERAGE, SCORE, direction, figure, value
from litpeft.analysis.comparison.number_format import number
from litpeft.analysis.comparison.results import Figure, Group, Run
from litpeft.errors import UserError

TOTALS = ("train_seconds", "wall_seconds", "energy_joules", "steps")  # summed over tasks
PEAKS = (  # the largest of the tasks
    *("peak_reserved_bytes", "peak_allocated_bytes", "peak_tensor_bytes", "peak_rss_bytes", "model_bytes"),
    *("trainable_params", "adapter_bytes"),
)
SHOWN = ("peak_reserved_bytes", "peak_tensor_bytes", "train_seconds", "energy_joules", "trainable_params")


def main_metrics(run: Run, metric: str | None) -> list[str]:
    """Return the metrics whose mean is the score of a run: `metric`, its own main metrics, or val_accuracy.

    Raises:
        UserError: the run has none, or lower values of one are better.
    """
    own = run.record.get("main_metrics") or []
    names = [metric] if metric else own or ["val_accuracy"]
    for name in names:
        if value(run.record, name) is None and own == []:
            raise UserError(f"{run.folder}: the run has no {name}, so it has no score to average over tasks.")
        if direction(name, run.record.get("metric_directions")) != "higher":
            raise UserError(
                f"{run.folder}: an average over tasks needs scores of which higher values are better, and {name} is "
                "none; choose the main metric of the run with --model.metrics."
            )
    return list(names)


def task_groups(groups: Sequence[Group], axis: str) -> dict[str, list[Group]]:
    """Return the groups by their task, in order; `axis` is the axis that says the task.

    Raises:
        UserError: the groups have no such axis, or only one task.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        if axis not in group.axes:
            raise UserError(f"--average_over {axis}: it is none of the axes {', '.join(group.axes)}.")
        found.setdefault(group.axes[axis], []).append(group)
    if len(found) < 2:
        raise UserError(f"--average_over {axis}: all runs have the same value, {next(iter(found))}.")
    return found


def without_axis(group: Group, axis: str) -> dict[str, str]:
    """Return the values of a group on the other axes."""
    return {name: item for name, item in group.axes.items() if name != axis}


def label_of(axes: Mapping[str, str]) -> str:
    """Return the label of a group from its values on the axes other than the task."""
    return ", ".join(axes.values())


def over_tasks(
    tasks: Mapping[str, Sequence[Group]], axis: str, metric: str | None
) -> tuple[list[Group], list[Figure], list[str]]:
    """Return groups whose runs stand for one seed on all tasks, the columns, and remarks on what the scores are.

    A score is the mean of the main metrics of a run. A seed has an average only if it has finished all tasks.

    Args:
        tasks: the groups of each task.
        axis: the axis that says the task.
        metric: metric to use for all tasks, instead of the main metrics of each.

    Raises:
        UserError: a run has no score.
    """
    merged: dict[str, Group] = {}
    runs: dict[str, dict[int | None, dict[str, Run]]] = {}
    metrics: dict[str, list[str]] = {}
    for task, groups in tasks.items():
        for group in groups:
            axes = without_axis(group, axis)
            name = label_of(axes)
            merged.setdefault(name, Group(name, axes, [])).failed.extend(group.failed)
            for run in group.runs:
                runs.setdefault(name, {}).setdefault(run.seed, {})[task] = run
                metrics.setdefault(task, main_metrics(run, metric))
    for name, group in merged.items():
        by_seed = runs.get(name, {})
        seeds = sorted(by_seed, key=lambda seed: -1 if seed is None else seed)
        group.runs = [_combined(by_seed[seed], seed, list(tasks), metrics, group.axes) for seed in seeds]
    finished = [run for group in merged.values() for run in group.runs]
    scores = [Figure(AVERAGE, f"average over {len(tasks)} tasks, points", "higher", "quality")]
    scores += [figure(SCORE + task) for task in tasks]
    costs = [figure(name) for name in SHOWN if any(value(run.record, name) is not None for run in finished)]
    return list(merged.values()), scores + costs, _remarks(tasks, metrics)


def _combined(
    parts: Mapping[str, Run], seed: int | None, tasks: Sequence[str], metrics: Mapping[str, Sequence[str]], axes: Any
) -> Run:
    """Return the run that stands for the runs of one seed on several tasks."""
    found = {task: _score(run, metrics[task]) for task, run in parts.items()}
    scores = {SCORE + task: score for task, score in found.items() if score is not None}
    steps = {SCORE + task: _resolution(run) for task, run in parts.items()}
    runs = list(parts.values())
    record: dict[str, Any] = {name: runs[0].record.get(name) for name in ("machine", "packages", "git", "adapter")}
    record |= {"seed": seed, "status": "ok"}
    if len(scores) == len(tasks):
        scores[AVERAGE] = fmean(scores.values())
        steps[AVERAGE] = math.sqrt(sum(step**2 for step in steps.values())) / len(tasks)
        for names, total in ((TOTALS, math.fsum), (PEAKS, max)):
            for name in names:
                values = [value(run.record, name) for run in runs]
                record[name] = None if None in values else total(values)
    return Run(runs[0].folder, record | {"other_metrics": scores, "resolutions": steps}, dict(axes), tuple(runs))


def _score(run: Run, metrics: Sequence[str]) -> float | None:
    """Return the mean of the main metrics; None if one is unknown, as a correlation with equal values is."""
    values = [value(run.record, name) for name in metrics]
    return None if None in values else fmean(values)


def _resolution(run: Run) -> float:
    """Return the step between two possible scores: about 1 / validation rows, or 0 for a regression."""
    summary = run.record.get("data_summary") or {}
    rows = number((summary.get("rows") or {}).get("val"))
    return 1 / rows if rows and not summary.get("target_mean") else 0.0


def _remarks(tasks: Mapping[str, Any], metrics: Mapping[str, Sequence[str]]) -> list[str]:
    named = [f"{task} ({' and '.join(name.removeprefix('val_') for name in metrics.get(task, ()))})" for task in tasks]
    return [
        f"A score is the mean of the main metrics of a task on its validation rows, times 100: "
        f"{shortlist(named, 12)}. In the average each task weighs the same; a seed has one only if it finished all "
        "tasks. Seconds, steps and energy are totals over the tasks, memory and sizes the largest."
    ]
