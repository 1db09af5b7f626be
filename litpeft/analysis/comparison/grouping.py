"""Find runs and group them by axes or by the trials of a sweep."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from litpeft.analysis.comparison.configs import ABSENT, short_key, value_as_text, value_of
from litpeft.analysis.comparison.number_format import UNKNOWN
from litpeft.analysis.comparison.results import Run
from litpeft.analysis.comparison.sweep_folder import FILE, TUNING, Sweep
from litpeft.errors import UserError
from litpeft.runs.record import FILE_NAME
from litpeft.runs.record_index import RecordFolder
from litpeft.runs.strategy_names import shown_name

# axes whose value is clear without the name of the axis
NAMED_BY_VALUE = ("adapter", "data", "model_name", "optimizer", "scheduler", "task", "run_name", "experiment")
SET_WITH_OPTIMIZER = {"optimizer", "scheduler", "effective_batch_size"}  # null until the optimizer is built
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.(?P<name>[A-Z]\w*)")


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Return the runs in and below these folders, each once, in order of their paths.

    Raises:
        UserError: a path is not a folder, has no run below it, or a record cannot be read.
    """
    searched, found = [], dict[str, tuple[RecordFolder, str, Path]]()
    for path in map(Path, paths):
        path = path.parent if path.name == FILE_NAME else path
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders, or folders that contain run folders.")
        below = RecordFolder(path, skip=(FILE, TUNING))  # no results: these runs only chose values for the trials
        if not below.runs:
            raise UserError(
                f"{path}: no {FILE_NAME} in it or below it; give run folders, or folders that contain run folders."
            )
        searched.append(below)
        real = os.path.realpath(path)
        found |= {os.path.join(real, run).rstrip(os.sep): (below, run, path / run) for run in below.runs}
    runs = [Run(folder, below.record(run, folder), {}) for below, run, folder in found.values()]
    for below in searched:
        below.save()
    return runs


def group_by_axes(runs: Sequence[Run], axes: Sequence[str]) -> tuple[dict[str, list[Run]], list[Run]]:
    """Return ({label: runs}, runs that failed before their axis values were known); sets `axes` of the runs.

    Groups are sorted by their values: full fine-tuning first, then numbers by size, then names.
    """
    values = {id(run): [value_of(run, axis) for axis in axes] for run in runs}
    names = [_names([values[id(run)][i] for run in runs], axis) for i, axis in enumerate(axes)]
    texts = {key: [name[_key(item)] for name, item in zip(names, row, strict=True)] for key, row in values.items()}
    groups: dict[str, list[Run]] = {}
    unknown = []
    for run in sorted(runs, key=lambda run: list(map(_order, values[id(run)], texts[id(run)]))):
        not_started = run.record.get("optimizer") is None and SET_WITH_OPTIMIZER.intersection(axes)
        if run.record.get("status") != "ok" and (not_started or not run.record.get("config")):
            unknown.append(run)
            continue
        run.axes = {short_key(axis): item for axis, item in zip(axes, texts[id(run)], strict=True)}
        groups.setdefault(_label(run.axes), []).append(run)
    return groups, unknown


def group_by_sweep(runs: Sequence[Run], sweep: Sweep) -> tuple[dict[str, list[Run]], list[Run]]:
    """Return ({label: runs} in the order of the sweep, runs that belong to no trial); sets `axes` of the runs."""
    groups: dict[str, list[Run]] = {trial.label: [] for trial in sweep.trials}
    others = []
    for run in runs:
        if trial := sweep.trial_of(run.folder):
            run.axes = dict(trial.axes)
            groups[trial.label].append(run)
        else:
            others.append(run)
    return groups, others


def _names(values: Iterable[Any], axis: str) -> dict[str, str]:
    """Return {value: text}; a class is shown without its module unless two modules have a class of this name."""
    long = {_key(item): UNKNOWN if item is ABSENT else value_as_text(item) for item in values}
    if axis == "adapter":
        long = {key: shown_name(text) for key, text in long.items()}
    last = {key: match["name"] if (match := CLASS_PATH.fullmatch(text)) else text for key, text in long.items()}
    taken = list(last.values())
    return {key: last[key] if taken.count(last[key]) == 1 else text for key, text in long.items()}


def _key(item: Any) -> str:
    return f"{type(item).__name__}:{item}"


def _label(axes: Mapping[str, str]) -> str:
    """Return the label of a group, such as `lora, lr=0.003`."""
    parts = [item if axis in NAMED_BY_VALUE else f"{axis.rpartition('.')[2]}={item}" for axis, item in axes.items()]
    return ", ".join(parts)


def _order(item: Any, name: str) -> tuple[int, float, str]:
    """Return the sort key of a value: full fine-tuning, numbers by size, everything else by name."""
    if item == "none":
        return 0, 0, ""
    return (1, item, "") if isinstance(item, (int, float)) else (2, 0, name)
