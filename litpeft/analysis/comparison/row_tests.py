"""Differences over rows or items, where runs kept what each gave: these are many where the seeds are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.benchmarks import items
from litpeft.analysis.comparison.differences import Tested, judge, pairs
from litpeft.analysis.comparison.results import Figure, Group, Run
from litpeft.analysis.stats import mcnemar, paired_bootstrap
from litpeft.errors import UserError
from litpeft.runs.record import in_folder
from litpeft.runs.record_schema import VAL_EXAMPLES, misfit
from litpeft.runs.safe_read import read_json_file

KEPT = {"val_accuracy": "correct", "val_loss": "loss"}  # figure -> its name in the file of rows
Read = Callable[[str], dict[str, Any]]  # run folder -> its file of rows
CHEAP_BYTES = 8 * 2**20  # of files, that are read without being asked for
MCNEMAR, BOOTSTRAP = "McNemar over examples", "paired bootstrap over examples"


def over_examples(groups: Sequence[Group], baseline: Group, figures: Sequence[Figure], asked: bool | None) -> list[str]:
    """Fill in each group's differences to the baseline over the rows, or items of a benchmark, that both were asked.

    Args:
        groups: all of them.
        baseline: the one that others are held against.
        figures: of them, val_accuracy, val_loss and means over the items of a benchmark are tested.
        asked: True reads all files, False none, None those that are few and small.

    Returns:
        What to warn of.

    Raises:
        UserError: they were asked for and no run kept them, or a file cannot be read.
    """
    runs = [run for group in groups for run in group.runs if _files(run)]
    if asked is False or (asked is None and not _cheap(runs)):
        return []
    if asked and not runs:
        raise UserError(
            "--examples: no run kept what its rows gave; fit with --record.predictions or --benchmarks.keep_items."
        )
    read = cache(lambda folder: _rows(next(run for run in runs if str(run.folder) == folder)))
    warnings: dict[str, None] = {}
    for figure in figures:
        tests = {}
        for group in groups:
            if group is not baseline and (tested := _tested(group, baseline, figure, read, warnings)):
                tests[group.label] = tested
        judged = judge(tests, figure)
        for group in groups:
            if group.label in judged:
                group.over_examples[figure.name] = judged[group.label]
    return list(warnings)


def _tested(group: Group, baseline: Group, figure: Figure, read: Read, warnings: dict[str, None]) -> Tested | None:
    """McNemar's test where one seed has rows that are right or wrong; else the bootstrap of the mean over seeds."""
    first, second = [], []
    for run, other in pairs(group, baseline):
        if figure.name not in KEPT:
            own, theirs = items(run, figure.name), items(other, figure.name)
            if own is None or theirs is None or own[0] != theirs[0]:
                continue
            rows, others = own[1], theirs[1]
        elif not (run.record.get("val_examples") and other.record.get("val_examples")):
            continue
        else:
            own, theirs = read(str(run.folder)), read(str(other.folder))
            if own["table"] != theirs["table"] or None in (own["step"], theirs["step"]):
                warnings[
                    f"{group.label}, seed {run.seed}: its rows are not those of {baseline.label}, or not of the "
                    "validation that the record tells; left out of the tests over examples."
                ] = None
                continue
            rows, others = own[KEPT[figure.name]], theirs[KEPT[figure.name]]
        if None in (rows or ()) or None in (others or ()):
            told = f"{group.label} or {baseline.label}, seed {run.seed}: {figure.name} of some row is no number"
            warnings[f"{told}; left out of the tests over examples."] = None
            continue
        if rows and others and len(rows) == len(others) and (not first or len(rows) == len(first[0])):
            first.append(rows)
            second.append(others)
    if not first:
        return None
    if len(first) == 1 and set(first[0]) | set(second[0]) <= {0, 1}:  # right or wrong
        return Tested(MCNEMAR, mcnemar(first[0], second[0]), 1)
    return Tested(BOOTSTRAP, paired_bootstrap(first, second), len(first))


def _files(run: Run) -> list[Path]:
    """What a run kept of its rows and items."""
    rows = run.record.get("val_examples")
    kept = sorted((run.folder / "benchmark_items").glob("*.json")) if run.record.get("benchmarks") else []
    return [*([in_folder(run.folder, rows)] if rows else []), *kept]


def _cheap(runs: Sequence[Run]) -> bool:
    try:
        return sum(path.stat().st_size for run in runs for path in _files(run)) <= CHEAP_BYTES
    except OSError:
        return False


def _rows(run: Run) -> dict[str, Any]:
    """The file of a run; its step is None where it is not the validation that the record tells."""
    path = in_folder(run.folder, run.record["val_examples"])
    rows = read_json_file(path)
    if told := misfit(rows or {}, VAL_EXAMPLES):
        raise UserError(f"{path} does not hold step, table and loss of validation rows: {told}.")
    same = rows["step"] == run.record["val_step"]
    return {"table": rows["table"], "loss": rows["loss"], "correct": rows.get("correct")} | {
        "step": rows["step"] if same else None
    }
