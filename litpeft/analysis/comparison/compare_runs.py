"""From paths to a `Comparison`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from litpeft.analysis.comparison.benchmarks import asked_alike
from litpeft.analysis.comparison.caveats import cautions, unfinished
from litpeft.analysis.comparison.comparability import check_data, check_seeds, check_within, confounded
from litpeft.analysis.comparison.configs import covered_keys
from litpeft.analysis.comparison.differences import against, estimate
from litpeft.analysis.comparison.figures import choose
from litpeft.analysis.comparison.grouping import find_runs, place_by_axes, place_by_sweep
from litpeft.analysis.comparison.results import Comparison, Group, Run
from litpeft.analysis.comparison.row_tests import over_examples
from litpeft.analysis.comparison.sweep_folder import FILE, Sweep, read_sweep
from litpeft.errors import UserError

DEFAULT_AXES = ("adapter",)


def compare(
    paths: Sequence[str | Path],
    by: Sequence[str] | None = None,
    baseline: str | None = None,
    figures: Iterable[str] | None = None,
    targets: Iterable[tuple[str, float]] = (),
    examples: bool | None = None,
) -> Comparison:
    """Hold the runs below these paths against each other. Reads records only.

    Args:
        paths: run folders, folders of runs, or one folder of a sweep, which says itself what varies.
        by: what varies: record fields or dotted config keys; by default what the sweep says, else the adapter.
        baseline: label of the group that others are held against; by default the sweep's, else the first.
        figures: exactly these columns; by default quality, memory, speed and sizes as far as they are known.
        targets: (metric, value) pairs; each adds the seconds of training until it was met.
        examples: test over validation rows as well, where runs kept them; None does it where it is cheap.

    Raises:
        UserError: something cannot be read, or these runs cannot be compared.
    """
    sweeps = [found for path in paths if (found := read_sweep(Path(path)))]
    told = sweeps[0] if len(paths) == len(sweeps) == 1 else None
    sweep = told if by is None else None  # what a sweep says of its axes; the rest holds in any case
    runs = find_runs(paths)
    axes = list(sweep.axes if sweep else by or DEFAULT_AXES)
    placed, lost = place_by_sweep(runs, sweep) if sweep else place_by_axes(runs, axes)
    groups = [_group(label, found, sweep) for label, found in placed.items()]
    finished = [run for group in groups for run in group.runs]
    if not finished:
        raise UserError(f"{paths[0]}: none of {len(runs)} runs has ended well. {unfinished(runs[0], None)}")
    covered = covered_keys(sweep.varies if sweep else axes)
    check_seeds(groups)
    check_within(groups, axes)
    warnings = check_data(groups, covered)
    goals = dict([*(told.targets if told else ()), *targets])
    columns = choose(finished, told.metric if told else None, figures, goals.items())
    columns, unlike = asked_alike(finished, columns, figures is not None)
    warnings += unlike
    for group in groups:
        group.estimates = estimate(group, columns)
    base = _baseline(groups, baseline, sweep)
    if base:
        against(groups, base, columns)
        warnings += over_examples(groups, base, columns, examples)
    return Comparison(
        title=told.title if told else _title(runs, paths),
        question=told.question if told else None,
        axes=axes,
        figures=columns,
        groups=groups,
        baseline=base.label if base else None,
        published=told.published if told else None,
        warnings=[*_not_shown(lost, sweep), *_missing(groups, sweep), *warnings, *cautions(groups, base, columns)],
        confounded=confounded(groups, covered),
    )


def _group(label: str, runs: Sequence[Run], sweep: Sweep | None) -> Group:
    good = [run for run in runs if run.record.get("status") == "ok"]
    good.sort(key=lambda run: -1 if run.seed is None else run.seed)
    failed = [run for run in runs if run.record.get("status") != "ok"]
    planned = {trial.label: trial.axes for trial in sweep.trials} if sweep else {}
    return Group(label, dict(planned[label] if sweep else runs[0].axes), good, failed)


def _baseline(groups: Sequence[Group], asked: str | None, sweep: Sweep | None) -> Group | None:
    """The group that others are held against; None where there is no other."""
    label = asked if asked is not None else sweep.baseline if sweep else None
    if label is None:
        filled = [group for group in groups if group.runs]
        return filled[0] if len(groups) > 1 else None
    labels = {group.label: group for group in groups}
    if label not in labels:
        where = "--baseline" if asked is not None else f"{sweep.folder / FILE}: baseline"
        raise UserError(f"{where} {label}: no such group; there are {', '.join(labels)}.")
    if asked is not None and not labels[label].runs:
        raise UserError(f"--baseline {label}: none of its runs has ended well.")
    return labels[label] if len(groups) > 1 else None


def _title(runs: Sequence[Run], paths: Sequence[str | Path]) -> str:
    names = list(dict.fromkeys(str(run.record["experiment"]) for run in runs if run.record.get("experiment")))
    return ", ".join(names[:3]) or Path(paths[0]).resolve().name


def _not_shown(lost: Sequence[Run], sweep: Sweep | None) -> list[str]:
    if sweep:
        return [f"Left out: {run.folder} is no trial of this sweep." for run in lost]
    return [unfinished(run, None) for run in lost]


def _missing(groups: Sequence[Group], sweep: Sweep | None) -> list[str]:
    """Trials of a sweep that have not been run."""
    if sweep is None:
        return []
    there: Mapping[str, set[int | None]] = {
        group.label: {run.seed for run in [*group.runs, *group.failed]} for group in groups
    }
    gaps = [f"{label} (seed {seed})" for label, seeds in there.items() for seed in sweep.seeds if seed not in seeds]
    more = f" and {len(gaps) - 6} more" if len(gaps) > 6 else ""
    return [f"Not yet run: {', '.join(gaps[:6])}{more}."] if gaps else []
