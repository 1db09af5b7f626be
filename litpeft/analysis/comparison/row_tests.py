"""Test differences over validation rows and benchmark items, for runs that saved the result of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.benchmarks import item_scores
from litpeft.analysis.comparison.differences import Tested, corrected_differences, margin_from, pairs
from litpeft.analysis.comparison.margins import Margin
from litpeft.analysis.comparison.results import Figure, Group, Run
from litpeft.analysis.stats import mcnemar, paired_bootstrap
from litpeft.errors import UserError
from litpeft.runs.record import path_in_run_folder
from litpeft.runs.record_schema import VAL_EXAMPLES, schema_error
from litpeft.runs.safe_read import read_json_file

ROW_VALUES = {"val_accuracy": "correct", "val_loss": "loss"}  # figure -> name in the file of row results
Read = Callable[[str], dict[str, Any]]  # run folder -> row results
CHEAP_BYTES = 8 * 2**20  # files up to this total size are read by default
MCNEMAR, BOOTSTRAP = "McNemar over examples", "paired bootstrap over examples"


def add_row_differences(
    groups: Sequence[Group],
    baseline: Group,
    figures: Sequence[Figure],
    requested: bool | None,
    margins: Mapping[str, Margin],
) -> list[str]:
    """Set the differences of each group from the baseline over the same validation rows or benchmark items.

    Tested are val_accuracy, val_loss and means over benchmark items; `requested` None: only if the files are small.
    Returns warnings.

    Raises:
        UserError: `requested` is True and no run saved row results, or a file cannot be read.
    """
    if requested is False:
        return []
    runs = [run for group in groups for run in group.runs if _has_files(run)]
    if requested and not runs:
        raise UserError(
            "--examples: no run saved row results; run fit with --record.predictions or --benchmarks.keep_items."
        )
    if not runs or (requested is None and not _cheap(runs)):
        return []
    by_folder = {str(run.folder): run for run in runs}
    read = cache(lambda folder: _rows(by_folder[folder]))
    by_label = {group.label: group for group in groups}
    warnings: dict[str, None] = {}
    for figure in figures:
        tests = {}
        margin = margin_from(baseline, figure, margins)
        for group in groups:
            if group is not baseline and (test := _test(group, baseline, figure, read, warnings, margin)):
                tests[group.label] = test
        for label, difference in corrected_differences(tests, figure, margin).items():
            by_label[label].over_examples[figure.name] = difference
    return list(warnings)


def _test(
    group: Group, baseline: Group, figure: Figure, read: Read, warnings: dict[str, None], margin: float | None
) -> Tested | None:
    """Run McNemar's test for one seed with right or wrong rows, else the bootstrap of the mean over seeds."""
    first, second = [], []
    for run, other in pairs(group, baseline):
        if figure.name not in ROW_VALUES:
            found, base_found = item_scores(run, figure.name), item_scores(other, figure.name)
            if found is None or base_found is None or found[0] != base_found[0]:
                continue
            rows, base_rows = found[1], base_found[1]
        elif not (run.record.get("val_examples") and other.record.get("val_examples")):
            continue
        else:
            saved, base_saved = read(str(run.folder)), read(str(other.folder))
            if saved["table"] != base_saved["table"] or None in (saved["step"], base_saved["step"]):
                warnings[
                    f"{group.label}, seed {run.seed}: its row results have other rows than {baseline.label}, or "
                    "another step than the record; left out of the tests over rows."
                ] = None
                continue
            rows, base_rows = saved[ROW_VALUES[figure.name]], base_saved[ROW_VALUES[figure.name]]
        if None in (rows or ()) or None in (base_rows or ()):
            reason = f"{group.label} or {baseline.label}, seed {run.seed}: {figure.name} of a row is NaN or infinite"
            warnings[f"{reason}; left out of the tests over rows."] = None
            continue
        if rows and base_rows and len(rows) == len(base_rows) and (not first or len(rows) == len(first[0])):
            first.append(rows)
            second.append(base_rows)
    if not first:
        return None
    if len(first) == 1 and set(first[0]) | set(second[0]) <= {0, 1}:  # right or wrong
        return Tested(MCNEMAR, mcnemar(first[0], second[0], margin), 1)
    return Tested(BOOTSTRAP, paired_bootstrap(first, second, margin=margin), len(first))


def _has_files(run: Run) -> bool:
    return bool(run.record.get("val_examples") or (run.record.get("benchmarks") and _files(run)))


def _files(run: Run) -> list[Path]:
    """Return the files of row results and item scores of a run."""
    rows = run.record.get("val_examples")
    items = sorted((run.folder / "benchmark_items").glob("*.json")) if run.record.get("benchmarks") else []
    return [*([path_in_run_folder(run.folder, rows)] if rows else []), *items]


def _cheap(runs: Sequence[Run]) -> bool:
    total = 0
    for run in runs:
        try:
            total += sum(path.stat().st_size for path in _files(run))
        except OSError:
            return False
        if total > CHEAP_BYTES:  # before the files of thousands of runs are looked for
            return False
    return True


def _rows(run: Run) -> dict[str, Any]:
    """Read the row results of a run; step is None if it is not the validation step in the record."""
    path = path_in_run_folder(run.folder, run.record["val_examples"])
    rows = read_json_file(path)
    if error := schema_error(rows or {}, VAL_EXAMPLES):
        raise UserError(f"{path} is not a valid file of row results: {error}.")
    same = rows["step"] == run.record["val_step"]
    return {"table": rows["table"], "loss": rows["loss"], "correct": rows.get("correct")} | {
        "step": rows["step"] if same else None
    }
