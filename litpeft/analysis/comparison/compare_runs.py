"""Build a `Comparison` from paths of run folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from litpeft.analysis.comparison.benchmarks import comparable_figures
from litpeft.analysis.comparison.caveats import caveats, describe_unfinished, own_rates, shortlist
from litpeft.analysis.comparison.comparability import check_data, check_groups, check_seeds, confounded
from litpeft.analysis.comparison.configs import covered_keys, known_axes, short_key
from litpeft.analysis.comparison.differences import add_differences, estimate
from litpeft.analysis.comparison.figures import choose
from litpeft.analysis.comparison.grouping import find_runs, group_by_axes, group_by_sweep
from litpeft.analysis.comparison.margins import Margin, check_margins
from litpeft.analysis.comparison.over_tasks import label_of, over_tasks, task_groups, without_axis
from litpeft.analysis.comparison.results import Comparison, Figure, Group, Run
from litpeft.analysis.comparison.row_tests import add_row_differences
from litpeft.analysis.comparison.sweep_folder import FILE, Sweep, read_sweep, with_shown_names
from litpeft.analysis.comparison.tuning import tuning_sentences
from litpeft.errors import UserError
from litpeft.runs.strategy_names import shown_label

DEFAULT_AXES = ("adapter",)


def compare(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    by: Sequence[str] | None = None,
    baseline: str | None = None,
    figures: Iterable[str] | None = None,
    targets: Iterable[tuple[str, float]] = (),
    examples: bool | None = None,
    average_over: str | None = None,
    margins: Mapping[str, Margin] | None = None,
    prefer: Literal["memory", "time"] = "memory",
    relative: bool = False,
) -> Comparison:
    """Compare the runs below these paths; reads result files only, no checkpoints.

    A folder with 1,000 records or more gets an index, `.record_index`, which makes the next comparison faster.

    Args:
        paths: run folders, folders of runs, or the folder of one sweep; one of them, or several.
        by: axes that define the groups, as record fields or dotted config keys; default: the axes of the sweep, else
            the adapter.
        baseline: label of the baseline group; default: the baseline of the sweep, else the first group
            with a finished run.
        figures: names of the columns; default: quality, memory, speed and sizes that the records have.
        targets: (metric, value) pairs; each adds a column with the seconds of training until the metric reached value.
        examples: test over validation rows too, if runs kept their results; None: only if the files are small.
        average_over: the axis that says the task: the columns are then the score of each task and their average;
            default: that of the sweep.
        margins: smallest difference that matters, by figure; default: one point of an accuracy or other score, 1 % of a
            loss, 5 % of a cost.
        prefer: cost that the recommendation minimises.
        relative: show costs as ratios to the baseline.

    Raises:
        UserError: a file cannot be read, or the runs are not comparable.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    sweeps = [found for path in paths if (found := read_sweep(Path(path)))]
    described = sweeps[0] if len(paths) == len(sweeps) == 1 else None  # gives title, question, targets, metric
    runs = find_runs(paths)
    sweep = with_shown_names(described, runs) if described and by is None else None  # gives axes, groups, baseline
    over = average_over or (sweep.average_over if sweep else None)
    axes = list(sweep.axes if sweep else by or DEFAULT_AXES)
    axes += [over] if over and not sweep and over not in axes else []
    axes = axes if sweep else known_axes(axes, runs)
    by_label, left_out = group_by_sweep(runs, sweep) if sweep else group_by_axes(runs, axes)
    groups = [_group(label, members, sweep) for label, members in by_label.items()]
    finished = [run for group in groups for run in group.runs]
    if not finished:
        raise UserError(f"{paths[0]}: none of {len(runs)} runs has finished. {describe_unfinished(runs[0], None)}")
    covered = covered_keys(sweep.varies if sweep else axes)
    check_seeds(groups)
    check_groups(groups, axes)
    metric, not_run, remarks = described.metric if described else None, _not_run(groups, sweep), list[str]()
    if over:
        _check_over(over, targets, examples)
        tasks = task_groups(groups, short_key(over))
        warnings = list(dict.fromkeys(text for each in tasks.values() for text in check_data(each, covered)))
        mixed = _confounded_over_tasks(tasks, short_key(over), covered)
        wanted = _label_over_tasks(groups, short_key(over), baseline or (sweep.baseline if sweep else None))
        groups, columns, remarks = over_tasks(tasks, short_key(over), metric)
        columns, axes = _named(columns, figures), [axis for axis in axes if short_key(axis) != short_key(over)]
        base = _baseline(groups, wanted, None)
    else:
        warnings, mixed = check_data(groups, covered), confounded(groups, covered)
        goals = dict([*(described.targets if described else ()), *targets])
        columns = choose(finished, metric, figures, goals.items())
        columns, skipped = comparable_figures(finished, columns, figures is not None)
        warnings += skipped
        base = _baseline(groups, baseline, sweep)
    chosen, edges = tuning_sentences(sweep) if sweep else ([], [])
    for group in groups:
        group.estimates = estimate(group, columns)
    check_margins(margins or {}, columns)
    if base:
        add_differences(groups, base, columns, margins or {})
        warnings += [] if over else add_row_differences(groups, base, columns, examples, margins or {})
    cautions = caveats(groups, base, columns, is_untuned=not chosen)
    return Comparison(
        title=described.title if described else _title(runs, paths),
        question=described.question if described else None,
        axes=axes,
        figures=columns,
        groups=groups,
        baseline=base.label if base else None,
        published=described.published if described else None,
        warnings=[*_left_out(left_out, sweep), *not_run, *edges, *warnings, *cautions],
        confounded=mixed,
        remarks=[*remarks, *(chosen or own_rates(groups))],
        prefer=prefer,
        relative=relative,
        tuned={trial.label: trial.tuned for trial in sweep.trials if trial.tuned} if sweep else {},
    )


def _confounded_over_tasks(
    tasks: Mapping[str, Sequence[Group]], axis: str, covered: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return the options in which groups differ within a task, with the labels that groups have without the task."""
    found: dict[str, dict[str, str]] = {}
    for groups in tasks.values():
        labels = {group.label: label_of(without_axis(group, axis)) for group in groups}
        for key, values in confounded(groups, covered).items():
            found.setdefault(key, {}).update({labels[label]: value for label, value in values.items()})
    return found


def _check_over(axis: str, targets: Iterable[tuple[str, float]], examples: bool | None) -> None:
    """Raise a UserError for options that have no meaning for an average over tasks."""
    for option, given in (("--target", list(targets)), ("--examples", examples)):
        if given:
            raise UserError(f"--average_over {axis}: {option} is for runs of one task; leave one of the two out.")


def _named(columns: list[Figure], names: Iterable[str] | None) -> list[Figure]:
    """Return the columns with these names, in their order; all of them without names."""
    if names is None:
        return columns
    known = {column.name: column for column in columns}
    for name in (names := list(names)):
        if name not in known:
            raise UserError(f"--figures {name}: an average over tasks has {', '.join(known)}.")
    return [known[name] for name in names]


def _label_over_tasks(groups: Sequence[Group], axis: str, label: str | None) -> str | None:
    """Return the label of a baseline without its task; None for none, and a label that has no task unchanged."""
    found = next((group for group in groups if label is not None and group.label in (label, shown_label(label))), None)
    return label if found is None else label_of(without_axis(found, axis))


def _group(label: str, runs: Sequence[Run], sweep: Sweep | None) -> Group:
    finished = [run for run in runs if run.record.get("status") == "ok"]
    finished.sort(key=lambda run: -1 if run.seed is None else run.seed)
    failed = [run for run in runs if run.record.get("status") != "ok"]
    planned = {trial.label: trial.axes for trial in sweep.trials} if sweep else {}
    return Group(label, dict(planned[label] if sweep else runs[0].axes), finished, failed)


def _baseline(groups: Sequence[Group], requested: str | None, sweep: Sweep | None) -> Group | None:
    """Return the baseline group; None if there is only one group."""
    label = requested if requested is not None else sweep.baseline if sweep else None
    if label is None:
        filled = [group for group in groups if group.runs]
        return filled[0] if len(groups) > 1 else None
    labels = {group.label: group for group in groups}
    base = labels.get(label) or labels.get(shown_label(label))
    if base is None:
        where = "--baseline" if requested is not None else f"{sweep.folder / FILE}: baseline"
        raise UserError(f"{where} {label}: no such group; there are {', '.join(labels)}.")
    if requested is not None and not base.runs:
        raise UserError(f"--baseline {label}: none of its runs has finished.")
    return base if len(groups) > 1 else None


def _title(runs: Sequence[Run], paths: Sequence[str | Path]) -> str:
    names = list(dict.fromkeys(str(run.record["experiment"]) for run in runs if run.record.get("experiment")))
    return ", ".join(names[:3]) or Path(paths[0]).resolve().name


def _left_out(runs: Sequence[Run], sweep: Sweep | None) -> list[str]:
    if sweep:
        return [f"Left out: {run.folder} is not a trial of this sweep." for run in runs]
    return [describe_unfinished(run, None) for run in runs]


def _not_run(groups: Sequence[Group], sweep: Sweep | None) -> list[str]:
    """List the trials of a sweep that have not been run."""
    if sweep is None:
        return []
    found = {group.label: {run.seed for run in [*group.runs, *group.failed]} for group in groups}
    gaps = [f"{label} (seed {seed})" for label, seeds in found.items() for seed in sweep.seeds if seed not in seeds]
    return [f"Not yet run: {shortlist(gaps, 6)}."] if gaps else []
